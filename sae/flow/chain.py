"""Steering along a chain of matched latents instead of at one layer (methods2.md 21.2 [A]).

A feature that is rebuilt layer by layer is pushed back by the layers after the one that is steered; along its chain it
is raised wherever it is written. Coefficients follow the natural activations, lengths sum to what one layer would get.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mechvis import edits
from mechvis.edits import Edit, Tokens
from mechvis.errors import BadData, OutOfRange
from sae.flow.layers import codes_of


def steering_chain(
    dictionaries: Sequence[Any],
    chain: Sequence[int],
    strength: float,
    activations: Mapping[str, Tensor],
    *,
    tokens: Tokens = None,
) -> list[Edit]:
    """Edits that steer along a chain of matched latents, with coefficients in proportion to their natural activation.

    The lengths of what is added sum to `strength`, so a chain compares with one layer at equal total length.

    Args:
        dictionaries: those that the chain runs through, in order; more may follow.
        chain: a latent of each (`FeatureFlow.chain`).
        strength: total length of what is added, in the unit of the activations.
        activations: of real images, by the dictionaries' sites.
        tokens: where.

    Raises:
        BadData: an empty chain, activations that are missing, or a latent that is never active on them.
        OutOfRange: a latent that does not exist.
    """
    if not len(chain) or len(chain) > len(dictionaries):
        raise BadData(
            f"a chain of {len(chain)} latents through {len(dictionaries)} dictionaries: one each, at least one."
        )
    natural, units, sites = [], [], []
    for d, latent in zip(dictionaries, chain, strict=False):
        site = next(iter(d.ends.writes))
        if not 0 <= latent < len(d.directions):
            raise OutOfRange(f"latent {latent} does not exist: {site} has {len(d.directions)}.")
        codes = codes_of(d, site, activations)[:, latent]
        active = codes[codes > 0]
        if not len(active):
            raise BadData(
                f"latent {latent} of {site} is never active on these activations, so it has no natural strength."
            )
        row = d.directions.detach()[latent]
        natural.append(float(active.mean()) * float(row.norm()))
        units.append(row / row.norm())
        sites.append(site)
    total = sum(natural)
    return [
        edits.add(site, unit, strength * length / total, tokens=tokens)
        for site, unit, length in zip(sites, units, natural, strict=True)
    ]
