"""HookedViT: one forward over the parts of the user's model, with a named site at every step.

How a site costs nothing when nobody looks: the forward asks once per block whether the active run, or a
transformer_lens hook, wants any of its sites. If not, the block takes the plain path of `mechvis.block`, which is also
the twin that the hooked path is tested against.

The user's module is borrowed, never changed: it is kept out of `nn.Module`'s registry (transformer_lens writes names
on every module it can reach), and nothing of it is hooked, copied or replaced.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from einops import einsum
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule

from mechvis import block as plain
from mechvis import graph as graphs
from mechvis.cache import Cache, version_of
from mechvis.data.preprocess import Preprocess
from mechvis.edits import Edit
from mechvis.errors import (
    BadData,
    OutOfRange,
    ParityError,
    ShapeMismatch,
    TrainMode,
    unknown,
)
from mechvis.inputs import checked
from mechvis.models.parts import AttentionParts, BlockParts, Layout, PoolingParts, TowerParts
from mechvis.norms import gain_and_bias, is_rms, statistics
from mechvis.plan import plan
from mechvis.run import ACTIVE, Active, AllCaptured, Run
from mechvis.sites import AttentionSites, BlockSites, PoolingSites, Sites


def _hooked(point: HookPoint) -> bool:
    return bool(point._forward_hooks or point._backward_hooks or point._forward_pre_hooks or point._backward_pre_hooks)


def _gradient_asked(name: str, active: Active | None) -> bool:
    """Is a by-product (head result, norm scale) captured with its graph? Then the output is computed from it."""
    return active is not None and active.keep_graph and active.looks_at(name)


def _tree_of(bare: nn.Module) -> list[tuple[str, nn.Module, dict[str, nn.Module | None]]]:
    """Every module of a tree with its path and children, as they are now."""
    return [(path, module, dict(module._modules)) for path, module in bare.named_modules()]


class FinalNorm(Sites):
    """Hook points of the last norm; called, it is the user's own norm (for transformer_lens' logit lens)."""

    def __init__(self, norm: nn.Module):
        super().__init__("hook_scale", "hook_normalized")
        self.__dict__["_norm"] = norm

    def forward(self, stream: Tensor) -> Tensor:
        """The stream after the norm, gain and bias included."""
        return self._norm(stream)


class HookedViT(HookedRootModule):
    """A vision (or text) transformer with a name for every activation.

    Made by :func:`mechvis.load`. It is a transformer_lens `HookedRootModule`: `run_with_cache`, `run_with_hooks` and
    `hooks()` work as people know them. transformer_lens hooks are module-global; only :meth:`run` and sweeps are
    isolated from other threads.

    Example:
        >>> model = mechvis.load("scenes-vit")                                                    # doctest: +SKIP
        >>> run = model.run(images.pixels, edits=[edits.zero("blocks.3.attn.hook_z", heads=[1])])  # doctest: +SKIP
        >>> run.logits.shape                                                                       # doctest: +SKIP
    """

    def __init__(self, bare: nn.Module, parts: TowerParts, *, preprocess: Preprocess | None = None, name: str = ""):
        super().__init__()
        self.__dict__.update(bare=bare, parts=parts, preprocess=preprocess, title=name, parity=None, family=None)
        self.__dict__["name"] = name or parts.family
        self.__dict__["graph"] = graphs.build(parts)
        self.__dict__["_tree"] = _tree_of(bare)
        self.hook_embed = HookPoint()
        self.blocks = nn.ModuleList(BlockSites(block) for block in parts.blocks)
        self.ln_final = FinalNorm(parts.ln_final)
        if parts.pooling is not None:
            self.pool = PoolingSites(parts.pooling)
        self.hook_pooled = HookPoint()
        if parts.project is not None:
            self.hook_embedding = HookPoint()
        if parts.head is not None:
            self.hook_logits = HookPoint()
        self.setup()
        for part in self.children():
            part.eval()  # hook points have no mode; transformer_lens' tools ask every one of them
        first = parts.blocks[0]
        self.cfg = SimpleNamespace(
            model_name=name or parts.family,
            n_layers=len(parts.blocks),
            n_heads=first.attn.n_heads,
            n_key_value_heads=None,
            d_head=first.attn.d_head,
            d_model=parts.d_model,
            d_mlp=first.d_mlp,
            n_ctx=parts.n_tokens,
            attn_only=False,
            use_attn_result=False,
            normalization_type="RMS" if is_rms(first.ln1) else "LN",
            # transformer_lens takes the mean off before the last norm unless told that this is an RMS norm.
            final_rms=is_rms(parts.ln_final) or not hasattr(parts.ln_final, "eps"),
            gated_mlp=first.gated,
            act_fn="live module",
            positional_embedding_type="standard" if first.attn.rotate is None else "rotary",
            device=self.device,
            dtype=self.dtype,
        )

    # the one forward

    def forward(
        self,
        inputs: Tensor,
        *,
        start_at_layer: int = 0,
        stop_at_layer: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Logits (or embedding, or pooled tokens) of a batch.

        Args:
            inputs: pixels `[image channel height width]` (token ids for text); with `start_at_layer`, the stream
                before that block `[row token d_model]`.
            start_at_layer: skip everything before this block, really.
            stop_at_layer: return the stream before this block; `n_layers` means after the last one.
            size: (height, width) in pixels of the images that a given stream came from, for models with rotary
                positions or position bias at another size than their own.
        """
        self._check_mode()
        active = ACTIVE.get()
        if active is not None and active.owner is not self:
            active = None
        n_layers = len(self.parts.blocks)
        start = self._layer(start_at_layer, "start_at_layer")
        stop = None if stop_at_layer is None else self._layer(stop_at_layer, "stop_at_layer")
        layout = self._layout(inputs, start, size)
        x = self.parts.embed(inputs) if start == 0 else self._own(inputs, start, active)
        if active is not None and active.keep_graph and not x.requires_grad:
            # Frozen weights: the graph starts here, so that gradients reach every site all the same.
            x = x.detach().requires_grad_(True)
        x = self._at("hook_embed", self.hook_embed, x, active) if start == 0 else x
        for layer in range(start, n_layers if stop is None else stop):
            if self._enters(layer, active):
                x = self._block(layer, x, active, layout)
            else:
                x = plain.plain(self.parts.blocks[layer], x, layout)
        return x if stop is not None else self._read_out(x, inputs, active)

    def _enters(self, layer: int, active: Active | None) -> bool:
        """Does anybody look at a site of this block, or edit one?"""
        return (active is not None and active.enters(layer)) or any(map(_hooked, self.blocks[layer].points))

    def _own(self, stream: Tensor, start: int, active: Active | None) -> Tensor:
        """A given stream, copied where a hook or a watcher might write into it."""
        hooked = start < len(self.blocks) and _hooked(self.blocks[start].hook_resid_pre)
        return stream.clone() if hooked or (active is not None and active.watcher is not None) else stream

    def _layout(self, inputs: Tensor, start: int, size: tuple[int, int] | None) -> Layout:
        """What the blocks need to know of the image's size."""
        parts = self.parts
        if parts.layout is None:
            return None
        if start == 0:
            return parts.layout(tuple(inputs.shape[2:]))
        if size is None and inputs.shape[1] == parts.n_tokens:
            size = parts.image_size
        if size is None or parts.at_size(tuple(size)).n_tokens != inputs.shape[1]:
            raise ShapeMismatch(
                f"a stream of {inputs.shape[1]} tokens is not from images of {size or parts.image_size} pixels; this "
                "model's attention depends on the size: say which it was with size=(height, width)."
            )
        return parts.layout(tuple(size))

    def _block(self, layer: int, x: Tensor, active: Active | None, layout: Layout) -> Tensor:
        parts, sites, at = self.parts.blocks[layer], self.blocks[layer], f"blocks.{layer}."
        x = self._at(at + "hook_resid_pre", sites.hook_resid_pre, x, active)
        normal = self._norm(at + "ln1.", sites.ln1, parts.ln1, x, active)
        projected = plain.project(parts.attn, normal)
        out = self._attention(parts.attn, sites.attn, at + "attn.", projected, active, layout, parts.scale1)
        out = self._at(at + "hook_attn_out", sites.hook_attn_out, out, active)
        mid = self._at(at + "hook_resid_mid", sites.hook_resid_mid, x + out, active)
        out = self._mlp(parts, sites, at, mid, active)
        return self._at(at + "hook_resid_post", sites.hook_resid_post, mid + out, active)

    def _mlp(self, parts: BlockParts, sites: Any, at: str, mid: Tensor, active: Active | None) -> Tensor:
        normal = self._norm(at + "ln2.", sites.ln2, parts.ln2, mid, active)
        pre = parts.mlp_in(normal)
        if parts.gated:
            pre, linear = pre
            pre = self._at(at + "mlp.hook_pre", sites.mlp.hook_pre, pre, active)
            linear = self._at(at + "mlp.hook_pre_linear", sites.mlp.hook_pre_linear, linear, active)
            post = parts.act(pre) * linear
        else:
            post = parts.act(self._at(at + "mlp.hook_pre", sites.mlp.hook_pre, pre, active))
        if parts.mlp_norm is not None:
            post = parts.mlp_norm(self._at(at + "mlp.hook_mid", sites.mlp.hook_mid, post, active))
        post = self._at(at + "mlp.hook_post", sites.mlp.hook_post, post, active)
        out = plain.scaled(parts.scale2, parts.mlp_out(post))
        return self._at(at + "hook_mlp_out", sites.hook_mlp_out, out, active)

    def _attention(
        self,
        attn: AttentionParts,
        points: AttentionSites,
        at: str,
        projected: tuple[Tensor, Tensor, Tensor],
        active: Active | None,
        layout: Layout = None,
        scale: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        q, k, v = projected
        q = self._at(at + "hook_q", points.hook_q, q, active)
        k = self._at(at + "hook_k", points.hook_k, k, active)
        v = self._at(at + "hook_v", points.hook_v, v, active)
        if attn.rotate is not None:
            q, k = plain.place(attn, q, k, layout)
            q = self._at(at + "hook_rot_q", points.hook_rot_q, q, active)
            k = self._at(at + "hook_rot_k", points.hook_rot_k, k, active)
        asked = [("hook_attn_scores", points.hook_attn_scores), ("hook_pattern", points.hook_pattern)]
        if any(self._wanted(at + name, point, active) for name, point in asked):
            # Fused attention has no scores; compute them for this layer only.
            scores = plain.scores_of(attn, q, k, layout)
            scores = self._at(at + "hook_attn_scores", points.hook_attn_scores, scores, active)
            pattern = self._at(at + "hook_pattern", points.hook_pattern, plain.pattern_of(attn, scores), active)
            z = plain.mix_explicit(pattern, v)
        else:
            z = plain.mix(attn, q, k, v, layout)
        if attn.after is not None:
            z = plain.finish(attn, self._at(at + "hook_mix", points.hook_mix, z, active))
        z = self._at(at + "hook_z", points.hook_z, z, active)
        if self._wanted(at + "hook_result", points.hook_result, active):
            asked = _gradient_asked(at + "hook_result", active)
            result = einsum(z, points.W_O, "row token head e, head e d -> row token head d")
            version = version_of(result)
            edited = self._at(at + "hook_result", points.hook_result, result, active)
            if edited is not result or version_of(edited) != version or asked:
                write, bias = edited.sum(2), points.b_O
                write = write if bias is None else write + bias
                return write if points.scaled else plain.scaled(scale, write)
        return plain.scaled(scale, attn.out(plain.merge(z)))

    def _norm(self, at: str, sites: Sites, norm: nn.Module, x: Tensor, active: Active | None) -> Tensor:
        normal = None
        if self._wanted(at + "hook_scale", sites.hook_scale, active):
            asked = _gradient_asked(at + "hook_scale", active)
            centred, scale = statistics(norm, x)
            version = version_of(scale)
            edited = self._at(at + "hook_scale", sites.hook_scale, scale, active)
            if edited is not scale or version_of(edited) != version or asked:
                normal = gain_and_bias(norm, centred / edited)
        normal = norm(x) if normal is None else normal
        return self._at(at + "hook_normalized", sites.hook_normalized, normal, active)

    def _read_out(self, x: Tensor, inputs: Tensor, active: Active | None) -> Tensor:
        parts = self.parts
        if parts.norm == "tokens":
            x = self._norm("ln_final.", self.ln_final, parts.ln_final, x, active)
        x = self._pick(x, inputs)
        if parts.norm == "read":
            x = self._norm("ln_final.", self.ln_final, parts.ln_final, x, active)
        if parts.pooling is not None:
            x = self._latents(parts.pooling, x, active)
        x = parts.pool(x)
        if parts.norm == "pooled":
            x = self._norm("ln_final.", self.ln_final, parts.ln_final, x[:, None], active)[:, 0]
        x = self._at("hook_pooled", self.hook_pooled, x, active)
        if parts.project is not None:
            x = self._at("hook_embedding", self.hook_embedding, parts.project(x), active)
        if parts.head is not None:
            x = self._at("hook_logits", self.hook_logits, parts.head(x), active)
        return x

    def _latents(self, pooling: PoolingParts, x: Tensor, active: Active | None) -> Tensor:
        projected = (pooling.attn.q(pooling.latents(len(x))), *pooling.attn.kv(x))
        out = self._attention(pooling.attn, self.pool.attn, "pool.attn.", projected, active)
        out = self._at("pool.hook_attn_out", self.pool.hook_attn_out, out, active)
        return out if pooling.mlp is None else self._mlp(pooling.mlp, self.pool, "pool.", out, active) + out

    def _pick(self, x: Tensor, inputs: Tensor) -> Tensor:
        """The tokens that the read-out needs."""
        reads = self.parts.reads
        if reads is None:
            return x
        if isinstance(reads, tuple):
            return x[:, : reads[-1] + 1] if reads == tuple(range(len(reads))) else x[:, list(reads)]
        if inputs.is_floating_point():
            raise BadData("a text tower cannot restart in the middle: the end-of-text position is in the token ids.")
        return x[torch.arange(len(x), device=x.device), reads(inputs)][:, None]

    def _at(self, name: str, point: HookPoint, x: Tensor, active: Active | None) -> Tensor:
        """One site: the run's edits, then transformer_lens hooks, then the run's watcher and capture."""
        if active is not None:
            x = active.edit(name, x)
        if _hooked(point):
            x = point(x)
        return x if active is None else active.seen(name, x)

    def _wanted(self, name: str, point: HookPoint, active: Active | None) -> bool:
        return _hooked(point) or (active is not None and active.wants(name))

    # runs

    def run(
        self,
        images: Any,
        edits: Sequence[Edit] | Edit = (),
        capture: Sequence[str] | str = (),
        *,
        grad: bool = False,
        start_at_layer: int = 0,
        stop_at_layer: int | None = None,
        size: tuple[int, int] | None = None,
        check_finite: bool = True,
        stop_when_captured: bool = False,
    ) -> Run:
        """One isolated forward pass with edits and captures.

        Args:
            images: pixels `[image channel height width]`, or an `ImageSet` (preprocessed here); token ids for a text
                tower; the stream `[row token d_model]` when `start_at_layer` is given.
            edits: interventions in the order they apply.
            capture: site names or glob patterns.
            grad: keep the graph, so that gradients reach every captured site.
            start_at_layer: restart from the stream before this block.
            stop_at_layer: stop before this block.
            size: (height, width) in pixels of the images that a given stream came from, where it matters (see
                :meth:`forward`).
            check_finite: raise if a captured activation holds NaN or Inf.
            stop_when_captured: compute nothing after the last captured site, in the middle of a block if it lies there;
                the output is then that site's value.

        Returns:
            Run: output, cache, and what was done.

        Raises:
            UnknownSite, OutOfRange, ShapeMismatch, BadImages, TrainMode, NotFinite, EditNeverFired.

        Example:
            >>> run = model.run(pixels, capture=["blocks.*.attn.hook_z"])          # doctest: +SKIP
            >>> run.cache["blocks.3.attn.hook_z"].shape                            # doctest: +SKIP
            torch.Size([8, 65, 4, 32])
        """
        inputs = self.inputs(images, start_at_layer=start_at_layer)
        captured = [capture] if isinstance(capture, str) else list(capture)
        parts, graph = self._for_size(tuple(inputs.shape[2:]) if inputs.ndim == 4 else size)
        active = Active(
            plan=plan([edits] if isinstance(edits, Edit) else list(edits), graph, parts.prefix),
            capture=frozenset(graph.match(captured)) if captured else frozenset(),
            cache=Cache(graph),
            owner=self,
            keep_graph=grad,
            check_finite=check_finite,
            stop_when_captured=stop_when_captured,
        )
        if stop_when_captured and not active.capture:
            raise BadData("stop_when_captured=True, and nothing to capture: name the sites in capture=[...].")
        site = self.output_site if stop_at_layer is None else f"the stream before block {stop_at_layer}"
        with self._running(active), torch.enable_grad() if grad else torch.no_grad():
            try:
                output = self(inputs, start_at_layer=start_at_layer, stop_at_layer=stop_at_layer, size=size)
            except AllCaptured as end:
                output, site = end.value, end.site
        active.finish()
        if stop_at_layer is None and not active.capture:
            active.warn_unreachable(parts)
        return Run(output, active.cache, tuple(e for found in active.plan.at.values() for e in found), site)

    def face(self, output: Any = None, *, target: Any = None, contrast: Any = None, edits: Any = ()) -> Any:
        """This model as a plain `nn.Module` for attribution libraries: pixels to `[image column]`.

        Args:
            output: None for all logits, a class (index or name) or a list of them, `"logit_diff"`, or a function of the
                logits.
            target: for `"logit_diff"`: a class, or one per example.
            contrast: likewise.
            edits: interventions active inside; see :class:`mechvis.face.Face` for how they meet repeated images.

        Returns:
            Face: its `grid`, `patch_mask` and `to_patches` know the geometry; `mechvis.interop.captum.attribute` runs
            captum on it.

        Example:
            >>> face = model.face("circle", edits=[edits.zero("blocks.3.attn.hook_z", heads=[1])])   # doctest: +SKIP
            >>> face(pixels).shape                                                                  # doctest: +SKIP
            torch.Size([8, 1])
        """
        from mechvis.face import Face

        return Face(self, output, target=target, contrast=contrast, edits=edits)

    def _for_size(self, size: tuple[int, int] | None) -> tuple[TowerParts, graphs.HookGraph]:
        """Parts and graph for images of a size, which may be another than the model's own."""
        if size is None or self.parts.image_size is None or tuple(size) == self.parts.image_size:
            return self.parts, self.graph
        known = self.__dict__.setdefault("_other_sizes", {})
        if size not in known:
            sized = self.parts.at_size(tuple(size))
            known[size] = (sized, graphs.build(sized))
        return known[size]

    @contextlib.contextmanager
    def edited(self, edits: Sequence[Edit]) -> Iterator["HookedViT"]:
        """Every forward of this model in this context (this thread) carries the edits; leaving it is an error if one
        of them never fired.

        Example:
            >>> with model.edited([edits.zero("blocks.3.attn.hook_z", heads=[1])]):    # doctest: +SKIP
            ...     logits = model(pixels)
        """
        active = Active(
            plan=plan(list(edits), self.graph, self.parts.prefix),
            capture=frozenset(),
            cache=Cache(self.graph),
            owner=self,
            keep_graph=torch.is_grad_enabled(),
        )
        with self._running(active):
            yield self
        active.finish(stacklevel=4)

    @contextlib.contextmanager
    def _running(self, active: Active) -> Iterator[None]:
        token = ACTIVE.set(active)
        try:
            yield
        finally:
            ACTIVE.reset(token)

    def run_with_cache(
        self,
        *model_args: Any,
        names_filter: Any = None,
        return_cache_object: bool = True,
        device: Any = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        loss: Callable[[Tensor], Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Any]:
        """transformer_lens' `run_with_cache`: output and an `ActivationCache` (or dict) of all sites.

        As there, `hook_result` is cached without a filter only if `model.cfg.use_attn_result` is set. A filter that
        matches nothing is an error.

        Args:
            model_args: pixels (for text: token ids).
            names_filter: site names or glob patterns, or a function of a name; None for all.
            return_cache_object: an `ActivationCache`; False for a dict.
            device: moves the cache, not the model.
            remove_batch_dim: for a batch of one.
            incl_bwd: also the gradient of `loss` at every site, as `<site>_grad`. Nothing is left in `.grad` of the
                weights.
            loss: output -> the scalar to differentiate, needed with `incl_bwd` unless the output is one number.
            kwargs: `start_at_layer`, `stop_at_layer`, `size` of :meth:`forward`; `pos_slice`, `reset_hooks_end`,
                `clear_contexts` of transformer_lens.

        Raises:
            UnknownSite, BadData.

        Example:
            >>> logits, cache = model.run_with_cache(pixels)                                       # doctest: +SKIP
            >>> _, cache = model.run_with_cache(                                                   # doctest: +SKIP
            ...     pixels, names_filter="*hook_z", incl_bwd=True, loss=lambda logits: logits[:, 3].sum()
            ... )
            >>> cache["blocks.1.attn.hook_z_grad"].shape                                           # doctest: +SKIP
        """
        if names_filter is None:
            keep = self.cfg.use_attn_result
            names_filter = [name for name in self.hook_dict if keep or not name.endswith("hook_result")]
        elif isinstance(names_filter, (str, list, tuple)):
            names_filter = self.graph.match(names_filter)
        elif not any(names_filter(name) for name in self.hook_dict):
            raise BadData("names_filter matches none of this model's sites; print(model.graph) lists them.")
        if loss is not None and not incl_bwd:
            raise BadData("loss= is what incl_bwd=True differentiates; pass both or none.")
        more = {"names_filter": names_filter, "device": device, "remove_batch_dim": remove_batch_dim, **kwargs}
        if incl_bwd:
            from mechvis.interop.transformer_lens import with_gradients

            output, cache = with_gradients(self, loss, *model_args, **more)
        else:
            output, cache = super().run_with_cache(*model_args, **more)
        if not return_cache_object:
            return output, cache
        from mechvis.interop.transformer_lens import ImageCache

        return output, ImageCache(cache, self, has_batch_dim=not remove_batch_dim)

    def add_hook(self, name: Any, *args: Any, **kwargs: Any) -> None:
        """transformer_lens' `add_hook`, with our error for names that match nothing."""
        super().add_hook(self.graph.resolve(name) if isinstance(name, str) else name, *args, **kwargs)

    def _enable_hook_with_name(self, name: str, hook: Any, dir: Any) -> None:
        super()._enable_hook_with_name(self.graph.resolve(name), hook, dir)

    # inputs and checks

    def inputs(self, images: Any, *, start_at_layer: int = 0) -> Tensor:
        """What the forward takes, from an `ImageSet`, pixels, token ids or a stream; checked (`mechvis.inputs`)."""
        return checked(self, images, start_at_layer=start_at_layer)

    def _check_mode(self) -> None:
        """Refuse a module in train mode, and one whose parts were exchanged behind our back."""
        for name, module, children in self.__dict__["_tree"]:
            if module.training:
                raise TrainMode(
                    f"{name or 'the model'} ({type(module).__name__}) is in train mode: dropout would make "
                    "effects of nothing. Call model.eval() first."
                )
            if module._modules != children:
                return self._changed(name, module, children)
        return None

    def _changed(self, name: str, module: nn.Module, before: dict[str, nn.Module | None]) -> None:
        """New sub-modules (another adapter) take part; an exchanged one may be called by nobody."""
        for child, old in before.items():
            new = module._modules.get(child)
            if old is not None and new is not None and new is not old:
                path = f"{name}.{child}".lstrip(".")
                raise ParityError(
                    f"{path} was exchanged after the model was loaded ({type(old).__name__} -> {type(new).__name__}); "
                    "this wrapper would go on with a mixture of old and new. Load it again: mechvis.load(module)."
                )
        self.__dict__["_tree"] = _tree_of(self.bare)
        self._check_mode()

    def _layer(self, layer: int, what: str) -> int:
        n = len(self.parts.blocks)
        if not isinstance(layer, int) or not -n <= layer <= n:
            raise OutOfRange(f"{what}={layer!r}: this model has layers 0 to {n - 1}.")
        return layer if layer >= 0 else n + layer

    def _forget_class_names(self) -> None:
        """For a head that has been changed since its names were written."""
        self.__dict__["parts"] = replace(self.parts, class_names=())
        self.__dict__["graph"] = graphs.build(self.parts)

    @property
    def output_site(self) -> str:
        """Site that `run.output` is."""
        if self.parts.head is not None:
            return "hook_logits"
        return "hook_embedding" if self.parts.project is not None else "hook_pooled"

    # the borrowed module

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The user's model's parameters."""
        return self.bare.parameters(recurse)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The user's model's parameters under their own names."""
        return self.bare.named_parameters(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The user's model's state."""
        return self.bare.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Into the user's model."""
        return self.bare.load_state_dict(*args, **kwargs)

    def train(self, mode: bool = True) -> "HookedViT":
        """Sets the user's model's mode; runs need eval."""
        self.bare.train(mode)
        return self

    @property
    def training(self) -> bool:
        """The user's model's mode."""
        return self.__dict__["bare"].training if "bare" in self.__dict__ else False

    @training.setter
    def training(self, mode: bool) -> None:
        # nn.Module.__init__ sets this before there is a model.
        pass

    def _apply(self, fn: Any, recurse: bool = True) -> "HookedViT":
        self.bare._apply(fn, recurse)
        if "cfg" in self.__dict__:
            self.cfg.device, self.cfg.dtype = self.device, self.dtype
        return self

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return next(self.bare.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the parameters."""
        return next(p.dtype for p in self.bare.parameters() if p.is_floating_point())

    @property
    def fingerprint(self) -> str:
        """Hash of the weights as they are now, of which adapters are on, and of the head (perhaps a zero-shot one)."""
        digest = hashlib.sha256(self.parts.family.encode())
        for name, tensor in sorted(self.bare.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        for name, module in self.bare.named_modules():
            if hasattr(module, "get_base_layer"):
                digest.update(f"{name} {module.active_adapters} {module.disable_adapters} {module.merged}".encode())
        if hasattr(self.parts.head, "fingerprint"):
            digest.update(self.parts.head.fingerprint.encode())
        return digest.hexdigest()[:16]

    # weights and names people know

    def _stack(self, name: str) -> Tensor:
        return torch.stack([getattr(block.attn, name) for block in self.blocks])

    @property
    def W_O(self) -> Tensor:
        """`[layer head d_head d_model]`."""
        return self._stack("W_O")

    @property
    def W_V(self) -> Tensor:
        """`[layer head d_model d_head]`."""
        return self._stack("W_V")

    @property
    def W_Q(self) -> Tensor:
        """`[layer head d_model d_head]`."""
        return self._stack("W_Q")

    @property
    def W_K(self) -> Tensor:
        """`[layer head d_model d_head]`."""
        return self._stack("W_K")

    def accumulated_bias(self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True) -> Tensor:
        """Sum of output biases written before `layer` (transformer_lens' convention), `[d_model]`."""
        total = torch.zeros(self.parts.d_model, device=self.device, dtype=self.dtype)
        for index, block in enumerate(self.blocks[: layer + (1 if mlp_input and layer < self.cfg.n_layers else 0)]):
            if (bias := block.attn.b_O) is not None:
                total = total + bias
            is_own_half = mlp_input and index == layer
            if include_mlp_biases and not is_own_half and (bias := block.mlp.b_out) is not None:
                total = total + bias
        return total

    @property
    def W_U(self) -> Tensor:
        """What comes after the last norm (projection, head) as one matrix `[d_model class]`.

        Raises:
            BadData: there is no head, or it is not one linear map of one token.
        """
        from mechvis.interop.transformer_lens import unembedding

        return unembedding(self.parts)[0]

    @property
    def b_U(self) -> Tensor:
        """Logits of a stream that is zero after the last norm, `[class]`."""
        from mechvis.interop.transformer_lens import unembedding

        return unembedding(self.parts)[1]

    @property
    def unembed(self) -> Callable[[Tensor], Tensor] | None:
        """Normalised tokens to logits, where that is one linear map (not with a zero-shot head, whose cosines depend on
        the length of each embedding); else None, on which transformer_lens' logit lens refuses."""
        if hasattr(self.parts.head, "prompts"):
            return None
        try:
            weight, bias = self.W_U, self.b_U
        except BadData:
            return None
        return lambda stream: stream @ weight + bias

    def tokens_to_residual_directions(self, classes: Tensor | int | str) -> Tensor:
        """Direction in the (centred, scaled) residual stream that raises a class logit, `[... d_model]`: LayerNorm
        gain times W_U, as transformer_lens' `logit_attrs` needs it for an unfolded model.

        Args:
            classes: class index, name, or indices of any shape.

        Raises:
            OutOfRange, UnknownName, BadData.
        """
        directions = self.W_U.T
        gain = getattr(self.parts.ln_final, "weight", None)
        return (directions if gain is None else directions * gain)[self.class_index(classes, len(directions))]

    def class_index(self, classes: Tensor | int | str, n: int | None = None) -> Tensor:
        """Class indices of an index, a name, or a tensor of indices; checked.

        Args:
            classes: class index, name, or indices of any shape.
            n: number of classes; None: as many as the model has names for.

        Raises:
            OutOfRange, UnknownName, BadData.
        """
        names = self.parts.class_names
        n = n or len(names)
        if isinstance(classes, str):
            if classes not in names:
                raise unknown("class", classes, names)
            classes = names.index(classes)
        index = torch.as_tensor(classes, device=self.device)
        if index.dtype == torch.bool or index.is_floating_point():
            raise BadData(f"classes are indices or names, got {classes!r}.")
        if n and index.numel() and not (index.min() >= 0 and index.max() < n):
            raise OutOfRange(f"class {classes!r} does not exist: the head has {n} (0 to {n - 1}).")
        return index

    def __repr__(self) -> str:
        grid = self.parts.grid
        size = (
            f", {self.parts.image_size[0]}x{self.parts.image_size[1]} px, {grid[0]}x{grid[1]} patches" if grid else ""
        )
        parity = "" if self.parity is None else f"\n  {self.parity}"
        return (
            f"HookedViT({self.title or self.parts.family!r}: {self.parts.family}, {self.cfg.n_layers} layers x "
            f"{self.cfg.n_heads} heads x {self.cfg.d_head}, d_model={self.cfg.d_model}{size}, "
            f"{len(self.graph)} sites){parity}\n{self.graph!r}"
        )

    def _repr_html_(self) -> str:
        from mechvis.show import model, safely

        return safely(model, self)
