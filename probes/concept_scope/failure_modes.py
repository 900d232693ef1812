"""Failure modes: sets of tags under which a class is often wrong, and that are minimal (PRIME-like; methods2.md 17.9).

For the images of a class with accuracy `A`, a set T of tags is a failure mode if

    A - acc(T) >= a                            much worse than the class as a whole
    acc(T \\ x) - acc(T) >= b   for every x     every tag of it is needed (b by the size of the set)

and at least `support` images carry all of T. Sets grow one tag at a time, supersets of supported sets only. Without the
second condition everything that contains a cause is reported; with a small `b`, tags leak in that are merely parents.
So `b` stands beside every mode.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import benjamini_hochberg

A = 0.30
B: Mapping[int, float] = {2: 0.10, 3: 0.05}
SUPPORT = 40


class FailureModes(Record):
    """Minimal sets of tags with low accuracy; see :func:`failure_modes`."""

    KIND = "failure_modes"

    def sets(self) -> list[tuple[str, ...]]:
        """The modes, worst first."""
        return [tuple(tags) for tags in self.table["tags"].to_list()]


def failure_modes(
    correct: Bool[np.ndarray, " image"],
    tags: Bool[np.ndarray, "image tag"],
    names: Sequence[str] | None = None,
    *,
    held_out: tuple[np.ndarray, np.ndarray] | None = None,
    a: float = A,
    b: float | Mapping[int, float] = B,
    largest: int = 3,
    support: int = SUPPORT,
    minimal: bool = True,
) -> FailureModes:
    """Failure modes of one class.

    Args:
        correct: was the model right, per image of the class.
        tags: which tags are true of it (from a tagger, or text scores above a threshold).
        names: of the tags.
        held_out: (correct, tags) of other images, on which the modes are confirmed.
        a: smallest drop of the accuracy below that of the class (**X**).
        b: smallest drop that each tag adds; a number, or by size of the set (sizes that are missing take the entry of
            the nearest smaller size, single tags compare with the class) (**X**).
        largest: tags per set, at most.
        support: images that must carry all tags (**X**).
        minimal: False reports every supported set below the accuracy, for comparison.

    Returns:
        FailureModes: `tags size accuracy low high drop b support p_adjusted` (Wilson interval; one-sided exact test
        against the images outside the set, adjusted over all tested sets), and `held_out_accuracy`, `_low`, `_high`,
        `_support` if given.

    Raises:
        ShapeMismatch: not one row of tags per image.
        BadData: no image, or values that are not bool.
        OutOfRange: thresholds without sense.

    Example:
        >>> failure_modes(correct, tags, ["snow", "night", "dog"]).sets()                          # doctest: +SKIP
        [('night', 'snow')]
    """
    correct, tags, names = _checked(correct, tags, names)
    if not 0 < a <= 1 or largest < 1 or support < 1:
        raise OutOfRange(f"a={a}, largest={largest}, support={support}: a drop in (0, 1], and at least one of each.")
    accuracy = float(correct.mean())
    known: dict[tuple[int, ...], tuple[float, int]] = {(): (accuracy, len(correct))}
    level = _grow(correct, tags, [()], known, support)
    tested, modes = 0, []
    p_values: dict[tuple[int, ...], float] = {}
    for size in range(1, largest + 1):
        for chosen in level:
            tested += 1
            p_values[chosen] = _p(correct, tags, chosen)
            step = b_of(b, size)
            drops = [known[tuple(t for t in chosen if t != tag)][0] - known[chosen][0] for tag in chosen]
            low = accuracy - known[chosen][0] >= a
            if low and (not minimal or min(drops) >= step):
                modes.append((chosen, step))
        if size < largest:
            level = _grow(correct, tags, level, known, support)
    adjusted = (
        dict(zip(p_values, benjamini_hochberg(np.array(list(p_values.values()))), strict=True)) if p_values else {}
    )
    rows = [_row(chosen, step, known, accuracy, names, adjusted) for chosen, step in modes]
    if held_out is not None:
        other, other_tags, _ = _checked(*held_out, names)
        for row, (chosen, _) in zip(rows, modes, strict=True):
            row |= _confirmed(other, other_tags, chosen)
    table = pl.DataFrame(rows, schema=_schema(held_out is not None)).sort("accuracy")
    return FailureModes(
        title=f"{len(rows)} failure modes of a class with accuracy {accuracy:.1%} (n={len(correct)})",
        tables={"modes": table},
        facts={
            "accuracy": accuracy,
            "n": len(correct),
            "tested": tested,
            "a": a,
            "b": {str(size): b_of(b, size) for size in range(1, largest + 1)},
            "support": support,
            "minimal": minimal,
        },
        words={
            "drop": "accuracy of the class minus that of the images with all these tags",
            "b": "smallest drop that each tag of the set had to add",
            "support": "images with all these tags",
            "p_adjusted": "one-sided exact p against the class's other images, adjusted for all tested sets (BH)",
        },
        caveats=(
            "Modes depend on a and b: with a small b, tags that merely share images with a cause are reported too.",
            "Tags are taken as true; a tagger's mistakes are in here.",
        )
        + (() if held_out is not None else ("Not confirmed on other images: pass held_out=.",)),
        provenance=provenance(),
    )


def b_of(b: float | Mapping[int, float], size: int) -> float:
    """Drop that each tag of a set of this size must add.

    Raises:
        OutOfRange: a negative drop.
    """
    if not isinstance(b, Mapping):
        step = float(b)
    else:
        smaller = [known for known in b if known <= size]
        step = float(b[max(smaller)] if smaller else b[min(b)])
    if step < 0:
        raise OutOfRange(f"b={step}: a drop is 0 or more.")
    return step


def wilson(right: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson's 95 % interval of a share.

    Example:
        >>> [round(end, 4) for end in wilson(8, 10)]
        [0.4902, 0.9433]
    """
    share, denominator = right / n, 1 + z * z / n
    middle = (share + z * z / (2 * n)) / denominator
    reach = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / denominator
    return float(middle - reach), float(middle + reach)


def _grow(
    correct: np.ndarray,
    tags: np.ndarray,
    level: Sequence[tuple[int, ...]],
    known: dict[tuple[int, ...], tuple[float, int]],
    support: int,
) -> list[tuple[int, ...]]:
    """Supported sets with one more tag: all their subsets are supported, too."""
    found = []
    for chosen in level:
        base = tags[:, list(chosen)].all(1)
        for tag in range(chosen[-1] + 1 if chosen else 0, tags.shape[1]):
            larger = (*chosen, tag)
            if any(tuple(t for t in larger if t != leave) not in known for leave in larger):
                continue
            of = base & tags[:, tag]
            if of.sum() >= support:
                known[larger] = (float(correct[of].mean()), int(of.sum()))
                found.append(larger)
    return found


def _row(
    chosen: tuple[int, ...],
    step: float,
    known: dict[tuple[int, ...], tuple[float, int]],
    accuracy: float,
    names: Sequence[str],
    adjusted: Mapping[tuple[int, ...], float],
) -> dict[str, Any]:
    own, n = known[chosen]
    low, high = wilson(round(own * n), n)
    return {
        "tags": [names[tag] for tag in chosen],
        "size": len(chosen),
        "accuracy": own,
        "low": low,
        "high": high,
        "drop": accuracy - own,
        "b": step,
        "support": n,
        "p_adjusted": float(adjusted[chosen]),
    }


def _p(correct: np.ndarray, tags: np.ndarray, chosen: tuple[int, ...]) -> float:
    """Is the accuracy with these tags lower than without? Fisher's exact test, one-sided."""
    from scipy.stats import hypergeom

    of = tags[:, list(chosen)].all(1)
    return float(hypergeom.cdf(int(correct[of].sum()), len(correct), int(correct.sum()), int(of.sum())))


def _confirmed(correct: np.ndarray, tags: np.ndarray, chosen: tuple[int, ...]) -> dict[str, Any]:
    of = tags[:, list(chosen)].all(1)
    n = int(of.sum())
    if not n:
        return {"held_out_accuracy": None, "held_out_low": None, "held_out_high": None, "held_out_support": 0}
    low, high = wilson(int(correct[of].sum()), n)
    return {
        "held_out_accuracy": float(correct[of].mean()),
        "held_out_low": low,
        "held_out_high": high,
        "held_out_support": n,
    }


def _schema(confirmed: bool) -> dict[str, Any]:
    floats = ("accuracy", "low", "high", "drop", "b")
    schema = {"tags": pl.List(pl.String), "size": pl.Int64, **dict.fromkeys(floats, pl.Float64)}
    schema |= {"support": pl.Int64, "p_adjusted": pl.Float64}
    if confirmed:
        schema |= dict.fromkeys(("held_out_accuracy", "held_out_low", "held_out_high"), pl.Float64)
        schema |= {"held_out_support": pl.Int64}
    return schema


def _checked(
    correct: np.ndarray, tags: np.ndarray, names: Sequence[str] | None
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    correct, tags = np.asarray(correct), np.asarray(tags)
    if correct.dtype != bool or tags.dtype != bool:
        raise BadData(f"correct and tags are bool, got {correct.dtype} and {tags.dtype}.")
    if correct.ndim != 1 or tags.ndim != 2 or len(tags) != len(correct) or 0 in tags.shape:
        raise ShapeMismatch(
            f"correct is [image] and tags are [image tag], got {list(correct.shape)} and {list(tags.shape)}."
        )
    names = [f"tag {i}" for i in range(tags.shape[1])] if names is None else list(names)
    if len(names) != tags.shape[1]:
        raise ShapeMismatch(f"{len(names)} names for {tags.shape[1]} tags.")
    return correct, tags, names
