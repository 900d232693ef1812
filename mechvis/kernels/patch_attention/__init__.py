"""Attention with one edited head per row, while all other heads stay fused."""

from jaxtyping import Bool, Float
from torch import Tensor

from mechvis.kernels.dispatch import choose
from mechvis.kernels.patch_attention import naive
from mechvis.kernels.patch_attention.naive import Keys, PerRow, Queries

__all__ = ["patch_attention"]


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
    """Mixed values z of every head, with `head[row]` edited in each row.

    What can be done to the one head, in this order: take its queries and its keys from a table; hide keys before the
    softmax (knock-out: the remaining ones share the attention; a query that may look nowhere gets zeros); or take its
    whole pattern from a table, which is final. Each row chooses its own table entry, and -1 leaves that part alone.
    Gradients flow to `q`, `k`, `v` and the tables; the Triton twin takes them through the plain one, which holds
    `[row query key]` for the edited heads. There is no position bias here.

    Args:
        q, k, v: queries, keys and values, rotary positions applied; any strides.
        head: edited head of each row, -1 for none.
        scale: factor on query-key products, usually `d_head ** -0.5`.
        causal: keys after the query are hidden, in all heads.
        drop: True for keys that the row's edited head does not see.
        drop_for: queries to which `drop` applies; None for all.
        queries, keys, pattern: tables of replacements for an edited head.
        query_source, key_source, pattern_source: table entry of each row, -1 for none.
        check: look for heads and entries that do not exist; on a GPU this waits for the device once.

    Returns:
        z `[row query head d_head]`.

    Raises:
        ShapeMismatch, BadData, OutOfRange: arguments that do not fit each other.

    Example:
        >>> import torch
        >>> q = k = torch.zeros(1, 2, 4, 16)  # all keys look alike, so attention is the mean of the values
        >>> v = torch.arange(2.0)[None, :, None, None].expand(1, 2, 4, 16)
        >>> drop = torch.tensor([[True, False]])
        >>> patch_attention(q, k, v, torch.tensor([3]), scale=0.25, drop=drop)[0, 0, :, 0].tolist()
        [0.5, 0.5, 0.5, 1.0]
    """
    more = {
        "scale": scale, "causal": causal, "drop": drop, "drop_for": drop_for, "queries": queries,
        "query_source": query_source, "keys": keys, "key_source": key_source, "pattern": pattern,
        "pattern_source": pattern_source, "check": check,
    }  # fmt: skip
    if choose("patch_attention", q, k, v, queries, keys, pattern) == "naive":
        return naive.patch_attention(q, k, v, head, **more)
    from mechvis.kernels.patch_attention import triton

    return triton.patch_attention(q, k, v, head, **more)
