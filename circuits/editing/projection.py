"""Directions that are projected out: `x - (x D^T) D`, with orthonormal rows D.

Where this can go into the weights exactly:

* at a *writer* (`L2H1`: a head; `L2 attn_out`, `L2MLP`: the whole write with its bias): `W_O (I - D^T D)`, the
  component can write nothing along D any more. LayerScale between is divided out;
* at `out`, after the last norm: `(I - D^T D) W` in the layer that reads it (the projection if there is one, else the
  head).

Where it cannot: at any other site of the stream. Whatever reads the stream there does so through a LayerNorm, which
takes the mean off and divides by a length that depend on all of x, and the rest of the stream is handed on unread.
There the projection stays an edit at run time.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from circuits.editing.matched import matched_directions
from circuits.editing.weights import copied, own
from mechvis import edits as values
from mechvis.axes import Logits, Pixels
from mechvis.edits import Edit
from mechvis.errors import BadData, RefusedMethod, ShapeMismatch, UnknownName, UnsupportedModel, nearest
from mechvis.units import Unit, units_of

_WRITER = re.compile(r"L(\d+)(?:H(\d+)|MLP| (attn_out|mlp_out))")
OUT = "out"
READ_OUT_SITE = "ln_final.hook_normalized"


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """Directions, and where they are taken out."""

    kind: ClassVar[str] = "directions"

    rows: Float[Tensor, "direction d_model"]
    """Orthonormal, float64."""
    at: str
    """A writer (`L2H1`, `L2 attn_out`, `L2MLP`), `out` (after the last norm), or a site."""
    tokens: str | tuple[int, ...] | None = None
    """Which tokens; None: all. Only all of them can go into weights."""

    @property
    def words(self) -> str:
        """What is done, in words."""
        n = len(self.rows)
        some = "" if self.tokens is None else f", tokens {self.tokens}"
        return f"{n} direction{'s' * (n != 1)} projected out at {self.at}{some}"

    @property
    def reference_ids(self) -> frozenset[str]:
        """No means are used."""
        return frozenset()

    @property
    def place(self) -> tuple[str, int | None]:
        """The site, and the head where it is one."""
        if self.at == OUT:
            return READ_OUT_SITE, None
        unit = writer_of(self.at)
        if unit is None:
            return self.at, None
        if unit.kind == "heads":
            return f"blocks.{unit.layer}.attn.hook_result", unit.index
        return unit.site, None

    def edits(self) -> list[Edit]:
        """The same as edits at run time."""
        site, head = self.place
        return [values.project(site, self.rows, tokens=self.tokens, heads=None if head is None else [head])]

    def run(self, model: Any, pixels: Pixels) -> Logits:
        """The model's output without these directions."""
        return model.run(pixels, edits=self.edits(), capture=model.output_site).output

    @torch.no_grad()
    def fold(self, model: Any) -> Any:
        """An edited copy of the model.

        Raises:
            RefusedMethod: a place where no weights can hold it exactly; says why.
            UnsupportedModel: the weights are not plain layers here.
        """
        if self.tokens is not None:
            raise RefusedMethod(
                f"weights are the same at every token, and the projection is asked for at tokens {self.tokens} only: "
                "it cannot be written into weights. Leave tokens= out, or keep the edit at run time."
            )
        unit = writer_of(self.at)
        if unit is None and self.at != OUT:
            raise RefusedMethod(
                f"a projection at {self.at} cannot be written into weights exactly: what reads the stream there reads "
                "it through a LayerNorm, which couples all directions, and the rest of the network reads the stream "
                "further on. Keep it at run time, or project at a writer ('L2H1', 'L2MLP') or after the last norm "
                "('out')."
            )
        title = f"{model.title}, {self.words}" if model.title else self.words
        edited = copied(model, title)
        return self._fold_read_out(edited) if unit is None else self._fold_writer(edited, unit)

    def _fold_writer(self, edited: Any, unit: Unit) -> Any:
        block = edited.parts.blocks[unit.layer]
        if not block.linear_writes:
            raise RefusedMethod(
                f"block {unit.layer} has a norm after its sub-layers: what a component writes goes through it before "
                "it reaches the stream, so a projection of the write cannot be folded. Keep it at run time."
            )
        scale = block.scale2 if unit.kind == "mlp_out" else block.scale1
        what = f"the {'MLP' if unit.kind == 'mlp_out' else 'output projection'} of block {unit.layer}"
        if unit.kind == "mlp_out":
            weight, bias = block.mlp_out_weight(), block.mlp_out_bias()
        else:
            weight = block.attn.out_weight()
            # The output bias belongs to no head: it is part of the whole write only.
            weight, bias = (weight[unit.index], None) if unit.kind == "heads" else (weight, block.attn.out_bias())
        for tensor in (weight, bias):
            if tensor is not None:
                tensor = own(edited, tensor, what)
                tensor.copy_(self._without(tensor, scale, what))
        return edited

    def _fold_read_out(self, edited: Any) -> Any:
        parts = edited.parts
        reader = parts.head if parts.project is None else parts.project
        if reader is None:
            raise UnsupportedModel(f"{parts.family} ends with its last norm: nothing reads the stream after it.")
        if not isinstance(reader, nn.Linear) or parts.pooling is not None:
            raise UnsupportedModel(
                f"what reads the stream after the last norm of {parts.family} is not one linear layer "
                f"({type(reader).__name__}{', behind attention pooling' if parts.pooling is not None else ''}). Keep "
                "the projection at run time."
            )
        weight = own(edited, reader.weight, "the layer after the last norm")
        if weight.shape[1] % self.rows.shape[1]:
            raise UnsupportedModel(f"the read-out of {parts.family} reads {weight.shape[1]} numbers, not d_model.")
        # Several tokens side by side (CLS beside the mean of the patches): the same projection for each.
        each = weight.unflatten(1, (-1, self.rows.shape[1]))
        weight.copy_(self._without(each, None, "").flatten(1))
        return edited

    def _without(self, weight: Tensor, scale: Any, what: str) -> Tensor:
        """`W (I - D^T D)` along the last axis, of the weight as it acts on the stream."""
        rows = self.rows.to(weight.device)
        if scale is None:
            wide = weight.double()
            return (wide - (wide @ rows.T) @ rows).to(weight.dtype)
        factor = scale(torch.ones(1, 1, weight.shape[-1], device=weight.device, dtype=weight.dtype))[0, 0].double()
        wide = weight.double() * factor
        change = (wide @ rows.T) @ rows
        silent = factor == 0
        if bool((change[..., silent] != 0).any()):
            raise UnsupportedModel(
                f"LayerScale of {what} is zero along parts of the directions: they cannot be folded."
            )
        return ((wide - change) / torch.where(silent, 1.0, factor)).to(weight.dtype)

    def random(self, model: Any, images: Any, draws: int, seed: int) -> list["Projection"]:
        """As many random directions at the same place, which remove as much of the activations' norm."""
        site, head = self.place
        drawn = matched_directions(model, images, self.rows, site, head, draws, tokens=self.tokens, seed=seed)
        return [Projection(rows=rows, at=self.at, tokens=self.tokens) for rows in drawn]

    def describe(self) -> dict[str, Any]:
        """Everything but the tensors."""
        tokens = list(self.tokens) if isinstance(self.tokens, tuple) else self.tokens
        return {"at": self.at, "tokens": tokens}

    def tensors(self) -> dict[str, Tensor]:
        """The directions."""
        return {"rows": self.rows}

    @classmethod
    def read(cls, facts: dict[str, Any], tensors: dict[str, Tensor]) -> "Projection":
        """From what `describe` and `tensors` gave."""
        tokens = tuple(facts["tokens"]) if isinstance(facts["tokens"], list) else facts["tokens"]
        return cls(rows=tensors["rows"], at=facts["at"], tokens=tokens)


def writer_of(at: str) -> Unit | None:
    """The component that a name means, or None: it is no writer's name."""
    found = _WRITER.fullmatch(at)
    if found is None:
        return None
    layer, head, whole = found.groups()
    if head is not None:
        return Unit(int(layer), "heads", int(head))
    return Unit(int(layer), whole or "mlp_out")


def projection(model: Any, directions: Tensor, at: str, tokens: str | Sequence[int] | None) -> Projection:
    """Check and settle a projection in a model.

    Raises:
        ShapeMismatch: directions that do not fit the place, are not finite, zero, or linearly dependent.
        OutOfRange, UnknownName: no such component or site.
    """
    if not isinstance(at, str):
        raise BadData(f"at= names a writer ('L2H1', 'L2MLP'), 'out', or a site; got {type(at).__name__}.")
    directions = torch.as_tensor(directions).detach().cpu()
    directions = directions[None] if directions.ndim == 1 else directions
    if directions.ndim != 2 or not directions.is_floating_point() or not torch.isfinite(directions).all():
        raise ShapeMismatch(f"directions are finite numbers [d] or [direction d]; got {list(directions.shape)}.")
    unit = writer_of(at)
    if unit is not None:
        units_of(model, [unit])
        width = model.parts.d_model
    else:
        try:
            sites = model.graph.match([READ_OUT_SITE if at == OUT else at])
        except KeyError as error:
            raise UnknownName(
                f"at={at!r} is neither a writer ('L2H1', 'L2 attn_out', 'L2MLP'), nor 'out', nor a site. Nearest site: "
                f"{', '.join(nearest(at, list(model.graph.names), 2))}."
            ) from error
        if len(sites) != 1:
            raise BadData(f"at={at!r} matches {len(sites)} sites; a projection is at one place.")
        width = model.graph[sites[0]].sizes[-1]
    if width is not None and directions.shape[1] != width:
        raise ShapeMismatch(f"directions have {directions.shape[1]} entries, {at} has {width}.")
    norms = directions.double().norm(dim=1, keepdim=True)
    if bool((norms == 0).any()):
        raise ShapeMismatch(f"direction {int((norms[:, 0] == 0).nonzero()[0])} is zero.")
    triangle = torch.linalg.qr((directions.double() / norms).T)
    if len(directions) > width or bool((triangle.R.diagonal().abs() < 1e-8).any()):
        raise ShapeMismatch(f"the {len(directions)} directions are linearly dependent: leave out what others span.")
    chosen = tokens if tokens is None or isinstance(tokens, str) else tuple(int(token) for token in tokens)
    return Projection(rows=triangle.Q.T.contiguous(), at=at, tokens=chosen)
