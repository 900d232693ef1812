"""Zero-shot questions about images whose answers are known: one per property of a text bank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from mechvis.data.images import ImageSet
from mechvis.data.text_bank import TextBank
from mechvis.data.text_encoding import directions, unit
from mechvis.errors import BadData, ShapeMismatch


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """Which of these texts fits the image?

    Raises:
        ShapeMismatch: not one prompt per class, or targets outside them.
    """

    name: str
    """The property."""
    classes: tuple[str, ...]
    """Its values."""
    prompts: Float[np.ndarray, "class d_embed"]
    """Unit text embedding of each."""
    target: Int[np.ndarray, " image"]
    """The right value of each image."""

    def __post_init__(self):
        fits = self.prompts.ndim == 2 and len(self.prompts) == len(self.classes) > 1
        if not fits or self.target.ndim != 1 or not len(self.target):
            raise ShapeMismatch(
                f"the task {self.name!r} has {len(self.classes)} classes (two are the least), prompts "
                f"{list(self.prompts.shape)} and targets {list(self.target.shape)}."
            )
        if self.target.min() < 0 or self.target.max() >= len(self.classes):
            raise ShapeMismatch(f"the task {self.name!r} has targets outside its {len(self.classes)} classes.")

    def scores(self, embeddings: Float[np.ndarray, "image d_embed"]) -> Float[np.ndarray, "image class"]:
        """Product of each embedding with each prompt; a cosine where the embedding has unit length."""
        return embeddings @ self.prompts.T

    def correct(self, embeddings: Float[np.ndarray, "image d_embed"], where: np.ndarray) -> Bool[np.ndarray, " image"]:
        """Is the right text the nearest, for the images at `where`?"""
        return self.scores(embeddings).argmax(1) == self.target[where]

    def margin(self, embeddings: Float[np.ndarray, "image d_embed"], where: np.ndarray) -> Float[np.ndarray, " image"]:
        """Score of the right text minus that of the best wrong one."""
        scores, rows = self.scores(embeddings), np.arange(len(where))
        right = scores[rows, self.target[where]].copy()
        scores[rows, self.target[where]] = -np.inf
        return right - scores.max(1)


def property_tasks(
    bank: TextBank,
    pool: Float[np.ndarray, "text d_embed"],
    images: ImageSet,
    names: Sequence[str] | None = None,
) -> dict[str, Task]:
    """A task for every property of a bank that is known of the images.

    A property is known if the images have a column of its name whose values the bank has as words, or if the class
    names of their labels are its words. The prompt of a word is the mean of the embeddings of its texts (templates).

    Args:
        bank: the texts.
        pool: their embeddings, from `encode_bank`.
        images: images with labels or columns.
        names: which properties; None: all that are known.

    Raises:
        BadData: a property that is not known of the images, or none that is.
        UnknownName: no property of the bank.

    Example:
        >>> from mechvis.data import scenes
        >>> from mechvis.data.text_bank import text_bank
        >>> tasks = property_tasks(text_bank("scenes"), np.eye(88), scenes(4))
        >>> sorted(tasks)
        ['background', 'colour', 'shape']
    """
    found = {}
    for name in names or bank.property_names:
        words, prompts = directions(bank, pool, name)
        target = _targets(name, words, images)
        if target is not None and len(words) > 1:
            found[name] = Task(name=name, classes=words, prompts=prompts, target=target)
        elif names is not None:
            raise BadData(
                f"{images.name!r} does not say what the {name} of an image is: it needs a column {name!r} with words "
                f"of the bank ({', '.join(words[:4])} ...), or labels with these class names. Its columns: "
                f"{', '.join(images.columns) or 'none'}."
            )
    if not found:
        raise BadData(
            f"no property of the text bank {bank.name!r} is known of the images {images.name!r}: neither a column nor "
            f"the class names are words of one of {', '.join(bank.property_names) or 'no property'}."
        )
    return found


def _targets(name: str, words: tuple[str, ...], images: ImageSet) -> np.ndarray | None:
    places = {word: place for place, word in enumerate(words)}
    column = images.columns.get(name)
    if column is None and images.labels is not None and set(images.class_names) <= set(words):
        column = np.array(images.class_names)[np.asarray(images.labels)] if images.class_names else None
    if column is None or not all(isinstance(word, str) and word in places for word in column.tolist()):
        return None
    return np.array([places[word] for word in column.tolist()], dtype=np.int64)


def class_task(
    name: str, classes: Sequence[str], prompts: Float[np.ndarray, "class d_embed"], target: Int[np.ndarray, " image"]
) -> Task:
    """A task from prompts that are at hand, such as `clip.prompts(class_names, templates)`.

    Example:
        >>> class_task("side", ["left", "right"], np.eye(2), np.array([0, 1])).correct(np.eye(2), np.arange(2))
        array([ True,  True])
    """
    return Task(
        name=name, classes=tuple(classes), prompts=unit(np.asarray(prompts, float)), target=np.asarray(target, np.int64)
    )


def check_tasks(tasks: Mapping[str, Task], n: int, width: int) -> None:
    """Refuse tasks about other images, or in another space.

    Raises:
        BadData: no task.
        ShapeMismatch: another number of images or another width.
    """
    if not tasks:
        raise BadData("there is no task: pass at least one, see property_tasks.")
    for name, task in tasks.items():
        if len(task.target) != n:
            raise ShapeMismatch(f"the task {name!r} is about {len(task.target)} images, and there are {n}.")
        if task.prompts.shape[1] != width:
            raise ShapeMismatch(f"prompts of {task.prompts.shape[1]} numbers in {name!r}, embeddings of {width}.")
