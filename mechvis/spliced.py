"""A wrapped model with dictionaries in the way of its activations; their latents are sites like any other.

At the site that a dictionary writes, with x the activation there, f the latents of what is read and D the decoder:

    with the error term      x' = x + (D(f') - D(f)) + (e' - e)         e = x - D(f)
    without                  x' = D(f')

f' and e' are the latents and the error term after whatever a run does at their sites `<site>.hook_latents` and
`<site>.hook_error`: edits, transformer_lens hooks, a watcher. With the error term nothing changes until a latent does,
not by one bit, and nothing is computed while nobody looks. Written this way the gradients are those of sparse feature
circuits (Marks et al. 2024): dM/df' runs through the decoder alone, the error being held; dM/de' is dM/dx'; and dM/dx
is as without a dictionary, since what f and e pass on to x adds up to it.

Without the error term the function is another one. Methods that call the parts of a block themselves would leave the
dictionary out without a word; so these parts refuse to be called outside of the model's own forward.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from mechvis.cache import version_of
from mechvis.errors import BadData, OutOfRange, RefusedMethod
from mechvis.hooked import HookedViT, _gradient_asked, _hooked
from mechvis.models.parts import BlockParts, SpliceParts, TowerParts
from mechvis.run import Active


@dataclass
class _Pass:
    """One forward pass: whose it is, and what dictionaries have read so far."""

    owner: object
    read: dict[str, Tensor] = field(default_factory=dict)


_PASS: ContextVar[_Pass | None] = ContextVar("mechvis_spliced_pass", default=None)


class SplicedViT(HookedViT):
    """A `HookedViT` with dictionaries spliced in; made by `sae.splice`. The model that it was made from stays as it is.

    Example:
        >>> model = sae.splice(mechvis.load("scenes-vit"), dictionary)                            # doctest: +SKIP
        >>> site = "blocks.2.hook_resid_post.hook_latents"                                        # doctest: +SKIP
        >>> model.run(pixels, edits=[edits.zero(site, units=[17], tokens="patches")]).logits      # doctest: +SKIP
        >>> mechvis.sweep(model, images, units="latents")                                         # doctest: +SKIP
    """

    def __init__(self, bare: nn.Module, parts: TowerParts, **more: Any):
        """Args:
            bare: the user's module.
            parts: its parts, with `splices`.
            more: of `HookedViT`.

        Raises:
            BadData: no dictionary, or two that write one site.
            OutOfRange, UnknownSite: a site that does not exist, or is read after it is written.
        """
        splices = parts.splices
        if not splices or len({splice.site for splice in splices}) < len(splices):
            sites = ", ".join(splice.site for splice in splices) or "none"
            raise BadData(f"a spliced model has dictionaries that write different sites; got {sites}.")
        super().__init__(bare, _guarded(parts, self), **more)
        self.__dict__["unguarded"] = parts
        names = self.graph.names
        for splice in splices:
            if names.index(splice.reads) > names.index(splice.site):
                raise OutOfRange(f"a dictionary cannot read {splice.reads}, which comes after {splice.site}.")
            point = self.get_submodule(splice.site)
            point.hook_latents = HookPoint()
            if splice.error:
                point.hook_error = HookPoint()
        for block in self.blocks:
            block.__dict__["points"] = [module for module in block.modules() if isinstance(module, HookPoint)]
        self.setup()
        for part in self.children():
            part.eval()
        self.__dict__["_writes"] = {splice.site: splice for splice in splices}
        self.__dict__["_reads"] = frozenset(splice.reads for splice in splices if splice.reads != splice.site)
        self.__dict__["_always"] = frozenset(self._blocks_of(splices))

    def _blocks_of(self, splices: tuple[SpliceParts, ...]) -> Iterator[int | None]:
        """Blocks that never take the plain path: a dictionary replaces something, or is read for a later block."""
        for splice in splices:
            read, written = (self.graph[name].layer for name in (splice.reads, splice.site))
            if not splice.error:
                yield written
            if not splice.error or read != written:
                yield read

    @property
    def splices(self) -> tuple[SpliceParts, ...]:
        """The dictionaries."""
        return self.parts.splices

    @property
    def fingerprint(self) -> str:
        """Hash of the model and of the dictionaries, which a plain model's does not have."""
        import hashlib

        digest = hashlib.sha256(super().fingerprint.encode())
        for splice in sorted(self.splices, key=lambda splice: splice.site):
            said = (splice.site, splice.reads, splice.error, splice.tokens, splice.identity)
            digest.update(repr(said).encode())
        return digest.hexdigest()[:16]

    def forward(self, inputs: Tensor, **more: Any) -> Tensor:
        """See :meth:`HookedViT.forward`."""
        with _passing(_Pass(self)):
            return super().forward(inputs, **more)

    def _enters(self, layer: int, active: Active | None) -> bool:
        return layer in self._always or super()._enters(layer, active)

    def _at(self, name: str, point: HookPoint, x: Tensor, active: Active | None) -> Tensor:
        x = super()._at(name, point, x, active)
        if name in self._reads:
            _PASS.get().read[name] = x
        splice = self._writes.get(name)
        return x if splice is None else self._through(splice, point, x, active)

    def _through(self, splice: SpliceParts, point: HookPoint, x: Tensor, active: Active | None) -> Tensor:
        """The activation as it goes on."""
        latents_wanted = self._wanted(splice.latents_site, point.hook_latents, active)
        error_wanted = splice.error and self._wanted(splice.error_site, point.hook_error, active)
        if splice.error and not (latents_wanted or error_wanted):
            return x
        read, old = (
            _vectors(self._read_by(splice, x), self.graph[splice.reads].axes),
            _vectors(x, self.graph[splice.site].axes),
        )
        codes = _only(splice.tokens, splice.encode(read))
        # A copy: what is done to it must not reach the codes that it is compared with.
        node = codes.clone()
        new = self._node(splice.latents_site, point.hook_latents, node, active)
        if not splice.error:
            written = splice.decode(new, read).to(x).reshape(x.shape)
            return written if splice.tokens is None else _mixed(splice.tokens, x, written)
        change = None
        if new is not node:
            change = splice.decode(new, read) - splice.decode(codes, read)
        if error_wanted:
            missed = _only(splice.tokens, old - splice.decode(codes, read).to(old))
            copy = missed.clone().reshape(x.shape)
            edited = self._node(splice.error_site, point.hook_error, copy, active)
            if edited is not copy:
                more = edited.reshape(missed.shape) - missed
                change = more if change is None else change.to(more) + more
        if change is None:
            return x
        change = change.to(x).reshape(x.shape)
        return x + (change if splice.tokens is None else _only(splice.tokens, change))

    def _node(self, name: str, point: HookPoint, node: Tensor, active: Active | None) -> Tensor:
        """A node after everything that is done at its site: the same object only if nothing was and no gradient is
        asked for."""
        version = version_of(node)
        found = super()._at(name, point, node, active)
        differentiated = _gradient_asked(name, active) or (_hooked(point) and torch.is_grad_enabled())
        if found is node and (version_of(node) != version or differentiated):
            return node.view_as(node)
        return found

    def _read_by(self, splice: SpliceParts, x: Tensor) -> Tensor:
        if splice.reads == splice.site:
            return x
        read = _PASS.get().read
        if splice.reads not in read:
            raise BadData(
                f"the dictionary at {splice.site} reads {splice.reads}, which this run did not pass; start earlier."
            )
        return read[splice.reads]


@contextmanager
def _passing(state: _Pass) -> Iterator[None]:
    token = _PASS.set(state)
    try:
        yield
    finally:
        _PASS.reset(token)


def _vectors(x: Tensor, axes: tuple[str, ...]) -> Tensor:
    """Heads side by side, as the store writes them."""
    return x.flatten(-2) if "head" in axes else x


def _only(tokens: tuple[int, ...] | None, x: Tensor) -> Tensor:
    """Zero at the tokens that the dictionary is not for."""
    if tokens is None:
        return x
    kept = torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
    kept[list(tokens)] = True
    return torch.where(kept.view(1, -1, *[1] * (x.ndim - 2)), x, 0.0)


def _mixed(tokens: tuple[int, ...], old: Tensor, new: Tensor) -> Tensor:
    mixed = old.clone()
    mixed[:, list(tokens)] = new[:, list(tokens)]
    return mixed


def _guarded(parts: TowerParts, owner: HookedViT) -> TowerParts:
    """Parts that can be called in the model's own forward only, where a dictionary replaces something."""
    replaced = [splice.site for splice in parts.splices if not splice.error]
    if not replaced:
        return parts

    def guard(call: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*given: Any) -> Any:
            now = _PASS.get()
            if now is None or now.owner is not owner:
                raise RefusedMethod(
                    f"a dictionary without its error term replaces {', '.join(replaced)}, and this method runs the "
                    "blocks itself, so it would leave the dictionary out. Use engine='plain' (one full run per unit), "
                    "or splice it with error=True."
                )
            return call(*given)

        return guarded

    def block(layer: int, found: BlockParts) -> BlockParts:
        if not any(site.startswith(f"blocks.{layer}.") for site in replaced):
            return found
        attn = replace(found.attn, out=guard(found.attn.out), kv=guard(found.attn.kv))
        if found.attn.qkv is not None:
            attn = replace(attn, qkv=guard(found.attn.qkv))
        return replace(found, attn=attn, mlp_in=guard(found.mlp_in))

    blocks = tuple(block(layer, found) for layer, found in enumerate(parts.blocks))
    return replace(parts, blocks=blocks, pool=guard(parts.pool))
