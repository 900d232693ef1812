"""Words taken out of sparse codes, and what becomes of the classification.

    1. classify the original embeddings, and the recomposed ones: the difference is what the words do not explain
    2. weights of chosen words to zero, recompose, classify again
    3. control, repeated: as many other active words of each image to zero, drawn at random

The effect is `recomposed - without`, image by image. It is an effect on embeddings that were made of words: what the
model itself would do without a concept is another question (edit the model for that).

Source: methods.md 2.5 (**C**; the control: **X**).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from mechvis.errors import BadData, ShapeMismatch, unknown
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import RESAMPLES, bootstrap, paired_difference
from probes.codes.splice import SpliceCodes, recomposed
from probes.codes.words import unit


def without_words(
    codes: SpliceCodes,
    embeddings: Float[np.ndarray, "image d"],
    directions: Float[np.ndarray, "class d"],
    labels: Int[np.ndarray, " image"],
    words: Sequence[str],
    *,
    controls: int = 20,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Record:
    """Classify without some words.

    Args:
        codes: of the images.
        embeddings: the originals, in the same order.
        directions: of the classes: text embeddings.
        labels: class of each image.
        words: whose weights are set to zero.
        controls: random choices of as many other words.
        resamples: of the bootstrap over images.
        seed: of controls and bootstrap.

    Returns:
        Record: rows `original`, `recomposed`, `without`, `control`: accuracy with its interval, and the difference to
        `recomposed`; `arrays["predictions"]` `[row image]` (the controls' is their first).

    Raises:
        UnknownName: a word that is not in the dictionary.
        BadData: no words, or fewer than one control.
        ShapeMismatch: arrays that do not fit the codes.

    Example:
        >>> without_words(codes, embeddings, texts, labels, ["striped", "dotted"]).table       # doctest: +SKIP
    """
    n, width = codes.tables["images"].height, codes.arrays["words"].shape[1]
    embeddings, directions = (np.asarray(given, dtype=np.float64) for given in (embeddings, directions))
    labels = np.asarray(labels)
    if embeddings.shape != (n, width) or directions.ndim != 2 or directions.shape[1] != width or labels.shape != (n,):
        raise ShapeMismatch(
            f"the codes are of {n} images in {width} dimensions; got embeddings {list(embeddings.shape)}, directions "
            f"{list(directions.shape)}, labels {list(labels.shape)}."
        )
    if isinstance(words, str) or not len(words) or controls < 1:
        raise BadData(f"words={words!r}, controls={controls}: give a list with at least one word, and one control.")
    for name in words:
        if name not in codes.names:
            raise unknown("word", name, codes.names)
    dense, chosen = codes.dense(), np.isin(codes.names, list(words))
    classes = unit(directions, "direction")

    def predicted(vectors: np.ndarray) -> np.ndarray:
        return (vectors @ classes.T).argmax(1)

    def again(weights: np.ndarray) -> np.ndarray:
        return predicted(recomposed(weights, codes.arrays["words"], codes.arrays["mean"]))

    removed = np.where(chosen, 0.0, dense)
    generator = np.random.default_rng(seed)
    drawn = np.stack([again(_without_others(dense, chosen, generator)) for _ in range(controls)])
    predictions = {
        "original": predicted(unit(embeddings, "embedding")),
        "recomposed": again(dense),
        "without": again(removed),
        "control": drawn[0],
    }
    right = {name: (guess == labels).astype(float) for name, guess in predictions.items()}
    right["control"] = (drawn == labels).mean(0)
    known = bootstrap(np.stack(list(right.values())), resamples=resamples, seed=seed)
    lost = paired_difference(
        np.broadcast_to(right["recomposed"], (4, n)), np.stack(list(right.values())), resamples=resamples, seed=seed
    )
    table = pl.DataFrame(
        {
            "embedding": list(right),
            "n": known.n,
            "accuracy": known.effect,
            "accuracy_low": known.low,
            "accuracy_high": known.high,
            "lost": lost.effect,
            "lost_low": lost.low,
            "lost_high": lost.high,
        }
    ).with_columns(pl.col(pl.Float64).fill_nan(None))
    facts: dict[str, Any] = {
        "words": list(words),
        "controls": controls,
        "images with one of the words": int((dense[:, chosen] > 0).any(1).sum()),
        "weight removed": float((dense[:, chosen].sum(1) / np.maximum(dense.sum(1), 1e-300)).mean()),
    }
    return Record(
        kind="splice_intervention",
        title=f"Classification without {', '.join(words[:4])}{' ...' if len(words) > 4 else ''}",
        tables={"accuracy": table},
        arrays={"predictions": np.stack(list(predictions.values()))},
        facts=facts,
        words={
            "original": "the embeddings as they were",
            "recomposed": "made of all the words of their codes",
            "without": "made of their codes without the chosen words",
            "control": f"without as many other words of each image, mean over {controls} random choices",
            "lost": "accuracy of recomposed - of this, image by image",
        },
        caveats=(
            "Embeddings were changed, not the model: what it would do without the concept is not answered here.",
            "original - recomposed is what the words do not explain; compare effects with it.",
        ),
        provenance=provenance(seed=seed),
    )


def _without_others(dense: np.ndarray, chosen: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """As many other active words of each image to zero as it has of the chosen ones."""
    weights = dense.copy()
    counts = (dense[:, chosen] > 0).sum(1)
    for row, count in enumerate(counts):
        others = np.flatnonzero((dense[row] > 0) & ~chosen)
        weights[row, generator.permutation(others)[:count]] = 0.0
    return weights
