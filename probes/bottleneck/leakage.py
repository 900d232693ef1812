"""Leakage: what concept scores tell of the class beyond which concepts are present.

A soft score can carry more than its concept: a head may read the class from small differences that have nothing to do
with the word. The check (methods2.md 17.5 step 6; **X** where the text leaves open what is shuffled):

    leakage = accuracy of a head on the scores - accuracy of the same head on scores that tell presence only

"Tell presence only": every score is exchanged, on its own, for that of another image with the same truth value of the
concept, in training and test images alike. Without a truth table scores are exchanged inside the class: this keeps what
each concept alone says of the class and destroys what they say together about one image.
"""

from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool

from mechvis.errors import OutOfRange, ShapeMismatch
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import bootstrap, paired_difference
from probes.bottleneck.bypass import linear_probabilities
from probes.bottleneck.concepts import Concepts
from probes.bottleneck.entropy import train_and_test


def leakage(
    train: Any,
    test: Any,
    concepts: Concepts,
    *,
    truth: Bool[np.ndarray, "image concept"] | None = None,
    test_truth: Bool[np.ndarray, "test_image concept"] | None = None,
    name: str | None = None,
    target: str | None = None,
    draws: int = 10,
    ridge: float = 1e-3,
    seed: int = 0,
) -> Record:
    """Accuracy of a head on concept scores, beside scores that tell the concepts' presence only.

    Args:
        train, test: `Features` of different images.
        concepts: the set.
        truth, test_truth: which concepts are there `[image concept]`, for both or for neither.
        name: which features, where there are several.
        target: what is predicted; None: the labels.
        draws: how often scores are exchanged anew.
        ridge: of the head, per image.
        seed: of the exchanges.

    Returns:
        A record with the rows `scores`, `presence only` (mean over draws) and `leakage` (their difference, paired by
        image), each with an interval.

    Raises:
        SplitOverlap: training images among the test images.
        ShapeMismatch: a truth table for one of the two only, or one that does not fit.
        OutOfRange: no draw.

    Example:
        >>> leakage(train, test, concepts, truth=truth, test_truth=test_truth).pick(what="leakage")  # doctest: +SKIP
    """
    if draws < 1:
        raise OutOfRange(f"draws={draws}: scores must be exchanged at least once.")
    if (truth is None) != (test_truth is None):
        raise ShapeMismatch("give the truth of training and of test images, or of neither.")
    z, y, z_test, y_test = train_and_test(train, test, name, target)
    c, c_test = concepts.scores(z), concepts.scores(z_test)
    cells, test_cells = _cells(truth, y, c.shape, "training"), _cells(test_truth, y_test, c_test.shape, "test")

    def right(rows: np.ndarray, other: np.ndarray) -> np.ndarray:
        return (linear_probabilities(rows, y, other, ridge=ridge)[0].argmax(1) == y_test).astype(float)

    whole = right(c, c_test)
    generator = np.random.default_rng(seed)
    only = np.mean(
        [right(_exchanged(c, cells, generator), _exchanged(c_test, test_cells, generator)) for _ in range(draws)],
        axis=0,
    )
    leaked = paired_difference(whole, only)
    rows = []
    for what, found in (("scores", bootstrap(whole)), ("presence only", bootstrap(only)), ("leakage", leaked)):
        ends = {"low": float(found.low[0]), "high": float(found.high[0]), "n": int(found.n[0])}
        rows.append({"what": what, "accuracy": float(found.effect[0]), **ends})
    inside = "the class" if truth is None else "images with the same truth value of the concept"
    return Record(
        kind="concept_leakage",
        title="What the scores tell beyond the concepts' presence",
        tables={"leakage": pl.DataFrame(rows)},
        facts={"exchanged_within": inside, "draws": draws, "n_concepts": len(concepts)},
        words={"accuracy": "of a linear head, test images; leakage is the difference of the two"},
        caveats=(
            f"Scores were exchanged within {inside}"
            + (": what two concepts tell together counts as leakage." if truth is None else "."),
        ),
        provenance=provenance(seed=seed, features=train.provenance, settings={"ridge": ridge}),
    )


def _cells(truth: Any, y: np.ndarray, shape: tuple[int, int], what: str) -> np.ndarray:
    """For every image and concept the group inside which its score is exchanged."""
    if truth is None:
        return np.repeat(y[:, None], shape[1], axis=1)
    truth = np.asarray(truth)
    if truth.shape != shape or truth.dtype != bool:
        raise ShapeMismatch(
            f"the truth of the {what} images is bool [image concept] = {list(shape)}, got {truth.dtype} "
            f"{list(truth.shape)}."
        )
    return truth.astype(np.int64)


def _exchanged(c: np.ndarray, cells: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    exchanged = c.copy()
    for k in range(c.shape[1]):
        for cell in np.unique(cells[:, k]):
            members = np.flatnonzero(cells[:, k] == cell)
            exchanged[members, k] = c[generator.permutation(members), k]
    return exchanged
