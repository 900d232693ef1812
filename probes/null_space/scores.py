"""IS and AS: how far the meaning moves when the part that the classifier cannot see is taken away (SING; methods.md 6).

    IS(image)       = angle(T f, T f~)                              [C] [N]
    AS(image, text) = angle(T f, z_text) - angle(T f~, z_text)      [C] [N]

Degrees. AS > 0: without the null part the image is closer to the text (the null part pointed away from it).

T is affine, so angles are not free of its bias: they are those of embeddings as CLIP has them, from the origin.

Two models cannot be compared by IS alone: a head of 8 classes on 128 dimensions leaves 120 to its null space, one of
1000 classes on 1024 leaves 24. So IS also comes per null dimension and per share of the feature in the null space
(**X**).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechvis.errors import OutOfRange, ShapeMismatch
from probes.null_space.angles import angle, angles_to
from probes.null_space.head import rows_of
from probes.null_space.space import NullSpace
from probes.null_space.translator import Translator


@dataclass(frozen=True, kw_only=True, eq=False)
class Shift:
    """What taking a part away does to the translated features, image by image."""

    IS: Float[np.ndarray, " image"]
    """Angle between before and after, in degrees."""
    AS: Float[np.ndarray, "image text"]
    """Angle to each text before minus after, in degrees; positive: closer afterwards."""
    share: Float[np.ndarray, " image"]
    """Length of what was taken away over the length of the feature."""
    logits: Float[np.ndarray, " image"]
    """Largest change of a logit (of a centred logit where the null space is that of the decision)."""


def shift(
    translator: Translator,
    weight: Float[np.ndarray, "class d"],
    before: Float[np.ndarray, "image d"],
    after: Float[np.ndarray, "image d"],
    texts: Float[np.ndarray, "text d_embed"],
) -> Shift:
    """IS and AS of any change of features.

    Args:
        translator: to the joint space.
        weight: of the head (row-centred for the decision), for the change of the logits.
        before: features.
        after: the same images' changed features.
        texts: embeddings of the texts.

    Raises:
        ShapeMismatch, NotFinite.

    Example:
        >>> t = Translator(weight=np.eye(2), bias=np.zeros(2))
        >>> found = shift(t, np.array([[1.0, 0]]), np.array([[1.0, 1]]), np.array([[1.0, 0]]), np.array([[1.0, 0]]))
        >>> found.IS.round(6), found.AS.round(6), found.logits
        (array([45.]), array([[45.]]), array([0.]))
    """
    before, after = rows_of(before, weight.shape[1], "features"), rows_of(after, weight.shape[1], "changed features")
    if before.shape != after.shape:
        raise ShapeMismatch(f"features {list(before.shape)} and changed features {list(after.shape)} differ in shape.")
    start, end = translator(before), translator(after)
    texts = rows_of(texts, start.shape[1], "texts")
    moved = after - before
    return Shift(
        IS=angle(start, end),
        AS=angles_to(start, texts) - angles_to(end, texts),
        share=np.linalg.norm(moved, axis=1) / np.linalg.norm(before, axis=1),
        logits=np.abs(moved @ weight.T).max(1),
    )


def controls(
    space: NullSpace,
    translator: Translator,
    weight: Float[np.ndarray, "class d"],
    features: Float[np.ndarray, "image d"],
    part: Float[np.ndarray, "image d"],
    texts: Float[np.ndarray, "text d_embed"],
    *,
    draws: int = 10,
    seed: int = 0,
) -> dict[str, Shift]:
    """The same with parts of the same length that are not the null part (methods.md 6, step 6, **X**).

    `principal`: the feature's part in a random subspace of the principal space, brought to the null part's length; the
    logits must move, or the head was not read right. `random`: a random vector. `null`: a random vector of the null
    space. An isometric translator turns by the arctangent of the share under `null`, and by the arcsine under the
    removal of the feature's own part, which also shortens it: a difference of geometry, not of meaning.

    Args:
        space: of the head.
        translator: to the joint space.
        weight: of the head, for the change of the logits.
        features: `[image d]`.
        part: what was taken away of each, whose length the controls get.
        texts: embeddings of the texts.
        draws: random parts per image, averaged; at least one.
        seed: draws them.

    Returns:
        Per control the means over draws; one that cannot be drawn (no principal, no null direction) is left out.

    Raises:
        OutOfRange: no draw.
    """
    if draws < 1:
        raise OutOfRange(f"draws={draws}: at least one random part per image.")
    generator = np.random.default_rng(seed)
    length = np.linalg.norm(part, axis=1, keepdims=True)

    def scaled(vectors: np.ndarray) -> np.ndarray:
        size = np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors * length / np.where(size > 0, size, 1.0)

    def principal() -> np.ndarray:
        # Half of the directions: a subspace that holds part of the feature, another one in every draw.
        half = max(1, space.rank // 2)
        basis = space.principal @ np.linalg.qr(generator.normal(size=(space.rank, half))).Q
        return scaled((features @ basis) @ basis.T)

    def within(basis: np.ndarray) -> np.ndarray:
        return scaled(generator.normal(size=(len(features), basis.shape[1])) @ basis.T)

    makers = {"random": lambda: within(np.eye(features.shape[1]))}
    if space.rank:
        makers = {"principal": principal, **makers}
    if space.null_dim:
        makers["null"] = lambda: within(space.null)
    found = {}
    for name, make in makers.items():
        total: dict[str, np.ndarray] = {}
        for _ in range(draws):
            one = shift(translator, weight, features, features - make(), texts)
            for field in ("IS", "AS", "share", "logits"):
                total[field] = total.get(field, 0.0) + getattr(one, field) / draws
        found[name] = Shift(**total)
    return found
