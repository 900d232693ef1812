"""Shapley values of concepts: mean gain over all orders in which they can join (methods2.md 18.7; **K**, **P**).

Up to 10 concepts all `2^K` sets are asked and the values are exact. Beyond, orders are drawn in pairs of an order and
its reverse, which is exact wherever concepts interact at most two by two, and always adds up to the whole:
`sum_i phi_i = value(all) - value(none)`.
"""

from math import factorial

import numpy as np
import torch
from jaxtyping import Float

from mechvis.errors import OutOfRange
from probes.concepts.game import Game


def shapley(
    game: Game, *, permutations: int = 32, exact: int = 10, seed: int = 0
) -> Float[np.ndarray, "image concept"]:
    """Shapley values of a game's concepts.

    Args:
        game: what is asked.
        permutations: orders that are drawn; each is also run backwards.
        exact: up to so many concepts, ask all sets.
        seed: of the orders.

    Raises:
        OutOfRange: no permutation, or more than 20 concepts asked for exactly.
    """
    if permutations < 1 or exact > 20:
        raise OutOfRange(f"permutations={permutations} must be 1 or more, exact={exact} at most 20 (2^20 answers).")
    return all_sets(game) if game.n_concepts <= exact else drawn_orders(game, permutations, seed)


def all_sets(game: Game) -> Float[np.ndarray, "image concept"]:
    """Exact values from the answers to all sets of concepts."""
    k = game.n_concepts
    sets = (np.arange(2**k)[:, None] >> np.arange(k)) & 1
    answers = game.on_every_image(torch.from_numpy(sets).to(game.codes.dtype))
    size = sets.sum(1)
    weights = np.array([factorial(s) * factorial(k - s - 1) / factorial(k) for s in range(k)])
    found = np.empty((game.n_images, k))
    for concept in range(k):
        without = np.flatnonzero(sets[:, concept] == 0)
        gain = answers[:, without + (1 << concept)] - answers[:, without]
        found[:, concept] = gain @ weights[size[without]]
    return found


def drawn_orders(game: Game, permutations: int, seed: int) -> Float[np.ndarray, "image concept"]:
    """Values from drawn orders, each also backwards."""
    k = game.n_concepts
    generator = np.random.default_rng(seed)
    found = np.zeros((game.n_images, k))
    for _ in range(permutations):
        order = generator.permutation(k)
        for path in (order, order[::-1]):
            masks = np.zeros((k + 1, k))
            for step, concept in enumerate(path):
                masks[step + 1 :, concept] = 1
            answers = game.on_every_image(torch.from_numpy(masks).to(game.codes.dtype))
            found[:, path] += np.diff(answers, axis=1)
    return found / (2 * permutations)
