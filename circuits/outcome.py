"""What a model is like with some heads removed: context dependence, accuracy per group, calibration.

One :class:`Outcome` holds per-image values, so that every number gets an interval and differences are paired.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from circuits.head_scores import Mode, joint_logits
from circuits.information import (
    ORIGINAL,
    WITHOUT_CONTEXT,
    Fill,
    background_influence_ratio,
    information,
    mean_of_ratios,
)
from mechvis import stats
from mechvis.axes import Mask
from mechvis.data.images import ImageSet
from mechvis.means import Means
from mechvis.metrics import jensen_shannon
from mechvis.progress import track
from mechvis.units import Unit

CALIBRATION_BINS = 15


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """Per-image values of one (possibly pruned) model on one image set; arrays `[image]`."""

    heads: tuple[str, ...]
    """Heads that are removed."""
    big: np.ndarray
    """Background information gain, nats."""
    fig: np.ndarray
    """Foreground information gain, nats."""
    correct: np.ndarray
    """1 where the image is classified as labelled."""
    object_only: np.ndarray
    """1 where it still is without its context."""
    context_only: np.ndarray
    """1 where it still is without its object."""
    confidence: np.ndarray
    """Probability of the predicted class."""
    nll: np.ndarray
    """Negative log-likelihood of the label, nats."""
    damage: np.ndarray
    """JS between the predictions with and without these heads where only the object is visible, nats."""
    groups: np.ndarray | None
    """Group per image, where known."""

    @property
    def bir(self) -> float:
        """Background influence ratio."""
        return background_influence_ratio(self.big, self.fig)

    @property
    def group_accuracy(self) -> dict[str, float]:
        """Accuracy per group, in the order of the names."""
        if self.groups is None:
            return {}
        return {str(g): float(self.correct[self.groups == g].mean()) for g in np.unique(self.groups)}

    @property
    def worst_group(self) -> float:
        """Accuracy of the worst group (of all images, where there are no groups)."""
        return min(self.group_accuracy.values(), default=float(self.correct.mean()))

    def row(self) -> dict[str, float]:
        """All numbers, by name: shares in [0, 1], nats."""
        ratio, dropped = mean_of_ratios(self.big, self.fig)
        return {
            "heads removed": float(len(self.heads)),
            "BIR": self.bir,
            "accuracy": float(self.correct.mean()),
            "worst group": self.worst_group,
            **{f"accuracy: {group}": value for group, value in self.group_accuracy.items()},
            "object only": float(self.object_only.mean()),
            "context only": float(self.context_only.mean()),
            "calibration error": calibration_error(self.confidence, self.correct),
            "NLL": float(self.nll.mean()),
            "BIG": float(self.big.mean()),
            "FIG": float(self.fig.mean()),
            "mean ratio": ratio,
            "images without influence": float(dropped),
        }


def outcome(
    model: Any,
    images: ImageSet,
    masks: Mask,
    heads: Sequence[Unit] = (),
    *,
    mode: Mode = "zero",
    fill: Fill = "mean",
    tau: float = 1.0,
    means: Means | None = None,
) -> Outcome:
    """Measure a model with `heads` ablated together; arguments as in :func:`circuits.head_scores.score_heads`."""
    return outcomes(model, images, masks, [(heads, mode)], fill=fill, tau=tau, means=means)[0]


def outcomes(
    model: Any,
    images: ImageSet,
    masks: Mask,
    sets: Sequence[tuple[Sequence[Unit], Mode]],
    *,
    fill: Fill = "mean",
    tau: float = 1.0,
    means: Means | None = None,
    progress: bool = False,
) -> list[Outcome]:
    """One outcome per set of heads (and how they are ablated); the images are read once for all sets.

    Damage is measured against the first set, which should be the empty one.
    """
    parts: list[list[Outcome]] = [[] for _ in sets]
    with track(len(images), f"{len(sets)} selections of heads", " images", show=progress) as bar:
        for part, found in joint_logits(model, images, masks, sets, fill=fill, means=means):
            here = images[part.start : part.stop]
            for logits, (heads, _), done in zip(found, sets, parts, strict=True):
                done.append(outcome_of(logits, here, [unit.name for unit in heads], tau=tau, whole=found[0]))
            bar.update(len(part))
    return [_joined(done) for done in parts]


def _joined(parts: Sequence[Outcome]) -> Outcome:
    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    arrays = ("big", "fig", "correct", "object_only", "context_only", "confidence", "nll", "damage")
    groups = None if parts[0].groups is None else column("groups")
    return Outcome(heads=parts[0].heads, groups=groups, **{name: column(name) for name in arrays})


def outcome_of(
    logits: Tensor, images: ImageSet, heads: Sequence[str] = (), *, tau: float = 1.0, whole: Tensor | None = None
) -> Outcome:
    """The outcome from logits `[view image class]`; `whole` are those of the model with all heads, for the damage."""
    visible = [(x[WITHOUT_CONTEXT].double() / tau).softmax(-1) for x in (logits, logits if whole is None else whole)]
    labels = images.label_tensor.to(logits.device)
    found = information(logits, labels, tau=tau)
    log_q = logits[ORIGINAL].double().log_softmax(-1)
    return Outcome(
        heads=tuple(heads),
        big=found.big.cpu().numpy(),
        fig=found.fig.cpu().numpy(),
        correct=found.correct.cpu().numpy(),
        object_only=found.object_only.cpu().numpy(),
        context_only=found.context_only.cpu().numpy(),
        confidence=log_q.max(-1).values.exp().cpu().numpy(),
        nll=-log_q.gather(-1, labels[:, None])[:, 0].cpu().numpy(),
        damage=jensen_shannon(*visible).cpu().numpy(),
        groups=None if images.groups is None else np.asarray(images.groups).astype(str),
    )


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error: mean |accuracy - confidence| over equal-width bins of confidence, by bin size.

    Example:
        >>> calibration_error(np.array([0.9, 0.9]), np.array([1.0, 0.0]))
        0.4
    """
    bin_of = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(correct[bin_of == b].mean() - confidence[bin_of == b].mean()) * (bin_of == b).mean()
        for b in np.unique(bin_of)
    ]
    return float(np.round(sum(gaps), 12))


def comparison(before: Outcome, after: Outcome, *, seed: int = 0) -> list[dict[str, Any]]:
    """Before and after, with paired intervals over images for every difference.

    Returns:
        Rows with `measure`, `before`, `after`, `change`, `low`, `high`, `n`.
    """
    rows: list[dict[str, Any]] = []

    def add(measure: str, statistic: Any, columns: Sequence[tuple[np.ndarray, np.ndarray]], where: np.ndarray) -> None:
        first = [b[where] for b, _ in columns]
        second = [a[where] for _, a in columns]
        k = len(columns)

        def change(*both: np.ndarray) -> float:
            return statistic(*both[k:]) - statistic(*both[:k])

        point, low, high = stats.interval_of(change, *first, *second, seed=seed)
        rows.append(
            {
                "measure": measure,
                "before": statistic(*first),
                "after": statistic(*second),
                "change": point,
                "low": low,
                "high": high,
                "n": int(where.sum()),
            }
        )

    everyone = np.ones(len(before.big), bool)
    add("BIR", background_influence_ratio, [(before.big, after.big), (before.fig, after.fig)], everyone)
    for name, field in (
        ("BIG (nats)", "big"),
        ("FIG (nats)", "fig"),
        ("accuracy", "correct"),
        ("accuracy, object only", "object_only"),
        ("accuracy, context only", "context_only"),
        ("NLL (nats)", "nll"),
    ):
        add(name, _mean, [(getattr(before, field), getattr(after, field))], everyone)
    if before.groups is not None:
        for group in np.unique(before.groups):
            add(f"accuracy: {group}", _mean, [(before.correct, after.correct)], before.groups == group)
    rows.append(
        {
            "measure": "worst group",
            "before": before.worst_group,
            "after": after.worst_group,
            "change": after.worst_group - before.worst_group,
            "low": None,
            "high": None,
            "n": len(before.big),
        }
    )
    error = [calibration_error(o.confidence, o.correct) for o in (before, after)]
    rows.append(
        {
            "measure": "calibration error",
            "before": error[0],
            "after": error[1],
            "change": error[1] - error[0],
            "low": None,
            "high": None,
            "n": len(before.big),
        }
    )
    return rows


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values))
