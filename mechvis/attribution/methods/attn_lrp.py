"""Layer-wise relevance for transformers, as a changed backward pass of one run; off unless asked for.

Relevance of a token is its activation times a modified gradient, at the stream before block 0:

* norms: the scale counts as a constant (the mean does not);
* activation function: what comes back is multiplied by `f(x) / x`, not by `f'(x)`;
* attention, `rule="cp"`: patterns count as constants, so that everything flows through values (CP-LRP, what the authors
  take for vision transformers);
* attention, `rule="attn"`: the products share: half to values, a quarter each to queries and keys;
* gated MLPs: half to each factor; linear layers: gradient times input (epsilon rule with epsilon 0).

Everything is done by edits of a single run, which keep the values and change the gradient. No class, function or module
is patched: other models, and this one in any other run, have their ordinary gradients (the reference package rewrites
torch's classes for the whole process: gradients of unrelated models change by a third, faithfulness.md 1.2 [M]).

With zero biases and `rule="cp"` the relevances of all tokens add up to the score; biases keep their part otherwise, so
completeness is not claimed. The gamma rules of the paper (chosen by a grid search per model) are left out.

**Licence.** The reference implementation states that layer-wise relevance propagation is patented, free for personal
and scientific use only, and its files grant no patent rights (faithfulness.md 1.2 [S]). This file is our own code under
our own licence, which cannot give what is not ours to give: whether you may use the method is yours to find out.

Source: Achtibat et al. 2024; methods.md 10 [C].
"""

import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mechvis import edits
from mechvis.attribution.method import Claims, Maps, Method
from mechvis.attribution.question import Question
from mechvis.clip import ZeroShotHead
from mechvis.errors import EffectlessEdit, RefusedMethod, unknown

Rule = Literal["cp", "attn"]

LICENCE_NOTE = (
    "The reference implementation of AttnLRP states that layer-wise relevance propagation is patented and free for "
    "personal and scientific use only. If you may use it, say AttnLRP(accept_licence_note=True). Chefer, LeGrad and "
    "integrated gradients have no such note."
)


@dataclass(frozen=True, kw_only=True)
class AttnLRP(Method):
    """Attention-aware layer-wise relevance. Read the licence note of this module first.

    Example:
        >>> mechvis.attribute(model, images, AttnLRP(accept_licence_note=True))                # doctest: +SKIP
    """

    NAME = "attn_lrp"
    CLAIMS = Claims(class_specific=True, signed=True)
    SOURCE = "methods.md 10 [C]; Achtibat et al. 2024"
    rule: Rule = "cp"
    """How relevance passes attention: `cp` through values only, `attn` shared with queries and keys."""
    accept_licence_note: bool = False
    """You have read the note and may use the method."""

    def maps(self, ask: Question) -> Maps:
        """Maps of one batch.

        Raises:
            RefusedMethod: the licence note is not accepted, or the model has a norm inside its attention or MLP, for
                which there is no rule.
            UnknownName: no such rule.
        """
        if not self.accept_licence_note:
            raise RefusedMethod(LICENCE_NOTE)
        if self.rule not in get_args(Rule):
            raise unknown("rule of AttnLRP", self.rule, get_args(Rule))
        found = relevance(ask, self.rule)
        return Maps(values=found[:, ask.n_prefix :], prefix=found[:, : ask.n_prefix])


def relevance(ask: Question, rule: Rule) -> Tensor:
    """Relevance of each token `[image token]`, at the stream before block 0."""
    parts = ask.parts
    mlps = [*parts.blocks, *([parts.pooling.mlp] if parts.pooling is not None and parts.pooling.mlp else [])]
    attns = [*(block.attn for block in parts.blocks), *([parts.pooling.attn] if parts.pooling is not None else [])]
    if any(attn.after is not None for attn in attns) or any(
        mlp.mlp_norm is not None or not mlp.linear_writes for mlp in mlps
    ):
        raise RefusedMethod(
            f"AttnLRP has no rule for the norms inside attention or MLP of this model ({parts.family})."
        )
    graph = ask.model._for_size(tuple(ask.pixels.shape[2:]))[1]
    head_reads = "hook_embedding" if "hook_embedding" in graph else "hook_pooled"
    with warnings.catch_warnings():
        # Every edit here keeps its values on purpose.
        warnings.simplefilter("ignore", EffectlessEdit)
        run = ask.model.run(ask.pixels, _rules(graph, rule), capture=["hook_embed", head_reads], grad=True)
    ask.cost.forwards += len(ask.pixels)
    ask.cost.backwards += len(ask.pixels)
    with torch.enable_grad():
        output = run.output
        if isinstance(parts.head, ZeroShotHead):
            output = _constant_length(parts.head, run.cache[head_reads])
        embed = run.cache["hook_embed"]
        (gradient,) = torch.autograd.grad(ask.target.read(output).sum(), embed)
    return (embed * gradient).sum(-1).detach()


def _rules(graph: Any, rule: Rule) -> list[edits.Edit]:
    """Edits that keep every value and change what flows back."""
    found = [edits.call(name, torch.detach) for name in graph.names if name.endswith(".hook_scale")]
    if rule == "cp":
        found += [edits.call(name, torch.detach) for name in graph.names if name.endswith("attn.hook_pattern")]
    else:
        for name in graph.names:
            if name.endswith(("attn.hook_q", "attn.hook_k")):
                found.append(edits.call(name, _quarter))
            elif name.endswith("attn.hook_v"):
                found.append(edits.call(name, _half))
    for name in graph.names:
        if name.endswith("mlp.hook_pre"):
            found += _of_mlp(name.removesuffix("hook_pre"), f"{name}_linear" in graph)
    return found


def _of_mlp(at: str, gated: bool) -> list[edits.Edit]:
    """The activation function of one MLP: its inputs are remembered on the way forward."""
    held: dict[str, Tensor] = {}

    def remember(name: str) -> Any:
        def keep(values: Tensor) -> Tensor:
            held[name] = values
            return values

        return keep

    def release(post: Tensor) -> Tensor:
        return _Ratio.apply(post.detach(), held.pop("pre"), held.pop("linear", None))

    found = [edits.call(f"{at}hook_pre", remember("pre"))]
    if gated:
        found.append(edits.call(f"{at}hook_pre_linear", remember("linear")))
    return [*found, edits.call(f"{at}hook_post", release)]


class _Ratio(torch.autograd.Function):
    """Values of `post`; what comes back goes to its inputs in the ratio of output to input."""

    @staticmethod
    def forward(ctx: Any, post: Tensor, pre: Tensor, linear: Tensor | None) -> Tensor:
        ctx.save_for_backward(post, pre, *([] if linear is None else [linear]))
        return post.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor | None]:
        post, pre, *linear = ctx.saved_tensors
        if not linear:
            return None, gradient * _over(post, pre), None
        return None, gradient * _over(post, pre) / 2, gradient * _over(post, linear[0]) / 2


def _over(output: Tensor, given: Tensor) -> Tensor:
    """`output / given`; where nothing was given (a stabilised zero), nothing comes back."""
    return torch.where(given == 0, 0.0, output / torch.where(given == 0, 1.0, given))


class _Share(torch.autograd.Function):
    """The values as they are; a share of what comes back."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, share: float) -> Tensor:
        ctx.share = share
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.share, None


def _half(values: Tensor) -> Tensor:
    return _Share.apply(values, 0.5)


def _quarter(values: Tensor) -> Tensor:
    return _Share.apply(values, 0.25)


def _constant_length(head: ZeroShotHead, embedding: Tensor) -> Tensor:
    """Logits of a zero-shot head whose normalisation counts as a constant, like every other norm."""
    unit = embedding / embedding.norm(dim=-1, keepdim=True).detach()
    logits = unit @ head.prompts.to(unit).T * head.scale.to(unit)
    return logits if head.bias is None else logits + head.bias.to(unit)
