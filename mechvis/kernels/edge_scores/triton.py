"""The kernel of `edge_scores`: what heads write exists only as a tile at a time.

A program owns 16 sources and a block of readers of one image, and walks over tokens and columns of the stream. For
each tile: change times W_O of all its sources at once (a batched product), flattened to `[source, token x column]`,
times the gradients of its readers, flattened the same way. The sum stays in registers; there is one write per edge, no
`[token source d_model]` and no `[source reader token]` in memory, and no atomics.

Offsets are 64 bit: tokens, sources, readers and columns are int64 before they meet a stride.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mechvis.kernels import recompute
from mechvis.kernels.edge_scores import naive
from mechvis.kernels.language import INTERPRETED, cdiv, jit, on_device_of, power_of_two, product, products, tl

# 16 is the least that a matrix product takes. Not measured yet.
SOURCES, TOKENS, COLUMNS = 16, 16, 16
# Part of d_head that is multiplied at once, by bytes per entry; 32 in float32 make 230 KB of unrolled code.
HEAD = {2: 32, 4: 16}


@jit
def _contract(
    change,  # [image token source d_head], any strides
    weight,  # [source d_head d_model], any strides
    gradient,  # [image token reader d_model], any strides
    scores,  # float32 [image source reader], contiguous
    n_tokens,
    n_sources,
    n_readers,
    d_head,
    width,
    change_image, change_token, change_source, change_e,
    weight_source, weight_e, weight_column,
    gradient_image, gradient_token, gradient_reader, gradient_column,
    SOURCES: tl.constexpr,
    READERS: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEAD: tl.constexpr,
    PRECISION: tl.constexpr,
    PRECISION_OF_SUM: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(n_readers, READERS)
    program = tl.program_id(0).to(tl.int64)
    image = tl.program_id(1).to(tl.int64)
    source = program // blocks * SOURCES + tl.arange(0, SOURCES)  # [SOURCES]
    reader = program % blocks * READERS + tl.arange(0, READERS)  # [READERS]
    is_source, is_reader = source < n_sources, reader < n_readers
    flat = tl.arange(0, TOKENS * COLUMNS)  # [TOKENS * COLUMNS]
    total = tl.zeros([SOURCES, READERS], dtype=tl.float32)
    for first_token in range(0, n_tokens, TOKENS):
        token = first_token + tl.arange(0, TOKENS).to(tl.int64)  # [TOKENS]
        for first_column in range(0, width, COLUMNS):
            column = first_column + tl.arange(0, COLUMNS).to(tl.int64)  # [COLUMNS]
            written = tl.zeros([SOURCES, TOKENS, COLUMNS], dtype=tl.float32)
            for first_e in range(0, d_head, HEAD):
                e = first_e + tl.arange(0, HEAD).to(tl.int64)  # [HEAD]
                real = is_source[:, None, None] & (token < n_tokens)[None, :, None] & (e < d_head)[None, None, :]
                at = image * change_image + source[:, None, None] * change_source
                at += token[None, :, None] * change_token + e[None, None, :] * change_e
                a = tl.load(change + at, mask=real, other=0.0)  # [SOURCES, TOKENS, HEAD]
                real = is_source[:, None, None] & (e < d_head)[None, :, None] & (column < width)[None, None, :]
                at = source[:, None, None] * weight_source
                at += e[None, :, None] * weight_e + column[None, None, :] * weight_column
                b = tl.load(weight + at, mask=real, other=0.0)  # [SOURCES, HEAD, COLUMNS]
                written = product(a, b, written, PRECISION, WIDEN)
            all_token = first_token + (flat // COLUMNS).to(tl.int64)  # [TOKENS * COLUMNS]
            all_column = first_column + (flat % COLUMNS).to(tl.int64)
            real = (all_token < n_tokens) & (all_column < width)
            at = image * gradient_image + reader[None, :] * gradient_reader
            at += all_token[:, None] * gradient_token + all_column[:, None] * gradient_column
            answer = tl.load(gradient + at, mask=real[:, None] & is_reader[None, :], other=0.0).to(tl.float32)
            written = tl.reshape(written, [SOURCES, TOKENS * COLUMNS])
            total = product(written, answer, total, PRECISION_OF_SUM, WIDEN)
    at = (image * n_sources + source)[:, None] * n_readers + reader[None, :]
    tl.store(scores + at, total, mask=is_source[:, None] & is_reader[None, :])


def edge_scores(change: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
    """See `mechvis.kernels.edge_scores.edge_scores`."""
    naive.require_shapes(change, weight, gradient)
    return _EdgeScores.apply(change, weight, gradient)


class _EdgeScores(torch.autograd.Function):
    @staticmethod
    def forward(ctx, change, weight, gradient):
        ctx.save_for_backward(change, weight, gradient)
        n, tokens, sources, d_head = change.shape
        readers, width = gradient.shape[2:]
        scores = torch.empty(n, sources, readers, device=change.device)
        if not scores.numel():
            return scores
        block = power_of_two(readers, 16, 32)
        # Gradients in 16 bit are exact in TF32, and what is multiplied with them is rounded less than they were.
        of_sum = products() if gradient.dtype == torch.float32 else "tf32"
        with on_device_of(change):
            _contract[(cdiv(sources, SOURCES) * cdiv(readers, block), n)](
                change, weight, gradient, scores, tokens, sources, readers, d_head, width,
                *change.stride(), *weight.stride(), *gradient.stride(),
                SOURCES=SOURCES, READERS=block, TOKENS=TOKENS, COLUMNS=COLUMNS,
                HEAD=power_of_two(d_head, 16, HEAD[change.element_size()]),
                PRECISION=products(), PRECISION_OF_SUM=of_sum, WIDEN=INTERPRETED, num_stages=1,
            )  # fmt: skip
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return tuple(recompute.gradients(naive.edge_scores, ctx.saved_tensors, ctx.needs_input_grad, grad))
