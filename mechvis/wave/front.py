"""The wave front: many ablations of the same images in one pass over the blocks.

A row is one image under one ablation. A row differs from the clean run only from its unit on, so it enters the batch
there, and the batch grows from layer to layer (hooks_circuits.md section 4):

1. *Restart*: before its layer a row is the clean row, which is computed once per image.
2. *Wave front*: all rows go through the later blocks together: one block call per layer, not one per layer and unit.
3. *Linear shortcut*: an edit of a head, of `attn_out`, of `mlp_out` or of a neuron changes the stream by a vector
   that is known without running the half-block again: `(z_new - z) W_O`, `(h_new - h) W_out`. For a head its rank is
   low, which the MLP's first product makes use of (:mod:`mechvis.wave.head_rows`).
4. *Only what is read*: in the last block, queries and MLP run for the tokens of the read-out alone (the CLS token);
   keys and values still run for all.
5. *A few rows at a time*: within a block the rows go through in groups whose activations stay in the processor's
   cache; between blocks only the stream is kept, in one buffer.

Under `torch.autocast` the blocks run in low precision; the stream, the embedding, the read-out and the changes that
ablated units make are in the model's own (see `mechvis.screen`).

The plain twin is one full forward per unit with `model.run(edits=[...])`; the tests compare them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis import block as plain
from mechvis.axes import Pixels, Residual
from mechvis.errors import BadData
from mechvis.models.parts import BlockParts, Layout, TowerParts
from mechvis.units import Unit
from mechvis.wave import lowered
from mechvis.wave.few_queries import without_keys
from mechvis.wave.halves import Halves
from mechvis.wave.head_rows import HeadRows, NormedRows, expanded, head_rows, worthwhile
from mechvis.wave.latents import Latents
from mechvis.wave.rows import Rows

PLAIN = Halves()

Replacement = Callable[[str], Tensor | None]
"""Site name -> values to put there, `[image or 1, token, ...]`, or None for zero."""


@dataclass(frozen=True)
class PerImage:
    """A replacement for groups of patches that differ from image to image."""

    values: Replacement
    """What is put in."""
    tokens: Callable[[Unit], Bool[Tensor, "image token"]]
    """Where, for each image."""

    def __call__(self, site: str) -> Tensor | None:
        return self.values(site)


@torch.no_grad()
def wave(
    parts: TowerParts,
    pixels: Pixels,
    units: Sequence[Unit],
    replacement: Replacement,
    base: Sequence[Unit] = (),
    at_once: int | None = None,
    halves: Halves = PLAIN,
) -> tuple[Float[Tensor, "image out"], Float[Tensor, "unit image out"]]:
    """Output of the clean run, and of one run per unit with that unit replaced.

    Args:
        parts: the model's parts.
        pixels: the images.
        units: sorted by layer.
        replacement: what goes in the place of a unit's activation.
        base: heads (of blocks or of the pooling) that are replaced in every row, the clean one included.
        at_once: rows that go through a block together; None: all of them.
        halves: what runs the halves of a block.

    Returns:
        clean output `[image out]` and `[unit image out]` (logits if the model has a head, else its last output).
    """
    n, n_layers = len(pixels), len(parts.blocks)
    with _own_precision(pixels):
        embedded = parts.embed(pixels)
    pool_heads = [unit for unit in units if unit.kind == "pool_heads"]
    late = 0
    if isinstance(parts.reads, tuple):
        late = sum(unit.layer == n_layers - 1 and not _before_attention(unit) for unit in units)
    rows = Rows(embedded, 1 + len(units) - len(pool_heads), late, at_once)
    by_layer = {layer: list(found) for layer, found in groupby(units, key=lambda unit: unit.layer)}
    # Tokens that are not read need no queries in the last block; a norm or a pooling over all tokens reads all.
    reads = parts.reads if isinstance(parts.reads, tuple) else None
    layout = None if parts.layout is None else parts.layout(tuple(pixels.shape[2:]))
    for layer, block in enumerate(parts.blocks):
        entering = by_layer.get(layer, [])
        for unit in (u for u in entering if u.kind == "tokens"):
            new = replacement(unit.site)
            edited = rows.enter(unit).copy_(rows.clean)
            edited[:, unit.index] = 0 if new is None else new[:, unit.index]
        for unit in (u for u in entering if u.kind == "patches"):
            _enter_patches(rows, unit, replacement)
        last_tokens = list(reads) if reads is not None and layer == n_layers - 1 else None
        spliced = Latents(parts, layer, entering, replacement, last_tokens) if parts.splices else None
        if spliced is not None:
            spliced.enter(rows, "hook_resid_pre", lambda: rows.clean)
        gone = [unit for unit in base if unit.layer == layer]
        made = _attention_half(block, rows, entering, gone, replacement, last_tokens, layout, halves, spliced)
        _mlp_half(block, rows, entering, replacement, last_tokens, made, halves, spliced)
    gone = [unit for unit in base if unit.kind == "pool_heads"]
    with _own_precision(pixels):
        if parts.pooling is not None:
            out = _read_out_pooled(parts, rows, pool_heads, gone, replacement)
        else:
            restricted = reads is not None and n_layers > 0
            out = torch.cat([_read_out(parts, rows.all[g], pixels, restricted=restricted) for g in rows.groups()])
    out = out.reshape(-1, n, out.shape[-1])
    # Rows lie in the order in which they entered; the caller's order is the units'.
    return out[0], out[1:][rows.order(units)] if units else out[1:]


def _own_precision(like: Tensor) -> torch.autocast:
    """What is cheap and decides small differences, the embedding and the read-out, is not lowered by an autocast."""
    return torch.autocast(like.device.type, enabled=False)


def _before_attention(unit: Unit) -> bool:
    """Does its row enter before the block's attention, with all tokens?"""
    return unit.kind in ("tokens", "patches") or (unit.at or "").endswith("hook_resid_pre")


def _enter_patches(rows: Rows, unit: Unit, replacement: Replacement) -> None:
    """Rows of a group of patches: the same tokens in every image, or a mask of them for each."""
    clean, new = rows.clean, replacement(unit.site)
    edited = rows.enter(unit)
    if unit.tokens is not None:
        tokens = list(unit.tokens)
        edited.copy_(clean)[:, tokens] = clean.new_zeros(()) if new is None else new[:, tokens].to(clean.dtype)
        return
    if not isinstance(replacement, PerImage):
        raise BadData(f"the patches of {unit.name!r} differ from image to image, and nothing says which they are.")
    mask = replacement.tokens(unit).to(clean.device)[..., None]
    edited.copy_(torch.where(mask, clean.new_zeros(()) if new is None else new, clean))


def _attention_half(
    block: BlockParts,
    rows: Rows,
    entering: Sequence[Unit],
    gone: Sequence[Unit],
    replacement: Replacement,
    tokens: list[int] | None,
    layout: Layout,
    halves: Halves,
    spliced: Latents | None = None,
) -> tuple[slice, HeadRows | NormedRows] | None:
    """The rows after attention, and what is known of those that ablated heads have just made, with their place."""
    attn, n = block.attn, rows.n
    index = None if tokens is None else torch.tensor(tokens, device=rows.buffer.device)
    stream = rows.all
    if tokens is not None:
        rows.narrow(tokens)  # `stream` still has all tokens, for keys and values
    writes = [u for u in entering if u.kind == "attn_out"]
    clean_before = rows.clean.clone() if writes or not block.linear_writes else None
    few = None
    for group in rows.groups():
        if index is None and not gone:
            z, out = halves.attention(block, stream[group], layout)
        else:
            x = lowered.normed(block.ln1, stream[group])
            if index is not None and group.start == 0:
                few = without_keys(attn, x[:n], len(tokens))
            if few is None:
                z = plain.heads(block, x, layout, index, lowered.mix)
            else:
                z = few.heads(attn.q(x[:, index]), x, layout, index)
            for unit in gone:
                new = _new(replacement, unit.site, z[:n], tokens)[:, :, unit.index]
                z[:, :, unit.index] = new.repeat(len(z) // n, 1, 1)
            out = plain.scaled(block.scale1, attn.out(plain.merge(z)))
        # In this order, as the upstream does it.
        torch.add(out, rows.buffer[group], out=rows.buffer[group])
        if group.start == 0:
            clean_z, clean_out = _kept(z[:n], rows), _kept(out[:n], rows)
    made = None
    for kind in ("heads", "result"):
        if heads := [u for u in entering if u.kind == kind]:
            if block.linear_writes:
                made = _enter_heads(block, rows, heads, clean_z, replacement, tokens) or made
            else:
                _enter_heads_in_full(block, rows, heads, clean_z, clean_before, replacement, tokens)
    for unit in writes:
        torch.add(clean_before, _new(replacement, unit.site, clean_out, tokens), out=rows.enter(unit))
    if spliced is not None:
        spliced.enter_heads(rows, block, clean_z, clean_before)
        spliced.enter(rows, "hook_attn_out", lambda: clean_out)
        spliced.enter(rows, "hook_resid_mid", lambda: rows.clean)
    return made


def _kept(value: Tensor, rows: Rows) -> Tensor:
    """A copy in the stream's type: under an autocast the change of a unit must not be rounded once more."""
    return value.to(rows.buffer.dtype, copy=True)


def _enter_heads(
    block: BlockParts, rows: Rows, heads: Sequence[Unit], z: Tensor, replacement: Replacement, tokens: list[int] | None
) -> tuple[slice, HeadRows | NormedRows] | None:
    """Rows of ablated heads: the clean stream after attention plus the change that the head's output makes."""
    index = [unit.index for unit in heads]
    start, clean, weight = rows.stop, rows.clean, block.attn.out_weight()[index]
    entered = rows.enter(*heads).unflatten(0, (len(heads), rows.n))
    # hook_result is what a head writes to the stream, LayerScale included: the old write goes, the new one comes.
    by_result = heads[0].kind == "result"
    new = replacement(heads[0].site) if by_result else _new(replacement, heads[0].site, z, tokens)
    change = rearrange((-z if by_result else new - z)[:, :, index], "image token head e -> head image token e")
    by_rank = tokens is None and not (by_result and new is not None)
    short = by_rank and worthwhile(block, clean, weight.shape[1])
    if by_rank and not short and (known := expanded(block, clean, entered, change, weight)) is not None:
        return slice(start, rows.stop), known
    torch.bmm(change.flatten(1, 2), weight, out=entered.flatten(1, 2))
    if block.scale1 is not None:
        entered.copy_(block.scale1(entered))
    if by_result and new is not None:
        new = (new if tokens is None else new[:, tokens])[:, :, index]
        entered += rearrange(new, "image token head d -> head image token d")
    entered += clean
    known = head_rows(block, clean, entered, change, weight) if short else None
    return None if known is None else (slice(start, rows.stop), known)


def _enter_heads_in_full(
    block: BlockParts,
    rows: Rows,
    heads: Sequence[Unit],
    z: Tensor,
    before: Residual,
    replacement: Replacement,
    tokens: list[int] | None,
) -> None:
    """The same where the block's write is not linear in its heads (a norm after attention)."""
    for unit in heads:
        edited = z.clone()
        if unit.kind == "heads":
            edited[:, :, unit.index] = _new(replacement, unit.site, z, tokens)[:, :, unit.index]
            out = block.attn.out(plain.merge(edited))
        else:
            edited[:, :, unit.index] = 0
            out, new = block.attn.out(plain.merge(edited)), replacement(unit.site)
            if new is not None:
                out = out + (new if tokens is None else new[:, tokens])[:, :, unit.index]
        torch.add(before, plain.scaled(block.scale1, out), out=rows.enter(unit))


def _mlp_half(
    block: BlockParts,
    rows: Rows,
    entering: Sequence[Unit],
    replacement: Replacement,
    tokens: list[int] | None,
    made: tuple[slice, HeadRows | NormedRows] | None,
    halves: Halves,
    spliced: Latents | None = None,
) -> None:
    n = rows.n
    writes = [u for u in entering if u.kind == "mlp_out"]
    neurons = [u for u in entering if u.kind == "neurons"]
    latents = spliced is not None and spliced.any("hook_mlp_out")
    clean_before = rows.clean.clone() if writes or neurons or latents else None
    place, known = made or (slice(rows.stop, rows.stop), None)
    for group in rows.groups(0, place.start) + rows.groups(place.stop, rows.stop):
        post, out = halves.mlp(block, rows.buffer[group])
        torch.add(out, rows.buffer[group], out=rows.buffer[group])
        if group.start == 0:
            clean_post = _kept(post[:n], rows) if neurons else None
            clean_out = _kept(out[:n], rows) if writes or latents else None
    for group in rows.groups(place.start, place.stop):
        units = slice((group.start - place.start) // n, (group.stop - place.start) // n)
        post = known.neurons(rows.buffer[group].unflatten(0, (-1, n)), units)
        torch.add(plain.scaled(block.scale2, block.mlp_out(post)), rows.buffer[group], out=rows.buffer[group])
    for unit in writes:
        torch.add(clean_before, _new(replacement, unit.site, clean_out, tokens), out=rows.enter(unit))
    if spliced is not None:
        spliced.enter(rows, "hook_mlp_out", lambda: clean_out, lambda: block.ln2(clean_before))
        spliced.enter(rows, "hook_resid_post", lambda: rows.clean)
    if neurons:
        if not block.linear_writes:
            new = _new(replacement, neurons[0].site, clean_post, tokens)
            for unit in neurons:
                edited = clean_post.clone()
                edited[:, :, unit.index] = new[:, :, unit.index]
                write = plain.scaled(block.scale2, block.mlp_out(edited))
                torch.add(clean_before, write, out=rows.enter(unit))
            return
        _enter_neurons(block, rows, neurons, clean_post, replacement, tokens)


def _enter_neurons(
    block: BlockParts,
    rows: Rows,
    neurons: Sequence[Unit],
    post: Tensor,
    replacement: Replacement,
    tokens: list[int] | None,
) -> None:
    """Rows of ablated neurons: the clean stream plus, for each, a change along its row of W_out.

    All in one product: 256 neurons of a ViT-B/16 block enter in 72 ms, one by one in 163 (one thread, 197 tokens). All
    3072 of the last block take 0.6 s per image, of the one before it 6.6 (from 512 of them); one forward each: 1260.
    """
    index = [unit.index for unit in neurons]
    change = (_new(replacement, neurons[0].site, post, tokens) - post)[:, :, index]
    rows_of = rows.enter(*neurons).unflatten(0, (len(neurons), rows.n))
    along = block.mlp_out_weight()[index]
    torch.mul(
        rearrange(change, "image token neuron -> neuron image token 1"),
        rearrange(along, "neuron d -> neuron 1 1 d"),
        out=rows_of,
    )
    if block.scale2 is not None:
        rows_of.copy_(block.scale2(rows_of))
    rows_of += rows.clean


def _new(replacement: Replacement, site: str, like: Tensor, tokens: list[int] | None) -> Tensor:
    value = replacement(site)
    if value is None:
        return torch.zeros_like(like)
    return (value if tokens is None else value[:, tokens]).expand_as(like)


def _read_out(parts: TowerParts, x: Residual, inputs: Tensor, *, restricted: bool) -> Tensor:
    def pick(x: Residual) -> Residual:
        if restricted or isinstance(parts.reads, tuple) or parts.reads is None:
            return x
        position = parts.reads(inputs).repeat(len(x) // len(inputs))
        return x[torch.arange(len(x), device=x.device), position][:, None]

    return plain.read_out(parts, x, pick)


def _read_out_pooled(
    parts: TowerParts, rows: Rows, units: Sequence[Unit], gone: Sequence[Unit], replacement: Replacement
) -> Tensor:
    """The read-out of an attention pooling, cut open at its heads: all rows, then those of ablated pooling heads."""
    pooling, n = parts.pooling, rows.n
    attn, writes, few = pooling.attn, [], None
    for group in rows.groups():
        x = rows.all[group]
        x = x if parts.norm == "pooled" else parts.ln_final(x)  # every token is read, so before or after the pick
        few = without_keys(attn, x[:n], pooling.n_latents) if group.start == 0 else few
        q = attn.q(pooling.latents(len(x)))
        z = plain.finish(attn, plain.mix(attn, q, *attn.kv(x))) if few is None else few.heads(q, x)
        for unit in gone:
            new = _new(replacement, unit.site, z[:n], None)[:, :, unit.index]
            z[:, :, unit.index] = new.repeat(len(z) // n, 1, 1)
        writes.append(attn.out(plain.merge(z)))
        clean_z = z[:n] if group.start == 0 else clean_z
    x = torch.cat(writes)
    if units:
        index = [unit.index for unit in units]
        new = _new(replacement, units[0].site, clean_z, None)
        change = torch.bmm(
            rearrange((new - clean_z)[:, :, index], "image latent head e -> head (image latent) e"),
            attn.out_weight()[index],
        )
        x = torch.cat([x, (change.unflatten(1, clean_z.shape[:2]) + x[:n]).flatten(0, 1)])
        rows.entered += units
    x = parts.pool(x if pooling.mlp is None else plain.mlp(pooling.mlp, x) + x)
    x = parts.ln_final(x) if parts.norm == "pooled" else x
    x = x if parts.project is None else parts.project(x)
    return x if parts.head is None else parts.head(x)
