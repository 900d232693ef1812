"""Did a dictionary find the directions that the data were made of? For planted data, where they are known.

1. Cosine of every atom with every direction. Mean of the largest per atom: found (recall). Mean of the largest per
   direction: no direction without an atom (precision); below the first where there are more latents than atoms.
2. Matched: each direction stands for one atom at most (Hungarian), so one that lies between two atoms counts once.
3. Firing: the F1 of "latent fires" and "atom is in the row", for the matched pairs, if the codes are known.

A random dictionary is the floor: in d columns the largest of n cosines with random directions is about √(2 ln n / d)
(.39 at 128 of 64), so it is reported beside.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mechvis.errors import BadData, NotFinite, ShapeMismatch
from mechvis.stats import bootstrap

if TYPE_CHECKING:
    from sae.dictionary import Dictionary


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """How well planted atoms were found. Means are over atoms, with a 95 % interval from resampling them."""

    found: float
    """Mean over atoms of the largest cosine with a direction (mean max cosine, MMCS)."""
    found_interval: tuple[float, float]
    """95 % interval of `found`, over atoms (`mechvis.stats.bootstrap`); NaN for one atom."""
    used: float
    """Mean over directions of the largest cosine with an atom."""
    matched: float
    """Mean cosine where each direction stands for one atom at most; atoms without a partner count 0."""
    share: float
    """Share of atoms whose largest cosine is above `above`."""
    above: float
    """Cosine from which an atom counts as found."""
    random: float
    """`found` of as many random directions: the floor."""
    n_atoms: int
    """Atoms."""
    n_directions: int
    """Directions (those of zero length are left out)."""
    cosines: Float[np.ndarray, " atom"]
    """Largest cosine of each atom."""
    partner: np.ndarray
    """Direction that stands for each atom; -1: none was left."""
    f1: Float[np.ndarray, " atom"] | None = None
    """F1 of each atom's firing with that of its partner; None: codes were not given."""

    @property
    def mean_f1(self) -> float:
        """Mean over atoms of the F1 of firing.

        Raises:
            BadData: codes were not given.
        """
        if self.f1 is None:
            raise BadData("F1 of firing needs codes: recovery(..., codes=(codes of the dictionary, planted codes)).")
        return float(self.f1.mean())

    def numbers(self) -> dict[str, float]:
        """What goes into a table."""
        known = {"found": self.found, "used": self.used, "matched": self.matched, "share": self.share}
        return {**known, "random": self.random, **({} if self.f1 is None else {"f1": self.mean_f1})}


def recovery(
    dictionary: "Dictionary | Float[Tensor, 'latent d'] | np.ndarray",
    atoms: Any,
    codes: tuple[Any, Any] | None = None,
    *,
    above: float = 0.9,
    seed: int = 0,
) -> Recovery:
    """Compare a dictionary with the directions that the data were made of.

    Args:
        dictionary: a dictionary, whose `directions` are taken, or directions, one per row.
        atoms: planted directions, one per row; any length but zero.
        codes: what the dictionary and the planter say of the same rows: `(codes [row latent], codes [row atom])`.
        above: cosine from which an atom counts as found.
        seed: of the random dictionary and of the interval.

    Raises:
        ShapeMismatch: widths or numbers of rows that do not fit.
        BadData: no atoms, an atom of length zero, or a dictionary of zeros.
        NotFinite: NaN or Inf.

    Example:
        >>> from mechvis.testing import planted_dict
        >>> planted = planted_dict(8, concepts=20, width=16, active=3)
        >>> recovery(planted.concepts, planted.concepts).matched
        1.0
    """
    directions = _matrix(getattr(dictionary, "directions", dictionary), "the dictionary")
    atoms = _matrix(atoms, "the atoms")
    if directions.shape[1] != atoms.shape[1]:
        raise ShapeMismatch(f"directions have width {directions.shape[1]}, planted atoms {atoms.shape[1]}.")
    if (np.linalg.norm(atoms, axis=1) == 0).any():
        raise BadData("a planted atom has length zero, so it has no direction.")
    real = np.linalg.norm(directions, axis=1) > 0
    if not real.any():
        raise BadData("all directions of the dictionary are zero.")
    # A direction of zero length is at right angles to everything.
    cosine = _unit(atoms) @ np.where(real[:, None], _unit(np.where(real[:, None], directions, 1.0)), 0.0).T
    best = cosine.max(1)
    at, to = linear_sum_assignment(cosine, maximize=True)
    partner = np.full(len(atoms), -1)
    partner[at] = to
    # Not the plain seed: planted atoms may have been drawn from it, and would come out again.
    generator = np.random.default_rng((seed, len(atoms), len(directions)))
    drawn = _unit(generator.normal(size=directions[real].shape))
    mean = bootstrap(best, seed=seed)
    return Recovery(
        found=float(best.mean()),
        found_interval=(float(mean.low[0]), float(mean.high[0])),
        used=float(cosine.max(0)[real].mean()),
        matched=round(float(cosine[at, to].sum() / len(atoms)), 12),
        share=float((best > above).mean()),
        above=above,
        random=float((_unit(atoms) @ drawn.T).max(1).mean()),
        n_atoms=len(atoms),
        n_directions=int(real.sum()),
        cosines=best,
        partner=partner,
        f1=None if codes is None else _f1(*codes, partner, len(directions)),
    )


def _f1(found: Any, planted: Any, partner: np.ndarray, n_latents: int) -> np.ndarray:
    """2 |both| / (|latent fires| + |atom is there|) of each matched pair; 0 without a partner."""
    found, planted = _matrix(found, "the dictionary's codes") > 0, _matrix(planted, "the planted codes") > 0
    if found.shape != (len(planted), n_latents) or planted.shape[1] != len(partner):
        raise ShapeMismatch(
            f"codes [row {n_latents}] of the dictionary and [row {len(partner)}] as planted, of the same rows; got "
            f"{list(found.shape)} and {list(planted.shape)}."
        )
    fires = found[:, np.maximum(partner, 0)]
    both, total = (fires & planted).sum(0), fires.sum(0) + planted.sum(0)
    return np.where((partner >= 0) & (total > 0), 2 * both / np.maximum(total, 1), 0.0)


def _matrix(values: Any, what: str) -> np.ndarray:
    found = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else np.asarray(values, np.float64)
    if found.ndim != 2 or 0 in found.shape:
        raise ShapeMismatch(f"{what} have to be a matrix with rows; got {list(found.shape)}.")
    if not np.isfinite(found).all():
        raise NotFinite(f"{what} hold NaN or Inf.")
    return found


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
