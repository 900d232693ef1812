"""How others do the same task: zero each head in turn, and look at the logit of the class that the clean run predicts.

Every function returns that logit per head, averaged over images, so that a benchmark can check that all of them
computed the same thing. The models are those of the user; what a peer needs to change is changed in a copy.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

Heads = Sequence[tuple[int, int]]


def predicted(bare: nn.Module, pixels: Tensor) -> Callable[[Tensor], Tensor]:
    """Logits -> mean logit of the classes that the clean run predicts, a scalar."""
    with torch.no_grad():
        target = bare(pixels).logits.argmax(-1)
    return lambda logits: logits.gather(-1, target[:, None]).mean()


@torch.no_grad()
def bare_loop(bare: nn.Module, pixels: Tensor, heads: Heads, metric: Callable[[Tensor], Tensor]) -> Tensor:
    """One forward per head, with one torch hook in front of the output projection."""
    width = bare.config.hidden_size // bare.config.num_attention_heads
    values = []
    for layer, head in heads:

        def zero(module: nn.Module, arguments: tuple, head: int = head) -> tuple:
            z = arguments[0].clone()
            z[..., head * width : (head + 1) * width] = 0
            return (z,)

        handle = bare.vit.layers[layer].attention.o_proj.register_forward_pre_hook(zero)
        try:
            values.append(metric(bare(pixels).logits))
        finally:
            handle.remove()
    return torch.stack(values)


def bridge(bare: nn.Module, *, copied: bool = True) -> Any:
    """transformer_lens' wrapper, around a copy: it replaces the modules of the model that it is given."""
    import huggingface_hub
    from transformer_lens.model_bridge import TransformerBridge

    model = copy.deepcopy(bare) if copied else bare
    # It recognises a model by this entry, which a model made in memory does not have.
    model.config.architectures = [type(bare).__name__]
    # It asks the hub for files that are not needed here, and again and again where there is no network.
    offline = mock.patch.object(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with warnings.catch_warnings(), offline:
        warnings.simplefilter("ignore")
        return TransformerBridge.boot_transformers("benchmark", hf_model=model, device="cpu")


@torch.no_grad()
def transformer_lens_sweep(wrapped: Any, pixels: Tensor, heads: Heads, metric: Callable[[Tensor], Tensor]) -> Tensor:
    """transformer_lens' own head sweep (`get_act_patch_attn_head_out_all_pos`), patching from a cache of zeros."""
    import pandas
    from transformer_lens.patching import get_act_patch_attn_head_out_all_pos

    n_heads, n_layers = wrapped.cfg.n_heads, wrapped.cfg.n_layers
    n_tokens = wrapped.original_model.vit.embeddings.position_embeddings.shape[1]
    nothing = torch.zeros(len(pixels), n_tokens, n_heads, wrapped.cfg.d_model // n_heads)
    cache = {f"blocks.{layer}.attn.hook_z": nothing for layer in range(n_layers)}
    chosen = pandas.DataFrame(list(heads), columns=["layer", "head"])
    return get_act_patch_attn_head_out_all_pos(
        wrapped, pixels, cache, metric, index_axis_names=None, index_df=chosen
    ).flatten()


@torch.no_grad()
def transformer_lens_hooks(wrapped: Any, pixels: Tensor, heads: Heads, metric: Callable[[Tensor], Tensor]) -> Tensor:
    """`run_with_hooks` per head, as people write it by hand."""
    values = []
    for layer, head in heads:

        def zero(z: Tensor, hook: Any, head: int = head) -> Tensor:
            z = z.clone()
            z[:, :, head] = 0
            return z

        logits = wrapped.run_with_hooks(pixels, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", zero)])
        values.append(metric(logits))
    return torch.stack(values)


@torch.no_grad()
def nnsight_traces(bare: nn.Module, pixels: Tensor, heads: Heads, metric: Callable[[Tensor], Tensor]) -> Tensor:
    """One nnsight trace per head."""
    from nnsight import NNsight

    wrapped = NNsight(bare)
    width = bare.config.hidden_size // bare.config.num_attention_heads
    values = []
    for layer, head in heads:
        with wrapped.trace(pixels):
            z = wrapped.vit.layers[layer].attention.o_proj.input
            z[..., head * width : (head + 1) * width] = 0
            logits = wrapped.output.logits.save()
        values.append(metric(logits))
    return torch.stack(values)


@torch.no_grad()
def nnsight_rows(bare: nn.Module, pixels: Tensor, heads: Heads, metric: Callable[[Tensor], Tensor]) -> Tensor:
    """nnsight with the heads of a layer as invokes of one trace, which become rows of one batch."""
    from nnsight import NNsight

    class Images(NNsight):
        """Tells nnsight how batches of images are joined, which it cannot know."""

        def _batch_size(self, *inputs: Any, **more: Any) -> int:
            return len(inputs[0]) if inputs else 0

        def _batch(self, invokes: list, fn: Any) -> tuple:
            return ((torch.cat([inputs[0] for inputs, _ in invokes]),), {}) if invokes else ((), {})

    wrapped = Images(bare)
    width = bare.config.hidden_size // bare.config.num_attention_heads
    values: dict[tuple[int, int], Tensor] = {}
    for layer in sorted({layer for layer, _ in heads}):
        here = [head for at, head in heads if at == layer]
        saved = []
        with wrapped.trace() as tracer:
            for head in here:
                with tracer.invoke(pixels):
                    z = wrapped.vit.layers[layer].attention.o_proj.input
                    z[..., head * width : (head + 1) * width] = 0
                    saved.append(wrapped.output.logits.save())
        values |= {(layer, head): metric(logits) for head, logits in zip(here, saved, strict=True)}
    return torch.stack([values[place] for place in heads])
