"""Random concepts must be less faithful: a suite that any faithfulness metric has to pass (methods.md 7).

    perfect              the class weights, split into orthogonal parts: the surrogate is the head itself
    random importance    the same concepts, their importances permuted (or rescaled)
    random concepts      random unit vectors, the true importances
    both                 random unit vectors, permuted importances

The metric passes if its error strictly increases from `perfect` to `random importance`, and from there to
`random concepts` and to `both`: each step's 95 % interval over images lies above zero. (`both` is no worse than
`random concepts` in expectation: a permutation of importances means nothing for vectors that mean nothing.) A metric
that cannot tell a random explanation from a perfect one ranks methods by accident.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
from jaxtyping import Float

from mechvis.errors import OutOfRange, ShapeMismatch, unknown
from mechvis.provenance import provenance
from mechvis.record import Record, finite
from mechvis.stats import bootstrap, paired_difference
from probes.null_space.head import LinearHead
from probes.surf.explanation import Explanation, unit_rows
from probes.surf.metrics import Metric
from probes.surf.surrogate import Evaluation

CASES = ("perfect", "random importance", "random concepts", "both")
STEPS = (("perfect", "random importance"), ("random importance", "random concepts"), ("random importance", "both"))
Shuffle = Literal["permute", "rescale"]
SHUFFLES = ("permute", "rescale")


class SanitySuite(Record):
    """What the suite says of one metric."""

    KIND = "faithfulness_sanity"

    @property
    def passes(self) -> bool:
        """Does the metric put random explanations below perfect ones, at every step?"""
        return bool(self.facts["passes"])


def sanity_suite(
    metric: Metric,
    evaluation: Evaluation | None = None,
    *,
    parts: int = 5,
    draws: int = 5,
    shuffle: Shuffle = "permute",
    least: float = 0.0,
    name: str | None = None,
    seed: int = 0,
) -> SanitySuite:
    """Does a faithfulness metric call random explanations less faithful?

    Args:
        metric: (explanation, evaluation) -> error per image, higher = less faithful.
        evaluation: what to run it on; default: random features and head in 20 dimensions (:func:`random_head`).
        parts: concepts per class (5 in the paper).
        draws: random explanations of each case, averaged per image.
        shuffle: importances are permuted within a class, or multiplied by factors uniform in 0 to 2.
        least: smallest step that counts, in the metric's own unit.
        name: of the metric in the table.
        seed: of all draws.

    Returns:
        SanitySuite: `table` has a row per case, `tables["steps"]` the differences, `.passes` the verdict.

    Raises:
        UnknownName: no such shuffle.
        OutOfRange: no draw, or more parts than dimensions.
        ShapeMismatch: the metric does not give one number per image.
        NotFinite: it gives NaN or Inf.

    Example:
        >>> from probes.surf import surf_mae
        >>> sanity_suite(surf_mae).passes
        True
    """
    if shuffle not in SHUFFLES:
        raise unknown("shuffle", shuffle, SHUFFLES)
    if draws < 1:
        raise OutOfRange(f"draws={draws}: at least one random explanation of each case.")
    evaluation = random_head(seed=seed) if evaluation is None else evaluation
    name = name or getattr(metric, "__name__", type(metric).__name__)
    generator = np.random.default_rng(seed)
    found: dict[str, list[np.ndarray]] = {case: [] for case in CASES}
    for _ in range(draws):
        for case, explanation in cases(evaluation.head, parts, generator, shuffle).items():
            found[case].append(_judged(metric, name, explanation, evaluation))
    means = {case: np.mean(each, axis=0) for case, each in found.items()}
    steps = [_step(means, found, first, second, least, seed) for first, second in STEPS]
    passes = all(step["increases"] for step in steps)
    failed = [f"{step['from']} to {step['to']}" for step in steps if not step["increases"]]
    said = "Random explanations are told from perfect ones at every step."
    if failed:
        said = f"Not to be used: the error does not increase from {', nor from '.join(failed)}."
    return SanitySuite(
        title=f"Sanity suite of {name}: {'passes' if passes else 'FAILS'}",
        tables={"cases": _cases(means, seed), "steps": pl.DataFrame(steps)},
        facts={"metric": name, "passes": passes, "parts": parts, "draws": draws, "shuffle": shuffle, "least": least},
        words={
            "error": "the metric's error, mean over draws and images; higher = less faithful",
            "difference": "error of `to` minus error of `from`, paired by image",
            "draws_increasing": "share of single draws in which the error increases",
        },
        caveats=(said, f"Intervals are over images; {draws} random explanations of each case were averaged."),
        provenance=provenance(seed=seed),
    )


def random_head(n: int = 1000, *, d: int = 20, classes: int = 8, n_fit: int = 1000, seed: int = 0) -> Evaluation:
    """F8 for explanations: normal embeddings and a normal head, so that nothing but the metric is tested.

    Args:
        n: images that are judged.
        d: width.
        classes: of the head.
        n_fit: other images, for metrics that train.
        seed: of everything.
    """
    generator = np.random.default_rng(seed)
    head = LinearHead(weight=generator.normal(size=(classes, d)), bias=np.zeros(classes))
    return Evaluation(head=head, embeddings=generator.normal(size=(n, d)), fit=generator.normal(size=(n_fit, d)))


def perfect(head: LinearHead, parts: int, generator: np.random.Generator) -> Explanation:
    """Each class's weights as a sum of orthogonal parts with positive importances: nothing is lost.

    Raises:
        OutOfRange: more parts than dimensions, or fewer than one.
    """
    width = head.weight.shape[1]
    if not 1 <= parts <= width:
        raise OutOfRange(f"parts={parts}: orthogonal parts of a vector of {width} dimensions are 1 to {width}.")
    concepts, importances = [], []
    for row in head.weight:
        others = generator.normal(size=(width, parts - 1))
        frame = np.linalg.qr(np.column_stack([row, others])).Q
        turned = (frame @ np.linalg.qr(generator.normal(size=(parts, parts))).Q).T
        alpha = turned @ row
        sign = np.where(alpha < 0, -1.0, 1.0)
        concepts.append(turned * sign[:, None])
        importances.append(alpha * sign)
    return Explanation(name="perfect", concepts=tuple(concepts), importances=tuple(importances))


def cases(
    head: LinearHead, parts: int, generator: np.random.Generator, shuffle: Shuffle = "permute"
) -> dict[str, Explanation]:
    """One draw of the four explanations, by name."""
    whole = perfect(head, parts, generator)

    def shuffled(alpha: np.ndarray) -> np.ndarray:
        if shuffle == "permute":
            return generator.permutation(alpha)
        return alpha * generator.uniform(0, 2, len(alpha))

    def made(name: str, concepts: Sequence[np.ndarray], importances: Sequence[np.ndarray]) -> Explanation:
        return Explanation(name=name, concepts=tuple(concepts), importances=tuple(importances))

    wrong = [shuffled(alpha) for alpha in whole.importances]
    random = [unit_rows("random", generator.normal(size=each.shape)) for each in whole.concepts]
    again = [unit_rows("random", generator.normal(size=each.shape)) for each in whole.concepts]
    return {
        "perfect": whole,
        "random importance": made("random importance", whole.concepts, wrong),
        "random concepts": made("random concepts", random, whole.importances),
        "both": made("both", again, [shuffled(alpha) for alpha in whole.importances]),
    }


def _judged(metric: Metric, name: str, explanation: Explanation, evaluation: Evaluation) -> Float[np.ndarray, " image"]:
    error = np.asarray(metric(explanation, evaluation), np.float64)
    if error.shape != (len(evaluation.embeddings),):
        raise ShapeMismatch(
            f"the metric {name!r} must give one error per image ({len(evaluation.embeddings)}), got the shape "
            f"{list(error.shape)}."
        )
    return finite(f"the errors of {name!r} on {explanation.name!r}", error)


def _cases(means: dict[str, np.ndarray], seed: int) -> pl.DataFrame:
    one = bootstrap(np.stack([means[case] for case in CASES]), seed=seed)
    return pl.DataFrame({"explanation": CASES, "error": one.effect, "low": one.low, "high": one.high, "n": one.n})


def _step(
    means: dict[str, np.ndarray], found: dict[str, list[np.ndarray]], first: str, second: str, least: float, seed: int
) -> dict[str, Any]:
    one = paired_difference(means[second], means[first], seed=seed)
    pairs = zip(found[first], found[second], strict=True)
    return {
        "from": first,
        "to": second,
        "difference": float(one.effect[0]),
        "low": float(one.low[0]),
        "high": float(one.high[0]),
        "n": int(one.n[0]),
        "draws_increasing": float(np.mean([b.mean() > a.mean() for a, b in pairs])),
        # Rounding leaves about 1e-15 of the largest error where an error is zero in exact arithmetic.
        "increases": bool(one.low[0] > max(least, 1e-9 * max(np.abs(each).mean() for each in means.values()))),
    }
