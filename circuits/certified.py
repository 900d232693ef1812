"""The top heads of a CIGMA study with a guarantee, without scoring every head on every selection image.

1. Draw the selection images in one random order, stratified by class and group.
2. :func:`mechvis.certified.eliminate` decides in rounds which heads need more images, on the mean of the score that
   ranks; a round is one call of :func:`circuits.head_scores.score_heads` with the heads that are still live.
3. Score the top heads on the images that are left, so that their scores are those of the full study. Where more than
   `fresh_images` are left, on so many of them, and then these alone count: they had no part in the selection, and means
   on which it was decided when to stop are too large on average.
4. Only the top heads are *judged* (recommended, tried, removed). The others are known to be no better than the last of
   them, within the tolerance, and not more: they are neither recommended nor ruled out.

The certificate is about the mean score over the selection images that were given. It is not about other images, nor
about how many heads to remove and what that does: those are decided and measured on other images, as in every study.
"""

from dataclasses import asdict, dataclass
from math import log
from typing import Any

import numpy as np

from circuits.ranking import Ranked, Work, ranking, table, true_positives
from mechvis.certified.bounds import FIRST
from mechvis.certified.elimination import check_settings, eliminate, fresh
from mechvis.certified.order import draw
from mechvis.certified.rounds import Rounds, with_decisions
from mechvis.certified.words import certificate, facts_of
from mechvis.data.images import ImageSet
from mechvis.errors import BadData, OutOfRange, ResultMismatch
from mechvis.results import Result
from mechvis.units import units_of

RANGES = {"guarded": 3 * log(2), "cigma": 2 * log(2)}
"""Largest minus smallest possible score of an image, in nats: information gains and the damage lie in [0, ln 2]."""


@dataclass(frozen=True, kw_only=True)
class Certified:
    """What a certified study is asked for."""

    top: int = 16
    """Heads to find."""
    eps: float = 0.1
    """Tolerance, as a share of the score on rank `top`."""
    delta: float = 0.05
    """Probability with which the guarantee may fail."""
    tails: str = "guarded"
    """How means are bounded, see `mechvis.certified.bounds.TAILS`."""
    audit: float = 0.05
    """Share of heads that are measured to the end if they are rejected."""
    fresh_images: int = 1024
    """Images on which each of the top heads is scored once it is found, at most."""

    def check(self, n_heads: int, n_images: int, *, k: Any, greedy: bool, folder: Any) -> None:
        """Refuse what cannot work, before anything is computed.

        Raises:
            OutOfRange: a number out of range; `k` above `top`.
            UnknownName: no such bound.
            BadData: with `greedy`.
            ResultMismatch: the folder holds a study of all heads.
        """
        check_settings(n_heads, self.top, n_images, eps=self.eps, delta=self.delta, tails=self.tails, audit=self.audit)
        if self.fresh_images < FIRST:
            raise OutOfRange(f"fresh_images={self.fresh_images} must be at least {FIRST}, as for a decision.")
        if k != "auto" and k > self.top:
            raise OutOfRange(
                f"k={k} heads to remove, but only the top {self.top} are looked for. Raise top=, or leave out "
                "certified=True."
            )
        if greedy:
            raise BadData(
                "greedy=True scores all other heads again after each accepted one; certified=True finds the top heads "
                "of one scoring. Leave one of them out."
            )
        if folder is not None and (folder / "pieces").exists():
            raise ResultMismatch(
                f"{folder} holds a study in which every head is scored on every image. Use another output folder, or "
                "delete this one."
            )


def rank_top(work: Work, asked: Certified) -> Ranked:
    """Score the heads on as many selection images as it takes to know the top ones.

    Args:
        work: the study.
        asked: what to find.

    Returns:
        Ranked: the top heads first; scores are NaN where a head was not measured on an image.
        `scores.provenance["certificate"]` holds the guarantee and what it cost.
    """
    images, units = work.select.images, units_of(work.model, "heads")
    n_images, n_units = len(images), len(units)
    order = draw(n_images, strata_of(images), work.seed)
    plan = {"certified": {**asdict(asked), "rank_by": work.rank_by}, "seed": work.seed}

    def compute(which: np.ndarray, where: np.ndarray, number: int) -> dict[str, np.ndarray]:
        return work.score(
            f"rounds/{number:02d}",
            plan={**plan, "round": number, "live": which.tolist()},
            units=[units[i] for i in which],
            order=where,
        )

    rounds = Rounds(compute, work.rank_by)
    names = [unit.name for unit in units]
    found = eliminate(
        rounds.measure, order, n_units, asked.top, eps=asked.eps, delta=asked.delta, tails=asked.tails,
        value_range=RANGES[work.rank_by], audit=asked.audit, seed=work.seed, names=names,
    )  # fmt: skip
    first = rounds.together(n_units, order).values[work.rank_by][:, :FIRST]
    renewed, again = {}, 0
    for which, where in fresh(found, n_images, asked.fresh_images):
        rounds.measure(which, order[where.start : where.stop])
        again += len(which) * len(where)
        if where.stop < n_images:
            renewed |= dict.fromkeys(map(int, which), where.start)
    measured = rounds.together(n_units, order, renewed)
    drawn = images[measured.images]
    facts = facts_of(
        found, names, work.rank_by, n_images, {**asdict(asked), "by": "effect"}, again=again, what="mean score",
        kind="selection images",
    )  # fmt: skip
    held = "certified" if facts["certified"] else "not certified"
    scores = table(
        work, measured.values, units, drawn, f"the top {asked.top} {held} within {asked.eps:.3g}",
        {**work.where, "certificate": facts},
    )  # fmt: skip
    scores = with_decisions(scores, found, range(n_units), measured, list(renewed), work.rank_by)
    top = {names[i] for i in found.selected}
    ranked = ranking(scores, units, work.rank_by)
    judged = [unit for unit in ranked if unit.name in top]
    return Ranked(
        scores=scores,
        true_positives=true_positives(work, measured.values, units, drawn),
        order=[*judged, *(unit for unit in ranked if unit.name not in top)],
        judged=judged,
        sample=order[: first.shape[1]],
        base=first.mean(axis=1),
    )


def strata_of(images: ImageSet) -> np.ndarray | None:
    """Class and group of each image."""
    known = [np.asarray(part).astype(str) for part in (images.labels, images.groups) if part is not None]
    if len(known) == 2:
        return np.char.add(np.char.add(known[0], " "), known[1])
    return known[0] if known else None


def statement(scores: Result) -> str | None:
    """What the certificate of a study's scores says, what it covers and what it does not; None without certificate."""
    if "certificate" not in scores.provenance:
        return None
    facts = scores.provenance["certificate"]
    others = facts["units"] - facts["top"]
    return (
        f"{certificate(scores)}\n"
        "It covers which heads have the largest mean score on these selection images, and nothing else: not other "
        "images, and not how many heads to remove or what that does, for which the validation and evaluation images "
        f"are. The other {others} heads were scored on as few images as it took (column n) and are neither recommended "
        "nor ruled out."
    )
