"""Correct concepts by hand and see whether the class follows: the accuracy curve of a bottleneck.

Someone who looks at an image knows which concepts are there. Where the bottleneck's score says otherwise, the score is
set to what it is for images that have (95 % quantile) or lack (5 % quantile) the concept, and the head answers again
(methods2.md 17.5 step 6).

1. Quantiles of every score on training images of the same class (`conditional_on="class"`), or of all training images
   (**X**: the class by default, as specified; for a concept that does not depend on the class both are alike, for one
   that the class decides the quantile tells no more than the truth value does).
2. A concept is *wrong* on an image if its score lies on the other side of the midpoint between the means of training
   images with and without it.
3. Wrong concepts are corrected one by one, the one that moves the logits most first (**X**): accuracy after 0, 1, 2 ...
4. Control: as many *random* concepts of the image set to the opposite of what is there. It must not help.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import polars as pl
from jaxtyping import Bool

from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import bootstrap, paired_difference
from probes.bottleneck.entropy import train_and_test
from probes.bottleneck.record import Bottleneck

if TYPE_CHECKING:
    from mechvis.report.blocks import Block


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Interventions(Record):
    """Accuracy as concepts are corrected; made by :func:`intervene`."""

    KIND: ClassVar[str] = "concept_intervention"

    def figures(self) -> "list[Block]":
        """The curve with its control."""
        from mechvis.plots import Line, curve
        from mechvis.report.blocks import Figure

        x = self.table["corrected"].to_numpy()
        ends = {"wrong concepts corrected": ("accuracy", "low", "high")}
        ends["random concepts spoilt"] = ("random", "random_low", "random_high")
        lines = [
            Line(
                name=name,
                x=x,
                **{key: self.table[column].to_numpy() for key, column in zip(("y", "low", "high"), of, strict=True)},
            )
            for name, of in ends.items()
        ]
        figure = curve(lines, x_label="concepts changed per image, at the most", y_label="accuracy")
        return [Figure(figure, "Accuracy on test images, with 95 % intervals over images.")]


Condition = Literal["class", "all"]
CONDITIONS = ("class", "all")
FEWEST = 5
"""Training images of a class below which its quantiles are those of all images."""


def intervene(
    cbm: Bottleneck,
    train: Any,
    test: Any,
    truth: Bool[np.ndarray, "image concept"],
    test_truth: Bool[np.ndarray, "test_image concept"],
    *,
    name: str | None = None,
    target: str | None = None,
    most: int = 5,
    quantiles: tuple[float, float] = (0.05, 0.95),
    conditional_on: Condition = "class",
    seed: int = 0,
) -> Interventions:
    """Accuracy as wrong concepts are corrected (methods2.md 17.5 step 6, **X**).

    Args:
        cbm: the bottleneck.
        train: `Features` that give the quantiles and midpoints.
        test: `Features` of other images.
        truth, test_truth: which concepts are there `[image concept]`, for both.
        name: which features; default: those that the bottleneck was fitted on.
        target: what is predicted; None: the labels.
        most: largest number of corrections per image.
        quantiles: what stands for an absent and a present concept.
        conditional_on: whose quantiles, see the module.
        seed: of the control.

    Returns:
        A record with one row per number of corrections: `accuracy` with its interval, `gained` over no correction with
        its interval, `random` (the control) with its interval, and `touched`, the share of images that had so many
        wrong concepts. Table `concepts`: how often each is wrong.

    Raises:
        SplitOverlap: training images among the test images.
        ShapeMismatch: a truth table that does not fit.
        BadData: a concept that all or none of the training images have.
        OutOfRange: no correction asked for, or quantiles without order.

    Example:
        >>> intervene(cbm, train, test, truth, test_truth).table["accuracy"].to_list()     # doctest: +SKIP
        [0.9, 0.95, 0.99]
    """
    if conditional_on not in CONDITIONS:
        raise unknown("condition", conditional_on, CONDITIONS)
    low, high = quantiles
    if most < 1 or not 0 <= low < high <= 1:
        raise OutOfRange(f"most={most}, quantiles={quantiles}: at least one correction, and 0 <= low < high <= 1.")
    z, y, z_test, y_test = train_and_test(train, test, name or cbm.facts["features"], target)
    truth = _truth(truth, len(z), cbm, "training")
    test_truth = _truth(test_truth, len(z_test), cbm, "test")
    c, c_test = cbm.scores(z), cbm.scores(z_test)
    for k, concept in enumerate(cbm.facts["concepts"]):
        if truth[:, k].all() or not truth[:, k].any():
            some = "all" if truth[:, k].any() else "none"
            raise BadData(f"{some} of the training images have {concept!r}: it has no midpoint. Leave it out.")
    present = np.stack([c[truth[:, k], k].mean() for k in range(c.shape[1])])
    absent = np.stack([c[~truth[:, k], k].mean() for k in range(c.shape[1])])
    # A score that falls where the concept is present is read the other way round.
    side = np.sign(present - absent)
    wrong = (side * (c_test - (present + absent) / 2) > 0) != test_truth
    corrected = _corrected(c, y, y_test, test_truth, side, quantiles, conditional_on)
    opposite = _corrected(c, y, y_test, ~test_truth, side, quantiles, conditional_on)
    effect = _effect(cbm, c_test, corrected)
    first = np.argsort(-np.where(wrong, effect, -np.inf), axis=1, kind="stable")
    shuffled = np.argsort(np.random.default_rng(seed).random(c_test.shape), axis=1)
    count = wrong.sum(1)

    def hits(order: np.ndarray, values: np.ndarray, j: int) -> np.ndarray:
        changed, images = c_test.copy(), np.arange(len(c_test))
        for place in range(min(j, c_test.shape[1])):
            some = images[count > place]
            changed[some, order[some, place]] = values[some, order[some, place]]
        return (cbm.logits_of(changed).argmax(1) == y_test).astype(float)

    before = hits(first, corrected, 0)
    rows = []
    for j in range(min(most, c_test.shape[1]) + 1):
        own, control = hits(first, corrected, j), hits(shuffled, opposite, j)
        found, other, gain = bootstrap(own), bootstrap(control), paired_difference(own, before)
        rows.append(
            {
                "corrected": j,
                "accuracy": float(found.effect[0]),
                "low": float(found.low[0]),
                "high": float(found.high[0]),
                "n": int(found.n[0]),
                "gained": float(gain.effect[0]),
                "gained_low": float(gain.low[0]),
                "gained_high": float(gain.high[0]),
                "random": float(other.effect[0]),
                "random_low": float(other.low[0]),
                "random_high": float(other.high[0]),
                "touched": float((count >= j).mean()),
            }
        )
    each = pl.DataFrame({"concept": cbm.facts["concepts"], "wrong": wrong.mean(0), "present": test_truth.mean(0)})
    return Interventions(
        title="Accuracy as wrong concepts are corrected",
        tables={"curve": pl.DataFrame(rows), "concepts": each},
        facts={"quantiles": list(quantiles), "conditional_on": conditional_on, "wrong_per_image": float(count.mean())},
        words={
            "corrected": "wrong concepts set to the quantile of images that have (or lack) them, at the most",
            "gained": "accuracy over no correction, paired by image",
            "random": "control: as many random concepts of the image set to the opposite of what is there",
            "touched": "share of images with at least so many wrong concepts",
            "wrong": "share of test images on which the score lies on the wrong side of its midpoint",
        },
        caveats=("What is there is taken from the truth table that was given.",),
        provenance=provenance(seed=seed, features=train.provenance),
    )


def _corrected(
    c: np.ndarray,
    y: np.ndarray,
    y_test: np.ndarray,
    truth: np.ndarray,
    side: np.ndarray,
    quantiles: tuple[float, float],
    conditional_on: Condition,
) -> np.ndarray:
    """Scores that say what `truth` says, `[image concept]`."""
    everyone = np.quantile(c, quantiles, axis=0)
    ends = np.broadcast_to(everyone[:, None], (2, len(y_test), c.shape[1])).copy()
    if conditional_on == "class":
        for label in np.unique(y_test):
            own = c[y == label]
            if len(own) >= FEWEST:
                ends[:, y_test == label] = np.quantile(own, quantiles, axis=0)[:, None]
    up = truth == (side >= 0)
    return np.where(up, ends[1], ends[0])


def _effect(cbm: Bottleneck, c: np.ndarray, values: np.ndarray) -> np.ndarray:
    """How far setting one concept moves the logits: length of the change, without a shift of all logits."""
    weight = cbm.arrays["weight"] - cbm.arrays["weight"].mean(0)
    return np.abs(cbm.active(values) - cbm.active(c)) * np.linalg.norm(weight, axis=0)


def _truth(truth: Any, n: int, cbm: Bottleneck, what: str) -> np.ndarray:
    truth = np.asarray(truth)
    if truth.shape != (n, len(cbm.facts["concepts"])) or truth.dtype != bool:
        raise ShapeMismatch(
            f"the truth of the {what} images is bool [image concept] = {[n, len(cbm.facts['concepts'])]}, got "
            f"{truth.dtype} {list(truth.shape)}."
        )
    return truth
