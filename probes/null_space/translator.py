"""A translator from a classifier's features to a joint image-text space, by ridge regression in closed form (SING).

`T f = A f + b` is fitted to CLIP embeddings of the same images:

1. Centre both sides; one SVD of the features serves every strength `lambda` of the ridge.
2. `lambda` is chosen on images that were not used to fit (smallest squared error), then everything is fitted again.
3. Quality is measured on other images again: R^2, and the correlation between the class scores of `T f` and of the true
   embedding (the paper reports 0.972). A translator of low quality says nothing about the null space.

The released code minimises the same loss (squared error with weight decay) by gradient steps (**C**); the closed form
is the optimum that they approach (**X**).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.stats import bootstrap, interval_of
from probes.null_space.angles import angle, unit
from probes.null_space.head import rows_of

LAMBDAS = tuple(10.0**power for power in range(-8, 3))
"""Strengths that are tried, in units of the largest eigenvalue of the features' scatter."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Translator:
    """An affine map from features to a joint space."""

    weight: Float[np.ndarray, "d_embed d"]
    """A."""
    bias: Float[np.ndarray, " d_embed"]
    """b."""
    strength: float = 0.0
    """`lambda` of the penalty `lambda |A|^2` beside the summed squared error."""
    n: int = 0
    """Images that it was fitted to."""

    def __post_init__(self):
        weight, bias = np.asarray(self.weight, np.float64), np.asarray(self.bias, np.float64)
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise ShapeMismatch(
                f"a translator has a weight [d_embed d] and a bias [d_embed], got {list(weight.shape)} and "
                f"{list(bias.shape)}."
            )
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "bias", bias)

    def __call__(self, features: Float[np.ndarray, "row d"]) -> Float[np.ndarray, "row d_embed"]:
        """Translated features."""
        return rows_of(features, self.weight.shape[1], "features") @ self.weight.T + self.bias

    def gradient(
        self, features: Float[np.ndarray, "row d"], text: Float[np.ndarray, " d_embed"]
    ) -> Float[np.ndarray, "row d"]:
        """Gradient of `cos(T f, text)` with respect to `f`."""
        translated = self(features)
        length = np.linalg.norm(translated, axis=1, keepdims=True)
        toward = unit(text[None])[0]
        u = translated / length
        return ((toward - (u @ toward)[:, None] * u) / length) @ self.weight


def fit_translator(
    features: Float[np.ndarray, "image d"],
    targets: Float[np.ndarray, "image d_embed"],
    *,
    strengths: Sequence[float] | None = None,
    validation: float = 0.25,
    seed: int = 0,
) -> Translator:
    """Ridge regression from features to embeddings, its strength chosen by validation.

    Args:
        features: what the head reads, one row per image.
        targets: embeddings of the same images, in the same order (unit length for CLIP).
        strengths: `lambda`s to try, absolute (as scikit-learn's `Ridge(alpha=...)`); default: :data:`LAMBDAS` times
            the largest eigenvalue of the scatter matrix.
        validation: share of the images that choose the strength.
        seed: draws them.

    Raises:
        ShapeMismatch: not one target per image.
        BadData: fewer than 4 images, or features that do not vary.
        OutOfRange: a share that is not between 0 and 1, or a negative strength.
        NotFinite.

    Example:
        >>> f = np.random.default_rng(0).normal(size=(50, 3))
        >>> bool(np.allclose(fit_translator(f, f @ np.ones((3, 2))).weight, 1, atol=1e-4))
        True
    """
    features, targets = rows_of(features, None, "features"), rows_of(targets, None, "targets")
    if len(features) != len(targets):
        raise ShapeMismatch(f"{len(features)} rows of features, {len(targets)} of targets: one target per image.")
    if not 0 < validation < 1:
        raise OutOfRange(f"validation={validation} is the share of images that choose the strength: between 0 and 1.")
    if len(features) < 4:
        raise BadData(f"{len(features)} images are too few to fit a translator and to choose its strength.")
    if strengths is not None and (not len(strengths) or min(strengths) < 0):
        raise OutOfRange(f"strengths={list(strengths)}: give at least one, none negative.")
    order = np.random.default_rng(seed).permutation(len(features))
    n_validation = min(max(1, round(validation * len(features))), len(features) - 2)
    chosen, rest = order[:n_validation], order[n_validation:]
    if strengths is None:
        scale = float(np.linalg.norm(features - features.mean(0), 2) ** 2)
        if not scale > 0:
            raise BadData("the features are the same for all images: there is nothing to translate.")
        strengths = [scale * each for each in LAMBDAS]
    path = _Ridge(features[rest], targets[rest])
    errors = [((path.at(strength)(features[chosen]) - targets[chosen]) ** 2).sum() for strength in strengths]
    return _Ridge(features, targets).at(float(strengths[int(np.argmin(errors))]))


class _Ridge:
    """Ridge solutions for all strengths from one SVD."""

    def __init__(self, features: np.ndarray, targets: np.ndarray):
        self.n, self.mean, self.target_mean = len(features), features.mean(0), targets.mean(0)
        left, self.singular, self.right = np.linalg.svd(features - self.mean, full_matrices=False)
        self.codes = left.T @ (targets - self.target_mean)
        # Directions without variance get weight 0 also at strength 0, as in the pseudo-inverse.
        self.kept = self.singular > max(features.shape) * np.finfo(np.float64).eps * self.singular.max(initial=0.0)

    def at(self, strength: float) -> Translator:
        shrunk = np.zeros_like(self.singular)
        kept = self.singular[self.kept]
        shrunk[self.kept] = kept / (kept**2 + strength)
        weight = (self.codes * shrunk[:, None]).T @ self.right
        bias = self.target_mean - weight @ self.mean
        return Translator(weight=weight, bias=bias, strength=strength, n=self.n)


def quality(
    translator: Translator,
    features: Float[np.ndarray, "image d"],
    targets: Float[np.ndarray, "image d_embed"],
    texts: Float[np.ndarray, "class d_embed"] | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, tuple[float, float, float]]:
    """How good a translator is, on images that it has not seen: value, low, high of the 95 % interval over images.

    Args:
        translator: what to judge.
        features: of images that were not used to fit.
        targets: their true embeddings.
        texts: text embedding of each class (or any texts), for the correlation of scores.
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        `r2` (share of the variance of the embeddings, about their mean over these images), `angle` (degrees between
        translated and true embedding), and with `texts` `score_correlation` (Pearson's, over images x texts).

    Example:
        >>> quality(translator, features, targets)["r2"]                                           # doctest: +SKIP
        (0.91, 0.9, 0.92)
    """
    translated, targets = translator(features), rows_of(targets, len(translator.bias), "targets")
    if len(translated) != len(targets):
        raise ShapeMismatch(f"{len(translated)} rows of features, {len(targets)} of targets: one target per image.")
    settings = {"resamples": resamples, "seed": seed}

    def r2(wrong: np.ndarray, true: np.ndarray) -> float:
        spread = ((true - true.mean(0)) ** 2).sum()
        return float(1 - wrong.sum() / spread) if spread > 0 else float("nan")

    off = bootstrap(angle(translated, targets), **settings)
    found = {
        "r2": interval_of(r2, ((translated - targets) ** 2).sum(1), targets, **settings),
        "angle": (float(off.effect[0]), float(off.low[0]), float(off.high[0])),
    }
    if texts is not None:
        toward = unit(texts, "texts").T
        scores = unit(translated) @ toward, unit(targets) @ toward

        def correlation(a: np.ndarray, b: np.ndarray) -> float:
            a, b = a.ravel() - a.mean(), b.ravel() - b.mean()
            size = np.sqrt((a @ a) * (b @ b))
            return float(a @ b / size) if size > 0 else float("nan")

        found["score_correlation"] = interval_of(correlation, *scores, **settings)
    return found


def clip_embeddings(clip: object, images: object, batch_size: int = 256) -> Float[np.ndarray, "image d_embed"]:
    """Unit-length CLIP embeddings of images as float64 rows."""
    with torch.no_grad():
        return clip.encode_image(images, batch_size=batch_size).double().cpu().numpy()
