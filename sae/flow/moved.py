"""Directions of an earlier dictionary as they arrive at a later site: d J, J the mean Jacobian of the model between.

A block may rotate what it passes on, so the cosine of decoder rows on both sides can be low for one and the same
feature (methods2.md 21.2, pitfalls). The slope is a difference quotient over whole runs: exact up to its step, and
independent of what lies between.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis import edits
from mechvis.errors import OutOfRange, ShapeMismatch


@torch.no_grad()
def transported(
    model: Any,
    dictionary: Any,
    to: str,
    images: Any,
    *,
    site: str | None = None,
    share: float = 1e-3,
    latents: Sequence[int] | None = None,
) -> Float[Tensor, "latent d"]:
    """Directions of a dictionary moved to a later site by the model's mean slope: d J, J the mean Jacobian over images.

    The slope is a difference quotient: the direction is added at all tokens, both ways, with `share` of the mean length
    of the activations.

    Args:
        model: a wrapped tower.
        dictionary: of an earlier site.
        to: the later site.
        images: some images; a run of each per latent and sign.
        site: where the dictionary writes, by default the name that it was trained on.
        share: length of the step over the mean length of the activations.
        latents: which; all if left out.

    Raises:
        UnknownSite, OutOfRange: sites that do not exist, or the wrong way round.
    """
    site = model.graph.resolve(next(iter(dictionary.ends.writes)) if site is None else site)
    to = model.graph.resolve(to)
    names = model.graph.names
    if names.index(to) <= names.index(site):
        raise OutOfRange(f"{to} does not come after {site}.")
    rows = dictionary.directions.detach()
    rows = rows if latents is None else rows[list(latents)]
    pixels = model.inputs(images)
    clean = model.run(pixels, capture=[site]).cache[site]
    if clean.ndim != 3 or clean.shape[-1] != rows.shape[1]:
        raise ShapeMismatch(f"{site} is {list(clean.shape)} and the directions {list(rows.shape)}: they do not fit.")
    step = share * float(clean.norm(dim=-1).mean())
    found = []
    for row in rows / rows.norm(dim=1, keepdim=True):
        either = [
            model.run(pixels, edits=[edits.add(site, sign * step * row)], capture=[to], stop_when_captured=True).cache[
                to
            ]
            for sign in (1.0, -1.0)
        ]
        found.append(((either[0] - either[1]) / (2 * step)).mean((0, 1)))
    return torch.stack(found)
