"""How deep decisions lie: shares, cumulative curve, stable-but-wrong, one line per group of images (methods.md 3.1).

With T the last anchor: early is `l* < 0.3 T`, late `l* >= 0.7 T` (**N**), the rest is the middle. The fallback (no
stable window) is late by that rule but means something else, so it is a share of its own and left out of early, middle
and late (**X**): the four add up to 1. `mean` and `median` include it, as in the paper; `mean_stable` does not.

Stable but wrong (**N** leaves open of what): `stable_wrong` is the share of *all* images that are stable on a class
that is not theirs, `wrong_if_stable` the share of the stable ones. `stable_then_changes`: stable on a class that is not
the final one, which is where `l*` and `settle` differ.
"""

from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from mechvis.errors import OutOfRange
from mechvis.stats import RESAMPLES, bootstrap, interval_of
from probes.timeline.dip import dip_test
from probes.timeline.settle import decision_layer, fell_back, settle

EARLY, LATE = 0.3, 0.7
SWEEP = (1, 2, 3, 4)


def depth_words(
    layers: Int[np.ndarray, " image"], stable: np.ndarray, last: int, *, early: float = EARLY, late: float = LATE
):
    """Per image 1 or 0: early, middle, late, fallback; they add up to 1.

    Example:
        >>> depth_words(np.array([0, 5, 9, 11]), np.array([True, True, True, False]), 11)["late"].tolist()
        [0.0, 0.0, 1.0, 0.0]
    """
    if not 0 <= early <= late <= 1:
        raise OutOfRange(f"early={early}, late={late}: shares of the depth, the first at most the second.")
    is_early, is_late = layers < early * last, layers >= late * last
    words = {
        "early": is_early & stable,
        "middle": ~is_early & ~is_late & stable,
        "late": is_late & stable,
        "fallback": ~stable,
    }
    return {word: values.astype(float) for word, values in words.items()}


def summary_of(
    predictions: Int[np.ndarray, "image anchor"],
    labels: Int[np.ndarray, " image"] | None,
    *,
    k: int = 2,
    early: float = EARLY,
    late: float = LATE,
    draws: int = 2000,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """One line about the decisions of some images.

    Args:
        predictions: class at each anchor.
        labels: true classes; None leaves out what is about right and wrong.
        k: window.
        early: share of the depth below which a decision is early.
        late: share from which it is late.
        draws: of the dip test; 0 leaves it out.
        resamples: of the bootstrap.
        seed: of both.

    Returns:
        Means with `_low` and `_high` (95 % over images), and counts.
    """
    last = predictions.shape[1] - 1
    layers, stable, settled = decision_layer(predictions, k), ~fell_back(predictions, k), settle(predictions)
    first = predictions[np.arange(len(predictions)), layers]
    columns = {"mean": layers.astype(float), "mean_settle": settled.astype(float)}
    columns |= depth_words(layers, stable, last, early=early, late=late)
    columns["stable_then_changes"] = (stable & (first != predictions[:, -1])).astype(float)
    columns["mean_stable"] = np.where(stable, layers, np.nan)
    if labels is not None:
        wrong = first != labels
        columns["stable_wrong"] = (stable & wrong).astype(float)
        columns["wrong_if_stable"] = np.where(stable, wrong, np.nan)
        columns["final_accuracy"] = (predictions[:, -1] == labels).astype(float)
    found = bootstrap(np.stack(list(columns.values())), resamples=resamples, seed=seed)
    line: dict[str, Any] = {
        "n": len(predictions),
        "k": k,
        "median": float(np.median(layers)),
        "sd": float(layers.std()),
    }
    for at, word in enumerate(columns):
        line |= {
            word: float(found.effect[at]),
            f"{word}_low": float(found.low[at]),
            f"{word}_high": float(found.high[at]),
        }
    if draws:
        tested = dip_test(layers, anchors=last + 1, draws=draws, seed=seed)
        line |= {"dip": tested.dip, "dip_p": tested.p}
    return {word: None if isinstance(value, float) and np.isnan(value) else value for word, value in line.items()}


def sweep_of(
    predictions: Int[np.ndarray, "image anchor"], ks: tuple[int, ...] = SWEEP, **more: Any
) -> list[dict[str, Any]]:
    """Mean and fallback share for several windows; windows that do not fit the anchors are left out.

    Example:
        >>> [line["k"] for line in sweep_of(np.array([[0, 1, 1], [1, 1, 1]]))]
        [1, 2]
    """
    rows = []
    for k in (k for k in ks if 1 <= k < predictions.shape[1]):
        layers, fallback = decision_layer(predictions, k), fell_back(predictions, k)
        found = bootstrap(np.stack([layers.astype(float), fallback.astype(float)]), **more)
        rows.append(
            {
                "k": k, "mean": float(found.effect[0]), "mean_low": float(found.low[0]),
                "mean_high": float(found.high[0]), "median": float(np.median(layers)),
                "fallback": float(found.effect[1]), "fallback_low": float(found.low[1]),
                "fallback_high": float(found.high[1]), "n": len(layers),
            }
        )  # fmt: skip
    return rows


def by_anchor(predictions: Int[np.ndarray, "image anchor"], *, k: int = 2) -> dict[str, Float[np.ndarray, " anchor"]]:
    """Share of images decided at each anchor, the cumulative curve F_k, and the same for `settle`.

    The fallback is not in `decided` nor in its sum: F_k ends at the share that is stable at all. Every image settles.

    Example:
        >>> by_anchor(np.array([[0, 1, 1], [1, 1, 1]]), k=1)["cumulative"].tolist()
        [0.5, 1.0, 1.0]
    """
    anchors = predictions.shape[1]
    layers, stable, settled = decision_layer(predictions, k), ~fell_back(predictions, k), settle(predictions)
    decided = np.bincount(layers[stable], minlength=anchors) / len(layers)
    finally_ = np.bincount(settled, minlength=anchors) / len(layers)
    return {
        "decided": decided, "cumulative": decided.cumsum(), "settled": finally_,
        "cumulative_settled": finally_.cumsum(),
    }  # fmt: skip


def shuffled_anchors(
    predictions: Int[np.ndarray, "image anchor"], *, k: int = 2, draws: int = 50, seed: int = 0
) -> dict[str, float]:
    """The control that must fail: the same predictions with their anchors in random orders.

    If order did not matter, images would settle as deep with shuffled anchors as without: the mean `settle` and the
    fallback share then lie inside the range of the draws.

    Returns:
        Mean `l*`, mean `settle` and fallback share over the draws, and p of the observed mean `settle` being as low.
    """
    generator = np.random.default_rng(seed)
    observed, found = settle(predictions).mean(), []
    for _ in range(draws):
        mixed = predictions[:, generator.permutation(predictions.shape[1])]
        found.append((decision_layer(mixed, k).mean(), settle(mixed).mean(), fell_back(mixed, k).mean()))
    mean, settled, fallback = np.array(found).T
    return {
        "mean": float(mean.mean()), "settle": float(settled.mean()), "fallback": float(fallback.mean()),
        "observed_settle": float(observed), "p": float((1 + (settled <= observed).sum()) / (1 + draws)), "draws": draws,
    }  # fmt: skip


def shift_of(clean: np.ndarray, changed: np.ndarray, *, k: int = 2, **more: Any) -> dict[str, float]:
    """Mean change of `l*` and of `settle`, image by image, when the images are corrupted; positive: later."""
    line: dict[str, float] = {}
    for word, function in (("decision", lambda p: decision_layer(p, k)), ("settle", settle)):
        found = bootstrap((function(changed) - function(clean)).astype(float), **more)
        line |= {
            f"{word}_shift": float(found.effect[0]),
            f"{word}_shift_low": float(found.low[0]),
            f"{word}_shift_high": float(found.high[0]),
        }
    value, low, high = interval_of(lambda a, b: (a == b).mean(), clean[:, -1], changed[:, -1], **more)
    return line | {"same_answer": value, "same_answer_low": low, "same_answer_high": high, "n": len(clean)}


def groups_apart(layers: np.ndarray, groups: np.ndarray, **more: Any) -> list[dict[str, Any]]:
    """Difference of mean depth between every two groups, with a bootstrap interval that resamples images of each."""
    names = [str(name) for name in np.unique(groups)]
    rows = []
    for at, first in enumerate(names):
        for second in names[at + 1 :]:

            def gap(values: np.ndarray, member: np.ndarray, first: str = first, second: str = second) -> float:
                one, two = values[member == first], values[member == second]
                return float(one.mean() - two.mean()) if len(one) and len(two) else float("nan")

            value, low, high = interval_of(gap, layers.astype(float), groups.astype(str), **more)
            rows.append({"first": first, "second": second, "difference": value, "low": low, "high": high})
    return rows


def table_of(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Rows whose numbers may be missing, as a table."""
    return pl.DataFrame(rows, infer_schema_length=None)
