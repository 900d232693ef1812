"""Move a feature towards a text without the classifier noticing (SING's directed edit; methods.md 6, step 8, **N**).

    g = grad_f cos(T f, z_text),    d = V_n V_n^T g / |V_n V_n^T g|,    f + eps d

`eps` is swept in units of the feature's own length (**X**). How far the angle falls while the logits stay is how much
freedom the null space leaves to the meaning.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from jaxtyping import Float

from mechvis.errors import BadData, FailedCheck, OutOfRange
from mechvis.stats import bootstrap
from probes.null_space.angles import angles_to
from probes.null_space.head import rows_of
from probes.null_space.space import NullSpace
from probes.null_space.translator import Translator

STEPS = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Lengths of the edit over the length of the feature."""

_FLOATS = ("size", "angle", "low", "high", "logits")
EDITS = {"text": pl.String, **dict.fromkeys(_FLOATS, pl.Float64), "n": pl.Int64}
"""Columns of a table of edits."""


def directed_edit(
    space: NullSpace,
    translator: Translator,
    features: Float[np.ndarray, "image d"],
    text: Float[np.ndarray, " d_embed"],
    size: float,
) -> Float[np.ndarray, "image d"]:
    """Features moved towards a text inside the null space.

    Args:
        space: of the head.
        translator: to the joint space.
        features: `[image d]`.
        text: where to go.
        size: length of the move over the length of the feature (0: nothing moves).

    Raises:
        BadData: the null space is empty, or the translator reads nothing of it.
        OutOfRange: a negative or infinite size.

    Example:
        >>> edited = directed_edit(space, translator, features, text, 0.2)                         # doctest: +SKIP
        >>> model.run(pixels, edits=[edits.patch("hook_pooled", edited)])                          # doctest: +SKIP
    """
    if not 0 <= size < np.inf:
        raise OutOfRange(f"size={size}: the length of the edit over that of the feature, 0 or more.")
    features = rows_of(features, len(space.null), "features")
    toward = space.part(translator.gradient(features, np.asarray(text, np.float64)))
    length = np.linalg.norm(toward, axis=1, keepdims=True)
    # Rounding leaves something of the order of 1e-16 where there is nothing.
    whole = np.linalg.norm(translator.gradient(features, np.asarray(text, np.float64)), axis=1, keepdims=True)
    if not (length > 1e-10 * whole).all():
        raise BadData("the translator reads nothing of the null space, so no edit inside it can move the meaning.")
    return features + size * np.linalg.norm(features, axis=1, keepdims=True) * toward / length


def edit_table(
    space: NullSpace,
    translator: Translator,
    weight: Float[np.ndarray, "class d"],
    features: Float[np.ndarray, "image d"],
    texts: Float[np.ndarray, "text d_embed"],
    names: Sequence[str],
    *,
    steps: Sequence[float] = STEPS,
    most: float = 1e-4,
    seed: int = 0,
) -> pl.DataFrame:
    """Directed edits towards each text at each size: how far the meaning goes, and that the logits stay.

    Args:
        space: of the head.
        translator: to the joint space.
        weight: of the head (row-centred for the decision).
        features: `[image d]`.
        texts: embeddings of the texts.
        names: of the texts.
        steps: sizes, in units of the feature's length.
        most: largest change of a logit that an exact null space may show, in logits.
        seed: of the bootstrap.

    Returns:
        `text size angle low high logits n`: `angle` is how much closer the image came to the text, in degrees, with
        its 95 % interval over images; `logits` the largest change of a logit of any image.

    Raises:
        FailedCheck: the null space is exact and a logit moved by more than `most`: the head is not what it seems.
        OutOfRange, BadData: see :func:`directed_edit`.
    """
    rows = []
    for name, text in zip(names, texts, strict=True):
        start = angles_to(translator(features), text[None])[:, 0]
        for size in steps:
            edited = directed_edit(space, translator, features, text, float(size))
            closer = bootstrap(start - angles_to(translator(edited), text[None])[:, 0], seed=seed)
            logits = float(np.abs((edited - features) @ weight.T).max())
            if space.kind == "exact" and logits > most:
                raise FailedCheck(
                    f"an edit of size {size} inside the null space moves a logit by {logits:.3g}, more than {most}. "
                    "The tolerance of the null space is too large for this head: pass a smaller tol=."
                )
            rows.append(
                {"text": name, "size": float(size), "angle": float(closer.effect[0]), "low": float(closer.low[0])}
                | {"high": float(closer.high[0]), "logits": logits, "n": int(closer.n[0])}
            )
    return pl.DataFrame(rows, schema=EDITS)
