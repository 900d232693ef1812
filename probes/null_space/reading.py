"""What lies in the part of a feature that the classifier cannot see? (SING, CVPR 2026; methods.md 6)

1. The head's input of every image, and its null part by one SVD of the head (:mod:`probes.null_space.space`).
2. A translator from features to CLIP's space, fitted to other images (:mod:`probes.null_space.translator`).
3. IS and AS per image, class and model, with intervals over images; per null dimension and per share of the feature.
4. Controls: parts of the same length that are random, in the principal space, or random in the null space.
5. A dictionary read out: which texts come closer, which go further, when the null part goes.
6. Directed edits: how far the meaning can be moved without the logits moving.

`sing` does all of it for a wrapped classifier and a CLIP; `read_null_space` takes plain matrices.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
from jaxtyping import Float

from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.errors import BadData, ShapeMismatch, unknown
from mechvis.provenance import provenance
from probes.features import collect
from probes.null_space.angles import unit
from probes.null_space.edit import EDITS, STEPS, edit_table
from probes.null_space.head import LinearHead, linear_head, rows_of
from probes.null_space.record import WORDS, NullReading
from probes.null_space.scores import controls, shift
from probes.null_space.space import NullSpace, null_space, soft_null_space
from probes.null_space.tables import caveats_of, class_table, control_table, model_row, text_table
from probes.null_space.translator import Translator, clip_embeddings, fit_translator, quality

Fill = Literal["zero", "mean"]
FILLS = ("zero", "mean")


def sing(
    model: Any,
    clip: Any,
    images: ImageSet,
    translator_images: ImageSet,
    texts: Sequence[str],
    *,
    centered: bool = False,
    fill: Fill = "zero",
    soft: float | None = 0.01,
    tol: float | None = None,
    strengths: Sequence[float] | None = None,
    steps: Sequence[float] = STEPS,
    edited: int = 8,
    draws: int = 10,
    seed: int = 0,
    progress: bool = True,
    allow_overlap: bool = False,
) -> NullReading:
    """The meaning of a classifier's null space, told by a CLIP model.

    Args:
        model: a wrapped classifier with a linear head.
        clip: a `HookedCLIP` that knows the kind of images and texts.
        images: what is read; labels make the table per class (else the model's own predictions).
        translator_images: other images, to fit the translator.
        texts: the dictionary, e.g. `["a striped background", "a red circle", ...]`.
        centered: the null space of the decision, not of the logits.
        fill: what takes the null part's place: nothing (`zero`, **C**), or its mean over the translator's images
            (`mean`, **X**), which takes away only what differs between images.
        soft: a head without null space gets a soft one that moves no logit by more than this; None: refuse instead.
        tol: singular values up to here are zero; default by type and scale.
        strengths: ridge strengths to try.
        steps: sizes of the directed edits, in units of the feature's length.
        edited: directed edits go to so many texts, those that the null part moves most.
        draws: random parts per control and image.
        seed: of draws, splits and bootstraps.
        progress: show progress bars.
        allow_overlap: accept images that fitted the translator.

    Returns:
        NullReading: `table` has one row per text; `model_row()`, `classes`, `edits`, `controls` are further tables.

    Raises:
        SplitOverlap: images that fitted the translator are read.
        RefusedMethod: the head is not linear.
        BadData: no head, no texts, no null space.
        NotFinite, ShapeMismatch, UnknownName.

    Example:
        >>> found = probes.sing(model, clip, images, others, ["a striped background"])             # doctest: +SKIP
        >>> found.strongest(3)                                                                     # doctest: +SKIP
    """
    head = linear_head(model)
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
        raise BadData("no texts to read the null space with: give at least one.")
    if not allow_overlap:
        refuse_overlap(images, translator_images, what="images that are read and images that fit the translator")
    rows = {}
    for name, those in (("fit", translator_images), ("read", images)):
        found = collect(model, those, head.site, progress=progress)
        rows[name] = np.asarray(found[head.site], np.float64)
        labels = found.labels
    embeddings = {"fit": clip_embeddings(clip, translator_images), "read": clip_embeddings(clip, images)}
    translator = fit_translator(rows["fit"], embeddings["fit"], strengths=strengths, seed=seed)
    return read_null_space(
        head,
        rows["read"],
        translator,
        clip.encode_text(texts).double().cpu().numpy(),
        texts,
        labels=labels,
        embeddings=embeddings["read"],
        mean=rows["fit"].mean(0) if _fill(fill) == "mean" else None,
        centered=centered,
        soft=soft,
        tol=tol,
        steps=steps,
        edited=edited,
        draws=draws,
        seed=seed,
        name=getattr(model, "name", "") or "a model",
        about=provenance(model=model, images=images, seed=seed, clip=str(clip.vision.title)),
    )


def read_null_space(
    head: LinearHead,
    features: Float[np.ndarray, "image d"],
    translator: Translator,
    texts: Float[np.ndarray, "text d_embed"],
    names: Sequence[str],
    *,
    labels: np.ndarray | None = None,
    embeddings: Float[np.ndarray, "image d_embed"] | None = None,
    mean: Float[np.ndarray, " d"] | None = None,
    centered: bool = False,
    soft: float | None = 0.01,
    tol: float | None = None,
    steps: Sequence[float] = STEPS,
    edited: int = 8,
    draws: int = 10,
    seed: int = 0,
    name: str = "a model",
    about: dict[str, Any] | None = None,
) -> NullReading:
    """The same from matrices: any head, any features, any translator.

    Args:
        head: the classifier's last layer.
        features: what it reads, of images that did not fit the translator.
        translator: from features to the texts' space.
        texts: embeddings of the dictionary.
        names: of the texts.
        labels: class per image; None: the head's predictions.
        embeddings: true embeddings of the images, for the translator's quality.
        mean: the null part of this vector stays (mean ablation); None: nothing stays.
        centered, soft, tol, steps, edited, draws, seed: see :func:`sing`.
        name: of the model, in tables.
        about: provenance.

    Raises:
        BadData: no null space, and `soft=None`.
        ShapeMismatch, NotFinite.
    """
    features = rows_of(features, head.weight.shape[1], "features")
    if len(names) != len(texts):
        raise ShapeMismatch(f"{len(names)} names for {len(texts)} texts.")
    texts = unit(rows_of(texts, len(translator.bias), "texts"), "texts")
    space = _space(head, features, centered, soft, tol)
    weight = head.weight - head.weight.mean(0) if centered else head.weight
    after = space.equivalent(features, mean)
    found = shift(translator, weight, features, after, texts)
    others = controls(space, translator, weight, features, features - after, texts, draws=draws, seed=seed)
    classes = np.argmax(head(features), 1) if labels is None else np.asarray(labels)
    if len(classes) != len(features):
        raise ShapeMismatch(f"{len(features)} images but {len(classes)} labels.")
    cosines = unit(translator(features)) @ texts.T - unit(translator(after)) @ texts.T
    good = (
        {}
        if embeddings is None
        else quality(translator, features, embeddings, texts if len(texts) > 1 else None, seed=seed)
    )
    summary = model_row(name, head, space, found, len(features), good, seed)
    return NullReading(
        title=f"What the head of {name} cannot see, in {len(features)} images",
        tables={
            "texts": text_table(names, cosines, found, others.get("null"), seed),
            "model": pl.DataFrame([summary], infer_schema_length=None).with_columns(pl.col(pl.Float64).fill_nan(None)),
            "classes": class_table(head, classes, found, seed),
            "controls": control_table(found, others, seed),
            "edits": _edits(space, translator, weight, features, texts, names, cosines, edited, steps, seed),
        },
        arrays={"IS": found.IS, "AS": found.AS, "delta": cosines, "share": found.share, "singular": space.singular},
        facts={
            "texts": list(names),
            "null_dim": space.null_dim,
            "rank": space.rank,
            "kind": space.kind,
            "centered": centered,
            "tol": space.tol,
            "fill": "zero" if mean is None else "mean",
            "logit_change": float(found.logits.max()),
            "strength": translator.strength,
            "translator_images": translator.n,
        },
        words=WORDS,
        caveats=caveats_of(space, good, mean, others),
        provenance=about or provenance(seed=seed),
    )


def _fill(fill: str) -> str:
    if fill not in FILLS:
        raise unknown("fill", fill, FILLS)
    return fill


def _space(head: LinearHead, features: np.ndarray, centered: bool, soft: float | None, tol: float | None) -> NullSpace:
    space = null_space(head, centered=centered, tol=tol)
    if space.null_dim:
        return space
    if soft is None:
        n_classes, width = head.weight.shape
        raise BadData(
            f"this head has no null space: {n_classes} classes on {width} dimensions. Pass soft= (in logits) "
            "for a soft one."
        )
    return soft_null_space(head, features, logit_change=soft, centered=centered)


def _reads(space: NullSpace, translator: Translator, features: np.ndarray, texts: np.ndarray) -> bool:
    """Does the translator read the null space at all? One that ignores it cannot be moved inside it."""
    gradients = [translator.gradient(features, text) for text in texts]
    return all((np.linalg.norm(space.part(g), axis=1) > 1e-10 * np.linalg.norm(g, axis=1)).all() for g in gradients)


def _edits(
    space: NullSpace,
    translator: Translator,
    weight: np.ndarray,
    features: np.ndarray,
    texts: np.ndarray,
    names: Sequence[str],
    cosines: np.ndarray,
    edited: int,
    steps: Sequence[float],
    seed: int,
) -> pl.DataFrame:
    """Directed edits towards the texts that the null part moves most."""
    chosen = np.argsort(-np.abs(cosines.mean(0)), kind="stable")[: max(edited, 0)]
    if not len(chosen) or not space.null_dim or not _reads(space, translator, features, texts[chosen]):
        return pl.DataFrame(schema=EDITS)
    some = [names[text] for text in chosen]
    return edit_table(space, translator, weight, features, texts[chosen], some, steps=steps, seed=seed)
