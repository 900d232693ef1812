"""Two-token attention: where attribution patching of a query or key fails and its QK fix does not.

Two tokens, one head, no norm. Token 0 asks, and reads value -1 from itself (score 0) and +1 from token 1 (score s):

    y = sigmoid(s) - sigmoid(-s) = tanh(s / 2),    s = query of token 0 times key of token 1

The clean score is 12, the corrupt one -12: y goes from +1 to -1, a change of -2.000. The softmax is saturated, so the
linear estimate of AtP is -0.0003; with the QK fix (recompute the pattern, use the gradient at the pattern) it is -2.000
(methods.md 5.3, **P**). As an *effect*, metric(clean) - metric(edited), the same numbers are +2.000 and +0.0003.
"""

from typing import Any, Literal

import torch

from mechvis.errors import unknown
from mechvis.testing.planted.pairs import PlantedPairs
from mechvis.testing.planted.wired import WiredViT, wrapped

QUERY, KEY, VALUE, Y = range(4)
SCORE = 12.0
TWO_TOKEN_EDGES = frozenset({"embed->L0H0.q", "embed->L0H0.k", "embed->L0H0.v", "L0H0->out"})
"""The whole circuit; which of q and k is active depends on the pairs, and v is constant in both."""


@torch.no_grad()
def two_token_net() -> Any:
    """The model, wrapped: pixels `[image 3 1 2]` (query, key, value of the two tokens), logits (y / 2, -y / 2).

    Example:
        >>> model, pairs = two_token_net(), two_token_pairs()
        >>> round((pairs.metric(model(pairs.corrupt)) - pairs.metric(model(pairs.clean))).item(), 3)
        -2.0
    """
    model = WiredViT(channels=3, d_model=4, n_layers=1, n_heads=1, d_head=1, n_classes=2, grid=(1, 2))
    for channel in (QUERY, KEY, VALUE):
        model.embedding[channel, channel] = 1.0
    head = model.head(0, 0)
    head.q[QUERY, 0] = head.k[KEY, 0] = head.v[VALUE, 0] = head.o[0, Y] = 1.0
    model.readout[Y] = torch.tensor([0.5, -0.5])
    return wrapped(model, "two-token", class_names=("plus", "minus"))


def two_token_pairs(changed: Literal["query", "key"] = "query") -> PlantedPairs:
    """The one pair, whose score goes from 12 to -12.

    Args:
        changed: what turns its sign: the `query` of token 0, or the `key` of token 1.

    Raises:
        UnknownName: another word.
    """
    if changed not in ("query", "key"):
        raise unknown("changed", changed, ("query", "key"))
    clean = torch.zeros(1, 3, 1, 2, dtype=torch.float64)
    clean[0, QUERY, 0, 0], clean[0, KEY, 0, 1] = SCORE, 1.0
    clean[0, VALUE, 0] = torch.tensor([-1.0, 1.0])
    corrupt = clean.clone()
    channel, token = (QUERY, 0) if changed == "query" else (KEY, 1)
    corrupt[0, channel, 0, token] *= -1
    zero, one = torch.tensor([0]), torch.tensor([1])
    return PlantedPairs(
        name=f"two tokens, {changed}",
        clean=clean,
        corrupt=corrupt,
        clean_labels=zero,
        corrupt_labels=one,
        contrast=one,
        circuit=TWO_TOKEN_EDGES,
        active=frozenset({f"embed->L0H0.{changed[0]}", "L0H0->out"}),
    )
