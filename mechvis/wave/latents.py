"""Rows of ablated latents of dictionaries that are spliced in with their error term.

Such a row is the clean one plus what the change of a latent writes, which has rank one per token:

    x + (f' - f) d        d the latent's row of the decoder (times the row's own scale, where rows are scaled)

so a thousand latents enter with one product and one encoding of the clean images. The error term enters as a whole:
x + (e' - e). Everything after that is the wave front's. The plain twin is one full run per latent.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from mechvis import block as plain
from mechvis.axes import Residual
from mechvis.errors import BadData
from mechvis.models.parts import BlockParts, SpliceParts, TowerParts
from mechvis.units import SPLICED_KINDS, Unit
from mechvis.wave.rows import Rows

Clean = Callable[[], Residual]
"""Gives the clean activation at a site; called only where a latent enters."""


class Latents:
    """The latents that enter in one block."""

    def __init__(
        self,
        parts: TowerParts,
        layer: int,
        entering: Sequence[Unit],
        replacement: Callable[[str], Tensor | None],
        tokens: list[int] | None,
    ):
        """Args:
            parts: of the model.
            layer: the block.
            entering: units that enter there, of any kind.
            replacement: what goes in their place, by site.
            tokens: those that are left in the last block; None: all.

        Raises:
            BadData: latents that this engine has no rule for.
        """
        self.replacement, self.tokens, self.at = replacement, tokens, f"blocks.{layer}."
        found = [unit for unit in entering if unit.kind in SPLICED_KINDS]
        self.units = {site: [unit for unit in found if unit.at == site] for site in {unit.at for unit in found}}
        self.splices = {splice.site: splice for splice in parts.splices}
        for site in self.units:
            splice, word = self.splices[site], site.removeprefix(self.at)
            known = splice.reads == site or (word == "hook_mlp_out" and splice.reads == f"{self.at}ln2.hook_normalized")
            if word not in SITES or not known:
                raise BadData(
                    f"the wave front has no rule for latents that read {splice.reads} and write {site}; use "
                    "engine='plain'."
                )

    def any(self, word: str) -> bool:
        """Does a latent enter at this site of the block?"""
        return self.at + word in self.units

    def enter(self, rows: Rows, word: str, clean: Clean, read: Clean | None = None) -> None:
        """Rows of the latents at a site that is the stream, or is added to it.

        Args:
            rows: the batch; its clean rows have the clean value of the site in them.
            word: site inside the block.
            clean: the clean value of the site.
            read: the normalised stream before the MLP, for a transcoder.
        """
        if not self.any(word):
            return
        splice, x = self.splices[self.at + word], clean()
        seen = x if splice.reads == splice.site else read()
        tokens = None if word == "hook_resid_pre" else self.tokens
        for units, change in self._changes(splice, x, seen, tokens):
            rows_of = rows.enter(*units).unflatten(0, (len(units), rows.n))
            torch.add(change, rows.clean, out=rows_of)

    def enter_heads(self, rows: Rows, block: BlockParts, z: Tensor, before: Residual | None) -> None:
        """The same for what the output projection of attention reads: all heads side by side."""
        if not self.any("attn.hook_z"):
            return
        x = plain.merge(z)
        for units, change in self._changes(self.splices[f"{self.at}attn.hook_z"], x, x, self.tokens):
            rows_of = rows.enter(*units).unflatten(0, (len(units), rows.n))
            if block.linear_writes:
                weight = block.attn.out_weight().flatten(0, 1)
                rows_of.copy_(plain.scaled(block.scale1, (change.to(weight) @ weight).flatten(0, 1)).view_as(rows_of))
                rows_of += rows.clean
                continue
            for one, row in zip(change, rows_of, strict=True):
                torch.add(before, plain.scaled(block.scale1, block.attn.out(x + one)), out=row)

    def _changes(
        self, splice: SpliceParts, x: Tensor, read: Tensor, tokens: list[int] | None
    ) -> Iterator[tuple[list[Unit], Float[Tensor, "unit image token d"]]]:
        """Units of a dictionary, some at a time, and by how much each changes what it writes."""
        units = self.units[splice.site]
        latents = [unit for unit in units if unit.kind == "latents"]
        with torch.autocast(x.device.type, enabled=False):
            codes = _kept(splice, splice.encode(read), tokens)
            new = self._new(splice.latents_site, codes, tokens) if latents else None
            directions, scale = splice.directions(), splice.scale(read)
            for start in range(0, len(latents), AT_ONCE):
                chosen = latents[start : start + AT_ONCE]
                index = [unit.index for unit in chosen]
                delta = rearrange(new[..., index] - codes[..., index], "image token unit -> unit image token 1")
                change = delta * directions[index][:, None, None]
                yield chosen, (change if scale is None else change * scale).to(x.dtype)
            for unit in (unit for unit in units if unit.kind == "errors"):
                yield [unit], self._error(unit, splice, x, codes, read, tokens)[None]

    def _error(
        self, unit: Unit, splice: SpliceParts, x: Tensor, codes: Tensor, read: Tensor, tokens: list[int] | None
    ) -> Tensor:
        """By how much the new error term changes what is written."""
        missed = _kept(splice, x - splice.decode(codes, read).to(x), tokens)
        new = self.replacement(unit.site)
        if new is None:
            return -missed
        # A site with heads has its error term per head.
        return (new if tokens is None else new[:, tokens]).flatten(2).to(x) - missed

    def _new(self, site: str, like: Tensor, tokens: list[int] | None) -> Tensor:
        new = self.replacement(site)
        if new is None:
            return torch.zeros_like(like)
        return (new if tokens is None else new[:, tokens]).to(like).expand_as(like)


def _kept(splice: SpliceParts, value: Tensor, tokens: list[int] | None) -> Tensor:
    """Zero at tokens that the dictionary is not for."""
    if splice.tokens is None:
        return value
    there = [token in splice.tokens for token in (range(value.shape[1]) if tokens is None else tokens)]
    return torch.where(torch.tensor(there, device=value.device)[None, :, None], value, 0.0)


AT_ONCE = 64
"""Latents whose changes are in memory together, beside the rows that they become."""

SITES = ("hook_resid_pre", "attn.hook_z", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post")
"""Sites of a block at which latents can enter."""
