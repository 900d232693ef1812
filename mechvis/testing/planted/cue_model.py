"""P1, cue-lookup: a wired two-hop circuit in a vision transformer with real LayerNorm, and loud distractors.

The task (see `cue_task`) takes two hops, both at CLS:

    hop 1, head (0, 1)    CLS asks for the cue; its colour goes into the key slots of CLS
    hop 2, head (1, 2)    CLS asks for an object of the key's colour; its payload goes into the answer slots

37 tokens, d_model 40, 2 layers x 4 heads and two MLPs, 110 edges at q/k/v level, of which seven are the circuit:
`embed` -> q, k, v of hop 1; hop 1 -> q of hop 2; `embed` -> k, v of hop 2; hop 2 -> `out`.

How LayerNorm is kept from mixing things up: every quantity f is stored as a pair of channels (+f, -f), so that the mean
of the stream is zero, and a constant pair of 200 in every token pins its standard deviation: whatever else is written
changes the scale by less than a thousandth. The norms' gains undo that scale, so what heads read is what was written.

Distractors write into slots that neither hop nor the classifier reads (later distractors do). They are bounded, since a
single patched edge may push a head further than any image does, and informative, since a dead head is no test:

==========  ======================================================================================================
unit        what it does
==========  ======================================================================================================
layer 0     a louder copy of hop 1 into the waste slots; a mean of the texture; a random mixture of everything
layer 1     a louder copy of hop 2 into the waste slots (the right answer, unread); the mean payload of all objects;
            a random mixture of everything, waste slots included
MLPs        random tanh neurons that read everything and write waste
==========  ======================================================================================================

After benchmark_apps.md A.2 and A.6 (**M**; the weights of that prototype were not published, so its figures are
comparable, not equal). :func:`mechvis.testing.planted.certify` measures what is claimed here.
"""

import math
from typing import Any

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from mechvis.data.preprocess import Preprocess
from mechvis.errors import OutOfRange
from mechvis.testing.planted import cue_task as drawn
from mechvis.testing.planted.wired import HeadViews, WiredViT, wrapped

PIN = 200.0
SHARPNESS, GAIN = 12.0, 8.0
"""Attention score of a match (of everything else: 0), and logit of the answer."""
HEADS, D_HEAD, NEURONS = 4, 10, 16
CONSTANT, CLS = 0, 1
CUE, OBJECT, PAYLOAD, KEY, ANSWER, WASTE = (range(at, at + 3) for at in (2, 5, 8, 11, 14, 17))
"""Slots: pairs of channels (2 s, 2 s + 1)."""
SLOTS = 20
DISTRACTOR_SEED = 20


@torch.no_grad()
def cue_lookup(*, hops: tuple[int, int] = (1, 2), seed: int = DISTRACTOR_SEED, loudness: float = 1.0) -> Any:
    """The wired model as a `HookedViT`: pixels `[image 3 24 24]` in [0, 1], three logits, float64.

    Args:
        hops: planted heads of layer 0 and layer 1. The distractors take the other places: a model with other hops is
            the same one with its heads permuted.
        seed: of the random mixtures in the distractors.
        loudness: factor on everything the distractors write; 0 switches them off.

    Raises:
        OutOfRange: a head that does not exist.

    Example:
        >>> from mechvis.testing.planted import cue_images
        >>> pixels, labels = cue_images(50)
        >>> float((cue_lookup()(pixels).argmax(-1) == labels).double().mean())
        1.0
    """
    if not all(0 <= head < HEADS for head in hops):
        raise OutOfRange(f"hops={hops}: each layer of this model has heads 0 to {HEADS - 1}.")
    model = WiredViT(
        channels=3,
        d_model=2 * SLOTS,
        n_layers=2,
        n_heads=HEADS,
        d_head=D_HEAD,
        d_mlp=NEURONS,
        n_classes=drawn.PAYLOADS,
        grid=(drawn.CUE_GRID, drawn.CUE_GRID),
        patch=drawn.CUE_PATCH,
        cls=True,
        activation=nn.Tanh,
        norm=True,
        scale=D_HEAD**-0.5,
    )
    generator = torch.Generator().manual_seed(seed)
    _embed(model, generator)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.fill_(math.sqrt(2 * PIN**2 / (2 * SLOTS) + module.eps))
    first, second = model.head(0, hops[0]), model.head(1, hops[1])
    _hop_1(first, KEY, 1.0)
    _hop_2(second, ANSWER, 1.0)
    for payload, slot in enumerate(ANSWER):
        model.readout[:, payload] = _reads({slot: GAIN})
    for layer, hop in enumerate(hops):
        others = [model.head(layer, head) for head in range(HEADS) if head != hop]
        _distract(layer, others, generator, loudness)
        _waste_neurons(model.neurons(layer), generator, loudness)
    return wrapped(model, "cue-lookup", class_names=("payload 0", "payload 1", "payload 2"), preprocess=_preprocess())


def _reads(slots: dict[int, float]) -> Float[Tensor, " d_model"]:
    """Column of a matrix that reads a weighted sum of slots."""
    column = torch.zeros(2 * SLOTS, dtype=torch.float64)
    for slot, weight in slots.items():
        column[2 * slot], column[2 * slot + 1] = weight / 2, -weight / 2
    return column


def _writes(slots: dict[int, float]) -> Float[Tensor, " d_model"]:
    """Row of a matrix that writes to slots: to both channels of each pair, with opposite signs."""
    return 2 * _reads(slots)


def _embed(model: WiredViT, generator: torch.Generator) -> None:
    def pixel_filter(pattern: Tensor, size: float) -> Tensor:
        """Reads how much of a pattern `[channel row column]` is in a patch, in units of `size`."""
        return rearrange(pattern / pattern.square().sum() / size, "c a b -> (c a b)")[:, None]

    colours = torch.eye(3, dtype=torch.float64)[:, :, None, None]
    for colour in range(drawn.COLOURS):
        for slots, pattern, size in (
            (CUE, drawn.CUE_PATTERN, drawn.CUE_CONTRAST),
            (OBJECT, drawn.OBJECT_PATTERN, drawn.OBJECT_CONTRAST),
        ):
            found = pixel_filter(colours[colour] * drawn.PATTERNS[pattern], size)
            model.embedding.add_(found * _writes({slots[colour]: 1.0}))
    grey = torch.ones(3, 1, 1, dtype=torch.float64)
    for payload, pattern in enumerate(drawn.PAYLOAD_PATTERNS):
        found = pixel_filter(grey * drawn.PATTERNS[pattern], drawn.PAYLOAD_CONTRAST)
        model.embedding.add_(found * _writes({PAYLOAD[payload]: 1.0}))
    basis = drawn.texture_basis()
    for slot, texture in zip(WASTE, torch.randperm(len(basis), generator=generator), strict=False):
        model.embedding.add_(pixel_filter(basis[texture], drawn.TEXTURE) * _writes({slot: 1.0}))
    # Places are told apart in the waste slots only: distractors attend by them.
    for token in range(model.n_tokens):
        where = torch.randn(3, generator=generator, dtype=torch.float64)
        model.places[token] = _writes({CONSTANT: PIN} | {slot: float(x) for slot, x in zip(WASTE, where, strict=True)})
    model.places[0] += _writes({CLS: 1.0})


def _hop_1(head: HeadViews, target: range, gain: float) -> None:
    """CLS asks, the cue answers (whatever its colour), its colour is written."""
    head.q[:, 0] = _reads({CLS: SHARPNESS * D_HEAD**0.5})
    head.k[:, 0] = _reads(dict.fromkeys(CUE, 1.0))
    for colour in range(drawn.COLOURS):
        head.v[:, colour] = _reads({CUE[colour]: 1.0})
        head.o[colour] = _writes({target[colour]: gain})


def _hop_2(head: HeadViews, target: range, gain: float) -> None:
    """CLS asks for the colour in its key slots, the object of that colour answers, its payload is written."""
    for i in range(3):
        head.q[:, i] = _reads({KEY[i]: SHARPNESS * D_HEAD**0.5})
        head.k[:, i] = _reads({OBJECT[i]: 1.0})
        head.v[:, i] = _reads({PAYLOAD[i]: 1.0})
        head.o[i] = _writes({target[i]: gain})


EVERYTHING = (CLS, *CUE, *OBJECT, *PAYLOAD, *KEY, *WASTE)


def _mixture(columns: int, size: float, generator: torch.Generator) -> Float[Tensor, "d_model column"]:
    """Random columns that read every slot but the constant."""
    weights = torch.randn(columns, len(EVERYTHING), generator=generator, dtype=torch.float64) * size
    return torch.stack([_reads(dict(zip(EVERYTHING, row.tolist(), strict=True))) for row in weights], 1)


def _waste(rows: int, size: float, generator: torch.Generator) -> Float[Tensor, "row d_model"]:
    """Random rows that write to the waste slots."""
    weights = torch.randn(rows, len(WASTE), generator=generator, dtype=torch.float64) * size
    return torch.stack([_writes(dict(zip(WASTE, row.tolist(), strict=True))) for row in weights])


def _distract(layer: int, heads: list[HeadViews], generator: torch.Generator, loudness: float) -> None:
    copy, mean, random = heads
    (_hop_1 if layer == 0 else _hop_2)(copy, WASTE, 3.0 * loudness)
    if layer == 1:
        mean.q[:, 0] = _reads({CLS: SHARPNESS * D_HEAD**0.5})
        mean.k[:, 0] = _reads(dict.fromkeys(OBJECT, 1.0))
    for i in range(3):
        mean.v[:, i] = _reads({(WASTE if layer == 0 else PAYLOAD)[i]: 1.0})
        mean.o[i] = _writes({WASTE[(i + 1) % 3]: loudness})
    random.q[:], random.k[:] = _mixture(D_HEAD, 1.0, generator), _mixture(D_HEAD, 1.0, generator)
    random.v[:] = _mixture(D_HEAD, 0.5, generator)
    random.o[:] = _waste(D_HEAD, 0.4 * loudness, generator)


def _waste_neurons(neurons: Any, generator: torch.Generator, loudness: float) -> None:
    neurons.w_in[:] = _mixture(NEURONS, 0.5, generator)
    neurons.b_in[:] = torch.randn(NEURONS, generator=generator, dtype=torch.float64) * 0.5
    neurons.w_out[:] = _waste(NEURONS, 0.5 * loudness, generator)


def _preprocess() -> Preprocess:
    """What is drawn in [0, 255] is read in [0, 1], in float64; nothing is subtracted."""

    def as_drawn(images: list[np.ndarray], *, do_rescale: bool = True, **settings: object) -> dict[str, Tensor]:
        stacked = torch.from_numpy(np.stack(images)).double().permute(0, 3, 1, 2).contiguous()
        return {"pixel_values": stacked / 255 if do_rescale else stacked}

    side = drawn.CUE_GRID * drawn.CUE_PATCH
    return Preprocess(
        processor=as_drawn,
        height=side,
        width=side,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        source="made by mechvis.testing",
        settings={"made by mechvis.testing": side},
    )
