"""Fates of latents through the dictionaries of several layers, and whether matched ones are active together.

Step by step the rule of `sae.flow.matching`. Dictionaries of attention's and the MLP's write say where a born latent
comes from. A match of decoders is a claim about weights: with activations of real images the correlation of each
latent with its match is reported, and the share above 0.5. Blocks may rotate the stream: then compare directions that
the model has moved (`sae.flow.moved`).
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.provenance import provenance
from mechvis.record import Record
from sae.flow.matching import TAU_HI, Match, match

WORDS = {
    "step": "number of the pair of layers, from 0",
    "latent": "latent of the earlier dictionary; null for one that is born",
    "next": "its best match in the later one; null for one that dies",
    "cosine": "of the two decoder rows",
    "fate": "persists, processed, dies, born",
    "mutual": "each is the other's best match",
    "from": "for born latents: which write of the block between comes nearest, if above chance",
    "correlation": "Pearson correlation of the activations of the two over tokens of real images",
    "tau_lo": "99 % quantile of the largest cosine of random directions with the later dictionary's covariance",
    "active_together": "share of matched pairs whose activations correlate above 0.5",
}


class FeatureFlow(Record):
    """Fates of latents between layers; see :func:`feature_flow`."""

    KIND = "feature_flow"

    def chain(self, latent: int, step: int = 0) -> list[int]:
        """A latent and its matches in the following dictionaries, as far as they go.

        Raises:
            OutOfRange: no such step or latent.
        """
        steps = self.facts["steps"]
        if not 0 <= step < steps:
            raise OutOfRange(f"step {step} does not exist: there are {steps} (0 to {steps - 1}).")
        if not 0 <= latent < self.facts["latents"][step]:
            raise OutOfRange(f"latent {latent} does not exist: there are {self.facts['latents'][step]} at step {step}.")
        found = [latent]
        for number in range(step, steps):
            row = self.table.filter(
                (pl.col("step") == number) & (pl.col("latent") == found[-1]) & (pl.col("fate") == "persists")
            )
            if not row.height:
                break
            found.append(int(row["next"][0]))
        return found

    def counts(self) -> pl.DataFrame:
        """Latents by step and fate."""
        return self.tables["counts"]

    def figures(self) -> list:
        """Fates by step."""
        from mechvis.plots.feature_fates import feature_fates
        from mechvis.report.blocks import Figure

        names = [f"{a} to {b}" for a, b in zip(self.facts["sites"][:-1], self.facts["sites"][1:], strict=True)]
        counts = self.counts()
        numbers = {fate: counts[fate].to_numpy() for fate in ("persists", "processed", "dies", "born")}
        return [Figure(feature_fates(names, numbers), "Latents by what becomes of them between two dictionaries.")]


def feature_flow(
    dictionaries: Sequence[Any],
    *,
    writes: Mapping[int, Mapping[str, Any]] | None = None,
    directions: Sequence[Float[Tensor, "latent d"] | None] | None = None,
    activations: Mapping[str, Tensor] | None = None,
    tau_hi: float = TAU_HI,
    seed: int = 0,
) -> FeatureFlow:
    """Fates of latents through the dictionaries of several layers.

    Args:
        dictionaries: of one site each, in the order of the layers, all of one width (the stream).
        writes: for step i (between dictionary i and i + 1): `attention` and `mlp` -> dictionary of that write.
        directions: for each dictionary directions to compare with the *next* one instead of its own decoder rows
            (`sae.flow.transported`); None where its own are meant.
        activations: of real images, by the dictionaries' sites `[... d]`, the same rows at every site: whether matched
            latents are active together.
        tau_hi: cosine from which a latent persists.
        seed: of the null.

    Raises:
        BadData: fewer than two dictionaries, or one of several sites.
        ShapeMismatch: other widths.

    Example:
        >>> feature_flow([sae_0, sae_1, sae_2]).counts()                                           # doctest: +SKIP
    """
    dictionaries = list(dictionaries)
    if len(dictionaries) < 2:
        raise BadData(f"{len(dictionaries)} dictionary: flow needs at least two layers.")
    for d in dictionaries:
        if len(d.ends.writes) != 1:
            raise BadData(
                f"flow compares dictionaries that write one site each; one writes {', '.join(d.ends.writes)}."
            )
    sites = [next(iter(d.ends.writes)) for d in dictionaries]
    given = [None] * len(dictionaries) if directions is None else list(directions)
    rows, counts, limits, cosines = [], [], [], {}
    for step, (one, two) in enumerate(itertools.pairwise(dictionaries)):
        own = one.directions.detach() if given[step] is None else given[step]
        later = two.directions.detach()
        found = match(own, later, tau_hi=tau_hi, seed=seed)
        limits.append(found.tau_lo)
        cosines[f"cosine/{step}"] = found.cosine.astype(np.float32)
        together = None if activations is None else _correlations(one, two, sites[step : step + 2], activations, found)
        parts = {} if writes is None else dict(writes.get(step, {}))
        origin = _origins(later, parts, seed)
        rows += _rows(step, found, together, origin)
        counts.append(
            {"step": step, **{fate: found.fate.count(fate) for fate in ("persists", "processed", "dies")},
             "born": found.origin.count("born"), "tau_lo": found.tau_lo,
             "active_together": _share(together, found)}
        )  # fmt: skip
    return FeatureFlow(
        title=f"Feature flow through {len(dictionaries)} dictionaries",
        tables={
            "latents": pl.DataFrame(rows, infer_schema_length=None, schema_overrides=_TYPES),
            "counts": pl.DataFrame(counts, infer_schema_length=None, schema_overrides={"active_together": pl.Float64}),
        },
        arrays=cosines,
        facts={"sites": sites, "steps": len(counts), "latents": [len(d.directions) for d in dictionaries],
               "tau_hi": tau_hi, "tau_lo": limits, "transported": [g is not None for g in given]},
        words=WORDS,
        caveats=_caveats(limits, tau_hi, activations is not None),
        provenance=provenance(seed=seed, dictionaries=[d.fingerprint for d in dictionaries]),
    )  # fmt: skip


_TYPES = {"latent": pl.Int64, "next": pl.Int64, "from": pl.String, "correlation": pl.Float64}


def codes_of(d: Any, site: str, activations: Mapping[str, Tensor]) -> Float[Tensor, "row latent"]:
    """Codes of a dictionary on activations by site, row by row.

    Raises:
        BadData: the site is missing.
    """
    if site not in activations:
        raise BadData(f"there are no activations of {site}; there are {', '.join(activations) or 'none'}.")
    x = activations[site]
    with torch.no_grad():
        return d.encode(x.reshape(-1, x.shape[-1]))


def _correlations(
    one: Any, two: Any, sites: Sequence[str], activations: Mapping[str, Tensor], found: Match
) -> Float[np.ndarray, " latent"]:
    """Pearson correlation of each earlier latent with its best match; NaN where one never varies."""
    a = codes_of(one, sites[0], activations).double()
    b = codes_of(two, sites[1], activations).double()
    if len(a) != len(b):
        raise ShapeMismatch(f"{len(a)} rows at {sites[0]} and {len(b)} at {sites[1]}: they must be the same tokens.")
    b = b[:, torch.from_numpy(found.forward)]
    a, b = a - a.mean(0), b - b.mean(0)
    norms = a.norm(dim=0) * b.norm(dim=0)
    return torch.where(norms > 0, (a * b).sum(0) / norms.clamp_min(1e-300), torch.nan).cpu().numpy()


def _origins(later: Tensor, parts: Mapping[str, Any], seed: int) -> list[str | None]:
    """Which write of the block comes nearest to each later latent, if above chance."""
    nearest = np.full(len(later), -np.inf)
    names: list[str | None] = [None] * len(later)
    for name, d in parts.items():
        rows = d.directions.detach()
        found = match(rows, later, seed=seed)
        best = found.cosine.max(0)
        for i in np.flatnonzero((best >= found.tau_lo) & (best > nearest)):
            names[i] = name
        nearest = np.where(best >= found.tau_lo, np.maximum(nearest, best), nearest)
    return names


def _rows(step: int, found: Match, together: np.ndarray | None, origin: list[str | None]) -> list[dict[str, Any]]:
    rows = []
    for i, fate in enumerate(found.fate):
        j = int(found.forward[i])
        value = None if together is None or np.isnan(together[i]) else float(together[i])
        rows.append(
            {"step": step, "latent": i, "next": None if fate == "dies" else j, "fate": fate,
             "cosine": float(found.cosine[i, j]), "mutual": bool(found.backward[j] == i), "from": None,
             "correlation": value}
        )  # fmt: skip
    for j, fate in enumerate(found.origin):
        if fate == "born":
            cosine = float(found.cosine[:, j].max())
            rows.append(
                {"step": step, "latent": None, "next": j, "fate": "born", "cosine": cosine, "mutual": False,
                 "from": origin[j], "correlation": None}
            )  # fmt: skip
    return rows


def _share(together: np.ndarray | None, found: Match) -> float | None:
    if together is None:
        return None
    values = together[[fate == "persists" for fate in found.fate]]
    values = values[~np.isnan(values)]
    return float((values > 0.5).mean()) if values.size else None


def _caveats(limits: Sequence[float], tau_hi: float, looked: bool) -> tuple[str, ...]:
    said = []
    if max(limits) >= tau_hi:
        said.append(
            f"Random directions of a dictionary's covariance reach a cosine of {max(limits):.2f}, above "
            f"tau_hi={tau_hi:g}: a match says little there."
        )
    if not looked:
        said.append(
            "Matches are of decoder rows; pass activations= to see whether matched latents are active together."
        )
    said.append("A block that rotates the stream breaks cosines: compare with transported directions.")
    return tuple(said)
