"""Concept absorption: a latent for the general stays silent where a latent for the special takes its place.

"red" has a latent, but on red stars only the latent for "red star" fires: it has taken "red" up, and reading the first
latent as "red" is wrong there (feature absorption, Chanin et al. 2024, 2409.14507; here with known labels instead of
a first-letter task).

For a parent concept and its children, thresholds and latents chosen on training images (`sae.evaluation.detectors`):

1. the parent's latent is the one with the best F1; each child's latent the best of the others;
2. on held-out images with the parent concept: absorbed = the parent's latent is silent (not above its threshold), the
   latent of the child that the image shows is active, and it writes in the parent's direction (cosine of the two
   directions at least `cosine`);
3. control: the same with the latent of a child that the image does *not* show (the mean over those). Latents that fire
   anyhow give the same share there.

Only parents that have a latent can lose it: its precision lies at least `precise` of the way from the share of images
with the concept to 1 (absorption costs recall, not precision), and its F1 above that of saying yes always. Others are
listed and left out of the mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float

from mechvis.errors import BadData, ShapeMismatch
from mechvis.provenance import provenance
from mechvis.record import Record
from sae.evaluation.detectors import Sorted, chance_f1, scores
from sae.evaluation.intervals import Interval, columns, ratio

WORDS = {
    "concept": "the parent concept",
    "latent": "the latent with the best F1 for it",
    "f1": "F1 of that latent on held-out images",
    "precision": "share of the images it says yes to that have the concept",
    "recall": "share of the images with the concept that it says yes to",
    "absorbed": "share of the images with the concept where it is silent and the child's latent takes over",
    "other_child": "control: the same with the latent of a child that the image does not show",
    "silent": "share of the images with the concept where the parent's latent is silent",
    "positives": "held-out images with the concept",
    "counted": "does the parent have a latent? Others are left out of the mean",
    "child": "the child concept",
    "child_latent": "the latent with the best F1 for the child, other than the parent's",
    "cosine": "cosine of the directions of the two latents",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Parent:
    """A concept with its special cases."""

    name: str
    """What it is called."""
    positive: Bool[np.ndarray, " image"]
    """Images that have it."""
    children: Mapping[str, Bool[np.ndarray, " image"]]
    """Images that show each special case; all of them have the parent concept too."""

    def __post_init__(self):
        if len(self.children) < 2:
            raise BadData(f"{self.name!r} has {len(self.children)} children; two or more are needed.")
        for name, has in self.children.items():
            if has.shape != self.positive.shape:
                raise ShapeMismatch(
                    f"child {name!r} is about {len(has)} images, {self.name!r} about {len(self.positive)}."
                )
            if (has & ~self.positive).any():
                raise BadData(f"{int((has & ~self.positive).sum())} images show {name!r} and not {self.name!r}.")


class Absorption(Record):
    """Absorbed share by parent concept; the second table goes by child."""

    KIND = "dictionary_absorption"

    @property
    def mean(self) -> Interval:
        """Absorbed share of all positives of the parents that have a latent, with its interval over those positives."""
        facts = self.facts
        return tuple(
            np.nan if facts[name] is None else facts[name] for name in ("absorbed", "absorbed_low", "absorbed_high")
        )


def absorption(
    train: Float[np.ndarray, "image latent"],
    train_parents: Sequence[Parent],
    test: Float[np.ndarray, "other_image latent"],
    test_parents: Sequence[Parent],
    directions: Float[np.ndarray, "latent d"],
    *,
    cosine: float = 0.025,
    precise: float = 0.5,
    seed: int = 0,
) -> Absorption:
    """How much of each parent concept is absorbed by its children.

    Args:
        train: codes of training images, one number per image and latent.
        train_parents: concepts of these.
        test: codes of held-out images.
        test_parents: the same concepts of those, in the same order.
        directions: what each latent writes.
        cosine: least cosine of a child's direction with the parent's (as 2409.14507 [K]).
        precise: least precision of a parent's latent, from 0 (the share of images with the concept) to 1.
        seed: of the resamples.

    Raises:
        BadData: no concepts, or other ones.
        ShapeMismatch: arrays that do not belong together.
    """
    names = [[(p.name, tuple(p.children)) for p in parents] for parents in (train_parents, test_parents)]
    if not names[0] or names[0] != names[1]:
        raise BadData("the same parents and children, at least one parent, for training and held-out images.")
    test, directions = np.asarray(test, dtype=np.float64), np.asarray(directions, dtype=np.float64)
    if test.ndim != 2 or test.shape[1] != len(directions) or np.shape(train)[1:] != test.shape[1:]:
        told = f"{list(np.shape(train))}, {list(test.shape)}, {list(directions.shape)}"
        raise ShapeMismatch(f"codes [image latent] and directions [latent d] of the same latents; got {told}.")
    unit = directions / np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-300)
    ordered = Sorted(train)
    rows, child_rows, pooled = [], [], {"absorbed": [], "other": []}
    for known, judged in zip(train_parents, test_parents, strict=True):
        found = ordered.detectors(known.positive)
        latent = int(found.f1.argmax())
        said = test[:, latent] > found.threshold[latent]
        told = scores(said, judged.positive)
        absorbed, other, strangers = (np.zeros(len(test)) for _ in range(3))
        for child, has in known.children.items():
            special = ordered.detectors(has)
            f1 = np.where(np.arange(len(special.f1)) == latent, -1, special.f1)
            q = int(f1.argmax())
            alike = float(unit[q] @ unit[latent])
            takes = (test[:, q] > special.threshold[q]) & ~said & (alike >= cosine)
            shows = judged.children[child]
            absorbed[takes & shows] = 1
            other += takes & ~shows
            strangers += ~shows
            child_rows.append(
                {"concept": judged.name, "child": child, "child_latent": q, "cosine": alike,
                 "f1": scores(test[:, q] > special.threshold[q], shows)["f1"],
                 "absorbed": float(takes[shows].mean()) if shows.any() else None, "positives": int(shows.sum())}
            )  # fmt: skip
        at, other = judged.positive, other / np.maximum(strangers, 1)
        base = float(at.mean())
        counted = bool(told["precision"] >= base + precise * (1 - base) and told["f1"] > chance_f1(at))
        if counted:
            pooled["absorbed"].append(absorbed[at])
            pooled["other"].append(other[at])
        rows.append(
            {"concept": judged.name, "latent": latent, **told,
             **columns("absorbed", _share(absorbed[at], seed)), **columns("other_child", _share(other[at], seed)),
             "silent": float((~said[at]).mean()) if at.any() else None, "positives": int(at.sum()), "counted": counted}
        )  # fmt: skip
    facts = {**columns("absorbed", _share(np.concatenate(pooled["absorbed"] or [np.zeros(0)]), seed)),
             **columns("other_child", _share(np.concatenate(pooled["other"] or [np.zeros(0)]), seed)),
             "parents_with_a_latent": len(pooled["absorbed"]), "cosine": cosine, "precise": precise}  # fmt: skip
    return Absorption(
        title=f"Absorption of {len(rows)} concepts by their special cases",
        tables={"parents": pl.DataFrame(rows), "children": pl.DataFrame(child_rows)},
        facts=facts,
        words=WORDS,
        caveats=(
            f"{len(pooled['absorbed'])} of {len(rows)} concepts have a latent that could be absorbed.",
            "A parent's latent is the one with the best F1: a dictionary that splits the parent has none.",
        ),
        provenance=provenance(seed=seed),
    )


def _share(values: np.ndarray, seed: int) -> Interval:
    return ratio(values.astype(float), np.ones(len(values)), seed=seed) if len(values) else (float("nan"),) * 3


FAMILIES = {
    "round shape": ("circle", "ring", "crescent", "heart"),
    "angular shape": ("square", "triangle", "star", "cross"),
    "warm colour": ("red", "yellow"),
    "cool colour": ("green", "blue", "cyan"),
}
"""Families of the values of the bundled scenes."""


def scene_hierarchy(images: Any) -> list[Parent]:
    """Concepts of the bundled scenes with their special cases: families of shapes and of colours, each shape by its
    colours, each colour by its shapes. Children that no image shows are left out.

    Args:
        images: `mechvis.data.scenes(...)`.

    Raises:
        BadData: other images.

    Example:
        >>> import mechvis
        >>> [p.name for p in scene_hierarchy(mechvis.data.scenes(400, seed=1))][:3]
        ['round shape', 'angular shape', 'warm colour']
    """
    from mechvis.data.scene_factors import COLOURS, SHAPES

    if tuple(images.class_names) != SHAPES or "colour" not in images.columns:
        raise BadData(f"{images.name!r} are no scenes: their classes are shapes, and they have a column colour.")
    shape, colour = np.array(SHAPES)[images.labels], np.asarray(images.columns["colour"])
    found = []
    for family, values in FAMILIES.items():
        column = shape if family.endswith("shape") else colour
        found.append((family, np.isin(column, values), {value: column == value for value in values}))
    for value in SHAPES:
        found.append((value, shape == value, {f"{c} {value}": (shape == value) & (colour == c) for c in COLOURS}))
    for value in COLOURS:
        found.append((value, colour == value, {f"{value} {s}": (shape == s) & (colour == value) for s in SHAPES}))
    parents = [(name, has, {child: at for child, at in kids.items() if at.any()}) for name, has, kids in found]
    return [Parent(name=name, positive=has, children=kids) for name, has, kids in parents if len(kids) > 1]


def shared(first: Sequence[Parent], second: Sequence[Parent]) -> tuple[list[Parent], list[Parent]]:
    """The parents and children that two sets of images both show, in one order."""
    other = {p.name: p for p in second}
    kept = ([], [])
    for p in first:
        names = [c for c in p.children if p.name in other and c in other[p.name].children]
        if len(names) > 1:
            for side, parent in zip(kept, (p, other[p.name]), strict=True):
                children = {c: parent.children[c] for c in names}
                side.append(Parent(name=p.name, positive=parent.positive, children=children))
    return kept
