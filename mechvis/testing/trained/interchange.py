"""A differentiable forward in which any place takes its value from another image: what trains planted models and what
certifies them.

1. A plain forward records a :class:`Trace`: what every head mixed and every MLP wrote, the queries, keys and values of
   every head, and the stream beside the last MLP.
2. A second forward takes some places from such traces (a :class:`Donor` says which places, for which rows, from which
   rows of the trace) and computes everything else anew. Which rows of a batch exchange which places is free, so one
   pass holds as many different interventions as it has rows.
3. Gradients flow through both: a source image learns to carry what it hands over.

The plain forward repeats `mechvis.block` with the heads' writes kept apart; a test holds the two equal.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from jaxtyping import Bool, Int
from torch import Tensor

from mechvis import block as plain
from mechvis.axes import HeadResult, Logits, PerHead, Residual
from mechvis.errors import BadData, ShapeMismatch
from mechvis.models.parts import BlockParts, TowerParts
from mechvis.testing.trained.places import Place, check_place, groups_of

Rows = Bool[Tensor, " row"] | bool
"""Which rows an exchange concerns; True: all."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """What one forward computed."""

    logits: Logits
    """The model's answer."""
    mixed: tuple[PerHead, ...] = field(repr=False)
    """Mixed values of each head, by layer: what the output projection reads."""
    mlps: tuple[Residual, ...] = field(repr=False)
    """What each MLP wrote, by layer, bias included."""
    reads: tuple[tuple[PerHead, PerHead, PerHead], ...] = field(repr=False)
    """Queries, keys and values, by layer."""
    embed: Residual = field(repr=False)
    """The stream before block 0."""
    beside: Residual = field(repr=False)
    """The last stream without the last MLP's write."""
    parts: TowerParts = field(repr=False)
    """The model that ran."""

    @property
    def heads(self) -> tuple[HeadResult, ...]:
        """What each head wrote into the stream, by layer, LayerScale included; the output bias belongs to no head."""
        return tuple(
            plain.scaled(block.scale1, einsum(z, block.attn.out_weight(), "r t h e, h e d -> r t h d"))
            for block, z in zip(self.parts.blocks, self.mixed, strict=True)
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Donor:
    """Places that take their value from other images."""

    trace: Trace = field(repr=False)
    """Forward of the images that give."""
    order: Int[Tensor, " row"] | None = None
    """For each row the row of the trace that gives to it; None: the same row."""
    chosen: Mapping[str, Rows]
    """Name of a place -> rows that take it."""

    def of(self, values: Tensor) -> Tensor:
        """A recorded tensor in the order of the rows that take."""
        return values if self.order is None else values[self.order]


def forward(
    parts: TowerParts,
    pixels: Tensor,
    donors: Sequence[Donor] = (),
    *,
    added: Mapping[str, Residual] | None = None,
) -> Trace:
    """Run the model, taking some places from elsewhere.

    Args:
        parts: `model.parts` of a wrapped model; the weights may be in training.
        pixels: preprocessed images.
        donors: exchanges; where two name one place and row, the later one holds.
        added: reader (`L1H2`: its queries, keys and values; `L1MLP`; `out`) -> what is added to the stream that it
            alone reads. With `corrupt write - clean write` of a node this is exact patching of one edge.

    Returns:
        Everything that was computed, exchanged places included.

    Raises:
        UnknownName: a place of a donor that is none.
        OutOfRange: a place that the model lacks.
        ShapeMismatch: row choices that do not fit the batch.
        BadData: `added` names a reader that is none.
    """
    added = dict(added or {})
    _check(parts, donors, added, len(pixels))
    x = embed = parts.embed(pixels)
    mixed, mlps, reads = [], [], []
    for layer, block in enumerate(parts.blocks):
        places = [(donor, _masks(parts, donor, layer, x)) for donor in donors]
        q, k, v = plain.project(block.attn, block.ln1(x))
        q, k, v = _shifted(block, layer, x, (q, k, v), added)
        for donor, masks in places:
            if "read" in masks:
                mask = masks["read"][..., None]
                q, k, v = (
                    torch.where(mask, donor.of(theirs), own)
                    for theirs, own in zip(donor.trace.reads[layer], (q, k, v), strict=True)
                )
        reads.append((q, k, v))
        z = _mix(block, q, k, v)
        for donor, masks in places:
            if "head" in masks:  # the projection is one for all images: exchanging what it reads exchanges the write
                z = torch.where(masks["head"][..., None], donor.of(donor.trace.mixed[layer]), z)
        mixed.append(z)
        mid = x + plain.scaled(block.scale1, block.attn.out(plain.merge(z)))
        stream = mid if (more := added.get(f"L{layer}MLP")) is None else mid + more
        write = plain.mlp(block, stream)
        for donor, masks in places:
            if "mlp" in masks:
                write = torch.where(masks["mlp"][..., None], donor.of(donor.trace.mlps[layer]), write)
        mlps.append(write)
        x = mid + write
    for donor in donors:
        if (rows := donor.chosen.get("direct->out", False)) is not False:
            mid = torch.where(_rows(rows, x)[:, None, None], donor.of(donor.trace.beside), mid)
    x = mid + mlps[-1]
    x = x if "out" not in added else x + added["out"]
    logits = plain.read_out(parts, x, lambda t: t if parts.reads is None else t[:, list(parts.reads)])
    return Trace(
        logits=logits,
        mixed=tuple(mixed),
        mlps=tuple(mlps),
        reads=tuple(reads),
        embed=embed,
        beside=mid,
        parts=parts,
    )


def all_rows(names: Iterable[str]) -> dict[str, Rows]:
    """`Donor.chosen` for places that every row takes."""
    return dict.fromkeys(names, True)


def _mix(block: BlockParts, q: PerHead, k: PerHead, v: PerHead) -> PerHead:
    """Each head's attention-weighted values."""
    q, k, v = (rearrange(x, "r t h e -> r h t e") for x in (q, k, v))
    return rearrange(F.scaled_dot_product_attention(q, k, v, scale=block.attn.scale), "r h t e -> r t h e")


def _shifted(
    block: BlockParts, layer: int, x: Residual, qkv: tuple[PerHead, ...], added: Mapping[str, Residual]
) -> tuple[PerHead, ...]:
    """Queries, keys and values, where some heads read a stream with something added."""
    for head in range(block.attn.n_heads):
        if (more := added.get(f"L{layer}H{head}")) is not None:
            own = torch.arange(block.attn.n_heads, device=x.device) == head
            theirs = plain.project(block.attn, block.ln1(x + more))
            qkv = tuple(torch.where(own[:, None], new, old) for new, old in zip(theirs, qkv, strict=True))
    return qkv


def _rows(rows: Rows, like: Tensor) -> Bool[Tensor, " row"]:
    return torch.full((len(like),), rows, device=like.device) if isinstance(rows, bool) else rows


def _masks(parts: TowerParts, donor: Donor, layer: int, x: Residual) -> dict[str, Tensor]:
    """Kind -> which (row, token[, head]) of this layer a donor gives; kinds that it does not touch are left out."""
    groups = {**groups_of(parts), "all": slice(None)}
    masks: dict[str, Tensor] = {}
    for name, rows in donor.chosen.items():
        found: Place = check_place(name, parts)
        if found.layer != layer or rows is False:
            continue
        shape = x.shape[:2] if found.kind == "mlp" else (*x.shape[:2], parts.blocks[layer].attn.n_heads)
        mask = masks.setdefault(found.kind, torch.zeros(shape, dtype=torch.bool, device=x.device))
        part = mask[:, groups[found.group]] if found.kind == "mlp" else mask[:, groups[found.group], found.head]
        part |= _rows(rows, x)[:, None]
    return masks


def _check(parts: TowerParts, donors: Sequence[Donor], added: Mapping[str, Residual], n: int) -> None:
    if parts.layout is not None or any(not block.linear_writes for block in parts.blocks):
        raise BadData(
            f"interchange is for plain ViTs (positions in the embedding, writes that add up); {parts.family} is none."
        )
    for donor in donors:
        given = len(donor.trace.logits) if donor.order is None else len(donor.order)
        wrong = {name for name, rows in donor.chosen.items() if not isinstance(rows, bool) and rows.shape != (n,)}
        if given != n or wrong:
            raise ShapeMismatch(
                f"{n} images, but a donor gives to {given} rows"
                + (f" and chooses rows of other lengths for {', '.join(sorted(wrong))}." if wrong else ".")
            )
    readers = {f"L{i}H{h}" for i, block in enumerate(parts.blocks) for h in range(block.attn.n_heads)}
    readers |= {f"L{i}MLP" for i in range(len(parts.blocks))} | {"out"}
    if unknown := set(added) - readers:
        raise BadData(f"nothing reads under the name {sorted(unknown)[0]!r}; readers are {', '.join(sorted(readers))}.")
