"""What all baselines share: an architecture that no gradient trains, and the dictionary that a fit becomes.

Fits are done in float64 on rows as the model has them (no scaling: a factor would change none of these methods, and a
per-row norm would make another method of them). The parameters are then kept in the type of the rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from mechvis.errors import BadData, NotFinite, RefusedMethod, ShapeMismatch
from sae.architecture import Architecture, Loss, Step
from sae.ends import Ends
from sae.normaliser import Kind

if TYPE_CHECKING:
    from sae.dictionary import Dictionary

Rows = Tensor | np.ndarray | Mapping[str, Tensor | np.ndarray]
"""Activations `[row d]`, or several of them by site, which then lie side by side."""


@dataclass(frozen=True, kw_only=True)
class Fitted(Architecture):
    """An architecture whose parameters come from a fit."""

    normalise: Kind = "none"
    """How activations are scaled: not at all."""

    def parameters(self, ends: Ends, x: Tensor, y: Tensor, generator: torch.Generator) -> NoReturn:
        """There is nothing to start from.

        Raises:
            RefusedMethod: always.
        """
        raise self._refused()

    def loss(self, d: "Dictionary", x: Tensor, y: Tensor, step: Step) -> Loss:
        """There is none.

        Raises:
            RefusedMethod: always.
        """
        raise self._refused()

    def _refused(self) -> RefusedMethod:
        return RefusedMethod(
            f"{self.NAME!r} is a baseline: it is fitted (sae.baselines.pca(rows, 64), ...), not trained by gradients."
        )


def read_rows(rows: Rows, least: int = 2) -> tuple[Ends, np.ndarray, torch.dtype]:
    """Activations as one float64 matrix, what they are, and the type that parameters are kept in.

    Raises:
        BadData: too few rows.
        ShapeMismatch: not `[row d]`, or another number of rows at each site.
        NotFinite: NaN or Inf.
    """
    by_site = {
        name: torch.as_tensor(t).detach() for name, t in (rows if isinstance(rows, Mapping) else {"site": rows}).items()
    }
    lengths = {len(t) if t.ndim else 0 for t in by_site.values()}
    if len(lengths) != 1 or any(t.ndim != 2 for t in by_site.values()):
        told = ", ".join(f"{name} {list(t.shape)}" for name, t in by_site.items())
        raise ShapeMismatch(f"rows are [row d] and as many at every site; got {told or 'nothing'}.")
    if lengths.pop() < least:
        raise BadData(f"{len(next(iter(by_site.values())))} rows: this fit needs at least {least}.")
    ends = Ends(reads={name: t.shape[1] for name, t in by_site.items()})
    x = ends.read(by_site)
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x)).any(1).nonzero()[0, 0])
        raise NotFinite(f"row {bad} holds NaN or Inf.")
    return ends, x.double().cpu().numpy(), torch.float64 if x.dtype == torch.float64 else torch.float32


def made(
    architecture: Architecture,
    ends: Ends,
    dtype: torch.dtype,
    parameters: Mapping[str, np.ndarray],
    state: Mapping[str, np.ndarray] | None = None,
    **known: Any,
) -> "Dictionary":
    """The dictionary of a fit.

    Args:
        architecture: settings.
        ends: what is read and written.
        dtype: of parameters and state.
        parameters: by name.
        state: what the architecture keeps besides.
        known: facts for its provenance.
    """
    from mechvis.provenance import provenance
    from sae.dictionary import Dictionary

    ones = {"scale_in": np.ones(ends.d_in), "scale_out": np.ones(ends.d_out)}
    tensors = [
        {name: torch.as_tensor(np.ascontiguousarray(a)).to(dtype) for name, a in found.items()}
        for found in (parameters, {**ones, **(state or {})})
    ]
    return Dictionary(architecture, ends, *tensors, provenance=provenance(fit={"method": architecture.NAME, **known}))


def require_count(n_latents: int, most: int, what: str) -> None:
    """Refuse more latents than a method can find.

    Raises:
        BadData: says how many there can be.
    """
    if not 1 <= n_latents <= most:
        raise BadData(f"n_latents={n_latents}: {what} finds between 1 and {most} here.")
