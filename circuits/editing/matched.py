"""Random directions that remove as much of an activation as given ones do.

A random direction of a wide activation meets hardly anything of it, so a control of such directions would pass every
edit. Here each draw is tilted towards (or away from) the directions in which the activations are large, until the
removed norm is the same. With C the second moment of the activations, a Gaussian matrix G and a tilt t,

    D(t) = orthonormal rows of  G C^(t/2),      removed(t) = trace(D(t) C D(t)^T)

`removed` goes from the smallest to the largest that so many directions can remove as t goes from -inf to inf, so the
right t is found by bisection (**X**; benchmark_apps.md B.2 asks for "random directions of equal norm").
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData

_TILTS = (-8.0, 8.0)
_STEPS = 60
Rows = Float[Tensor, "direction d"]


def matched_directions(
    model: Any,
    images: Any,
    rows: Rows,
    site: str,
    head: int | None,
    draws: int,
    *,
    tokens: Any = None,
    seed: int = 0,
) -> list[Rows]:
    """Random orthonormal rows, as many as given, that remove the same mean squared norm at a site.

    Args:
        model: a `HookedViT`.
        images: whose activations count (`ImageSet` or pixels).
        rows: the directions to match, orthonormal.
        site: where.
        head: of a site with heads.
        draws: how many sets.
        tokens: which tokens; None: all.
        seed: of the draws.

    Raises:
        BadData: the activations are zero there, so there is nothing to match.
    """
    moment = second_moment(model, images, site, head, tokens)
    return tilted(moment, rows, draws, seed)


def tilted(moment: Float[Tensor, "d d"], rows: Rows, draws: int, seed: int) -> list[Rows]:
    """The draws, from the second moment of the activations."""
    own = rows.double()
    wanted = float(torch.einsum("rd,de,re->", own, moment, own))
    sizes, axes = torch.linalg.eigh(moment)
    if not float(sizes.max()) > 0:
        raise BadData("the activations are zero where the directions are taken out: nothing to match controls to.")
    # Directions without any activation would be tilted to without end.
    sizes = (sizes / sizes.max()).clamp(min=1e-9)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(draws):
        drawn = torch.randn(len(own), len(moment), generator=generator, dtype=torch.float64)
        low, high = _TILTS
        for _ in range(_STEPS):
            middle = (low + high) / 2
            some = _rows(drawn, sizes, axes, middle)
            removed = float(torch.einsum("rd,de,re->", some, moment, some))
            low, high = (middle, high) if removed < wanted else (low, middle)
        found.append(_rows(drawn, sizes, axes, (low + high) / 2))
    return found


def _rows(drawn: Tensor, sizes: Tensor, axes: Tensor, tilt: float) -> Rows:
    return torch.linalg.qr(axes @ (drawn * sizes ** (tilt / 2)).T).Q.T


@torch.no_grad()
def second_moment(
    model: Any, images: Any, site: str, head: int | None, tokens: Any = None, batch_size: int = 64
) -> Float[Tensor, "d d"]:
    """Mean of `x^T x` over images and tokens at a site, float64."""
    from mechvis.edits import zero
    from mechvis.plan import fixed_tokens

    total, n = 0, 0
    for start in range(0, len(images), batch_size):
        run = model.run(images[start : start + batch_size], capture=[site])
        x = run.cache[site].double().cpu()
        if tokens is not None:
            chosen = sorted(fixed_tokens(zero(site, tokens=tokens), model.parts.prefix, x.shape[1]))
            x = x[:, chosen]
        x = (x if head is None else x[:, :, head]).reshape(-1, x.shape[-1])
        total, n = total + x.T @ x, n + len(x)
    return total / n
