"""Concepts to label units with: how much of each is in every image, from labels or from texts.

* From labels and columns of an image set: presence is 0 or 1, and masks say where (for scenes: the shape and its colour
  are on the object, the background is the rest).
* From texts, by a model of images and texts: cosine of every image with every text. Scores that want a probability
  take `sigmoid(a (cosine + b))`; `a` and `b` belong to the model and are given or fitted to known labels.

Texts bring the judge's own mistakes. Where labels exist, they are the truth to compare with.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float

from mechvis.errors import BadData, NotFinite, ShapeMismatch, unknown

Kind = Literal["labels", "cosine", "probability"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Concepts:
    """How much of each concept is in every image."""

    names: tuple[str, ...]
    """One per concept."""
    presence: Float[np.ndarray, "image concept"]
    """Labels: 0 or 1. Probability: in [0, 1]. Cosine: of image and text."""
    kind: Kind
    """What the numbers are."""
    kinds: tuple[str, ...] = ()
    """Where each concept comes from: the column's name, or `text`."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Settings."""

    def __post_init__(self):
        if self.presence.ndim != 2 or self.presence.shape[1] != len(self.names) or not len(self.names):
            raise ShapeMismatch(f"{len(self.names)} concepts and presences of {list(self.presence.shape)}.")
        if len(set(self.names)) != len(self.names):
            raise BadData("two concepts have one name.")
        if not np.isfinite(self.presence).all():
            raise NotFinite("NaN or Inf in the presence of a concept.")
        if self.kind != "cosine" and (self.presence.min() < 0 or self.presence.max() > 1):
            raise BadData(f"presences of kind {self.kind!r} lie in [0, 1]; these reach {self.presence.max():.3g}.")

    def __len__(self) -> int:
        return len(self.names)

    def of(self, name: str) -> Float[np.ndarray, " image"]:
        """One concept's presence by name.

        Raises:
            UnknownName: with the nearest names.
        """
        if name not in self.names:
            raise unknown("concept", name, self.names)
        return self.presence[:, self.names.index(name)]

    def take(self, images: Any) -> "Concepts":
        """The same for some of the images."""
        return replace(self, presence=self.presence[images])

    def probability(self, *, scale: float, shift: float) -> "Concepts":
        """Cosines as probabilities: sigmoid(scale (cosine + shift)) (**C** for the form).

        Raises:
            BadData: these are no cosines.
        """
        if self.kind != "cosine":
            raise BadData(f"only cosines become probabilities by a sigmoid; these are of kind {self.kind!r}.")
        values = 1 / (1 + np.exp(-scale * (self.presence + shift)))
        return replace(self, presence=values, kind="probability", facts={**self.facts, "scale": scale, "shift": shift})

    def __repr__(self) -> str:
        shown = ", ".join(self.names[:6]) + (" ..." if len(self) > 6 else "")
        return f"Concepts({len(self)} by {self.kind}: {shown}; {len(self.presence)} images)"


def concepts_of(images: Any, columns: Sequence[str] | None = None) -> Concepts:
    """Concepts from what is known of the images: one per value of the label and of every column of words.

    Args:
        images: an `ImageSet`.
        columns: which columns, `label` for the labels; None: the labels and all columns of words.

    Raises:
        UnknownName: no such column.
        BadData: nothing is known of the images; a column of numbers.

    Example:
        >>> from mechvis.data import scenes
        >>> concepts_of(scenes(64, seed=7), ["colour"]).names[:2]
        ('blue', 'cyan')
    """
    known = {name: np.asarray(column) for name, column in images.columns.items()}
    if images.labels is not None:
        names = np.array(images.class_names or [f"class {i}" for i in range(int(images.labels.max()) + 1)])
        known = {"label": names[images.labels], **known}
    chosen = [name for name, column in known.items() if column.dtype.kind in "UOSb"] if columns is None else columns
    if not len(chosen):
        raise BadData(f"{images.name!r} has no labels and no columns of words to make concepts of. Use texts.")
    found: dict[str, tuple[str, np.ndarray]] = {}
    for name in chosen:
        if name not in known:
            raise unknown("column", name, known)
        if known[name].dtype.kind not in "UOSb":
            raise BadData(f"the column {name!r} holds numbers; a concept is there or not. Cut it into ranges first.")
        for value in np.unique(known[name]):
            key = str(value) if str(value) not in found else f"{name}: {value}"
            found[key] = (name, known[name] == value)
    return Concepts(
        names=tuple(found),
        presence=np.stack([there for _, there in found.values()], axis=1).astype(np.float64),
        kind="labels",
        kinds=tuple(column for column, _ in found.values()),
    )


def concepts_from_texts(
    clip: Any, images: Any, texts: Sequence[str] | Mapping[str, str], *, batch_size: int = 256
) -> Concepts:
    """Concepts from texts: cosine of every image with every text.

    Args:
        clip: a `HookedCLIP`; it need not be the model whose units are labelled, and better is not.
        images: an `ImageSet`, or pixels.
        texts: texts, or names with their texts.
        batch_size: images or texts that go through a tower together.

    Raises:
        BadData: no or repeated texts, or a model without texts.
    """
    if not hasattr(clip, "encode_text"):
        raise BadData(f"texts need a model of images and texts; {type(clip).__name__} has no text tower.")
    named = dict(texts) if isinstance(texts, Mapping) else {text: text for text in texts}
    if not named or len(named) != len(texts):
        raise BadData("give at least one text, each once.")
    t = clip.encode_text(list(named.values()), batch_size=batch_size).double().cpu().numpy()
    i = clip.encode_image(images, batch_size=batch_size).double().cpu().numpy()
    return Concepts(names=tuple(named), presence=i @ t.T, kind="cosine", kinds=("text",) * len(named))


def calibrate(
    cosine: Float[np.ndarray, "image concept"], labels: Float[np.ndarray, "image concept"]
) -> tuple[float, float]:
    """(scale, shift) of the sigmoid that fits cosines to known labels best, one pair for all concepts.

    Raises:
        BadData: labels that are all the same.
    """
    from sklearn.linear_model import LogisticRegression

    truth = np.asarray(labels).ravel() >= 0.5
    if truth.all() or not truth.any():
        raise BadData("a calibration needs images with and without the concepts.")
    fit = LogisticRegression(C=1e6, max_iter=1000).fit(np.asarray(cosine).reshape(-1, 1), truth)
    scale = float(fit.coef_[0, 0])
    return scale, float(fit.intercept_[0]) / scale


def concept_masks(
    images: Any,
    concepts: Concepts,
    preprocess: Any,
    *,
    on_object: Sequence[str] = ("label", "colour"),
    off_object: Sequence[str] = ("background",),
) -> Callable[[np.ndarray], Bool[np.ndarray, "image concept height width"]]:
    """Where each concept is, as a function from image places to masks: on the object's mask for some columns, off it
    for others, nowhere in images that do not have it.

    Args:
        images: an `ImageSet` with masks.
        concepts: of these images, from :func:`concepts_of`.
        preprocess: the model's, so that masks lie where its pixels are.
        on_object: columns whose concepts lie on the object.
        off_object: columns whose concepts lie on the rest.

    Raises:
        BadData: no masks; other images; a concept of a column that is in neither list.
    """
    if images.read_mask is None:
        raise BadData(f"{images.name!r} has no masks; use labels of whole images instead.")
    if len(images) != len(concepts.presence):
        raise BadData(f"{len(images)} images, and concepts of {len(concepts.presence)}.")
    if lost := sorted(set(concepts.kinds) - {*on_object, *off_object}):
        raise BadData(f"where do the concepts of the column {lost[0]!r} lie? Name it in on_object or off_object.")
    inside = np.array([kind in on_object for kind in concepts.kinds])

    def masks(part: np.ndarray) -> np.ndarray:
        objects = images[part].masks_for(preprocess).numpy()
        where = np.where(inside[None, :, None, None], objects[:, None], ~objects[:, None])
        return where & (concepts.presence[part] >= 0.5)[:, :, None, None]

    return masks
