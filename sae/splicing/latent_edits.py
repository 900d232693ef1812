"""Latents of a dictionary changed by ordinary edits of a plain model: `model.run(pixels, edits=[ablate(d, [17])])`.

Each is a `mechvis.edits.call` at the site that the dictionary reads and writes, with a change that is data: it prints,
compares by content and saves (`mechvis.edits.save`) where the dictionary has a folder. `tokens` and `rows` say where,
as in every edit; a mask may be another one in every row (a region). Transcoders need :func:`sae.splicing.splice`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechvis import edits
from mechvis.edits import Edit, Rows, Tokens
from mechvis.errors import BadData, ShapeMismatch
from sae.dictionary import Dictionary
from sae.splicing.change import LatentChange

Latents = int | Sequence[int]
Numbers = float | Sequence[float] | Tensor
Source = Dictionary | str | Path
"""A dictionary, or its folder (then the edit can be saved)."""


def ablate(
    dictionary: Source,
    latents: Latents,
    *,
    site: str | None = None,
    rows: Rows = None,
    tokens: Tokens = None,
    error: bool = True,
) -> Edit:
    """Set latents to zero.

    Args:
        dictionary: a dictionary that writes what it reads, or its folder.
        latents: which.
        site: by default the one that it was trained on.
        rows, tokens: where, as in :mod:`mechvis.edits`; everywhere if left out.
        error: keep what the dictionary misses; without it the activation is replaced by what the latents write.

    Raises:
        OutOfRange, BadData, RefusedMethod.

    Example:
        >>> model.run(pixels, edits=[ablate("my-sae", [17], tokens="patches")]).logits           # doctest: +SKIP
    """
    return _edit(dictionary, "zero", latents, None, site, rows, tokens, error)


def ablate_to_mean(
    dictionary: Source,
    latents: Latents,
    reference: Mapping[str, Tensor] | Tensor,
    *,
    site: str | None = None,
    rows: Rows = None,
    tokens: Tokens = None,
    error: bool = True,
) -> Edit:
    """Set latents to their mean over reference images and tokens.

    Args:
        dictionary, latents, site, rows, tokens, error: see :func:`ablate`.
        reference: mean of every latent `[latent]`, from :func:`sae.splicing.latent_means`; or activations of the site
            (rows of other images), which are encoded here.
    """
    d, _ = _loaded(dictionary)
    if not isinstance(reference, Tensor) or reference.ndim != 1:
        if isinstance(reference, Tensor):
            rows_of = reference.reshape(-1, reference.shape[-1])
        else:
            wanted = site or next(iter(d.ends.reads))
            if wanted not in reference:
                raise BadData(f"the reference has no activations of {wanted}: {', '.join(map(str, reference))}.")
            rows_of = reference[wanted].reshape(-1, d.ends.d_in)
        with torch.no_grad():
            reference = d.encode(rows_of).double().mean(0)
    if reference.shape != (d.n_codes,):
        raise ShapeMismatch(f"means of latents are [{d.n_codes}], got {list(reference.shape)}.")
    chosen = _listed(latents)
    means = [float(reference[latent]) for latent in chosen if 0 <= latent < d.n_codes]
    return _edit(dictionary, "set", latents, means if len(means) == len(chosen) else 0.0, site, rows, tokens, error)


def clamp(
    dictionary: Source,
    latents: Latents,
    value: Numbers,
    *,
    site: str | None = None,
    rows: Rows = None,
    tokens: Tokens = None,
    error: bool = True,
) -> Edit:
    """Hold latents at a value, whatever they would be.

    Args:
        dictionary, latents, site, rows, tokens, error: see :func:`ablate`.
        value: one number, or one per latent.
    """
    return _edit(dictionary, "set", latents, value, site, rows, tokens, error)


def scale(
    dictionary: Source,
    latents: Latents,
    factor: Numbers,
    *,
    site: str | None = None,
    rows: Rows = None,
    tokens: Tokens = None,
    error: bool = True,
) -> Edit:
    """Multiply latents with a factor: 1 changes nothing, not by one bit.

    Args:
        dictionary, latents, site, rows, tokens, error: see :func:`ablate`.
        factor: one number, or one per latent.
    """
    return _edit(dictionary, "scale", latents, factor, site, rows, tokens, error)


def steer(
    dictionary: Source,
    latents: Latents,
    amount: Numbers,
    *,
    site: str | None = None,
    rows: Rows = None,
    tokens: Tokens = None,
    error: bool = True,
) -> Edit:
    """Raise latents by an amount, where they are active and where they are not; the decoder's bias is not added.

    Args:
        dictionary, latents, site, rows, tokens, error: see :func:`ablate`.
        amount: one number, or one per latent, in units of the codes.
    """
    return _edit(dictionary, "add", latents, amount, site, rows, tokens, error)


def replace(dictionary: Source, *, site: str | None = None, rows: Rows = None, tokens: Tokens = None) -> Edit:
    """Replace the activation by what the dictionary makes of it, without its error term.

    Args:
        dictionary, site, rows, tokens: see :func:`ablate`.
    """
    return _edit(dictionary, "none", [], None, site, rows, tokens, error=False)


def load_edits(path: str | Path) -> list[Edit]:
    """Edits saved with `mechvis.edits.save`, changes of latents among them.

    Raises:
        StoreCorrupt, ResultMismatch: a file or a dictionary that is missing or another one.
    """
    return edits.load(path, functions={LatentChange.NAME: LatentChange})


def _edit(
    source: Source,
    change: str,
    latents: Latents,
    values: Numbers | None,
    site: str | None,
    rows: Rows,
    tokens: Tokens,
    error: bool,
) -> Edit:
    d, folder = _loaded(source)
    chosen = _listed(latents)
    made = LatentChange(
        dictionary=d,
        change=change,
        latents=chosen,
        values=() if values is None else _numbers(values, len(chosen)),
        error=error,
        folder=folder,
    )
    return edits.call(next(iter(d.ends.reads)) if site is None else site, made, rows=rows, tokens=tokens)


def _loaded(source: Source) -> tuple[Dictionary, Path | None]:
    if isinstance(source, str | Path):
        return Dictionary.load(source), Path(source)
    if not hasattr(source, "ends"):
        raise BadData(f"latents belong to a dictionary or its folder, not to a {type(source).__name__}.")
    return source, None


def _listed(latents: Latents) -> tuple[int, ...]:
    return (latents,) if isinstance(latents, int) else tuple(int(latent) for latent in latents)


def _numbers(values: Any, n: int) -> tuple[float, ...]:
    given = torch.as_tensor(values, dtype=torch.float64).flatten().tolist()
    return tuple(given * n if len(given) == 1 else given)
