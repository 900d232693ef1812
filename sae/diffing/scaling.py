"""Latent scaling: how much of a latent is in each model, whatever its decoder norm says (Minder et al. 2025).

A crosscoder's norm penalty can drive a latent to zero in a model that has its concept (complete shrinkage: the
concept is left in that model's error), or give each model a latent of its own for one concept (decoupling: the concept
is in the reconstruction, by another latent). So every latent's codes f are fitted to two targets of each model m, by
least squares with an intercept:

* error:           e^m + f W^m, what nobody else writes. A slope in the other model: shrinkage.
* reconstruction:  â^m, everything that is written. A slope in the other model: the concept is there, by any latent.

The slope is a direction, v = Cov(f, target) / Var(f), in the model's own space, so widths and bases may differ. Its
norm β is estimated without the bias that noise gives to norms: ‖v‖² = ⟨v', v''⟩ from two halves of the rows. With
`same_space=True` (one model is a fine-tuned copy of the other) β is the slope along the decoder of the model that has
the latent, as in the paper; it has a sign.

ν = β of the model with less / β of the model with more. ν near 0 in both: the latent is exclusive. All is computed from
sums over batches, so the rows need not fit into memory. Fitting directions and intercepts is ours; the paper fits one
number per latent and model, through the origin.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechvis.errors import BadData, NotFinite
from sae.data import Rows
from sae.diffing.norms import Models, model_norms, models_of

if TYPE_CHECKING:
    from sae.dictionary import Dictionary


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaling:
    """What was measured on the rows. `model` counts the two models in their order."""

    models: tuple[str, str]
    """Names."""
    n: int
    """Rows."""
    active: Int[np.ndarray, " latent"]
    """Rows on which each latent is active."""
    mean: Float[np.ndarray, " latent"]
    """Mean code where it is active; 0 if nowhere."""
    error: Float[np.ndarray, "latent model"]
    """β of the error target."""
    reconstruction: Float[np.ndarray, "latent model"]
    """β of the reconstruction target."""
    strong: Int[np.ndarray, " latent"]
    """Which of the two has more of the latent, by the error target."""
    by_batch: Float[np.ndarray, "batch model 2"]
    """Squared error and variance of each batch, for FVU and its interval."""

    @property
    def ratio_error(self) -> Float[np.ndarray, " latent"]:
        """ν of the error target; 0 where a latent never writes."""
        return self._ratio(self.error)

    @property
    def ratio_reconstruction(self) -> Float[np.ndarray, " latent"]:
        """ν of the reconstruction target."""
        return self._ratio(self.reconstruction)

    def _ratio(self, beta: np.ndarray) -> np.ndarray:
        at = np.arange(len(beta))
        more, less = beta[at, self.strong], beta[at, 1 - self.strong]
        return np.where(more > 0, less / np.where(more > 0, more, 1.0), 0.0)


def latent_scaling(
    d: "Dictionary",
    rows: Mapping[str, Tensor] | Iterable[Mapping[str, Tensor] | Rows],
    *,
    models: Models | None = None,
    same_space: bool = False,
    batch: int = 4096,
    limit: int | None = None,
) -> Scaling:
    """Measure how much of each latent is in each model.

    Args:
        d: a trained crosscoder.
        rows: activations by site: tensors `[row d]`, or batches of them (then two batches at least). Rows that it was
            not trained on.
        models: see :func:`sae.diffing.norms.models_of`.
        same_space: measure along the decoder of the model that has the latent; widths must be equal.
        batch: rows at a time, of tensors.
        limit: stop after so many rows; needed for a source that never ends.

    Raises:
        BadData: too few rows; a source without a limit; models of different widths in one space.
        NotFinite: NaN or Inf in the rows.
        ShapeMismatch, UnknownName: rows that do not fit.

    Example:
        >>> found = latent_scaling(crosscoder, {"before/blocks.2": before, "after/blocks.2": after})   # doctest: +SKIP
        >>> found.ratio_error[7]                                                                       # doctest: +SKIP
        0.03
    """
    of = models_of(d.ends, models)
    widths = d.ends.writes
    if same_space and len({tuple(widths[s] for s in own) for own in of.values()}) != 1:
        raise BadData("same_space=True needs two models of the same widths; leave it out for different models.")
    sums = [_Sums(d), _Sums(d)]
    by_batch, n = [], 0
    for number, part in enumerate(batches(rows, batch, limit)):
        found = sums[number % 2].add(d, part)
        by_batch.append(found)
        n += len(next(iter(part.values())))
    if len(by_batch) < 2:
        raise BadData(f"{n} rows in {len(by_batch)} batch: latent scaling compares two halves, so give two batches.")
    columns = dict(zip(widths, torch.arange(d.ends.d_out).split(list(widths.values())), strict=True))
    places = [torch.cat([columns[s] for s in own]) for own in of.values()]
    slopes = [half.slopes(d) for half in sums]
    strong = None
    betas = {}
    for target in ("error", "reconstruction"):
        first, second = (slope[target] for slope in slopes)
        if same_space:
            own = d.W_dec.detach().double().cpu()
            more = model_norms(d, of).argmax(1).cpu()
            unit = torch.where((more == 0)[:, None], own[:, places[0]], own[:, places[1]])
            unit = torch.nn.functional.normalize(unit, dim=1)
            mean = (first + second) / 2
            beta = torch.stack([(mean[:, at] * unit).sum(1) for at in places], dim=1)
        else:
            beta = torch.stack([(first[:, at] * second[:, at]).sum(1).clamp_min(0).sqrt() for at in places], dim=1)
        betas[target] = beta.numpy()
        if strong is None:
            strong = betas[target].argmax(1)
    active = sum(half.active for half in sums).cpu().numpy()
    total = sum(half.f for half in sums).cpu().numpy()
    return Scaling(
        models=tuple(of),
        n=n,
        active=active,
        mean=total / np.maximum(active, 1),
        error=betas["error"],
        reconstruction=betas["reconstruction"],
        strong=strong,
        by_batch=_per_model(by_batch, places),
    )


def batches(rows: Any, size: int, limit: int | None) -> Iterator[dict[str, Tensor]]:
    """Activations by site, some rows at a time, checked.

    Raises:
        BadData, NotFinite.
    """
    if isinstance(rows, Mapping):
        n = len(next(iter(rows.values())))
        size = max(1, min(size, -(-n // 2)))
        parts = ({name: t[at : at + size] for name, t in rows.items()} for at in range(0, n, size))
    else:
        if hasattr(rows, "load_state_dict") and limit is None:
            raise BadData("a source of training rows never ends: say how many rows to look at with limit=50_000.")
        parts = (part.activations if isinstance(part, Rows) else dict(part) for part in rows)
    seen = 0
    for part in parts:
        if limit is not None and seen >= limit:
            return
        for name, t in part.items():
            if not torch.isfinite(t).all():
                raise NotFinite(f"rows of {name} hold NaN or Inf, in the {len(t)} rows after row {seen}.")
        seen += len(next(iter(part.values())))
        yield part


class _Sums:
    """Sums over rows that the slopes are made of, in float64."""

    def __init__(self, d: "Dictionary"):
        n, width, sites = d.n_codes, d.ends.d_out, len(d.ends.writes)
        new = lambda *shape: torch.zeros(*shape, dtype=torch.float64)  # noqa: E731
        self.rows, self.active = 0, torch.zeros(n, dtype=torch.long)
        self.f, self.ff = new(n), new(n)
        self.own, self.f_own = new(sites, n), new(sites, n)
        self.error, self.f_error = new(width), new(n, width)
        self.written, self.f_written = new(width), new(n, width)

    @torch.no_grad()
    def add(self, d: "Dictionary", part: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add rows; returns the batch's sums for FVU, by column."""
        x, y = d.normalised(part)
        f = d.architecture.encode(d, x)
        y_hat = d.architecture.decode(d, f)
        y_hat = y_hat + x @ d.W_skip.T if d.architecture.skip else y_hat
        by_site = getattr(d.architecture, "codes_by_site", None)
        own = [f] * len(d.ends.writes) if by_site is None else by_site(d, f)
        error, y, y_hat, f = (t.double().cpu() for t in (y - y_hat, y, y_hat, f))
        self.rows += len(f)
        self.active += (f != 0).sum(0)
        self.f += f.sum(0)
        self.ff += f.square().sum(0)
        for number, codes in enumerate(own):
            codes = codes.double().cpu()
            self.own[number] += codes.sum(0)
            self.f_own[number] += (codes * f).sum(0)
        self.error += error.sum(0)
        self.f_error += f.T @ error
        self.written += y_hat.sum(0)
        self.f_written += f.T @ y_hat
        return {"rows": torch.tensor(len(f)), "error": error.square().sum(0), "y": y.sum(0), "yy": y.square().sum(0)}

    def slopes(self, d: "Dictionary") -> dict[str, Float[Tensor, "latent d_out"]]:
        """Cov(f, target) / Var(f) for both targets; zero for latents that do not vary."""
        n = max(1, self.rows)
        mean = self.f / n
        variance = self.ff / n - mean.square()
        scale = torch.where(variance > 0, 1 / torch.where(variance > 0, variance, 1.0), 0.0)[:, None]
        to_error = self.f_error / n - mean[:, None] * (self.error / n)
        to_written = self.f_written / n - mean[:, None] * (self.written / n)
        own = self.f_own / n - mean * (self.own / n)
        spread = own.repeat_interleave(torch.tensor(list(d.ends.writes.values())), dim=0).T
        to_error = to_error + spread * d.W_dec.detach().double().cpu()
        return {"error": scale * to_error, "reconstruction": scale * to_written}


def _per_model(by_batch: list[dict[str, Tensor]], places: list[Tensor]) -> np.ndarray:
    """Squared error and variance (around the mean of all rows) of each batch and model."""
    n = sum(int(b["rows"]) for b in by_batch)
    mean = sum(b["y"] for b in by_batch) / n
    found = []
    for b in by_batch:
        spread = b["yy"] - 2 * mean * b["y"] + int(b["rows"]) * mean.square()
        found.append([[float(b["error"][at].sum()), float(spread[at].sum())] for at in places])
    return np.array(found)
