"""Models with planted evidence, opened: images, what is explained, and the truth about it.

=========  ===============================================================  ==========================
suite      variants                                                         seeds
=========  ===============================================================  ==========================
A (wired)  `wired`, `wired_loud`                                            any
B          `object`, `redundant`, `shortcut`, `class_specific`, `two_heads`  those that are bundled
=========  ===============================================================  ==========================

A and B are both needed: what one of them forgives the other does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechvis.errors import OutOfRange, unknown
from mechvis.files import only_format, read_json
from mechvis.testing.evidence.certificate import FORMAT
from mechvis.testing.evidence.names import VARIANTS, variant
from mechvis.testing.evidence.wired import GRID, LOUDNESS, wired, wired_images

WEIGHTS = Path(__file__).with_name("weights")
SUITE_VERSION = 1
"""Rises when the truth, the models or the images change."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """Questions to a planted model with the true answers: one row for each explained class of each image."""

    pixels: Float[Tensor, "row 3 height width"]
    """Preprocessed images; an image about which two classes are asked stands twice."""
    classes: Int[Tensor, " row"]
    """Explained class."""
    truth: Bool[Tensor, "row patch"]
    """Patches that decide about it."""
    decoys: Bool[Tensor, "row patch"]
    """Patches that are as conspicuous and do not."""
    image: Int[Tensor, " row"]
    """Which image the row is about."""

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True, kw_only=True, eq=False)
class Planted:
    """A model whose evidence is planted."""

    suite: Literal["A", "B"]
    """Hand-wired or trained."""
    variant: str
    """Which task."""
    seed: int
    """Which of its models."""
    model: Any = field(repr=False)
    """The wrapped model."""
    reading: Literal["value", "magnitude"]
    """How maps are scored: as they are, or without their sign."""
    certificate: dict[str, Any] = field(repr=False)
    """What was measured when it was made (suite B)."""
    heads: Bool[np.ndarray, "layer head"] | None = field(default=None, repr=False)
    """Which heads matter, where that is a theorem (suite A)."""

    @property
    def name(self) -> str:
        """`B/object-0`."""
        return f"{self.suite}/{self.variant}-{self.seed}"

    def ask(self, n: int = 64, seed: int = 0) -> Asked:
        """Images with questions and answers.

        Args:
            n: number of images.
            seed: of the images.

        Raises:
            OutOfRange: no image.
        """
        if n < 1:
            raise OutOfRange(f"n={n}: ask about at least one image.")
        if self.suite == "A":
            return self._ask_wired(n, seed)
        scenes = variant(self.variant).draw(n, seed)
        classes = scenes.variant.explained(scenes)
        rows = torch.arange(n)[:, None].expand_as(classes)
        return Asked(
            pixels=scenes.pixels[rows.flatten()],
            classes=classes.flatten(),
            truth=rearrange(scenes.truth[rows, classes], "image target patch -> (image target) patch"),
            decoys=rearrange(scenes.decoys[rows, classes], "image target patch -> (image target) patch"),
            image=rows.flatten(),
        )

    def _ask_wired(self, n: int, seed: int) -> Asked:
        made = wired(self.variant, self.seed)
        pixels = wired_images(n, seed)
        truth, decoys = torch.zeros(2, GRID**2, dtype=torch.bool)
        truth[made.patch], decoys[list(made.decoys)] = True, True
        return Asked(
            pixels=pixels,
            classes=torch.zeros(n, dtype=torch.long),
            truth=repeat(truth, "patch -> row patch", row=n),
            decoys=repeat(decoys, "patch -> row patch", row=n),
            image=torch.arange(n),
        )


def variants_of(suite: str | Sequence[str]) -> list[str]:
    """Variants of a suite (`A`, `B`, `all`), or those that are named.

    Raises:
        UnknownName: no such suite or variant.

    Example:
        >>> variants_of("A")
        ['wired', 'wired_loud']
    """
    if not isinstance(suite, str):
        return [name for one in suite for name in variants_of(one)]
    a, b = list(LOUDNESS), list(VARIANTS)
    suites = {"A": a, "B": b, "all": a + b}
    if suite in suites:
        return suites[suite]
    if suite not in a + b:
        raise unknown("planted suite or variant", suite, [*suites, *a, *b])
    return [suite]


def seeds_of(name: str) -> list[int]:
    """Seeds of the bundled models of a variant; the first three of a hand-wired one, which exist for any seed."""
    if name in LOUDNESS:
        return [0, 1, 2]
    variant(name)
    return sorted(int(folder.name.rsplit("-", 1)[1]) for folder in WEIGHTS.glob(f"{name}-*"))


def folder_of(name: str, seed: int = 0) -> Path:
    """The Hugging Face folder of a bundled model of suite B: `mechvis.load` and plain transformers open it.

    Raises:
        UnknownName: no such variant.
        OutOfRange: no model of that seed.
    """
    variant(name)
    if seed not in seeds_of(name):
        raise OutOfRange(f"there is no model of {name!r} with seed {seed}; there are {seeds_of(name)}.")
    return WEIGHTS / f"{name}-{seed}"


@lru_cache(maxsize=32)
def load(name: str, seed: int = 0) -> Planted:
    """Open a planted model.

    Args:
        name: a variant.
        seed: which of its models.

    Raises:
        UnknownName: no such variant.
        OutOfRange: no bundled model of that seed.
        StoreCorrupt, ResultMismatch: its certificate is missing, or of another format or a later version.

    Example:
        >>> planted = load("object")                                       # doctest: +SKIP
        >>> planted.ask(8).truth.sum(1).tolist()                           # doctest: +SKIP
        [4, 4, 4, 4, 4, 4, 4, 4]
    """
    import mechvis
    from mechvis.testing.tiny import tiny_preprocess

    if name in LOUDNESS:
        made = wired(name, seed)
        model = mechvis.load(made.model, preprocess=tiny_preprocess())
        return Planted(
            suite="A", variant=name, seed=seed, model=model, reading="magnitude", certificate={}, heads=made.heads
        )
    folder = folder_of(name, seed)
    return Planted(
        suite="B",
        variant=name,
        seed=seed,
        model=mechvis.load(str(folder)),
        reading=variant(name).READING,
        certificate=_certificate(folder / "certificate.json"),
    )


def _certificate(path: Path) -> dict[str, Any]:
    found = read_json(path)
    only_format(path, FORMAT, 1, "a certificate of planted evidence")(found)
    return found
