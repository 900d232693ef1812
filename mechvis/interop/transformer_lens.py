"""transformer_lens on a wrapped model: its ActivationCache for images, its position sweeps, its TransformerBridge.

A :class:`mechvis.HookedViT` is a `HookedRootModule` already. What is here makes the rest of transformer_lens' tools
right for images:

* `run_with_cache` returns an :class:`ImageCache`, whose logit attributions add up for zero-shot heads too;
* :class:`ByToken` gives its sweeps over positions an input whose last axis is tokens, not pixels;
* :func:`unbridged` finds the model inside a `TransformerBridge`, which :func:`mechvis.load` uses.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformer_lens import ActivationCache
from transformer_lens.utilities import Slice

from mechvis.errors import BadData
from mechvis.models.parts import TowerParts


class ImageCache(ActivationCache):
    """transformer_lens' `ActivationCache` of a wrapped model.

    Everything works as there, with two additions: for a zero-shot head :meth:`logit_attrs` divides by the length of
    each image's embedding (frozen, like the norm's scale), and :meth:`constant_logits` says what no component accounts
    for, so that attributions add up to the logits.

    Example:
        >>> logits, cache = model.run_with_cache(pixels)                                       # doctest: +SKIP
        >>> parts = cache.get_full_resid_decomposition(expand_neurons=False, pos_slice=0)      # doctest: +SKIP
        >>> shares = cache.logit_attrs(parts, tokens=logits.argmax(-1), pos_slice=0)           # [component image]
        >>> shares.sum(0) + cache.constant_logits().gather(1, ...)                             # the logits
    """

    def logit_attrs(
        self, residual_stack: Tensor, tokens: Any, incorrect_tokens: Any = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Share of each component in a class logit (or a difference of two), `[component image ...]`; see
        transformer_lens. `tokens` are classes: an index, a name, or one index per image."""
        tokens = self.model.class_index(tokens)
        if incorrect_tokens is not None:
            incorrect_tokens = self.model.class_index(incorrect_tokens)
        shares = super().logit_attrs(residual_stack, tokens, incorrect_tokens, *args, **kwargs)
        factor = self._factor()
        if factor is None:
            return shares
        if self.has_batch_dim:
            batch_slice = kwargs.get("batch_slice", args[1] if len(args) > 1 else None)
            factor = (batch_slice if isinstance(batch_slice, Slice) else Slice(batch_slice)).apply(factor, dim=0)
        # [image] beside [component image (position)].
        return shares * factor.reshape(factor.shape + (1,) * (shares.ndim - 1 - factor.ndim))

    def constant_logits(self) -> Float[Tensor, "*image class"]:
        """Logits that no component accounts for: the norm's bias through the head, and the head's own bias."""
        parts = self.model.parts
        weight, bias = unembedding(parts)
        shift = getattr(parts.ln_final, "bias", None)
        constant = bias if shift is None else shift @ weight + bias
        factor = self._factor()
        if factor is None:
            return constant.expand(self._batch_size(), -1) if self.has_batch_dim else constant
        constant = factor[..., None] * constant
        own = getattr(parts.head, "bias", None)
        return constant if own is None else constant + own.to(constant)

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> "ImageCache":
        """The cache of some of the images."""
        sliced = super().apply_slice_to_batch_dim(batch_slice)
        return type(self)(sliced.cache_dict, self.model, has_batch_dim=sliced.has_batch_dim)

    def get_neuron_results(self, layer: int, *args: Any, **kwargs: Any) -> Tensor:
        """What each neuron of a layer writes; see transformer_lens."""
        self._check_linear()
        return super().get_neuron_results(layer, *args, **kwargs)

    def _ensure_head_results(self) -> bool:
        self._check_linear()
        return super()._ensure_head_results()

    def _check_linear(self) -> None:
        if not all(block.linear_writes for block in self.model.parts.blocks):
            raise BadData(
                f"{self.model.parts.family} has a norm between its heads or neurons and the stream: the stream is no "
                "sum of what they write. decompose_resid (whole attention and MLP layers) still adds up."
            )

    def _factor(self) -> Float[Tensor, "*image"] | None:
        """One over the length of each image's embedding for a zero-shot head, else None."""
        if not hasattr(self.model.parts.head, "prompts"):
            return None
        if "hook_embedding" not in self.cache_dict:
            raise BadData("logits of a zero-shot head are cosines: cache 'hook_embedding' too, for its length.")
        return 1 / self.cache_dict["hook_embedding"].norm(dim=-1)


class ByToken:
    """A wrapped model as transformer_lens' sweeps over positions need it.

    Those read the number of positions off the input's last axis, which for pixels is the width of the image. Here the
    input is `tokens` `[image token]`: the row of the image, once per token. Everything else is the model's.

    Example:
        >>> from transformer_lens import patching                                              # doctest: +SKIP
        >>> view = ByToken(model, corrupt_pixels)                                              # doctest: +SKIP
        >>> patching.get_act_patch_resid_pre(view, view.tokens, clean_cache, metric).shape     # [layer token]
    """

    def __init__(self, model: Any, images: Any):
        self.model = model
        self.pixels = model.inputs(images)
        n_tokens = model._for_size(tuple(self.pixels.shape[2:]))[0].n_tokens
        rows = torch.arange(len(self.pixels), device=self.pixels.device)
        self.tokens = rows[:, None].expand(-1, n_tokens)
        """What the sweeps take for tokens: `[image token]`."""

    def __call__(self, tokens: Tensor, **kwargs: Any) -> Tensor:
        return self.model(self._pixels(tokens), **kwargs)

    def run_with_hooks(self, tokens: Tensor, **kwargs: Any) -> Tensor:
        """transformer_lens' `run_with_hooks`."""
        return self.model.run_with_hooks(self._pixels(tokens), **kwargs)

    def run_with_cache(self, tokens: Tensor, **kwargs: Any) -> tuple[Tensor, Any]:
        """transformer_lens' `run_with_cache`."""
        return self.model.run_with_cache(self._pixels(tokens), **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name == "model":
            raise AttributeError(name)
        return getattr(self.model, name)

    def _pixels(self, tokens: Tensor) -> Tensor:
        if not isinstance(tokens, Tensor) or tokens.is_floating_point() or tokens.ndim != 2:
            raise BadData("this view of the model takes its own .tokens (or rows of them), not pixels.")
        return self.pixels[tokens[:, 0]]


def unembedding(parts: TowerParts) -> tuple[Float[Tensor, "d_model class"], Float[Tensor, " class"]]:
    """Everything after the last norm as one linear map of one normalised token: (W_U, b_U).

    The map is read off by sending the unit vectors through the user's own modules, so adapters and whatever else sits
    in the head take part. For a zero-shot head it leads to `scale * (prompt . embedding)`, before the division by the
    embedding's length, which is another for every image.

    Raises:
        BadData: there is no head, the read-out takes several tokens or attention pooling, or it is not linear.
    """
    head, family = parts.head, parts.family
    if head is None:
        raise BadData(f"{family}: class directions need a head; for CLIP: clip.classifier(class_names).")
    if parts.pooling is not None:
        raise BadData(
            f"{family} reads its tokens through attention pooling; no one direction of the stream is a class."
        )
    if isinstance(parts.reads, tuple) and len(parts.reads) > 1:
        raise BadData(f"{family} reads {len(parts.reads)} tokens, each with its own head; there is no one W_U.")
    if parts.d_pooled not in (None, parts.d_model):
        raise BadData(
            f"{family}'s head reads {parts.d_pooled} numbers, several tokens side by side; there is no one W_U."
        )
    weights = (getattr(parts.ln_final, "weight", None), *_weights(head, parts))
    like = next((weight for weight in weights if weight is not None), torch.zeros(0))

    def read(x: Tensor) -> Tensor:
        x = x if parts.project is None else parts.project(x)
        return x @ head.prompts.to(x).T * head.scale.to(x) if hasattr(head, "prompts") else head(x)

    unit = torch.eye(parts.d_model, device=like.device, dtype=like.dtype)
    bias = read(torch.zeros_like(unit[:1]))
    weight = read(unit) - bias
    _check_linear(read, weight, bias, family)
    return weight, bias[0]


def _weights(head: Any, parts: TowerParts) -> list[Tensor]:
    modules = (part for part in (head, parts.project) if isinstance(part, nn.Module))
    found = [p for module in modules for p in module.parameters() if p.is_floating_point()]
    return [*found, head.prompts] if hasattr(head, "prompts") else found


def _check_linear(read: Any, weight: Tensor, bias: Tensor, family: str) -> None:
    probe = torch.randn(4, len(weight), generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.no_grad():
        actual, expected = read(probe), probe @ weight + bias
    allowed = min(100 * torch.finfo(weight.dtype).eps ** 0.75, 0.05)
    if (actual - expected).abs().max() > allowed * expected.abs().max():
        raise BadData(
            f"{family}: what comes after the last norm is not linear (an activation in the head?); no direction of the "
            "stream is a class."
        )


def is_bridged(module: nn.Module) -> bool:
    """Is this a `TransformerBridge`, or a model whose parts one has replaced?"""
    return any(type(part).__module__.startswith("transformer_lens.model_bridge") for part in module.modules())


def unbridged(module: nn.Module) -> nn.Module:
    """The Hugging Face model inside a `TransformerBridge` (or one that a bridge has been built around): the original
    modules in a tree of their own, sharing every parameter. The bridge stays as it is; its hooks do not fire here.

    A bridge replaces the parts of the model it is given by its own components, each of which keeps the original part.
    """
    root = module.__dict__.get("original_model") or module._modules.get("original_model", module)
    return _original(root)


def _original(module: nn.Module) -> nn.Module:
    inner = module._modules.get("_original_component")
    if inner is not None:
        return _original(inner)
    twin = copy.copy(module)
    children = {name: None if child is None else _original(child) for name, child in module._modules.items()}
    twin.__dict__["_modules"] = children
    return twin


def with_gradients(
    model: Any,
    loss: Callable[[Tensor], Tensor] | None,
    inputs: Tensor,
    *,
    names_filter: Any,
    device: Any,
    remove_batch_dim: bool,
    pos_slice: Any = None,
    reset_hooks_end: bool = True,
    clear_contexts: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`run_with_cache(incl_bwd=True)`: activations and gradients of a scalar, without a trace in anybody's `.grad`.

    Raises:
        BadData: `loss` does not give one number, or nothing requires a gradient.
    """
    cache, forward, backward = model.get_caching_hooks(
        names_filter, True, device, remove_batch_dim=remove_batch_dim, pos_slice=pos_slice
    )
    leaves = [weight for weight in model.bare.parameters() if weight.requires_grad]
    if inputs.is_floating_point():
        inputs = inputs.detach().requires_grad_()
        leaves.append(inputs)
    hooks = model.hooks(forward, backward, reset_hooks_end=reset_hooks_end, clear_contexts=clear_contexts)
    with hooks, torch.enable_grad():
        output = model(inputs, **kwargs)
        value = output if loss is None else loss(output)
        if value.numel() != 1:
            raise BadData(
                f"incl_bwd differentiates one number, got {list(value.shape)}; pass a function of the output, for "
                "example loss=lambda logits: logits[:, 3].sum()."
            )
        if not value.requires_grad:
            raise BadData("incl_bwd: nothing that this run depends on requires a gradient (frozen weights, ids).")
        torch.autograd.grad(value.sum(), leaves, allow_unused=True)
    return output.detach(), cache
