"""Heads that are removed for good: by zeros, or by their mean.

* `zero`: the head's part of the output projection becomes zero: the weights of :func:`circuits.prune.prune`, here with
  their undo.
* `mean`: a head that writes the same vector at every token, its mean over reference images and tokens, is a constant:
  `mean(z_h) W_O[h]`. The constant goes into the output bias and the head's part of the projection becomes zero: exact.
* `mean_positional`: the mean differs from token to token, and a bias is the same for all of them. No weight can hold
  it, so it stays an edit at run time.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from einops import einsum
from torch import Tensor

from circuits.comparators import all_heads, random_heads
from circuits.editing.weights import copied, own
from mechvis import edits as values
from mechvis.axes import Logits, Pixels
from mechvis.edits import Edit
from mechvis.errors import BadData, RefusedMethod, unknown
from mechvis.means import Means, means
from mechvis.units import Unit, units_of

Mode = Literal["zero", "mean", "mean_positional"]
MODES: tuple[str, ...] = get_args(Mode)


@dataclass(frozen=True, kw_only=True, eq=False)
class HeadRemoval:
    """Some heads, and what takes their place."""

    kind: ClassVar[str] = "heads"

    heads: tuple[Unit, ...]
    """The heads, sorted."""
    mode: str
    """`zero`, `mean` or `mean_positional`."""
    means: Means | None = None
    """For the means: reference means of `attn.hook_z`, of all layers."""

    def __post_init__(self):
        if not self.heads or any(unit.kind != "heads" for unit in self.heads):
            raise BadData(f"the units of a head removal are heads, at least one; got {[u.name for u in self.heads]}.")
        if self.mode not in MODES:
            raise unknown("way to remove heads", self.mode, MODES)
        if self.mode != "zero" and self.means is None:
            raise BadData(f"mode={self.mode!r} needs means of reference images.")

    @property
    def words(self) -> str:
        """What is done, in words."""
        names = ", ".join(unit.name for unit in self.heads)
        return f"{names} removed ({self.mode})"

    @property
    def reference_ids(self) -> frozenset[str]:
        """Images that the means were made of."""
        return frozenset() if self.means is None else self.means.ids

    def edits(self) -> list[Edit]:
        """The same as edits at run time."""
        if self.mode == "zero":
            return [unit.edit("zero") for unit in self.heads]
        make = values.mean if self.mode == "mean" else values.mean_positional
        return [make(unit.site, {unit.site: self.means[unit.site]}, heads=[unit.index]) for unit in self.heads]

    def run(self, model: Any, pixels: Pixels) -> Logits:
        """The model's output without these heads."""
        return model.run(pixels, edits=self.edits(), capture=model.output_site).output

    @torch.no_grad()
    def fold(self, model: Any) -> Any:
        """An edited copy of the model.

        Raises:
            RefusedMethod: a mean per token.
            UnsupportedModel: projections that are no plain layers, or have no bias for the mean.
        """
        if self.mode == "mean_positional":
            raise RefusedMethod(
                "a mean per token is another vector at every token, and an output bias is the same at all of them: "
                "mode='mean_positional' cannot be written into weights exactly. Use mode='mean' (exact), or keep the "
                "edit at run time."
            )
        edited = copied(model, f"{model.title}, {self.words}" if model.title else self.words)
        for layer in sorted({unit.layer for unit in self.heads}):
            index = [unit.index for unit in self.heads if unit.layer == layer]
            attn, what = edited.parts.blocks[layer].attn, f"the output projection of block {layer}"
            weight = own(edited, attn.out_weight(), what)
            if self.mode == "mean":
                bias = own(edited, attn.out_bias(), what)
                mean = self.means[f"blocks.{layer}.attn.hook_z"].mean(0)[index]
                # The projection's own precision would round the mean before it is added up over d_head.
                constant = einsum(mean.double(), weight[index].double(), "head e, head e d -> d")
                bias.copy_((bias.double() + constant).to(bias.dtype))
            weight[index] = 0
        return edited

    def random(self, model: Any, images: Any, draws: int, seed: int) -> list["HeadRemoval"]:
        """As many other heads, removed the same way; where there are fewer sets than `draws`, all of them once.

        Raises:
            OutOfRange: there is only one set of so many heads.
        """
        every, k = all_heads(model), len(self.heads)
        if 1 < math.comb(len(every), k) <= draws + 1:
            drawn = [list(some) for some in itertools.combinations(every, k) if some != self.heads]
        else:
            drawn = random_heads(model, k, draws, seed=seed, without=self.heads)
        return [HeadRemoval(heads=tuple(heads), mode=self.mode, means=self.means) for heads in drawn]

    def describe(self) -> dict[str, Any]:
        """Everything but the tensors."""
        known = None
        if self.means is not None:
            known = {"n": self.means.n, "data": self.means.data, "ids": sorted(self.means.ids)}
        return {"heads": [[unit.layer, unit.index] for unit in self.heads], "mode": self.mode, "means": known}

    def tensors(self) -> dict[str, Tensor]:
        """Reference means of all heads: random heads are drawn from all layers."""
        return {} if self.means is None else {f"means/{site}": value for site, value in self.means.items()}

    @classmethod
    def read(cls, facts: dict[str, Any], tensors: dict[str, Tensor]) -> "HeadRemoval":
        """From what `describe` and `tensors` gave."""
        known = facts["means"]
        if known is not None:
            per_site = {name.removeprefix("means/"): value for name, value in tensors.items()}
            known = Means(per_site, known["n"], known["data"], frozenset(known["ids"]))
        heads = tuple(Unit(layer, "heads", head) for layer, head in facts["heads"])
        return cls(heads=heads, mode=facts["mode"], means=known)


def head_removal(model: Any, heads: Sequence[Unit], mode: str, reference: Any) -> HeadRemoval:
    """Check and settle the removal of heads of a model.

    Raises:
        OutOfRange: a head that the model does not have.
        BadData: a unit that is no head; means without reference images, or reference images without means.
        UnknownName: no such mode.
    """
    if mode not in MODES:
        raise unknown("way to remove heads", mode, MODES)
    listed = units_of(model, list(heads))
    if wrong := [unit.name for unit in listed if unit.kind != "heads"]:
        raise BadData(f"only heads can be removed, got {wrong[0]}.")
    if mode == "zero":
        if reference is not None:
            raise BadData("reference images are for means; mode='zero' uses none. Leave reference= out.")
        return HeadRemoval(heads=tuple(listed), mode=mode)
    if reference is None:
        raise BadData(f"mode={mode!r} needs reference= images, other ones than those that the edit is measured on.")
    known = reference if isinstance(reference, Means) else means(model, reference, "blocks.*.attn.hook_z")
    for layer in range(len(model.parts.blocks)):
        known[f"blocks.{layer}.attn.hook_z"]
    return HeadRemoval(heads=tuple(listed), mode=mode, means=known)
