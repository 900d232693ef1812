"""Is an effect more than that of any unit as loud?

A unit that is replaced by its mean changes the answer a little whatever it does, and a loud one more. So each effect is
compared, image by image, with that of random units that write as much: the units of the same layer and kind nearest in
size. Two questions, by the paired sign-flip test:

* is KL larger than theirs?
* is the signed change of the task's logit another one than theirs? This is what makes it an effect *on this class*: for
  a task with shuffled classes KL is what it was, and this is gone.

Both must hold, so the larger of the two p-values is the p-value of the claim (an intersection-union test). One family
per level of the search, Benjamini-Hochberg (methods2.md 20.5, 22).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from circuits.causal_paths.effects import Effect
from mechvis import stats

_CHUNK = 2**22
"""Entries of the largest array of patterns."""


def partners(
    sizes: Float[np.ndarray, " unit"],
    groups: Int[np.ndarray, " unit"],
    candidates: Sequence[int],
    matched: int,
    seed: int,
) -> dict[int, list[int]]:
    """For each candidate the units that it is compared with: of its layer and kind, the nearest in a random pool.

    The pool of a layer has about as many units as it has candidates there (where these are few, some more), drawn near
    them in size, so that tests cost no more than what they test. Units that are candidates themselves serve only where
    there are too few others.

    Args:
        sizes: of all units.
        groups: layer and kind of each, as a number.
        candidates: positions.
        matched: how many each gets.
        seed: of the draws.

    Returns:
        Positions per candidate; fewer, or none, in a layer of few units.
    """
    generator = np.random.default_rng(seed)
    logs, chosen = np.log(sizes + 1e-30), set(candidates)
    found: dict[int, list[int]] = {}
    for group in dict.fromkeys(int(groups[place]) for place in candidates):
        own = [place for place in candidates if groups[place] == group]
        same = np.flatnonzero(groups == group)
        others = np.array([place for place in same if place not in chosen], dtype=np.int64)
        pool = same if len(others) < matched else _near(logs, own, others, matched, generator)
        for place in own:
            rest = pool[pool != place]
            nearest = rest[np.argsort(np.abs(logs[rest] - logs[place]), kind="stable")[:matched]]
            found[place] = sorted(int(other) for other in nearest)
    return found


def _near(
    logs: np.ndarray, own: Sequence[int], others: np.ndarray, matched: int, generator: np.random.Generator
) -> np.ndarray:
    """Random units near each candidate in size: as many for each as one needs where there are few candidates, one for
    each where there are many."""
    picked: set[int] = set()
    for _ in range(max(1, 2 * matched // len(own))):
        for place in own:
            near = others[np.argsort(np.abs(logs[others] - logs[place]), kind="stable")[: 2 * matched]]
            if free := [int(other) for other in near if int(other) not in picked]:
                picked.add(free[int(generator.integers(len(free)))])
    if len(picked) < matched:
        left = np.array([other for other in others if int(other) not in picked])
        picked |= {int(other) for other in generator.permutation(left)[: matched - len(picked)]}
    return np.array(sorted(picked), dtype=np.int64)


def p_values(own: Sequence[Effect], others: Sequence[Sequence[Effect]], seed: int) -> Float[np.ndarray, " unit"]:
    """p-values of "no more than units as loud, or nothing to this class"; NaN without anything to compare with.

    Args:
        own: effect of each unit or edge.
        others: of the random ones of each.
        seed: of the sign flips.
    """
    found = np.full(len(own), np.nan)
    known = [place for place, some in enumerate(others) if len(some)]
    if not known:
        return found
    more = np.stack([own[i].kl - np.mean([other.kl for other in others[i]], axis=0) for i in known])
    aside = np.stack([own[i].logit - np.mean([other.logit for other in others[i]], axis=0) for i in known])
    first = np.where(more.mean(1) > 0, sign_flips(more, seed), 1.0)
    found[known] = np.maximum(first, sign_flips(aside, seed))
    return found


def sign_flips(values: Float[np.ndarray, "unit image"], seed: int, flips: int = 10_000) -> Float[np.ndarray, " unit"]:
    """:func:`mechvis.stats.sign_flip_p` of each unit by itself, with the same random patterns for all: one product
    instead of a loop (256 units of 64 images: 10 s become 0.1). Units with zeros, which change under no flip, go the
    plain way, and so does everything where all patterns can be tried.

    Args:
        values: effects.
        seed: of the patterns.
        flips: how many.
    """
    whole = (values != 0).all(1) & (2.0 ** values.shape[1] > flips)
    found = np.empty(len(values))
    for place in np.flatnonzero(~whole):
        found[place] = stats.sign_flip_p(values[place], flips=flips, seed=seed)[0]
    if whole.any():
        moved = values[whole]
        generator = np.random.default_rng(seed)
        hits = np.zeros(len(moved), dtype=np.int64)
        bar = np.abs(moved.sum(1)) - 1e-9 * np.abs(moved).sum(1)
        step = max(1, _CHUNK // moved.shape[1])
        for start in range(0, flips, step):
            signs = 2 * generator.integers(0, 2, (min(step, flips - start), moved.shape[1])) - 1
            hits += (np.abs(signs.astype(np.float64) @ moved.T) >= bar).sum(0)
        found[whole] = (hits + 1) / (flips + 1)
    return found


def adjusted(p: Mapping[object, float]) -> dict[object, float]:
    """Benjamini-Hochberg over a family."""
    keys = list(p)
    if not keys:
        return {}
    values = stats.benjamini_hochberg(np.array([p[key] for key in keys], dtype=np.float64))
    return dict(zip(keys, values.tolist(), strict=True))
