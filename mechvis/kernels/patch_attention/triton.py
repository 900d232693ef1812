"""The kernel of `patch_attention`: attention by blocks with a running softmax, with one edited head per row.

A program owns a block of queries of one (row, head). If that head is the row's edited one, it reads queries and keys
from the tables, hides the dropped keys, or takes its weights from the given pattern; all other programs do not touch a
table, since the loads are masked off. What no call of the launch needs is compiled away.

Backward goes through the plain twin, computed anew: torch's fused backward for all heads, and `[row query key]` for the
one edited head of each row. A backward kernel would save that tensor; sweeps do not take gradients.

Offsets are 64 bit: rows, tokens and heads are int64 before they meet a stride. The grid is one-dimensional, because
rows x heads passes the 65535 programs that the other dimensions of a grid allow.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mechvis.kernels import recompute
from mechvis.kernels.language import INTERPRETED, cdiv, jit, on_device_of, power_of_two, product, products, tl
from mechvis.kernels.patch_attention import naive

# Queries and keys of a block, by bytes per entry. Not measured yet. In 16 bit with d_head 64, a tile is 8 KiB; float32
# products are unrolled multiply-adds, and at 64 x 64 their code alone (600 KB) would not fit the instruction cache.
BLOCK = {2: 64, 4: 32}
# Blocks in flight. With three, float32 and every kind of edit at once, ptxas (12.9, sm_80) spills 2.7 KB per thread.
STAGES = {2: 2, 4: 1}


@jit
def _attend(
    q,  # [row query head d_head], any strides
    k,  # [row key head d_head], any strides
    v,  # [row key head d_head], any strides
    z,  # [row query head d_head], contiguous
    edited,  # int64 [row]: edited head, -1 for none
    drop,  # bool [row key], contiguous
    drop_for,  # bool [row query], contiguous
    queries,  # [entry query d_head], contiguous
    query_source,  # int64 [row]
    keys,  # [entry key d_head], contiguous
    key_source,  # int64 [row]
    pattern,  # [entry query key], contiguous
    pattern_source,  # int64 [row]
    scale,
    n_heads,
    n_query,
    n_key,
    width,
    q_row, q_token, q_head, q_unit,
    k_row, k_token, k_head, k_unit,
    v_row, v_token, v_head, v_unit,
    CAUSAL: tl.constexpr,
    HAS_DROP: tl.constexpr,
    HAS_DROP_FOR: tl.constexpr,
    HAS_QUERIES: tl.constexpr,
    HAS_KEYS: tl.constexpr,
    HAS_PATTERN: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(n_query, QUERIES)
    program = tl.program_id(0).to(tl.int64)
    row, head = program // blocks // n_heads, program // blocks % n_heads
    query = program % blocks * QUERIES + tl.arange(0, QUERIES)  # [QUERIES]
    unit = tl.arange(0, WIDTH).to(tl.int64)  # [WIDTH]
    is_query, is_unit = query < n_query, unit < width
    # One entry, not a scalar: the interpreter (Triton 3.9) broadcasts a scalar truth value as an integer, which no mask
    # may be.
    this_row = row + tl.zeros([1], dtype=tl.int64)
    is_edited = tl.load(edited + this_row) == head  # [1]

    mask = is_query[:, None] & is_unit[None, :]  # [QUERIES, WIDTH]
    at = row * q_row + head * q_head + query[:, None] * q_token + unit[None, :] * q_unit
    if HAS_QUERIES:
        entry = tl.load(query_source + this_row)  # [1]
        taken = is_edited & (entry >= 0)
        asked = tl.load(q + at, mask=mask & (taken == 0), other=0.0)
        at = (entry * n_query + query)[:, None] * width + unit[None, :]
        asked = tl.where(taken, tl.load(queries + at, mask=mask & taken, other=0.0), asked)
    else:
        asked = tl.load(q + at, mask=mask, other=0.0)
    if HAS_KEYS:
        key_entry = tl.load(key_source + this_row)  # [1]
        keys_taken = is_edited & (key_entry >= 0)
    if HAS_PATTERN:
        pattern_entry = tl.load(pattern_source + this_row)  # [1]
        pattern_taken = is_edited & (pattern_entry >= 0)
    if HAS_DROP_FOR:
        loses = tl.load(drop_for + row * n_query + query, mask=is_query & is_edited, other=0) != 0

    largest = tl.full([QUERIES], float("-inf"), dtype=tl.float32)
    total = tl.zeros([QUERIES], dtype=tl.float32)
    mixed = tl.zeros([QUERIES, WIDTH], dtype=tl.float32)
    for start in range(0, n_key, KEYS):
        key = start + tl.arange(0, KEYS).to(tl.int64)  # [KEYS]
        is_key = key < n_key
        exists = is_key[:, None] & is_unit[None, :]  # [KEYS, WIDTH]
        k_at = row * k_row + head * k_head + key[:, None] * k_token + unit[None, :] * k_unit
        if HAS_KEYS:
            found = tl.load(k + k_at, mask=exists & (keys_taken == 0), other=0.0)
            k_at = (key_entry * n_key + key)[:, None] * width + unit[None, :]
            found = tl.where(keys_taken, tl.load(keys + k_at, mask=exists & keys_taken, other=0.0), found)
        else:
            found = tl.load(k + k_at, mask=exists, other=0.0)
        scores = tl.zeros([QUERIES, KEYS], dtype=tl.float32)
        scores = product(asked, tl.trans(found), scores, PRECISION, WIDEN) * scale
        seen = is_query[:, None] & is_key[None, :]  # [QUERIES, KEYS]
        if CAUSAL:
            seen = seen & (key[None, :] <= query[:, None])
        if HAS_DROP:
            gone = tl.load(drop + row * n_key + key, mask=is_key & is_edited, other=0) != 0
            if HAS_DROP_FOR:
                seen = seen & ((gone[None, :] & loses[:, None]) == 0)
            else:
                seen = seen & (gone == 0)[None, :]
        scores = tl.where(seen, scores, float("-inf"))
        larger = tl.maximum(largest, tl.max(scores, axis=1))
        # Before the first key that is seen, the largest score is -inf, and -inf - -inf is NaN.
        base = tl.where(larger == float("-inf"), 0.0, larger)
        shrink = tl.exp(largest - base)
        weights = tl.exp(scores - base[:, None])
        if HAS_PATTERN:
            p_at = (pattern_entry * n_query + query)[:, None] * n_key + key[None, :]
            read = is_query[:, None] & is_key[None, :] & pattern_taken
            given = tl.load(pattern + p_at, mask=read, other=0.0).to(tl.float32)
            weights = tl.where(pattern_taken, given, weights)
            shrink = tl.where(pattern_taken, 1.0, shrink)
        total = total * shrink + tl.sum(weights, axis=1)
        v_at = row * v_row + head * v_head + key[:, None] * v_token + unit[None, :] * v_unit
        value = tl.load(v + v_at, mask=exists, other=0.0)
        mixed = product(weights.to(value.dtype), value, mixed * shrink[:, None], PRECISION, WIDEN)
        largest = larger
    if HAS_PATTERN:
        total = tl.where(pattern_taken, 1.0, total)
    mixed = mixed / tl.where(total == 0.0, 1.0, total)[:, None]
    at = ((row * n_query + query)[:, None] * n_heads + head) * width + unit[None, :]
    tl.store(z + at, mixed.to(z.dtype.element_ty), mask=is_query[:, None] & is_unit[None, :])


def patch_attention(
    q,
    k,
    v,
    head,
    *,
    scale,
    causal=False,
    drop=None,
    drop_for=None,
    queries=None,
    query_source=None,
    keys=None,
    key_source=None,
    pattern=None,
    pattern_source=None,
    check=True,
) -> Tensor:
    """See `mechvis.kernels.patch_attention.patch_attention`."""
    sources = {"query": (queries, query_source), "key": (keys, key_source), "pattern": (pattern, pattern_source)}
    naive.require(q, k, v, head, causal, drop, drop_for, sources, check)
    fixed = {
        "scale": scale, "causal": causal, "drop": drop, "drop_for": drop_for, "query_source": query_source,
        "key_source": key_source, "pattern_source": pattern_source,
    }  # fmt: skip
    return _PatchAttention.apply(q, k, v, queries, keys, pattern, head, fixed)


class _PatchAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, queries, keys, pattern, head, fixed):
        ctx.save_for_backward(q, k, v, queries, keys, pattern, head)
        ctx.fixed = fixed
        return _launch(q, k, v, queries, keys, pattern, head, **fixed)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        *inputs, head = ctx.saved_tensors

        def plain(q, k, v, queries, keys, pattern):
            tables = {"queries": queries, "keys": keys, "pattern": pattern}
            return naive.patch_attention(q, k, v, head, check=False, **tables, **ctx.fixed)

        return *recompute.gradients(plain, inputs, ctx.needs_input_grad[:6], grad), None, None


def _launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    queries: Tensor | None,
    keys: Tensor | None,
    pattern: Tensor | None,
    head: Tensor,
    *,
    scale: float,
    causal: bool,
    drop: Tensor | None,
    drop_for: Tensor | None,
    query_source: Tensor | None,
    key_source: Tensor | None,
    pattern_source: Tensor | None,
) -> Tensor:
    rows, n_query, heads, width = q.shape
    n_key = k.shape[1]
    z = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if not z.numel():
        return z

    def ready(tensor: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
        # Tables and masks are small beside q, k, v; strides of their own would double the kernel's arguments.
        return head if tensor is None else tensor.to(dtype or tensor.dtype).contiguous()

    has = [t is not None and len(t) > 0 for t in (queries, keys, pattern)]
    block = BLOCK[q.element_size()]
    with on_device_of(q):
        _attend[(rows * heads * cdiv(n_query, block),)](
            q, k, v, z, ready(head, torch.int64), ready(drop), ready(drop_for),
            ready(queries), ready(query_source, torch.int64), ready(keys), ready(key_source, torch.int64),
            ready(pattern), ready(pattern_source, torch.int64),
            scale, heads, n_query, n_key, width, *q.stride(), *k.stride(), *v.stride(),
            CAUSAL=causal, HAS_DROP=drop is not None, HAS_DROP_FOR=drop_for is not None,
            HAS_QUERIES=has[0], HAS_KEYS=has[1], HAS_PATTERN=has[2],
            QUERIES=block, KEYS=block, WIDTH=power_of_two(width, 16), PRECISION=products(), WIDEN=INTERPRETED,
            num_stages=STAGES[q.element_size()],
        )  # fmt: skip
    return z
