"""The inherent interpretability score: accuracy that is retained when few concepts may speak for each image.

1. concept activations `a(z) [K]` of a fixed representation, by a library of concepts;
2. for each sparsity s, all but the largest `(1 - s) K` of each image are zero;
3. a linear classifier on what is left: `acc(s)`, its strength of regularisation chosen on validation images;
4. `ARR(s) = acc(s) / acc` of a linear classifier on z itself;
5. IIS = area under ARR over s in {0, .1, .3, .5, .7, .9, .95, .98} by trapezoids.

The area is not divided by the width .98 (**C**); that is reported beside (X), as is the curve of a random library of
equal size. The released code takes the best accuracy over learning rates on *test* images; here the choice is made on
validation images and the test images are looked at once (X). Scores of two models can be compared only with equal K,
kind of library and classifier.

Source: IIS, *inherent* interpretability score; methods2.md 17.3 (**C**).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from mechvis import stats
from mechvis.errors import BadData, OutOfRange, ShapeMismatch, SplitOverlap
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.record import Record
from probes.concept_tests.inherent.library import concept_activations, concept_library, representations, sparsified

if TYPE_CHECKING:
    from mechvis.report.blocks import Block

SPARSITIES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.98)
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Inverse strengths of regularisation that validation images choose from (X)."""
Split = tuple[Float[np.ndarray, "image d"], Int[np.ndarray, " image"]]

_WORDS = {
    "library": "the library asked for, or random directions, the mean of several draws",
    "sparsity": "share of concepts that is set to zero in every image",
    "accuracy": "on test images",
    "retained": "accuracy as a share of that of a linear classifier on the representation itself",
    "low": "lower end of its 95 % interval over test images",
    "high": "upper end",
    "strength": "inverse regularisation, chosen on validation images",
    "n": "test images",
    "iis": "area under the retained accuracy over sparsity",
    "iis_per_width": "the same divided by the width of the sparsities",
}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class InherentInterpretability(Record):
    """What :func:`inherent_interpretability` found. Tables: `scores` and `curve`."""

    KIND = "inherent_interpretability"

    def iis(self, library: str = "given") -> float:
        """The score of `given` or of `random`.

        Raises:
            BadData: no such library.
        """
        return self.pick(library=library)["iis"]

    def figures(self) -> "list[Block]":
        """Retained accuracy over sparsity, beside a random library."""
        from mechvis.plots.curve import Line, curve
        from mechvis.report.blocks import Figure

        lines = []
        for name in ("given", "random"):
            rows = self.tables["curve"].filter(pl.col("library") == name)
            x, y, low, high = (rows[column].to_numpy() for column in ("sparsity", "retained", "low", "high"))
            lines.append(Line(name=name, x=x, y=y, low=low, high=high))
        drawn = curve(lines, x_label="share of concepts set to zero", y_label="accuracy retained")
        return [Figure(drawn, "The score is the area under the curve.")]


def area(retained: Sequence[float], sparsities: Sequence[float] = SPARSITIES) -> float:
    """Area under retained accuracies by trapezoids.

    Args:
        retained: one per sparsity.
        sparsities: ascending.

    Raises:
        ShapeMismatch: not as many as sparsities, or one only.
        OutOfRange: sparsities that do not ascend.

    Example:
        >>> round(area(np.array([0.80, 0.78, 0.70, 0.50]) / 0.82, [0, 0.5, 0.9, 0.98]), 4)
        0.9012
    """
    y, x = np.asarray(retained, dtype=np.float64), np.asarray(sparsities, dtype=np.float64)
    if y.shape != x.shape or y.ndim != 1 or len(y) < 2:
        raise ShapeMismatch(
            f"one retained accuracy per sparsity, at least two: got {list(y.shape)} and {list(x.shape)}."
        )
    if (np.diff(x) <= 0).any() or x[0] < 0 or x[-1] >= 1:
        raise OutOfRange(f"sparsities ascend from 0 to below 1, got {x.tolist()}.")
    return float(np.trapezoid(y, x)) if hasattr(np, "trapezoid") else float(np.trapz(y, x))  # noqa: NPY201


def inherent_interpretability(
    train: Split,
    validation: Split,
    test: Split,
    library: Float[np.ndarray, "concept d"],
    *,
    sparsities: Sequence[float] = SPARSITIES,
    strengths: Sequence[float] = STRENGTHS,
    random_draws: int = 3,
    ids: tuple[Sequence[str], Sequence[str], Sequence[str]] | None = None,
    seed: int = 0,
    progress: bool = True,
    model: Any = None,
    images: Any = None,
) -> InherentInterpretability:
    """The score of a representation under a library of concepts, with its curve and that of random libraries.

    Args:
        train: representations and labels to fit classifiers on.
        validation: those that choose the regularisation.
        test: those that are reported.
        library: concept vectors, e.g. of :func:`concept_library`.
        sparsities: ascending shares.
        strengths: inverse regularisations to choose from.
        random_draws: random libraries of equal size.
        ids: names of the images of the three splits, to refuse images in two of them.
        seed: of libraries and bootstrap.
        progress: show a progress bar.
        model: whose name goes into the record.
        images: likewise.

    Raises:
        SplitOverlap: images in two splits.
        ShapeMismatch, NotFinite: arrays that do not fit.
        BadData: a class that is not in the training images, one class only, or a representation that says nothing.
        OutOfRange: settings.

    Example:
        >>> library = concept_library(z[train], 50)                                                # doctest: +SKIP
        >>> found = inherent_interpretability(*splits, library)                                    # doctest: +SKIP
        >>> found.iis(), found.iis("random")                                                       # doctest: +SKIP
    """
    splits = [(representations(z), np.asarray(labels)) for z, labels in (train, validation, test)]
    _check(splits, np.asarray(library), ids)
    if random_draws < 1 or not strengths or min(strengths) <= 0:
        raise OutOfRange(f"random_draws={random_draws} (from 1), strengths={list(strengths)} (some, above 0).")
    area(np.ones(len(sparsities)), sparsities)
    mean = splits[0][0].mean(0)
    libraries = [("given", np.asarray(library, dtype=np.float64))]
    drawn = range(random_draws)
    libraries += [
        ("random", concept_library(np.ones((len(library), mean.size)), len(library), "random", seed=seed + i))
        for i in drawn
    ]
    with track(1 + len(libraries) * len(sparsities), "inherent score", " classifiers", show=progress) as bar:
        base, _ = _best([(z - mean, labels) for z, labels in splits], strengths)
        bar.update(1)
        if base.mean() <= 1 / len(np.unique(splits[0][1])):
            raise BadData(
                f"a linear classifier on the representation itself has accuracy {base.mean():.3f} on test images, no "
                "better than chance: there is nothing to retain."
            )
        right: dict[str, list] = {"given": [], "random": []}
        chosen = []
        for name, vectors in libraries:
            found = [(concept_activations(z, vectors, mean=mean), labels) for z, labels in splits]
            curve = []
            for sparsity in sparsities:
                correct, strength = _best([(sparsified(a, sparsity), labels) for a, labels in found], strengths)
                curve.append(correct)
                bar.update(1)
                if name == "given":
                    chosen.append(strength)
            right[name].append(np.stack(curve))
    curves, scores = [], []
    for name, found in right.items():
        per_image = np.mean(found, axis=0)  # [sparsity image]
        for i, sparsity in enumerate(sparsities):
            value, low, high = stats.interval_of(_ratio, per_image[i], base, resamples=500, seed=seed)
            curves.append(
                {
                    "library": name,
                    "sparsity": float(sparsity),
                    "accuracy": float(per_image[i].mean()),
                    "retained": value,
                    "low": low,
                    "high": high,
                    "strength": chosen[i] if name == "given" else None,
                    "n": len(base),
                }
            )

        def score(*columns: np.ndarray) -> float:
            return area([_ratio(column, columns[-1]) for column in columns[:-1]], sparsities)

        value, low, high = stats.interval_of(score, *per_image, base, resamples=500, seed=seed)
        width = sparsities[-1] - sparsities[0]
        scores.append({"library": name, "iis": value, "low": low, "high": high, "iis_per_width": value / width})
        scores[-1] |= {"draws": len(found), "n": len(base)}
    said = [
        "Compare scores only between representations that were read with as many concepts, found the same way, and the "
        "same classifier."
    ]
    if scores[0]["low"] <= scores[1]["iis"]:
        said.append("A random library of equal size does as well: this score says nothing about these concepts.")
    return InherentInterpretability(
        title=f"Inherent interpretability under {len(library)} concepts",
        tables={"scores": pl.DataFrame(scores), "curve": pl.DataFrame(curves)},
        facts={
            "concepts": len(library),
            "accuracy on the representation": float(base.mean()),
            "train": len(splits[0][0]),
            "validation": len(splits[1][0]),
            "test": len(splits[2][0]),
        },
        words=_WORDS,
        caveats=tuple(said),
        provenance=provenance(
            model=model,
            images=images,
            seed=seed,
            settings={"sparsities": list(sparsities), "strengths": list(strengths)},
        ),
    )


def _ratio(correct: np.ndarray, base: np.ndarray) -> float:
    return float(correct.mean() / base.mean()) if base.any() else float("nan")


def _best(splits: Sequence[Split], strengths: Sequence[float]) -> tuple[Float[np.ndarray, " image"], float]:
    """Where the classifier that validation images prefer is right on test images, and its strength."""
    from sklearn.linear_model import LogisticRegression

    (x, y), (x_val, y_val), (x_test, y_test) = splits
    scale = x.std()
    if not scale > 0:
        return (y_test == np.bincount(y).argmax()).astype(np.float64), float(strengths[0])
    best = None
    for strength in strengths:
        # One scale for all columns: columns of their own would undo what the sizes of activations say.
        fitted = LogisticRegression(C=strength, max_iter=300, tol=1e-3).fit(x / scale, y)
        accuracy = fitted.score(x_val / scale, y_val)
        if best is None or accuracy > best[0]:
            best = accuracy, strength, fitted
    return (best[2].predict(x_test / scale) == y_test).astype(np.float64), float(best[1])


def _check(splits: Sequence[Split], library: np.ndarray, ids: Any) -> None:
    names = ("training", "validation", "test")
    width = splits[0][0].shape[1]
    for name, (z, labels) in zip(names, splits, strict=True):
        if z.shape[1] != width or len(labels) != len(z):
            raise ShapeMismatch(
                f"{name}: representations {list(z.shape)} (width {width} wanted), {len(labels)} labels."
            )
    if library.ndim != 2 or library.shape[1] != width:
        raise ShapeMismatch(f"the library is [concept {width}], got {list(library.shape)}.")
    known = set(splits[0][1].tolist())
    if len(known) < 2:
        raise BadData("the training images are all of one class.")
    for name, (_, labels) in zip(names[1:], splits[1:], strict=True):
        if missing := set(labels.tolist()) - known:
            raise BadData(f"{name} images of the classes {sorted(missing)}, which no training image has.")
    for i, first in enumerate(names):
        for j in range(i + 1, 3):
            if splits[i][0].shape == splits[j][0].shape and np.array_equal(splits[i][0], splits[j][0]):
                raise SplitOverlap(f"the {first} and the {names[j]} images are the same. Use others.")
            if ids is not None and (shared := set(ids[i]) & set(ids[j])):
                raise SplitOverlap(
                    f"{len(shared)} images are both {first} and {names[j]} images, e.g. {min(shared)!r}. Use others."
                )
