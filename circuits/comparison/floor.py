"""The noise floor of a circuit shift: how far two samples of the *same* images are apart.

A distance between estimated circuits is never 0: with few images, two halves of one set differ a great deal. So a shift
is read against draws (methods.md 4.3 **X**, mandatory here):

    floor_k = d( c(A_k), c(B_k) )      A_k, B_k: disjoint random subsets of the reference set, n images each
    shift_k = d( c(A_k), c(O_k) )      O_k: n images of the other set; all of it, where it has n

Everything is of one size n, since the distance falls with n. If the other set came from the same source, its shift
would be one more floor: `p` is the share of floors that reach the mean shift, (1 + count) / (1 + draws). Alarms ask for
the 99th percentile of the floor as well.

The mean over draws varies less than a single floor does, and all draws come from one reference set; both make the test
careful rather than eager on average, but a reference set that is itself unlike its source moves every draw alike.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from circuits.comparison.distances import Distance, Weights, distance
from mechvis.errors import BadData, OutOfRange

FEWEST_DRAWS = 20
"""As methods.md asks; with so few, the 99th percentile is the largest of them."""

Weigh = Callable[[Int[np.ndarray, " image"]], Weights]
"""Weights of the edges from some images of a set."""


def noise_floor(
    weigh: Weigh,
    n_images: int,
    n: int,
    *,
    kind: Distance = "spearman",
    top_mass: float = 0.95,
    draws: int = 200,
    seed: int = 0,
) -> tuple[Float[np.ndarray, " draw"], list[Weights]]:
    """Distances between disjoint random subsets of one set.

    Args:
        weigh: weights of the edges from some of the images (`EdgeScores.of`).
        n_images: images of the set.
        n: images in each subset.
        kind: distance.
        top_mass: see :func:`circuits.comparison.distances.distance`.
        draws: number of pairs.
        seed: of the draws.

    Returns:
        The distances, and the weights of the first subset of each pair.

    Raises:
        BadData: fewer than two images, or subsets that do not fit twice into the set.
        OutOfRange: fewer than 20 draws.

    Example:
        >>> floor, _ = noise_floor(scores.of, len(scores), 100)                                    # doctest: +SKIP
    """
    if draws < FEWEST_DRAWS:
        raise OutOfRange(f"draws={draws}: a noise floor needs at least {FEWEST_DRAWS}.")
    if n < 2 or 2 * n > n_images:
        raise BadData(
            f"two disjoint subsets of {n} images do not fit into a reference set of {n_images}: it needs twice as many "
            "images as the sets that it is compared with. Add images, or pass window= for smaller subsets."
        )
    generator = np.random.default_rng(seed)
    found, firsts = np.empty(draws), []
    for draw in range(draws):
        order = generator.permutation(n_images)[: 2 * n]
        first, second = weigh(np.sort(order[:n])), weigh(np.sort(order[n:]))
        found[draw] = distance(first, second, kind, top_mass=top_mass)
        firsts.append(first)
    return found, firsts


def shifts(
    weigh: Weigh,
    n_images: int,
    n: int,
    firsts: list[Weights],
    *,
    kind: Distance = "spearman",
    top_mass: float = 0.95,
    seed: int = 0,
) -> Float[np.ndarray, " draw"]:
    """Distances of another set from the reference subsets of the floor.

    Args:
        weigh: weights of the edges from some images of the other set.
        n_images: images of the other set.
        n: images of each subset, as for the floor.
        firsts: weights of the reference subsets, from :func:`noise_floor`.
        kind: distance.
        top_mass: as for the floor.
        seed: of the draws.

    Raises:
        BadData: fewer than n images.
    """
    if n > n_images:
        raise BadData(f"{n_images} images cannot be compared with subsets of {n}.")
    # Another stream than the floor's: a set of equal length must not be drawn in the very order of the reference.
    generator = np.random.default_rng([seed, 1])
    whole = weigh(np.arange(n_images)) if n == n_images else None
    found = np.empty(len(firsts))
    for draw, first in enumerate(firsts):
        other = whole if whole is not None else weigh(np.sort(generator.permutation(n_images)[:n]))
        found[draw] = distance(first, other, kind, top_mass=top_mass)
    return found


def p_value(shift: float, floor: Float[np.ndarray, " draw"]) -> float:
    """Share of floors that are at least as far apart as a shift; never below 1 / (1 + draws).

    Example:
        >>> p_value(0.5, np.array([0.1, 0.2, 0.3]))
        0.25
    """
    return float((1 + (floor >= shift).sum()) / (1 + len(floor)))
