"""The tail of a vision transformer at a site: the forward taken up again where the hook is.

1. One captured run gives, for all images, the site's activation and the residual stream that its block adds it to.
2. A row that was changed is put back into the cached activation of its image, and only what comes after the site is
   computed, by the user's own modules: the rest of the block, the later blocks, the read-out. In the last block, and
   after it, only the tokens that are read are kept.
3. Nothing is switched off or on in the model: gradients are asked for with `torch.autograd.grad` with respect to the
   subspace alone, so no weight gets a `.grad`, and `requires_grad` stays as it is.

Its plain twin is `model.run(pixels, edits=[place.edit(...)])`, a full forward with an ordinary edit.

What the rest of the model looks at, for the diagnostics: `reads_of` gives the normalised stream that each later
attention takes in (`ln1` of later blocks, and `ln2` of the own block where the site lies before it; the logits where
nothing of this follows); `units_of` the pre-activations of the MLPs that follow (again the logits where there are
none), at the site's own tokens and those that are read.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from circuits.subspace.place import POOLED, Place, place_of
from circuits.subspace.tail import Tail, weights_version
from mechvis import block as plain
from mechvis.errors import BadData, ShapeMismatch
from mechvis.models.parts import BlockParts, Layout

_BESIDE = {
    "attn.hook_z": "hook_resid_pre",
    "hook_attn_out": "hook_resid_pre",
    "mlp.hook_post": "hook_resid_mid",
    "hook_mlp_out": "hook_resid_mid",
}
"""Sites that are not the stream itself -> the stream that the block adds them to."""


def site_tail(
    model: Any,
    images: Any,
    site: str,
    *,
    tokens: Any = None,
    head: int | None = None,
    batch_size: int = 64,
) -> Tail:
    """Cache a site's activations for all images, and the model from there on.

    Args:
        model: a wrapped image model with a head.
        images: an `ImageSet`, or pixels `[image channel height width]`.
        site: see :func:`circuits.subspace.place_of`.
        tokens: likewise.
        head: likewise.
        batch_size: images per forward of the cache.

    Returns:
        A `Tail`. In memory it keeps, per image, the site's activation and (except for sites of the stream itself) one
        stream: `token d_model` numbers each; from the last block on only the tokens that are read.

    Raises:
        UnknownSite, UnknownName, OutOfRange, BadData: the place does not exist, or nothing after it reads it.
        ShapeMismatch: images of another size than the model's own.
        TrainMode, BadImages.

    Example:
        >>> tail = site_tail(model, images, "blocks.3.hook_resid_post", tokens="cls")     # doctest: +SKIP
    """
    if model.parts.head is None:
        raise BadData(
            "an interchange is judged by the model's answer, and this model has no head. Load one with a head "
            "(for CLIP: clip.classifier(class_names))."
        )
    place = place_of(model, site, tokens=tokens, head=head)
    found = _Continuation(model=model, place=place)
    found.fill(images, batch_size)
    return Tail(
        name=place.name,
        h=found.inner.take(found.site),
        logits_of=found.logits,
        reads_of=found.reads,
        units_of=found.units,
        read=_linear_read(model, place),
        place=place,
        model=model,
        images=images if hasattr(images, "fingerprint") else None,
        weights=weights_version(model),
    )


@dataclass(kw_only=True)
class _Seen:
    """What a forward passes on its way, if somebody wants to know."""

    reads: list[Tensor] = field(default_factory=list)
    units: list[Tensor] = field(default_factory=list)


@dataclass(kw_only=True)
class _Continuation:
    """The cached half of a forward, and how it goes on."""

    model: Any
    place: Place
    site: Tensor | None = None
    beside: Tensor | None = None
    layout: Layout = None

    def __post_init__(self):
        parts, name = self.model.parts, self.place.site
        self.layer = None if name == POOLED else int(name.split(".")[1])
        self.ending = name if self.layer is None else name.split(".", 2)[2]
        self.last = len(parts.blocks) - 1
        # Where tokens no longer meet, those that nobody reads need not be kept.
        cut = self.layer == self.last and self.ending != "hook_resid_pre" and isinstance(parts.reads, tuple)
        self.kept = parts.reads if cut else None
        self.inner = self.place
        if cut:
            if lost := [token for token in self.place.tokens if token not in parts.reads]:
                raise BadData(
                    f"{self.place.name}: from here on token {lost[0]} is not read (the read-out takes token "
                    f"{', '.join(map(str, parts.reads))}), so changing it changes nothing."
                )
            at = tuple(parts.reads.index(token) for token in self.place.tokens)
            self.inner = Place(site=name, tokens=at, head=self.place.head)

    @torch.no_grad()
    def fill(self, images: Any, batch_size: int) -> None:
        """Run all images once."""
        model, parts = self.model, self.model.parts
        beside = _BESIDE.get(self.ending)
        wanted = [self.place.site] + ([] if beside is None else [f"blocks.{self.layer}.{beside}"])
        pieces = []
        for start in range(0, len(images), batch_size):
            inputs = model.inputs(images[start : start + batch_size])
            if parts.image_size is not None and tuple(inputs.shape[2:]) != tuple(parts.image_size):
                raise ShapeMismatch(
                    f"images of {tuple(inputs.shape[2:])} pixels; subspaces need the model's own {parts.image_size}, "
                    "since tokens are named by number. Load the model for that size: mechvis.load(..., image_size=...)."
                )
            cache = model.run(inputs, capture=wanted).cache
            pieces.append([self._keep(cache[name]) for name in wanted])
        stacked = [torch.cat(column) for column in zip(*pieces, strict=True)]
        self.site, self.beside = stacked[0], stacked[1] if beside else None
        self.layout = None if parts.layout is None else parts.layout(tuple(inputs.shape[2:]))

    def _keep(self, x: Tensor) -> Tensor:
        return x if self.kept is None else x[:, list(self.kept)].clone()

    def logits(self, rows: Tensor, images: Tensor) -> Tensor:
        return self._run(rows, images, None)

    def reads(self, rows: Tensor, images: Tensor) -> Tensor:
        seen = _Seen()
        logits = self._run(rows, images, seen)
        return torch.cat([x.flatten(1) for x in seen.reads], 1) if seen.reads else logits

    def units(self, rows: Tensor, images: Tensor) -> Tensor:
        seen = _Seen()
        logits = self._run(rows, images, seen)
        return torch.cat([x.flatten(1) for x in seen.units], 1) if seen.units else logits

    def _run(self, rows: Tensor, images: Tensor, seen: _Seen | None) -> Tensor:
        parts = self.model.parts
        x = self.inner.put(self.site[images], rows)
        if self.layer is None:
            x = x if parts.project is None else parts.project(x)
            return parts.head(x)
        stream = None if self.beside is None else self.beside[images]
        x = self._rest_of_block(parts.blocks[self.layer], x, stream, seen)
        for layer in range(self.layer + 1, self.last + 1):
            x = self._block(layer, x, seen)
        return plain.read_out(parts, x, lambda read: read)

    def _rest_of_block(self, block: BlockParts, x: Tensor, stream: Tensor | None, seen: _Seen | None) -> Tensor:
        match self.ending:
            case "hook_resid_pre":
                return self._block(self.layer, x, seen)
            case "attn.hook_z":
                x = stream + plain.scaled(block.scale1, block.attn.out(plain.merge(x)))
            case "hook_attn_out":
                x = stream + x
            case "mlp.hook_post":
                return stream + plain.scaled(block.scale2, block.mlp_out(x))
            case "hook_mlp_out":
                return stream + x
            case "hook_resid_post":
                return x
        # The stream between the halves: this block's MLP is the next to read it.
        if seen is not None:
            seen.reads.append(block.ln2(x))
        return self._mlp(block, x, seen, self.kept)

    def _block(self, layer: int, x: Tensor, seen: _Seen | None) -> Tensor:
        block, reads = self.model.parts.blocks[layer], self.model.parts.reads
        normal = block.ln1(x)
        if seen is not None:
            seen.reads.append(normal)
        tokens = None
        if layer == self.last and isinstance(reads, tuple):
            tokens = torch.tensor(reads, device=x.device)
            x = x[:, tokens]
        z = plain.heads(block, normal, self.layout, tokens)
        x = x + plain.scaled(block.scale1, block.attn.out(plain.merge(z)))
        return self._mlp(block, x, seen, None if tokens is None else reads)

    def _mlp(self, block: BlockParts, x: Tensor, seen: _Seen | None, kept: tuple[int, ...] | None) -> Tensor:
        if seen is None:
            return x + plain.mlp(block, x)
        pre = block.mlp_in(block.ln2(x))
        gate = pre[0] if block.gated else pre
        if kept is None:
            reads = self.model.parts.reads
            own = set(self.place.tokens) | set(reads if isinstance(reads, tuple) else ())
            gate = gate[:, sorted(own)]
        seen.units.append(gate)
        return x + plain.scaled(block.scale2, block.mlp_out(plain.activations(block, pre)))


def _linear_read(model: Any, place: Place) -> Tensor | None:
    """The linear map that follows, where one does: of one token only, since several have it side by side."""
    if place.tokens is None or len(place.tokens) != 1:
        return None
    layer, ending = place.site.split(".")[1], place.site.split(".", 2)[2]
    block = model.blocks[int(layer)]
    if not model.parts.blocks[int(layer)].linear_writes:
        return None
    if ending == "attn.hook_z":
        return block.attn.W_O[place.head].detach()
    return block.mlp.W_out.detach() if ending == "mlp.hook_post" else None
