"""Images of the cue-lookup task, and families of pairs that change one thing each.

24 x 24 pixels, 6 x 6 patches of 4 x 4. Three patches are objects, one per colour, each with one of three payload
patterns; one patch is the cue and has a colour; everything has texture. The label is the payload of the object whose
colour is the cue's.

Colours and payloads are drawn as patterns (products of square waves, all orthogonal and of mean zero): an object is its
colour in a 4 x 4 weave plus its payload in grey; a cue is its colour in quadrants. So a linear patch embedding can read
each of them, brightness is invisible to it, and texture (drawn from the remaining patterns) is not mistaken for any.

===============  ==========================================================  =====================================
family           what differs between clean and corrupt                      planted edges that carry it
===============  ==========================================================  =====================================
`cue`            colour of the cue                                           v of hop 1, q of hop 2, output
`payload`        payload of the cued object                                  v of hop 2, output
`uncued`         payload of another object                                   none
`positions`      the cued object and another one change places               k and v of hop 2 (each by itself misleads)
`cue_position`   place of the cue                                            k and v of hop 1
`all`            everything: another image with another label                all but q of hop 1
`nuisance`       texture, noise and brightness                               none
===============  ==========================================================  =====================================

With `positions` and `cue_position` the label stays, and so does what the heads write: only edges can show them. Noise,
texture and brightness are shared by the halves except in `all` and `nuisance`.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from mechvis.axes import Labels, Pixels
from mechvis.errors import BadData, unknown
from mechvis.testing.planted.pairs import PlantedPairs

CUE_GRID, CUE_PATCH, COLOURS, PAYLOADS = 6, 4, 3, 3
OBJECT_CONTRAST, CUE_CONTRAST, PAYLOAD_CONTRAST = 0.2, 0.2, 0.12
TEXTURE, NOISE, BRIGHTNESS = 0.01, 0.004, 0.05
"""Standard deviation of each texture coefficient and of the noise of each pixel; half-width of the brightness."""

CueFamily = Literal["cue", "payload", "uncued", "positions", "cue_position", "all", "nuisance"]
CUE_FAMILIES: tuple[CueFamily, ...] = ("cue", "payload", "uncued", "positions", "cue_position", "all", "nuisance")


def _patterns() -> Float[Tensor, "pattern row column"]:
    waves = torch.tensor([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, -1, 1], [1, -1, 1, -1]], dtype=torch.float64)
    return rearrange(waves[:, None, :, None] * waves[None, :, None, :], "a b row column -> (a b) row column")


PATTERNS = _patterns()
"""All sixteen products of four square waves; the first one is constant."""
OBJECT_PATTERN, CUE_PATTERN, PAYLOAD_PATTERNS = 10, 5, (3, 12, 15)


def texture_basis() -> Float[Tensor, "texture channel row column"]:
    """The patterns that texture is made of: everything but mean, colours and payloads; each of unit mean square."""
    basis = []
    for pattern in range(1, len(PATTERNS)):
        if pattern in (OBJECT_PATTERN, CUE_PATTERN):
            continue
        # A payload is grey: its pattern is free in the two directions of colour that have no grey in them.
        grey_free = torch.tensor([[1, -1, 0], [1, 1, -2]], dtype=torch.float64)
        grey_free = grey_free / grey_free.square().mean(1, keepdim=True).sqrt()
        directions = grey_free if pattern in PAYLOAD_PATTERNS else torch.eye(3, dtype=torch.float64) * 3**0.5
        basis.append(directions[:, :, None, None] * PATTERNS[pattern])
    return torch.cat(basis)


@dataclass(frozen=True, kw_only=True)
class CueScenes:
    """What is in each image; :meth:`draw` draws it."""

    cue_colour: np.ndarray
    """Colour of the cue, int `[image]`."""
    cue_place: np.ndarray
    """Patch of the cue, int `[image]`."""
    places: np.ndarray
    """Patch of the object of each colour, int `[image colour]`."""
    payloads: np.ndarray
    """Payload of the object of each colour, int `[image colour]`; never all three equal."""
    texture: np.ndarray
    """Texture coefficients, float `[image patch texture]`."""
    noise: np.ndarray
    """Added to every pixel, float `[image channel height width]`."""
    brightness: np.ndarray
    """Added to the whole image, float `[image]`."""

    @property
    def labels(self) -> Labels:
        """Payload of the cued object."""
        return torch.from_numpy(self.payloads[np.arange(len(self)), self.cue_colour])

    def draw(self) -> Pixels:
        """Pixels `[image 3 24 24]` in [0, 1]."""
        rows = np.arange(len(self))
        patches = np.einsum("ipt,tcab->ipcab", self.texture, texture_basis().numpy())
        patterns, grey = PATTERNS.numpy(), np.ones((3, 1, 1))
        colours = np.eye(3)[:, :, None, None]
        patches[rows, self.cue_place] += CUE_CONTRAST * (colours * patterns[CUE_PATTERN])[self.cue_colour]
        for colour in range(COLOURS):
            patches[rows, self.places[:, colour]] += OBJECT_CONTRAST * colours[colour] * patterns[OBJECT_PATTERN]
            shown = patterns[list(PAYLOAD_PATTERNS)][self.payloads[:, colour]]
            patches[rows, self.places[:, colour]] += PAYLOAD_CONTRAST * grey * shown[:, None]
        drawn = rearrange(patches, "i (height width) c a b -> i c (height a) (width b)", height=CUE_GRID)
        drawn = 0.5 + drawn + self.brightness[:, None, None, None] + self.noise
        return torch.from_numpy(drawn.clip(0, 1))

    def __len__(self) -> int:
        return len(self.cue_colour)


def cue_scenes(n: int, seed: int = 0) -> CueScenes:
    """Random scenes: places without overlap, colours and payloads uniform, payloads not all equal.

    Args:
        n: how many.
        seed: numpy seed.

    Raises:
        BadData: no scene is asked for.

    Example:
        >>> cue_scenes(5).draw().shape
        torch.Size([5, 3, 24, 24])
    """
    if n < 1:
        raise BadData(f"n={n}: expected at least one image.")
    generator = np.random.default_rng(seed)
    triples = np.array([(a, b, c) for a in range(3) for b in range(3) for c in range(3) if not a == b == c])
    places = np.stack([generator.choice(CUE_GRID**2, 4, replace=False) for _ in range(n)])
    scenes = CueScenes(
        cue_colour=generator.integers(COLOURS, size=n),
        cue_place=places[:, 3],
        places=places[:, :3],
        payloads=triples[generator.integers(len(triples), size=n)],
        texture=np.zeros(0),
        noise=np.zeros(0),
        brightness=np.zeros(0),
    )
    return _with_nuisance(scenes, generator)


def cue_images(n: int = 200, seed: int = 0) -> tuple[Pixels, Labels]:
    """Images and labels of the task.

    Args:
        n: how many.
        seed: numpy seed.

    Returns:
        Pixels `[image 3 24 24]` in [0, 1], float64, and the label of each image (0 to 2).
    """
    scenes = cue_scenes(n, seed)
    return scenes.draw(), scenes.labels


def cue_pairs(family: CueFamily, n: int = 32, seed: int = 0, *, hops: tuple[int, int] = (1, 2)) -> PlantedPairs:
    """Pairs of one family, with their truth.

    Args:
        family: one of `CUE_FAMILIES`; the module's table says what each changes.
        n: how many pairs.
        seed: numpy seed.
        hops: the planted heads of layer 0 and 1 in the model that they are for (see :func:`cue_lookup`).

    Raises:
        UnknownName: not a family.
        BadData: no pair is asked for.

    Example:
        >>> sorted(cue_pairs("payload").active)
        ['L1H2->out', 'embed->L1H2.v']
    """
    if family not in CUE_FAMILIES:
        raise unknown("pair family", family, CUE_FAMILIES)
    clean = cue_scenes(n, seed)
    generator = np.random.default_rng([seed, CUE_FAMILIES.index(family)])
    corrupt, contrast = _changed(family, clean, generator)
    labels, others = clean.labels, corrupt.labels
    contrast = torch.where(others != labels, others, torch.from_numpy(contrast))
    return PlantedPairs(
        name=f"cue-lookup, {family}",
        clean=clean.draw(),
        corrupt=corrupt.draw(),
        clean_labels=labels,
        corrupt_labels=others,
        contrast=torch.where(contrast == labels, (labels + 1) % PAYLOADS, contrast),
        circuit=cue_circuit(hops),
        active=cue_active(family, hops),
    )


def cue_circuit(hops: tuple[int, int] = (1, 2)) -> frozenset[str]:
    """The seven planted edges."""
    first, second = f"L0H{hops[0]}", f"L1H{hops[1]}"
    into_first = {f"embed->{first}.{what}" for what in "qkv"}
    return frozenset(
        into_first | {f"{first}->{second}.q", f"embed->{second}.k", f"embed->{second}.v", f"{second}->out"}
    )


def cue_active(family: CueFamily, hops: tuple[int, int] = (1, 2)) -> frozenset[str]:
    """The planted edges that a family of pairs must show; the query of hop 1 is a constant and never among them.

    Raises:
        UnknownName: not a family.
    """
    first, second = f"L0H{hops[0]}", f"L1H{hops[1]}"
    active = {
        "cue": {f"embed->{first}.v", f"{first}->{second}.q", f"{second}->out"},
        "payload": {f"embed->{second}.v", f"{second}->out"},
        "uncued": set(),
        "positions": {f"embed->{second}.k", f"embed->{second}.v"},
        "cue_position": {f"embed->{first}.k", f"embed->{first}.v"},
        "all": cue_circuit(hops) - {f"embed->{first}.q"},
        "nuisance": set(),
    }
    if family not in active:
        raise unknown("pair family", family, CUE_FAMILIES)
    return frozenset(active[family])


def _with_nuisance(scenes: CueScenes, generator: np.random.Generator) -> CueScenes:
    n, side = len(scenes), CUE_GRID * CUE_PATCH
    return replace(
        scenes,
        texture=generator.normal(scale=TEXTURE, size=(n, CUE_GRID**2, len(texture_basis()))),
        noise=generator.normal(scale=NOISE, size=(n, 3, side, side)),
        brightness=generator.uniform(-BRIGHTNESS, BRIGHTNESS, size=n),
    )


def _changed(family: str, clean: CueScenes, generator: np.random.Generator) -> tuple[CueScenes, np.ndarray]:
    """The corrupt scenes, and the payload to contrast with where the label stays."""
    rows, labels = np.arange(len(clean)), clean.labels.numpy()
    # A colour whose object has another payload than the label: it exists, since not all three are equal.
    other = _pick(clean.payloads != labels[:, None], generator)
    theirs = clean.payloads[rows, other]
    if family == "cue":
        return replace(clean, cue_colour=other), theirs
    if family in ("payload", "uncued"):
        uncued = _pick(np.arange(COLOURS) != clean.cue_colour[:, None], generator)
        which = clean.cue_colour if family == "payload" else uncued
        payloads = clean.payloads.copy()
        payloads[rows, which] = _pick(np.arange(PAYLOADS) != payloads[rows, which][:, None], generator)
        return replace(clean, payloads=payloads), payloads[rows, which]
    if family == "positions":
        places = clean.places.copy()
        places[rows, clean.cue_colour], places[rows, other] = (
            clean.places[rows, other],
            clean.places[rows, clean.cue_colour],
        )
        return replace(clean, places=places), theirs
    if family == "cue_position":
        taken = np.concatenate([clean.places, clean.cue_place[:, None]], 1)
        free = (np.arange(CUE_GRID**2)[None, :, None] != taken[:, None, :]).all(2)
        return replace(clean, cue_place=_pick(free, generator)), theirs
    if family == "nuisance":
        return _with_nuisance(clean, generator), theirs
    return _others(clean, int(generator.integers(2**31))), theirs


def _others(clean: CueScenes, seed: int) -> CueScenes:
    """As many other scenes, each with another label than its partner, none twice."""
    drawn = cue_scenes(max(8 * len(clean), 64), seed)
    theirs, chosen = drawn.labels.tolist(), []
    for label in clean.labels.tolist():
        chosen.append(next(row for row, other in enumerate(theirs) if other not in (label, None)))
        theirs[chosen[-1]] = None
    fields = ("cue_colour", "cue_place", "places", "payloads", "texture", "noise", "brightness")
    return replace(drawn, **{name: getattr(drawn, name)[chosen] for name in fields})


def _pick(allowed: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """One of the allowed columns of each row, at random."""
    return np.where(allowed, generator.random(allowed.shape), -1.0).argmax(1)
