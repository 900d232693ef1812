"""Edge attribution as the papers write it: a forked stream per reader, every writer's output in `d_model`.

The plain twin of :mod:`circuits.attribution.gradients` and :mod:`circuits.attribution.contraction`, and what other
tools do. Per image it holds `writers + readers` tensors `[token d_model]` and their graph: 19 times what the split-free
form keeps for a ViT-B/16 (hooks_circuits.md 4.7).
"""

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from circuits.attribution.eap import Method, Rule, _metric, interpolated, path
from circuits.edges.base import Outputs
from circuits.edges.inputs import project
from circuits.task import Batch, Task
from mechvis import block as plain


def split_scores(
    task: Task, batch: Batch, *, method: Method = "ig", steps: int = 10, rule: Rule = "midpoint"
) -> Float[Tensor, "image writer reader"]:
    """Scores of one batch by forked streams; as :func:`circuits.attribution.eap.batch_scores`, without
    `ig_activations`.
    """
    points = {"eap": [1.0], "clean_corrupt": [1.0, 0.0]}.get(method) or path(steps, rule)
    difference = differences(task, batch.clean, batch.base)
    total = 0
    for point in points:
        stream = interpolated(batch.clean.embed, batch.base.embed, [point])
        total = total + reader_leaves(task, batch, stream)
    scores = einsum(
        difference, total / len(points), "writer image token d, reader image token d -> image writer reader"
    )
    return scores * torch.from_numpy(task.graph.allowed).to(scores)


def differences(task: Task, clean: Outputs, base: Outputs) -> Float[Tensor, "writer image token d_model"]:
    """What every writer writes more than the base."""
    found = [(clean.embed - base.embed)[None]]
    for layer, weight in enumerate(task.wires.out):
        found.append(einsum(clean.z[layer] - base.z[layer], weight, "image token h e, h e d -> h image token d"))
        found.append((clean.mlp[layer] - base.mlp[layer])[None])
    return torch.cat(found)


def reader_leaves(task: Task, batch: Batch, stream: Tensor) -> Float[Tensor, "reader image token d_model"]:
    """Gradient at every reader's own copy of the stream."""
    parts, layout = task.model.parts, batch.clean.layout
    leaves = []

    def fork(x: Tensor, n: int) -> Tensor:
        """n copies of the stream that gradients are asked for."""
        copies = x.expand(n, *x.shape).clone()
        leaves.append(copies if copies.requires_grad else copies.requires_grad_(True))
        return leaves[-1]

    with torch.enable_grad():
        x = stream.detach().requires_grad_(True)
        for block in parts.blocks:
            heads = block.attn.n_heads
            q, k, v = (
                torch.stack(
                    [
                        project(block.attn, kind, block.ln1(copy))[:, :, head]
                        for head, copy in enumerate(fork(x, heads))
                    ],
                    2,
                )
                for kind in "qkv"
            )
            q, k = plain.place(block.attn, q, k, layout)
            z = plain.finish(block.attn, plain.mix(block.attn, q, k, v, layout))
            x = x + plain.scaled(block.scale1, block.attn.out(plain.merge(z)))
            x = x + plain.mlp(block, fork(x, 1)[0])
        reads = parts.reads
        output = plain.read_out(
            parts, fork(x, 1)[0], lambda tokens: tokens[:, list(reads)] if isinstance(reads, tuple) else tokens
        )
        values = _metric(task, batch, 1)(output)
        return torch.cat(torch.autograd.grad(values.sum(), leaves))
