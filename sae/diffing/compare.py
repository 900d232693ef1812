"""Two models compared through a crosscoder: which latents are shared, which belong to one of them.

1. By norm: Δ (`sae.diffing.norms`) below `exclusive` or above 1 - `exclusive`.
2. By latent scaling (`sae.diffing.scaling`): exclusive where ν is below `error_limit` for the error and below
   `reconstruction_limit` for the reconstruction. This is the class to use; latents that are exclusive by norm alone are
   listed as false exclusives.
3. FVU of each model, so that a model that the crosscoder hardly explains is not said to lack anything.
4. Guards: latents that are active on few rows are put aside; the nearest twin of each latent is named; with a second
   crosscoder (another seed) each latent's match in it; with a comparison of shuffled pairs, what would be called shared
   where nothing is.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import torch
from torch import Tensor

from mechvis.errors import BadData, ShapeMismatch
from mechvis.provenance import provenance
from mechvis.stats import interval_of
from sae.data import Rows
from sae.diffing.norms import Models, model_norms, models_of, relative
from sae.diffing.record import RARE, SHARED, ModelDiff
from sae.diffing.scaling import Scaling, latent_scaling

if TYPE_CHECKING:
    from sae.dictionary import Dictionary

_WORDS = {
    "relative_norm": "Δ: 0 only the first model, ½ both alike, 1 only the second, by decoder norms",
    "ratio_error": "ν: what the model with less has of the latent, beside the other, in what nobody else writes",
    "ratio_reconstruction": "ν of all that is written: is the concept in the other model, by whatever latent",
    "class": "by latent scaling: shared, only one model's, or rare (too few rows to judge)",
    "class_by_norm": "by Δ alone",
    "rows": "rows on which the latent is active",
    "twin_cosine": "cosine with the latent most like it: near 1 is a duplicate",
    "match": "cosine with its partner in the other crosscoder (one-to-one matching)",
    "fvu": "share of the model's variance that the crosscoder does not write; interval over batches",
}


def model_diff(
    d: "Dictionary",
    rows: Mapping[str, Tensor] | Iterable[Mapping[str, Tensor] | Rows],
    *,
    models: Models | None = None,
    same_space: bool = False,
    exclusive: float = 0.1,
    error_limit: float = 0.15,
    reconstruction_limit: float = 0.5,
    min_active: int = 20,
    other: "Dictionary | None" = None,
    control: ModelDiff | None = None,
    batch: int = 4096,
    limit: int | None = None,
    seed: int = 0,
) -> ModelDiff:
    """Compare two models through a crosscoder that was trained on both.

    Args:
        d: the crosscoder.
        rows: activations of both models by site, the same rows in the same order; not those of the training.
        models: sites of each of the two models; see :func:`sae.diffing.norms.models_of`.
        same_space: the models share their basis (one is a fine-tuned copy): measure along the decoder of the stronger.
        exclusive: Δ below it, or above 1 minus it, is exclusive by norm.
        error_limit: ν of the error target below which a latent can be exclusive.
        reconstruction_limit: ν of the reconstruction target below which a latent can be exclusive.
        min_active: latents that are active on fewer rows are `rare`.
        other: a crosscoder of the same models from another seed.
        control: this comparison for a crosscoder that was trained on shuffled pairs (`shuffled_pairs`).
        batch: rows at a time.
        limit: stop after so many rows.
        seed: of the bootstrap.

    Raises:
        BadData: limits that are no shares, too few rows, models that cannot be told apart.
        ShapeMismatch: `other` has other widths.
        NotFinite, UnknownName: see :func:`sae.diffing.scaling.latent_scaling`.

    Example:
        >>> diff = model_diff(crosscoder, {"before/x": before, "after/x": after})              # doctest: +SKIP
        >>> diff.latents("only after")                                                        # doctest: +SKIP
        array([ 41, 7])
    """
    limits = {"exclusive": exclusive, "error_limit": error_limit, "reconstruction_limit": reconstruction_limit}
    for name, value in limits.items():
        if not 0 < value < 1:
            raise BadData(f"{name}={value} is a share, between 0 and 1.")
    if other is not None and list(other.ends.writes.items()) != list(d.ends.writes.items()):
        raise ShapeMismatch(f"the other crosscoder writes {other.ends.writes}, this one {d.ends.writes}.")
    of = models_of(d.ends, models)
    found = latent_scaling(d, rows, models=of, same_space=same_space, batch=batch, limit=limit)
    latents = _latents(d, of, found, min_active, other, **limits)
    shares = _models(found, seed)
    classes = _classes(latents, found.models)
    alive = int((latents["class"] != RARE).sum())
    shared = int((latents["class"] == SHARED).sum())
    false = (latents["class"] == SHARED) & latents["class_by_norm"].str.starts_with("only ")
    facts = {
        "models": list(found.models), "rows": found.n, "same_space": same_space, "min_active": min_active, **limits,
        "alive": alive, "shared": shared, "shared_share": shared / alive if alive else 0.0,
        "false_exclusives": int(false.sum()),
    }  # fmt: skip
    if control is not None:
        facts["control_shared_share"] = control.facts["shared_share"]
        facts["control_alive"] = control.facts["alive"]
    return ModelDiff(
        title=f"{found.models[0]} and {found.models[1]} through {d.architecture.NAME}",
        tables={"latents": latents, "models": shares, "classes": classes},
        facts=facts,
        words=_WORDS,
        caveats=_caveats(found, facts, control, other),
        provenance=provenance(seed=seed, dictionary=d.fingerprint, trained=dict(d.provenance)),
    )


def _latents(
    d: "Dictionary",
    of: Mapping[str, list[str]],
    found: Scaling,
    min_active: int,
    other: "Dictionary | None",
    *,
    exclusive: float,
    error_limit: float,
    reconstruction_limit: float,
) -> pl.DataFrame:
    norms = model_norms(d, of).double().cpu().numpy()
    delta = relative(norms[:, 0], norms[:, 1])
    first, second = found.models
    only = np.array([f"only {first}", f"only {second}"])
    rare = (found.active < min_active) | (found.error.max(1) <= 0)
    by_norm = np.where(delta < exclusive, only[0], np.where(delta > 1 - exclusive, only[1], SHARED))
    alone = (found.ratio_error < error_limit) & (found.ratio_reconstruction < reconstruction_limit)
    scaled = np.where(alone, only[found.strong], SHARED)
    twin, cosine = _twins(d.W_dec.detach())
    columns = {
        "latent": np.arange(len(delta)),
        "class": np.where(rare, RARE, scaled),
        "class_by_norm": np.where(rare, RARE, by_norm),
        "relative_norm": delta,
        "ratio_error": found.ratio_error,
        "ratio_reconstruction": found.ratio_reconstruction,
        "stronger": np.array(found.models)[found.strong],
        "rows": found.active,
        "frequency": found.active / found.n,
        "mean": found.mean,
        f"norm_{first}": norms[:, 0],
        f"norm_{second}": norms[:, 1],
        f"scaled_{first}": found.error[:, 0],
        f"scaled_{second}": found.error[:, 1],
        "twin": twin,
        "twin_cosine": cosine,
    }
    if other is not None:
        columns["match"] = matches(d.W_dec.detach(), other.W_dec.detach())
    return pl.DataFrame(columns)


def matches(first: Tensor, second: Tensor) -> np.ndarray:
    """Cosine of each row with its partner among the other rows, one-to-one (Hungarian); 0 for a row without partner."""
    from scipy.optimize import linear_sum_assignment

    a, b = (torch.nn.functional.normalize(t.float().cpu(), dim=1) for t in (first, second))
    cosines = (a @ b.T).numpy().astype(np.float64)
    at, partner = linear_sum_assignment(-cosines)
    found = np.zeros(len(a))
    found[at] = cosines[at, partner]
    return found


def _twins(weight: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The other row most like each row, and the cosine; in pieces."""
    if len(weight) < 2:
        return np.full(len(weight), -1), np.zeros(len(weight))
    unit = torch.nn.functional.normalize(weight.float(), dim=1)
    twins, cosines = [], []
    for start in range(0, len(unit), 1024):
        found = unit[start : start + 1024] @ unit.T
        found[torch.arange(len(found)), torch.arange(start, start + len(found))] = -torch.inf
        best = found.max(1)
        twins.append(best.indices)
        cosines.append(best.values)
    return torch.cat(twins).cpu().numpy(), torch.cat(cosines).double().cpu().numpy()


def _models(found: Scaling, seed: int) -> pl.DataFrame:
    lines = []
    for number, name in enumerate(found.models):
        error, variance = found.by_batch[:, number].T
        if not variance.sum() > 0:
            raise BadData(f"the activations of {name} do not vary over these rows, so nothing can be explained.")
        value, low, high = interval_of(
            lambda e, v: e.sum() / v.sum() if v.sum() > 0 else np.nan, error, variance, seed=seed
        )
        enough = len(error) >= 10
        lines.append({"model": name, "fvu": value, "fvu_low": low if enough else None,
                      "fvu_high": high if enough else None, "n": found.n, "batches": len(error)})  # fmt: skip
    schema = {"model": pl.String, "fvu": pl.Float64, "fvu_low": pl.Float64, "fvu_high": pl.Float64, "n": pl.Int64,
              "batches": pl.Int64}  # fmt: skip
    return pl.DataFrame(lines, schema=schema)


def _classes(latents: pl.DataFrame, models: tuple[str, str]) -> pl.DataFrame:
    names = [SHARED, *(f"only {name}" for name in models), RARE]
    return pl.DataFrame(
        {
            "class": names,
            "latents": [int((latents["class"] == name).sum()) for name in names],
            "by_norm": [int((latents["class_by_norm"] == name).sum()) for name in names],
        }
    )


def _caveats(found: Scaling, facts: Mapping, control: ModelDiff | None, other: "Dictionary | None") -> tuple[str, ...]:
    worst = max(float(found.by_batch[:, m, 0].sum() / found.by_batch[:, m, 1].sum()) for m in (0, 1))
    said = [
        "A latent is called exclusive if a straight line from its codes finds nothing of it in the other model; a "
        "concept that is there in another, curved form would be missed.",
        f"The crosscoder leaves up to {worst:.1%} of a model's variance unexplained; what is in there has no class.",
    ]
    if facts["false_exclusives"]:
        said.append(f"{facts['false_exclusives']} latents are exclusive by decoder norm and shared by latent scaling.")
    if control is None:
        said.append("No comparison of shuffled pairs was given: how many latents look shared by chance is not known.")
    else:
        said.append(
            f"On shuffled pairs {control.facts['shared_share']:.1%} of {control.facts['alive']} latents look shared, "
            f"here {facts['shared_share']:.1%} of {facts['alive']}."
        )
    if other is None:
        said.append("One seed: which latents another training would find again is not known.")
    return tuple(said)
