"""Does the model tell the halves of the pairs apart? To be asked before any effect over them is believed.

For each pair (methods.md 5.8, "checks before use", **X**), with c the class of the clean image:

* `wrong_clean`: the model does not predict c on the clean image;
* `still_clean`: it predicts c on the corrupt image;
* `collapsed`: its answer on the corrupt image is none: entropy of the prediction at least twice that of the clean one.

A pair fails if any of these holds. `undistinguished` counts the pairs with one prediction for both halves (each of them
fails too).

Where we differ from the rule: a clean prediction of almost no entropy would call every ordinary answer collapsed, so
its entropy counts as at least a tenth of the largest possible one, ln(classes).
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuits.pairs.classes import PairClasses, pair_classes
from circuits.pairs.pairs import Pairs
from mechvis.errors import BadData, OutOfRange, ShapeMismatch

if TYPE_CHECKING:
    import polars as pl

LEAST_ENTROPY = 0.1
"""Share of ln(classes) that the clean entropy counts as at least."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PairCheck:
    """What the model makes of each pair. Made by :func:`check_pairs`; printing it says the counts."""

    name: str
    """Of the pairs."""
    ids: tuple[str, ...] = field(repr=False)
    """One name per pair."""
    class_names: tuple[str, ...] = ()
    """Name of each class index."""
    target: Int[np.ndarray, " image"]
    """Class of each clean image: its label, or the prediction."""
    on_clean: Int[np.ndarray, " image"]
    """Prediction on the clean image."""
    on_corrupt: Int[np.ndarray, " image"]
    """Prediction on the corrupt image."""
    entropy_clean: Float[np.ndarray, " image"]
    """Of the clean prediction, in nats."""
    entropy_corrupt: Float[np.ndarray, " image"]
    """Of the corrupt prediction, in nats."""
    collapsed: Bool[np.ndarray, " image"]
    """The corrupt prediction is none; all False if that was not asked."""
    entropy_ratio: float | None
    """Above which ratio of entropies a prediction counts as collapsed; None: not asked."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def wrong_clean(self) -> Bool[np.ndarray, " image"]:
        """The clean image is not predicted as its class."""
        return self.on_clean != self.target

    @property
    def still_clean(self) -> Bool[np.ndarray, " image"]:
        """The corrupt image is predicted as the clean class."""
        return self.on_corrupt == self.target

    @property
    def undistinguished(self) -> Bool[np.ndarray, " image"]:
        """Both halves are predicted as one class."""
        return self.on_clean == self.on_corrupt

    @property
    def failing(self) -> Bool[np.ndarray, " image"]:
        """Any of the three."""
        return self.wrong_clean | self.still_clean | self.collapsed

    def kept(self, pairs: Pairs) -> Pairs:
        """The pairs that do not fail.

        Raises:
            ShapeMismatch: other pairs than those that were checked.
            BadData: all fail.
        """
        if pairs.ids != self.ids:
            raise ShapeMismatch(f"this check is of the {len(self)} pairs {self.name!r}; these are other pairs.")
        if self.failing.all():
            raise BadData(f"all {len(self)} pairs of {self.name!r} fail: {self._counts()}.")
        return pairs[torch.from_numpy(np.flatnonzero(~self.failing))]

    def table(self) -> "pl.DataFrame":
        """One row per pair: classes, predictions, entropies, and what fails."""
        import polars as pl

        def named(classes: np.ndarray) -> list[str]:
            known = self.class_names
            return [known[i] if i < len(known) else str(i) for i in classes.tolist()]

        return pl.DataFrame(
            {
                "id": list(self.ids),
                "class": named(self.target),
                "on_clean": named(self.on_clean),
                "on_corrupt": named(self.on_corrupt),
                "entropy_clean": self.entropy_clean,
                "entropy_corrupt": self.entropy_corrupt,
                "wrong_clean": self.wrong_clean,
                "still_clean": self.still_clean,
                "collapsed": self.collapsed,
                "undistinguished": self.undistinguished,
                "failing": self.failing,
            }
        )

    def _counts(self) -> str:
        collapse = "" if self.entropy_ratio is None else f", {int(self.collapsed.sum())} collapsed on corrupt"
        return (
            f"{int(self.wrong_clean.sum())} wrong on clean, {int(self.still_clean.sum())} still the clean class on "
            f"corrupt{collapse}"
        )

    def __repr__(self) -> str:
        return (
            f"PairCheck({self.name!r}: {int(self.failing.sum())} of {len(self)} pairs fail; {self._counts()}; "
            f"{int(self.undistinguished.sum())} with one prediction for both halves)"
        )


def check_pairs(
    model: Any,
    pairs: Pairs,
    max_failing: float = 0.5,
    *,
    entropy_ratio: float | None = 2.0,
    batch_size: int = 64,
) -> PairCheck:
    """Look at what the model says on both halves of every pair.

    Args:
        model: a wrapped model with a head.
        pairs: made for this model.
        max_failing: largest share of pairs that may fail; 1 accepts any.
        entropy_ratio: from which ratio of entropies (corrupt to clean) a prediction counts as collapsed; None: do not
            ask (baselines of mean activations and stress tests are collapsed by nature).
        batch_size: images per forward.

    Returns:
        PairCheck: per pair what holds; `kept(pairs)` gives the pairs that do not fail.

    Raises:
        BadData: more than `max_failing` of the pairs fail; says how many of each kind, and the ids of the first.
        OutOfRange: a share outside [0, 1], or a ratio not above 0.

    Example:
        >>> check = check_pairs(model, pairs)                                                      # doctest: +SKIP
        >>> pairs = check.kept(pairs)                                                              # doctest: +SKIP
    """
    if not 0 <= max_failing <= 1:
        raise OutOfRange(f"max_failing={max_failing} is a share of the pairs, between 0 and 1.")
    if entropy_ratio is not None and not entropy_ratio > 0:
        raise OutOfRange(f"entropy_ratio={entropy_ratio} must be above 0; None does not ask.")
    found = check_of(pairs, pair_classes(model, pairs, batch_size=batch_size), entropy_ratio)
    share = found.failing.mean()
    if share > max_failing:
        names = [name for name, failing in zip(found.ids, found.failing, strict=True) if failing][:3]
        raise BadData(
            f"{pairs.name}: {int(found.failing.sum())} of {len(pairs)} pairs fail ({found._counts()}; first: "
            f"{', '.join(names)}), more than max_failing={max_failing:g}. Effects over such pairs are not about the "
            "change from the one class to the other. Choose other pairs, or look with max_failing=1 at which fail."
        )
    return found


def check_of(pairs: Pairs, classes: PairClasses, entropy_ratio: float | None = 2.0) -> PairCheck:
    """The check of pairs whose logits are known."""
    before, after = _entropy(classes.clean), _entropy(classes.corrupt)
    floor = LEAST_ENTROPY * float(np.log(classes.clean.shape[-1]))
    collapsed = np.zeros(len(pairs), bool)
    if entropy_ratio is not None:
        collapsed = after >= entropy_ratio * np.maximum(before, floor)
    return PairCheck(
        name=pairs.name,
        ids=pairs.ids,
        class_names=pairs.class_names,
        target=classes.target.cpu().numpy(),
        on_clean=classes.clean.argmax(-1).cpu().numpy(),
        on_corrupt=classes.corrupt.argmax(-1).cpu().numpy(),
        entropy_clean=before,
        entropy_corrupt=after,
        collapsed=collapsed,
        entropy_ratio=entropy_ratio,
    )


def _entropy(logits: Tensor) -> np.ndarray:
    log_p = logits.double().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1).cpu().numpy()
