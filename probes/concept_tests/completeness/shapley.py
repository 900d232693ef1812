"""Shapley values of a set function: how a total is shared among players, here eta among concepts.

    phi_j = sum_S |S|! (K - |S| - 1)! / K! [v(S + j) - v(S)],        sum_j phi_j = v(all) - v(none)

`exact_shapley` visits all 2^K sets. `permutation_shapley` adds players in random orders, each order followed by its
reverse (antithetic, X): whatever the number of orders, the values sum to the total exactly. `kernel_shapley` is the
estimator of the released code (**C**): random sets, weighted least squares without intercept; its sum is exact only up
to the large weight of the full set.

A value may be a vector (one entry per class): then so are the Shapley values. Each set is asked for once.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

from mechvis.errors import OutOfRange

Value = Callable[[Bool[np.ndarray, " player"]], np.ndarray]
EXACT_UP_TO = 8
"""Players up to which all sets are visited by default."""
SURE = 1e5
"""Weight of the empty and the full set in the kernel estimator (**C**)."""


class Remembered:
    """A set function that is asked for each set once."""

    def __init__(self, value: Value, players: int):
        if players < 1:
            raise OutOfRange(f"{players} players: at least one.")
        self.value, self.players, self.known = value, players, {}

    def __call__(self, chosen: Bool[np.ndarray, " player"]) -> np.ndarray:
        key = tuple(bool(one) for one in chosen)
        if key not in self.known:
            self.known[key] = np.atleast_1d(np.asarray(self.value(np.array(key)), dtype=np.float64))
        return self.known[key]


def exact_shapley(value: Value, players: int) -> Float[np.ndarray, "player out"]:
    """All sets.

    Args:
        value: bool `[player]` to a number or a vector.
        players: at most 20.

    Raises:
        OutOfRange: no player, or too many.

    Example:
        >>> exact_shapley(lambda chosen: 3.0 * chosen[0] + chosen[1], 2)[:, 0]
        array([3., 1.])
    """
    if players > 20:
        raise OutOfRange(f"{players} players have 2^{players} sets; use permutation_shapley.")
    game = Remembered(value, players)
    total = np.zeros((players, len(game(np.zeros(players, bool)))))
    for code in range(2**players):
        chosen = (code >> np.arange(players)) & 1 > 0
        size = int(chosen.sum())
        for player in np.flatnonzero(~chosen):
            more = chosen.copy()
            more[player] = True
            weight = math.factorial(size) * math.factorial(players - size - 1) / math.factorial(players)
            total[player] += weight * (game(more) - game(chosen))
    return total


def permutation_shapley(
    value: Value, players: int, *, orders: int = 20, seed: int = 0
) -> tuple[Float[np.ndarray, "player out"], Float[np.ndarray, "pair player out"]]:
    """Random orders in antithetic pairs.

    Args:
        value: as above.
        players: how many.
        orders: how many pairs of an order and its reverse.
        seed: of the orders.

    Returns:
        The values, and those of each pair, whose spread tells the sampling error.

    Raises:
        OutOfRange: no player, or no order.

    Example:
        >>> permutation_shapley(lambda chosen: 3.0 * chosen[0] + chosen[1], 2, orders=1)[0][:, 0]
        array([3., 1.])
    """
    if orders < 1:
        raise OutOfRange(f"orders={orders}: at least one pair of orders.")
    game, generator = Remembered(value, players), np.random.default_rng(seed)
    pairs = []
    for _ in range(orders):
        order = generator.permutation(players)
        pairs.append(np.mean([_along(game, order), _along(game, order[::-1])], axis=0))
    return np.mean(pairs, axis=0), np.stack(pairs)


def _along(game: Remembered, order: np.ndarray) -> Float[np.ndarray, "player out"]:
    chosen = np.zeros(game.players, bool)
    before = game(chosen)
    gains = np.zeros((game.players, len(before)))
    for player in order:
        chosen[player] = True
        after = game(chosen)
        gains[player], before = after - before, after
    return gains


def kernel_shapley(
    value: Value, players: int, *, masks: int = 100, include: float = 0.2, seed: int = 0
) -> Float[np.ndarray, "player out"]:
    """The released estimator: random sets, importance-corrected kernel, least squares.

    Args:
        value: as above.
        players: at least 2.
        masks: random sets.
        include: probability of each player to be in one.
        seed: of the sets.

    Raises:
        OutOfRange: fewer than 2 players, no sets, or a probability outside (0, 1).

    Example:
        >>> kernel_shapley(lambda chosen: 3.0 * chosen[0] + chosen[1], 2)[:, 0].round(6)
        array([3., 1.])
    """
    if players < 2 or masks < 1 or not 0 < include < 1:
        raise OutOfRange(f"players={players} (from 2), masks={masks} (from 1), include={include} (inside 0 to 1).")
    game, generator = Remembered(value, players), np.random.default_rng(seed)
    drawn = generator.random((masks, players)) < include
    sets = np.concatenate([np.zeros((1, players), bool), np.ones((1, players), bool), drawn])
    weights = np.array([_kernel(int(chosen.sum()), players, include) for chosen in sets])
    none = game(sets[0])
    gains = np.stack([game(chosen) - none for chosen in sets])
    root = np.sqrt(weights)[:, None]
    return np.linalg.lstsq(sets * root, gains * root, rcond=None)[0]


def _kernel(size: int, players: int, include: float) -> float:
    if size in (0, players):
        return SURE
    plain = (players - 1) / (math.comb(players, size) * size * (players - size))
    return plain / (include**size * (1 - include) ** (players - size))
