"""Values for edits at the sites of latents of a spliced model, where `mechvis.edits` wants whole activations."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis import edits
from mechvis.edits import Edit, Rows, Tokens
from mechvis.errors import BadData


def clamp_latents(
    model: Any,
    latents: int | Sequence[int],
    value: float | Sequence[float] | Tensor,
    *,
    site: str | None = None,
    rows: Rows = None,
    tokens: Tokens = None,
) -> Edit:
    """Hold latents of a spliced model at a value; for transcoders too. Zero, scaling and raising have their own edits:
    `edits.zero`, `edits.scale` and `edits.add` at the site of the latents.

    Args:
        model: from `sae.splice`.
        latents: which.
        value: one number, or one per latent.
        site: of the latents, where the model has more than one dictionary.
        rows, tokens: where; everywhere if left out.

    Raises:
        BadData: no dictionary, or several and none named.
        OutOfRange: a latent that does not exist, when the edit is used.

    Example:
        >>> model.run(pixels, edits=[clamp_latents(model, [17], 3.0, tokens="patches")])           # doctest: +SKIP
    """
    name = site_of_latents(model, site)
    info = model.graph[name]
    chosen = [latents] if isinstance(latents, int) else list(latents)
    given = torch.as_tensor(value, dtype=model.dtype).flatten()
    if len(given) not in (1, len(chosen)):
        raise BadData(f"{len(given)} values for {len(chosen)} latents: one, or one each.")
    row = torch.zeros(info.sizes[-1], dtype=model.dtype)
    inside = [latent for latent in chosen if -len(row) <= latent < len(row)]
    row[inside] = given[: len(inside)] if len(given) > 1 else given
    values = row.expand(1, *info.sizes[1:])
    return edits.patch(name, values, source_rows=0, rows=rows, tokens=tokens, units=chosen)


def latent_means(dictionary: Any, activations: Tensor, *, batch_size: int = 8192) -> Float[Tensor, " latent"]:
    """Mean of every latent over rows, in float64.

    Args:
        dictionary: with `encode`.
        activations: of reference images `[... d]`.
        batch_size: rows at a time.

    Raises:
        BadData: no row.
    """
    rows = activations.reshape(-1, activations.shape[-1])
    if not len(rows):
        raise BadData("means of latents need at least one row.")
    with torch.no_grad():
        parts = [dictionary.encode(part).sum(0, dtype=torch.float64) for part in rows.split(batch_size)]
    return torch.stack(parts).sum(0) / len(rows)


def site_of_latents(model: Any, site: str | None) -> str:
    """Name of the latents' site: the given one (or that of the activation), or the only one.

    Raises:
        BadData: none, or several.
    """
    names = {splice.latents_site: splice.site for splice in model.parts.splices}
    if site is not None:
        name = model.graph.resolve(site)
        found = next((latents for latents, written in names.items() if name in (latents, written)), None)
        if found is not None:
            return found
    elif len(names) == 1:
        return next(iter(names))
    have = ", ".join(names) or "none"
    raise BadData(f"say which dictionary's latents: site= one of {have}; got {site!r}.")
