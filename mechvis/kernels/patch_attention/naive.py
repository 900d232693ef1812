"""Attention where each row may have one edited head: the plain twin of the kernel, and what runs on a CPU.

1. All heads by torch's fused attention, as if nothing were edited.
2. For each row, its edited head once more and in full, `[row query key]`: new queries and keys, dropped keys, softmax,
   or a given pattern in its place.
3. Each row takes that head from 2 and all others from 1.

So no `[row head query key]` tensor exists here either; the one head's pattern of every row does.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mechvis.errors import BadData, OutOfRange, ShapeMismatch

Queries = Float[Tensor, "row query head d_head"]
Keys = Float[Tensor, "row key head d_head"]
PerRow = Int[Tensor, " row"]


def patch_attention(
    q: Queries,
    k: Keys,
    v: Keys,
    head: PerRow,
    *,
    scale: float,
    causal: bool = False,
    drop: Bool[Tensor, "row key"] | None = None,
    drop_for: Bool[Tensor, "row query"] | None = None,
    queries: Float[Tensor, "entry query d_head"] | None = None,
    query_source: PerRow | None = None,
    keys: Float[Tensor, "entry key d_head"] | None = None,
    key_source: PerRow | None = None,
    pattern: Float[Tensor, "entry query key"] | None = None,
    pattern_source: PerRow | None = None,
    check: bool = True,
) -> Queries:
    """See `mechvis.kernels.patch_attention.patch_attention`."""
    sources = {"query": (queries, query_source), "key": (keys, key_source), "pattern": (pattern, pattern_source)}
    require(q, k, v, head, causal, drop, drop_for, sources, check)
    fused = F.scaled_dot_product_attention(
        *(rearrange(t, "r t h d -> r h t d") for t in (q, k, v)), scale=scale, is_causal=causal
    )
    fused = rearrange(fused, "r h t d -> r t h d")
    rows, edited = torch.arange(len(head), device=head.device), head.clamp(min=0)
    work = torch.promote_types(q.dtype, torch.float32)
    one_q = _from_table(queries, query_source, q[rows, :, edited]).to(work)
    one_k = _from_table(keys, key_source, k[rows, :, edited]).to(work)
    scores = one_q @ one_k.mT * scale
    hidden = torch.zeros_like(scores, dtype=torch.bool)
    if causal:
        hidden |= torch.ones_like(hidden[0]).triu(1)
    if drop is not None:
        hidden |= drop[:, None, :] if drop_for is None else drop[:, None, :] & drop_for[:, :, None]
    # A query that may look nowhere gets nothing; softmax alone would make NaN of it, in the gradient too.
    looks = ~hidden.all(-1, keepdim=True)
    weights = F.softmax(scores.masked_fill(hidden & looks, float("-inf")), dim=-1) * looks
    weights = _from_table(pattern, pattern_source, weights.to(v.dtype))
    one = weights @ v[rows, :, edited]
    takes = head[:, None] == torch.arange(q.shape[2], device=head.device)
    return torch.where(takes[:, None, :, None], one[:, :, None], fused)


def _from_table(table: Tensor | None, source: Tensor | None, own: Tensor) -> Tensor:
    if table is None or source is None or len(table) == 0:
        return own
    return torch.where((source >= 0)[:, None, None], table[source.clamp(min=0)].to(own.dtype), own)


def require(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    head: Tensor,
    causal: bool,
    drop: Tensor | None,
    drop_for: Tensor | None,
    sources: dict[str, tuple[Tensor | None, Tensor | None]],
    check: bool,
) -> None:
    """What both twins ask of a call.

    Raises:
        ShapeMismatch: arrays that do not fit each other.
        BadData: half of a pair that belongs together.
        OutOfRange: with `check`, a head or table entry that does not exist.
    """
    if q.ndim != 4 or k.ndim != 4:
        raise ShapeMismatch(
            f"patch_attention takes q [row query head d_head] and k, v [row key head d_head]; got {list(q.shape)}, "
            f"{list(k.shape)}, {list(v.shape)}."
        )
    rows, n_query, heads, width = q.shape
    n_key = k.shape[1]
    wanted = {
        "k": (k, (rows, n_key, heads, width)), "v": (v, (rows, n_key, heads, width)), "head": (head, (rows,)),
        "drop": (drop, (rows, n_key)), "drop_for": (drop_for, (rows, n_query)),
    }  # fmt: skip
    sizes = {"query": (n_query, width), "key": (n_key, width), "pattern": (n_query, n_key)}
    for name, (table, source) in sources.items():
        if (table is None) != (source is None):
            raise BadData(
                f"patch_attention: the table of {name} edits and {name}_source belong together; one is missing."
            )
        wanted[f"{name}_source"] = (source, (rows,))
        wanted[f"the table of {name} edits"] = (table, (0 if table is None else len(table), *sizes[name]))
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise ShapeMismatch(f"patch_attention: {name} is {list(tensor.shape)}, wanted {list(shape)}.")
    if drop_for is not None and drop is None:
        raise BadData("patch_attention: drop_for says which queries lose the keys in drop, and drop is missing.")
    if causal and n_query != n_key:
        raise ShapeMismatch(f"patch_attention: causal needs as many queries as keys; got {n_query} and {n_key}.")
    if not check:
        return
    limits = {"head": (head, heads)}
    limits |= {f"{name}_source": (source, len(table)) for name, (table, source) in sources.items() if table is not None}
    largest = torch.stack([index.max() if rows else index.new_tensor(-1) for index, _ in limits.values()]).tolist()
    for (name, (_, size)), seen in zip(limits.items(), largest, strict=True):
        if seen >= size:
            raise OutOfRange(f"patch_attention: {name} {seen} does not exist; there are {size}. -1 stands for none.")
