"""How others do a sweep: edit one head, token or neuron at a time, and look at the logit that the clean run predicts.

Every function answers that logit, averaged over images, per cell, so that a benchmark can check that all of them
computed the same thing. A cell is (layer, index); what is put in its place comes from a :class:`Sweep`. Edits are made
in place, which is the fastest that each tool allows.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from einops import repeat
from torch import Tensor, nn

Cell = tuple[int, int]
Values = dict[Cell, Tensor]
"""Scalars; they stay on the device, so that nobody waits for it after every forward."""

SITES = {"heads": "attn.hook_z", "tokens": "hook_resid_pre", "neurons": "mlp.hook_post"}
"""Kind -> the site inside a block in transformer_lens' names."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweep:
    """What all contenders of a sweep are to do."""

    kind: Literal["heads", "tokens", "neurons"]
    """What a cell's index counts."""
    pixels: Tensor
    """The images."""
    new: dict[int, Tensor] | None
    """What is put in, by layer: for heads `[image token head d_head]`, for tokens `[image token d_model]`; None: 0."""
    metric: Callable[[Tensor], Tensor]
    """Logits `[image class]` -> `[image]`."""
    d_head: int
    """Width of a head."""
    rows: int
    """Rows that a batching peer puts into one forward."""

    def put(self, x: Tensor, cell: Cell, images: slice = slice(None)) -> None:
        """Edit, in place, what a module reads: heads and neurons along the last axis, tokens along the second."""
        layer, index = cell
        if self.kind == "tokens":
            x[images, index] = self.new[layer][:, index]
            return
        width = self.d_head if self.kind == "heads" else 1
        value = 0 if self.new is None else self.new[layer][:, :, index]
        x[images, :, index * width : (index + 1) * width] = value

    def groups(self, cells: Sequence[Cell]) -> list[list[Cell]]:
        """Cells of one layer, as many as fit one forward of `rows`."""
        most = max(1, self.rows // len(self.pixels))
        found: list[list[Cell]] = []
        for cell in sorted(cells):
            if found and found[-1][0][0] == cell[0] and len(found[-1]) < most:
                found[-1].append(cell)
            else:
                found.append([cell])
        return found


def predicted(logits: Tensor) -> Callable[[Tensor], Tensor]:
    """A metric: logits -> those of the classes that these logits predict, `[image]`."""
    target = logits.argmax(-1)[:, None]
    return lambda found: found.gather(-1, target)[:, 0]


def module(bare: nn.Module, kind: str, layer: int) -> nn.Module:
    """The module of a Hugging Face ViT whose input a cell is part of."""
    block = bare.vit.layers[layer]
    return {"heads": block.attention.o_proj, "tokens": block, "neurons": block.mlp.fc2}[kind]


def bare_loop(bare: nn.Module, sweep: Sweep, cells: Sequence[Cell]) -> Values:
    """One forward per cell, with one torch hook."""
    values = {}
    for cell in cells:
        hook = module(bare, sweep.kind, cell[0]).register_forward_pre_hook(
            lambda _, given, cell=cell: sweep.put(given[0], cell)
        )
        try:
            values[cell] = sweep.metric(bare(sweep.pixels).logits).mean()
        finally:
            hook.remove()
    return values


def bare_rows(bare: nn.Module, sweep: Sweep, cells: Sequence[Cell]) -> Values:
    """The cells of a layer as rows of one batch, with one torch hook: what somebody writes who knows batching."""
    values, n = {}, len(sweep.pixels)
    for group in sweep.groups(cells):

        def edit(_: nn.Module, given: tuple, group: list[Cell] = group) -> None:
            for i, cell in enumerate(group):
                sweep.put(given[0], cell, slice(i * n, (i + 1) * n))

        pixels = repeat(sweep.pixels, "image c h w -> (cell image) c h w", cell=len(group))
        hook = module(bare, sweep.kind, group[0][0]).register_forward_pre_hook(edit)
        try:
            logits = bare(pixels).logits
        finally:
            hook.remove()
        values |= {cell: sweep.metric(part).mean() for cell, part in zip(group, logits.split(n), strict=True)}
    return values


def patching_helper(wrapped: Any, sweep: Sweep, cells: Sequence[Cell]) -> Values:
    """transformer_lens' own patching sweeps, which put in what a cache holds (zeros to zero a head)."""
    import pandas
    from transformer_lens import patching

    n_layers = wrapped.cfg.n_layers
    if sweep.kind == "heads":
        function, column = patching.get_act_patch_attn_head_out_all_pos, "head"
    else:
        function, column = patching.get_act_patch_resid_pre, "pos"
    new = sweep.new
    if new is None:
        tokens = wrapped.original_model.vit.embeddings.position_embeddings.shape[1]
        nothing = sweep.pixels.new_zeros(len(sweep.pixels), tokens, wrapped.cfg.n_heads, sweep.d_head)
        new = dict.fromkeys(range(n_layers), nothing)
    cache = {f"blocks.{layer}.{SITES[sweep.kind]}": value for layer, value in new.items()}
    chosen = pandas.DataFrame(list(cells), columns=["layer", column])
    values = function(
        wrapped,
        sweep.pixels,
        cache,
        lambda logits: sweep.metric(logits).mean(),
        index_axis_names=None,
        index_df=chosen,
    )
    return dict(zip(cells, values.flatten(), strict=True))


def hooks_loop(wrapped: Any, sweep: Sweep, cells: Sequence[Cell]) -> Values:
    """`run_with_hooks` per cell, as people write it by hand; transformer_lens and ViT-Prisma share this surface."""
    values = {}
    for cell in cells:
        layer, index = cell

        def edit(x: Tensor, hook: Any, layer: int = layer, index: int = index) -> Tensor:
            if sweep.kind == "neurons":
                x[:, :, index] = 0
            elif sweep.kind == "tokens":
                x[:, index] = sweep.new[layer][:, index]
            else:
                x[:, :, index] = 0 if sweep.new is None else sweep.new[layer][:, :, index]
            return x

        site = f"blocks.{layer}.{SITES[sweep.kind]}"
        values[cell] = sweep.metric(wrapped.run_with_hooks(sweep.pixels, fwd_hooks=[(site, edit)])).mean()
    return values


def nnsight_traces(wrapped: Any, sweep: Sweep, cells: Sequence[Cell]) -> Values:
    """One nnsight trace per cell."""
    values = {}
    for cell in cells:
        place = module(wrapped, sweep.kind, cell[0])
        with wrapped.trace(sweep.pixels):
            sweep.put(place.input, cell)
            logits = wrapped.output.logits.save()
        values[cell] = sweep.metric(logits).mean()
    return values


def nnsight_rows(wrapped: Any, sweep: Sweep, cells: Sequence[Cell]) -> Values:
    """nnsight with the cells of a layer as invokes of one trace, which become rows of one batch."""
    values = {}
    for group in sweep.groups(cells):
        place, saved = module(wrapped, sweep.kind, group[0][0]), []
        with wrapped.trace() as tracer:
            for cell in group:
                with tracer.invoke(sweep.pixels):
                    sweep.put(place.input, cell)
                    saved.append(wrapped.output.logits.save())
        values |= {cell: sweep.metric(logits).mean() for cell, logits in zip(group, saved, strict=True)}
    return values


def bridge(bare: nn.Module, *, copied: bool = True) -> Any:
    """transformer_lens' wrapper around a copy, or around this very model, for `benchmarks.loading`."""
    import copy

    from benchmarks.models import tl_bridge

    return tl_bridge(copy.deepcopy(bare) if copied else bare)
