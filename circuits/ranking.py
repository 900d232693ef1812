"""Which heads carry the context, by their scores on the selection images.

1. Score the heads (:mod:`circuits.head_scores`): all of them here, only the top ones in :mod:`circuits.certified`.
2. Rank them by the guarded score (or the paper's raw one).
3. Recommend those whose guarded score's interval lies above zero and that survive the false-discovery-rate correction
   over heads. With `greedy` heads are recommended one by one, the rest re-scored with them removed.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from circuits.head_scores import SCORES, score_heads
from circuits.study_inputs import Split
from mechvis.data.images import ImageSet
from mechvis.results import Result
from mechvis.units import Unit, units_of

SAMPLE = 64
"""Images of the second scan with another fill."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """How heads are scored, and where what is finished is kept."""

    model: Any
    """A wrapped classifier."""
    select: Split
    """Selection images with their masks."""
    options: dict[str, Any]
    """`mode`, `fill`, `tau` and `means`, as for :func:`circuits.head_scores.score_heads`."""
    run: dict[str, Any]
    """`budget` and `progress`."""
    rank_by: str
    """The score that ranks."""
    seed: int
    """Of the bootstrap, and of the order of the images."""
    where: dict[str, Any]
    """Provenance of the scores."""
    folder: Path | None = None
    """Folder of the study."""
    plan: dict[str, Any] | None = None
    """What identifies the scores there."""

    def score(self, place: str, *, plan: dict[str, Any] | None = None, **more: Any) -> dict[str, np.ndarray]:
        """Scores of heads, kept in a sub-folder; `plan`: what sets them apart from the others there."""
        if self.folder is not None:
            more |= {"folder": self.folder / place, "plan": {**(self.plan or {}), **(plan or {})}}
        given = {**self.options, **self.run, **more}
        return score_heads(self.model, self.select.images, self.select.masks.masks, **given)


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """Heads by their scores."""

    scores: Result
    """Scores of every head; the first metric ranks. A head has them on the images that it was measured on."""
    true_positives: Result | None
    """The same on correctly classified images alone; None where some head has fewer than two."""
    order: list[Unit]
    """All heads, best first."""
    judged: list[Unit]
    """Those that may be removed, best first: all, or the top of a certified study."""
    sample: np.ndarray
    """Some selection images (positions) on which every head was scored."""
    base: np.ndarray
    """Mean on the sample of the score that ranks `[unit]`."""

    @property
    def recommended(self) -> list[Unit]:
        """Heads whose guarded score is reliably above zero."""
        return [unit for unit in self.judged if reliable(self.scores, unit)]


def rank_all(work: Work) -> Ranked:
    """Score every head on every selection image."""
    values, units = work.score("pieces"), units_of(work.model, "heads")
    scores = table(work, values, units, work.select.images, "all selection images", work.where)
    # Evenly spread: image sets are often sorted by class.
    n = len(work.select.images)
    sample = np.unique(np.linspace(0, n - 1, min(SAMPLE, n)).round().astype(int))
    order = ranking(scores, units, work.rank_by)
    return Ranked(
        scores=scores,
        true_positives=true_positives(work, values, units, work.select.images),
        order=order,
        judged=order,
        sample=sample,
        base=values[work.rank_by][:, sample].mean(axis=1),
    )


def table(
    work: Work,
    values: dict[str, np.ndarray],
    units: Sequence[Unit],
    images: ImageSet,
    which: str,
    where: dict[str, Any],
    used: np.ndarray | None = None,
) -> Result:
    """Scores as a result.

    Args:
        work: the study.
        values: of `score_heads`, NaN where a head was not measured.
        units: the heads.
        images: those of the values.
        which: in words.
        where: provenance.
        used: which of the images count, bool `[image]`; default: all.
    """
    order = [work.rank_by, *(name for name in SCORES if name != work.rank_by)]
    listed = {"id": list(images.ids)}
    if images.groups is not None:
        listed["group"] = [str(group) for group in images.groups]
    shown = {name: values[name] if used is None else np.where(used[None], values[name], np.nan) for name in order}
    clean = {
        name: values[f"clean/{name}"] if used is None else values[f"clean/{name}"][used]
        for name in ("big", "fig", "correct")
    }
    return Result.from_values(
        "cigma",
        f"CIGMA head scores, {which}",
        [unit.row() for unit in units],
        shown,
        images=pl.DataFrame(listed),
        provenance=where,
        seed=work.seed,
        baseline={f"mean {name}": float(v.mean()) for name, v in clean.items()},
    )


def true_positives(work: Work, values: dict[str, np.ndarray], units: Sequence[Unit], images: ImageSet) -> Result | None:
    """Scores on the correctly classified images alone, as in the paper; None where some head has fewer than two."""
    used = values["clean/correct"] > 0
    if np.isfinite(values[work.rank_by][:, used]).sum(1).min() < 2:
        return None
    which = "correctly classified images only (as in the paper)"
    return table(work, values, units, images, which, work.where, used)


def ranking(scores: Result, units: Sequence[Unit], rank_by: str) -> list[Unit]:
    """Heads by their score, best first."""
    effect = scores.rows(rank_by)["effect"].to_numpy()
    return [units[i] for i in np.argsort(-effect, kind="stable")]


def reliable(scores: Result, unit: Unit) -> bool:
    """Is the guarded score above zero: its interval, and after the correction for the number of heads?"""
    row = scores.rows("guarded").row(by_predicate=pl.col("unit") == unit.name, named=True)
    return row["low"] is not None and row["low"] > 0 and row["significant"]


def harmful(scores: Result, unit: Unit) -> bool:
    """Does the guarded score's interval end at zero or below?"""
    row = scores.rows("guarded").row(by_predicate=pl.col("unit") == unit.name, named=True)
    return row["high"] is None or row["high"] <= 0


def greedily(work: Work, recommended: list[Unit], most: int) -> list[Unit]:
    """Accept the best head, re-score the rest with it removed, and so on, while a head's guarded score is
    reliably above zero."""
    accepted: list[Unit] = recommended[:1]
    while accepted and len(accepted) < most:
        rest = [unit for unit in units_of(work.model, "heads") if unit not in accepted]
        if not rest:
            break
        names = [unit.name for unit in accepted]
        values = work.score(f"greedy/{len(names):02d}", plan={"removed": names}, removed=accepted, units=rest)
        scores = table(work, values, rest, work.select.images, "greedy", {})
        passed = [unit for unit in ranking(scores, rest, work.rank_by) if reliable(scores, unit)]
        if not passed:
            break
        accepted.append(passed[0])
    return accepted


def stability(work: Work, ranked: Ranked) -> dict[str, float]:
    """Rank correlation of head scores under another fill and other temperatures, on some selection images."""
    found = {"images scored again": float(len(ranked.sample))}
    changes: dict[str, dict[str, Any]] = {
        "fill blur": {"fill": "blur"},
        "tau 2": {"tau": 2.0},
        "tau 5": {"tau": 5.0},
    }
    if work.options["fill"] == "blur":
        changes["fill mean"] = changes.pop("fill blur") | {"fill": "mean"}
    for name, change in changes.items():
        place = f"sensitivity/{name.replace(' ', '-')}"
        values = work.score(place, plan={"sensitivity": name, **change}, order=ranked.sample, **change, progress=False)
        if np.isfinite(rho := _spearman(ranked.base, values[work.rank_by].mean(1))):
            found[f"rank correlation, {name}"] = rho
    return found


def _spearman(first: np.ndarray, second: np.ndarray) -> float:
    """NaN where one of them is constant."""
    from scipy.stats import spearmanr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constant scores have no rank correlation; shown as missing
        return float(spearmanr(first, second).statistic)
