"""How well rows are written, and with how many latents: FVU, cosine, L0, dead latents, how often each latent fires.

    FVU = Σ ‖y - ŷ‖² / Σ ‖y - ȳ‖²                       (sae.md 2.0)

over all rows of all images, with ȳ the mean *of each column*. Three ways to get this wrong, each in a library, each a
test here:

* against one mean for all columns (overcomplete `r2_score`), differences between columns count as explained: .573 was
  reported where .168 is right [run];
* a mean of per-batch or per-token ratios is not the ratio (Prisma): rows with little variance would count most;
* a cosine over the batch axis (Prisma, `dim=0`) compares columns of a batch, not vectors.

Sums are kept per image in float64 while batches stream by, so memory grows with images and columns, not with tokens,
and every number has an interval over images (for which ȳ is held). Rows are also counted by type of token: CLS and
register tokens have other norms and other codes than patches, and one number for all hides them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, NotFinite, ShapeMismatch
from sae.evaluation.intervals import Interval, columns, ratio

ALL = "all"
"""Name of the rows of all types together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """How well the rows of one type are written."""

    fvu: Interval
    """Fraction of variance unexplained: 0 perfect, 1 as good as the mean; NaN where rows do not vary."""
    cosine: Interval
    """Mean over rows of the cosine between a row and what was written for it."""
    l0: Interval
    """Mean number of codes of a row that are not zero."""
    rows: int
    """Rows."""
    images: int
    """Images."""
    frequency: Float[np.ndarray, " latent"]
    """Share of the rows on which each latent is not zero."""

    @property
    def dead(self) -> float:
        """Share of latents that fire on none of these rows (each fires on fewer than 3/rows of all, at 95 %)."""
        return float((self.frequency == 0).mean())

    def cells(self) -> dict[str, float | int | None]:
        """For a table."""
        return {
            **columns("fvu", self.fvu),
            **columns("cosine", self.cosine),
            **columns("l0", self.l0),
            "dead": self.dead,
            "rows": self.rows,
            "images": self.images,
        }


class Reconstruction:
    """Sums while batches stream by.

    Example:
        >>> sums = Reconstruction()
        >>> y = torch.randn(3, 5, 8)
        >>> sums.add(y, y, torch.ones(3, 5, 2))
        >>> sums.found()["all"].fvu[0], sums.found()["all"].l0[0]
        (0.0, 2.0)
    """

    def __init__(self):
        self._parts: dict[str, list[dict[str, np.ndarray]]] = {}
        self._fires: dict[str, np.ndarray] = {}
        self._shift: Tensor | None = None

    def add(
        self,
        y: Float[Tensor, "image token d"],
        y_hat: Float[Tensor, "image token d"],
        codes: Float[Tensor, "image token latent"],
        types: Sequence[str] = (),
    ) -> None:
        """Count a batch.

        Args:
            y: what had to be written.
            y_hat: what was written.
            codes: the codes.
            types: type of each of an image's rows; nothing: not told apart.

        Raises:
            ShapeMismatch: tensors that do not belong together.
            NotFinite: NaN or Inf.
        """
        if y.shape != y_hat.shape or y.ndim != 3 or codes.shape[:2] != y.shape[:2] or codes.ndim != 3:
            told = f"{list(y.shape)}, {list(y_hat.shape)}, {list(codes.shape)}"
            raise ShapeMismatch(f"rows, what was written and codes are [image token ...], as many each; got {told}.")
        if types and len(types) != y.shape[1]:
            raise ShapeMismatch(f"{len(types)} types for {y.shape[1]} rows per image.")
        y, y_hat = y.detach().double(), y_hat.detach().double()
        for name, tensor in (("the activations", y), ("what was written", y_hat)):
            if not torch.isfinite(tensor).all():
                raise NotFinite(f"{name} hold NaN or Inf.")
        # Sums of squares lose digits to a large mean: everything is counted from near it.
        self._shift = y.mean((0, 1)) if self._shift is None else self._shift
        active = codes.detach() != 0
        error = (y - y_hat).square().sum(2)
        cosine = torch.nn.functional.cosine_similarity(y, y_hat, dim=2, eps=1e-300)
        y = y - self._shift
        per_token = {"error": error, "cosine": cosine, "l0": active.sum(2).double(), "squares": y.square().sum(2)}
        kinds = np.array(types if types else [ALL] * y.shape[1])
        for kind in dict.fromkeys(kinds.tolist()):
            at = torch.from_numpy((kinds == kind).nonzero()[0]).to(y.device)
            sums = {name: values[:, at].sum(1).cpu().numpy() for name, values in per_token.items()}
            sums["rows"] = np.full(len(y), len(at), dtype=np.float64)
            sums["y"] = y[:, at].sum(1).cpu().numpy()
            self._parts.setdefault(kind, []).append(sums)
            fires = active[:, at].sum((0, 1)).cpu().numpy()
            self._fires[kind] = self._fires.get(kind, 0) + fires

    def per_image(self) -> dict[str, dict[str, Float[np.ndarray, " image"]]]:
        """By type of token: `error`, `variance` (around the mean of all these rows), `l0` and `rows` of each image;
        FVU is the ratio of the sums of the first two.

        Raises:
            BadData: nothing was counted.
        """
        found = {}
        for kind, sums in self._sums().items():
            variance = _variance(sums)
            found[kind] = {**{name: sums[name] for name in ("error", "l0", "rows")}, "variance": variance}
        return found

    def found(self, seed: int = 0) -> dict[str, Fit]:
        """By type of token; all together first.

        Args:
            seed: of the resamples.

        Raises:
            BadData: nothing was counted.
        """
        sums = self._sums()
        fires = {ALL: sum(self._fires.values()), **self._fires}
        return {kind: _fit(one, fires[kind], seed) for kind, one in sums.items()}

    def _sums(self) -> dict[str, dict[str, np.ndarray]]:
        if not self._parts:
            raise BadData("nothing was counted: there were no images.")
        by_kind = {
            kind: {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            for kind, parts in self._parts.items()
        }
        together = {name: sum(sums[name] for sums in by_kind.values()) for name in next(iter(by_kind.values()))}
        return {ALL: together, **by_kind}


def _variance(sums: Mapping[str, np.ndarray]) -> Float[np.ndarray, " image"]:
    """Σ ‖y - ȳ‖² of an image from its sums; all images together give the dataset's."""
    centre = sums["y"].sum(0) / sums["rows"].sum()
    return sums["squares"] - 2 * sums["y"] @ centre + sums["rows"] * (centre @ centre)


def _fit(sums: Mapping[str, np.ndarray], fires: np.ndarray, seed: int) -> Fit:
    rows = sums["rows"].sum()
    variance = _variance(sums)
    still = variance.sum() <= 1e-12 * max(sums["squares"].sum(), 1e-300)
    return Fit(
        fvu=(float("nan"),) * 3 if still else ratio(sums["error"], variance, seed=seed),
        cosine=ratio(sums["cosine"], sums["rows"], seed=seed),
        l0=ratio(sums["l0"], sums["rows"], seed=seed),
        rows=int(rows),
        images=len(sums["rows"]),
        frequency=fires / rows,
    )


def fvu(y: Float[Tensor, "row d"], y_hat: Float[Tensor, "row d"]) -> float:
    """Fraction of variance unexplained of rows in memory, in float64: the plain twin of the streamed one.

    Args:
        y: what had to be written.
        y_hat: what was written.

    Raises:
        ShapeMismatch: of different shapes.
        BadData: rows that do not vary.
        NotFinite: NaN or Inf.

    Example:
        >>> y = torch.tensor([[0.0, 10.0], [2.0, 10.0]])
        >>> fvu(y, torch.tensor([[1.0, 10.0], [1.0, 10.0]]))
        1.0
    """
    if y.shape != y_hat.shape or y.ndim != 2:
        raise ShapeMismatch(f"rows are [row d], as many and as wide; got {list(y.shape)} and {list(y_hat.shape)}.")
    y, y_hat = y.detach().double(), y_hat.detach().double()
    variance = float((y - y.mean(0)).square().sum())
    if not variance > 0:
        raise BadData("these rows are all alike (or NaN): there is no variance to explain.")
    found = float((y - y_hat).square().sum()) / variance
    if not np.isfinite(found):
        raise NotFinite("the rows or what was written hold NaN or Inf.")
    return found


def density(frequency: Float[np.ndarray, " latent"], edges: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """How many latents fire how often: a histogram of log10 of the frequency; latents that never fire are left out.

    Args:
        frequency: share of rows per latent.
        edges: of the bins, in log10; None: half decades from 1e-6 to 1.

    Returns:
        Edges, and counts (one fewer).

    Raises:
        BadData: shares outside 0 to 1.
    """
    edges = np.arange(-6, 0.5, 0.5) if edges is None else np.asarray(edges)
    frequency = np.asarray(frequency, dtype=np.float64)
    if not ((frequency >= 0) & (frequency <= 1)).all():
        raise BadData("frequencies are shares of rows, between 0 and 1.")
    fires = frequency[frequency > 0]
    return edges, np.histogram(np.log10(np.clip(fires, 10.0 ** edges[0], None)), edges)[0]
