"""How good is an explanation of a latent? Measures that need no language model (methods.md 8).

* `auroc`: do the images on which the latent is strong carry the concept?
* `activation_iou`: is the latent active where the concept is?
* `similarity`: does the explanation fit the top images, masked to where the latent is active?
* `monosemanticity`: are the images on which it is strong alike?
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import rankdata

from mechvis.errors import BadData, ShapeMismatch


def auroc(strength: Float[np.ndarray, " image"], concept: Bool[np.ndarray, " image"]) -> float:
    """Chance that the latent is stronger on an image of the concept than on another one (ties count half); 0.5: none.

    Args:
        strength: the latent per image, e.g. its maximum over tokens.
        concept: images of the concept.

    Raises:
        ShapeMismatch: other lengths.
        BadData: all images are of the concept, or none is.

    Example:
        >>> auroc(np.array([0.0, 0.1, 0.9]), np.array([False, False, True]))
        1.0
    """
    strength, concept = np.asarray(strength, np.float64), np.asarray(concept, bool)
    if strength.shape != concept.shape or strength.ndim != 1:
        raise ShapeMismatch(f"{list(strength.shape)} strengths and {list(concept.shape)} marks: one each per image.")
    n = int(concept.sum())
    if n in (0, len(concept)):
        raise BadData(f"{n} of {len(concept)} images are of the concept; an AUROC needs both kinds.")
    ranks = rankdata(strength)
    return float((ranks[concept].sum() - n * (n + 1) / 2) / (n * (len(concept) - n)))


def activation_iou(
    codes: Float[np.ndarray, "image patch"], masks: Bool[np.ndarray, "image patch"], above: float = 0.0
) -> float:
    """Patches where the latent is active and the concept is, over patches where either is; over all images together.

    Args:
        codes: of one latent.
        masks: where the concept is (by a given mask, or a text-conditioned segmentation).
        above: active means above this share of the latent's maximum.

    Raises:
        ShapeMismatch: other shapes.
        BadData: neither is anywhere.

    Example:
        >>> activation_iou(np.array([[0.0, 2.0, 1.0]]), np.array([[False, True, False]]))
        0.5
    """
    codes, masks = np.asarray(codes), np.asarray(masks, bool)
    if codes.shape != masks.shape:
        raise ShapeMismatch(f"codes {list(codes.shape)} and masks {list(masks.shape)} are of the same patches.")
    active = (codes > 0) & (codes >= above * codes.max(initial=0.0))
    either = (active | masks).sum()
    if not either:
        raise BadData("the latent is active nowhere, and the concept is nowhere: there is no overlap to speak of.")
    return float((active & masks).sum() / either)


def similarity(embeddings: Float[np.ndarray, "image d"], text: Float[np.ndarray, " d"]) -> float:
    """Mean cosine of images (the masked top ones) with an explanation.

    Raises:
        ShapeMismatch: other widths.
        BadData: no image, or a vector of zeros.
    """
    embeddings, text = np.asarray(embeddings, np.float64), np.asarray(text, np.float64)
    if embeddings.ndim != 2 or text.shape != embeddings.shape[1:]:
        raise ShapeMismatch(f"embeddings [image d] and a text [d], got {list(embeddings.shape)}, {list(text.shape)}.")
    lengths = np.linalg.norm(embeddings, axis=1) * np.linalg.norm(text)
    if not len(embeddings) or not (lengths > 0).all():
        raise BadData("a cosine needs at least one image and no vector of zeros.")
    return float((embeddings @ text / lengths).mean())


def monosemanticity(embeddings: Float[np.ndarray, "image d"], strength: Float[np.ndarray, " image"]) -> float:
    """Mean cosine of pairs of images, weighted by the product of the latent's strengths on them.

    Raises:
        ShapeMismatch: other lengths.
        BadData: the latent is active on fewer than two images, or is negative.

    Example:
        >>> monosemanticity(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), np.array([1.0, 1.0, 0.0]))
        1.0
    """
    embeddings, strength = np.asarray(embeddings, np.float64), np.asarray(strength, np.float64)
    if embeddings.ndim != 2 or strength.shape != embeddings.shape[:1]:
        raise ShapeMismatch(f"one strength per image: {list(embeddings.shape)} and {list(strength.shape)}.")
    if (strength < 0).any() or (strength > 0).sum() < 2:
        raise BadData("pairs need a latent that is above zero on two images or more, and nowhere below.")
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    total = np.square(strength @ unit).sum() - np.square(strength).sum()
    return float(total / (strength.sum() ** 2 - np.square(strength).sum()))
