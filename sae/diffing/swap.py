"""Causal swap: latents exchanged between two images inside the models, to see whether a class is what it says.

1. Images come in pairs, base and source, that differ in something (`mechvis.data.scene_pairs`). Every model runs on
   both.
2. Codes of base and source; in the base's codes, the latents of a group get the source's values. The difference in what
   the crosscoder writes is added to each model's activation in its run on the base, so what the crosscoder does not
   explain stays as it was.
3. Moved: ⟨swapped - base, source - base⟩ / ‖source - base‖² of the outputs, summed over pairs before dividing: 0
   nothing, 1 as far as the whole source. A shared latent moves both models, an exclusive one only its own.
4. Control: groups of as many random latents whose activity on these images is most like that of the group's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from mechvis import edits
from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.stats import interval_of

if TYPE_CHECKING:
    from sae.dictionary import Dictionary

_NEAREST = 4
"""Random latents are drawn among that many of the nearest in activity, per latent of the group."""


@dataclass(frozen=True, kw_only=True)
class SwapSite:
    """Where a site of the crosscoder is."""

    model: Any
    """A wrapped model."""
    site: str
    """The site's name in that model."""


def causal_swap(
    d: "Dictionary",
    sites: Mapping[str, SwapSite],
    base: Any,
    source: Any,
    groups: Mapping[str, Sequence[int]],
    *,
    tokens: Sequence[int] | None = None,
    draws: int = 10,
    batch: int = 100,
    seed: int = 0,
) -> Record:
    """Exchange groups of latents between the images of pairs, in every model.

    Args:
        d: the crosscoder.
        sites: by the crosscoder's own names of sites: the model, and the site in it.
        base: images.
        source: as many images, each the partner of the base of the same number.
        groups: latents by name of the group.
        tokens: at which tokens latents are exchanged; None: at all. Those that the crosscoder was trained on.
        draws: random groups per group.
        batch: pairs at a time.
        seed: of the random groups and the bootstrap.

    Returns:
        A table with one row per group and model: `moved` with a 95 % interval over pairs, and the mean and largest of
        the random groups.

    Raises:
        UnknownName: a site of the crosscoder is missing.
        ShapeMismatch: not as many sources as bases.
        OutOfRange: a latent that it does not have.
        BadData: no group, an empty one, or outputs that do not differ.

    Example:
        >>> sites = {"before/x": SwapSite(model=before, site="blocks.3.hook_resid_post"), ...}     # doctest: +SKIP
        >>> causal_swap(d, sites, pairs.first, pairs.second, {"only after": [3, 9]})               # doctest: +SKIP
    """
    _check(d, sites, base, source, groups)
    tokens = None if tokens is None else list(tokens)
    seen = _activity(d, sites, base, source, batch, tokens)
    drawn = {name: similar(seen, list(latents), draws, seed) for name, latents in groups.items()}
    asked = {(name, None): list(latents) for name, latents in groups.items()}
    asked |= {(name, i): latents for name, some in drawn.items() for i, latents in enumerate(some)}
    tops: dict[Any, list[np.ndarray]] = {}
    for start in range(0, len(base), batch):
        acts_base, out_base = _run(sites, base[start : start + batch], tokens)
        acts_source, out_source = _run(sites, source[start : start + batch], tokens)
        codes_base, codes_source = (_codes(d, acts) for acts in (acts_base, acts_source))
        written = d.decode(codes_base, like=d.ends.read(acts_base)).detach()
        for key, latents in asked.items():
            swapped = codes_base.clone()
            swapped[..., latents] = codes_source[..., latents]
            change = d.ends.split(d.decode(swapped, like=d.ends.read(acts_base)) - written)
            for model, names in _models(sites).items():
                made = [
                    edits.call(sites[n].site, _adding(change[n]), tokens=tokens)
                    for n in names
                    if change[n].abs().max() > 0  # an edit that changes nothing would warn
                ]
                output = out_base[model]
                if made:
                    output = sites[names[0]].model.run(base[start : start + batch], edits=made).output.double()
                whole = out_source[model] - out_base[model]
                moved = (output - out_base[model]) * whole
                tops.setdefault((*key, model), []).append(
                    torch.stack([moved.flatten(1).sum(1), whole.square().flatten(1).sum(1)], 1).numpy()
                )
    parts = {key: np.concatenate(value) for key, value in tops.items()}
    lines = []
    for name, latents in groups.items():
        for model in _models(sites):
            top, bottom = parts[name, None, model].T
            if not bottom.sum() > 0:
                raise BadData("base and source give the same outputs, so nothing can be moved: pair other images.")
            value, low, high = interval_of(lambda t, b: t.sum() / b.sum(), top, bottom, seed=seed)
            random = [parts[name, i, model].sum(0) for i in range(draws)]
            shares = [float(t / b) for t, b in random]
            lines.append({"group": name, "model": model, "latents": len(latents), "moved": value, "moved_low": low,
                          "moved_high": high, "random": float(np.mean(shares)) if shares else None,
                          "random_most": max(shares) if shares else None, "n": len(top)})  # fmt: skip
    return Record(
        kind="causal_swap",
        title="Latents exchanged between images",
        tables={"groups": pl.DataFrame(lines)},
        facts={"draws": draws, "groups": {name: [int(i) for i in latents] for name, latents in groups.items()}},
        words={
            "moved": "how far the output went from the base's to the source's, 0 to 1; interval over pairs",
            "random": "mean over groups of as many random latents of similar activity",
            "random_most": "the largest of them",
        },
        caveats=(
            "What is exchanged is what the crosscoder writes; a class that moves little may be unexplained in it.",
        ),
        provenance=provenance(images=base, seed=seed, dictionary=d.fingerprint),
    )


def similar(activity: Float[np.ndarray, " latent"], group: list[int], draws: int, seed: int) -> list[list[int]]:
    """Random groups of the same size: each latent replaced by one whose activity is near its own, without repetition.

    Args:
        activity: of every latent, e.g. its mean code times the norm of its decoder.
        group: latents to stay away from and to resemble.
        draws: groups.
        seed: of the draws.

    Raises:
        BadData: too few other latents are active.
    """
    generator = np.random.default_rng(seed)
    free = np.setdiff1d(np.flatnonzero(activity > 0), group)
    if draws and len(free) < len(group):
        raise BadData(f"{len(free)} other latents are active, too few for random groups of {len(group)}.")
    found = []
    for _ in range(draws):
        taken: list[int] = []
        for latent in generator.permutation(group):
            left = np.setdiff1d(free, taken)
            near = left[np.argsort(np.abs(np.log(activity[left] / max(activity[latent], 1e-12))), kind="stable")]
            taken.append(int(generator.choice(near[: _NEAREST * len(group)])))
        found.append(taken)
    return found


def _check(d: Any, sites: Mapping[str, SwapSite], base: Any, source: Any, groups: Mapping[str, Sequence[int]]) -> None:
    for name in d.ends.writes:
        if name not in sites:
            raise unknown("site of the crosscoder", name, sites)
    if len(base) != len(source) or not len(base):
        raise ShapeMismatch(f"{len(base)} bases need as many sources, got {len(source)}.")
    if not groups or not all(len(latents) for latents in groups.values()):
        raise BadData("every group needs at least one latent.")
    for name, latents in groups.items():
        if bad := [i for i in latents if not 0 <= i < d.n_codes]:
            raise OutOfRange(f"the group {name!r} has latent {bad[0]}; this crosscoder has 0 to {d.n_codes - 1}.")


def _models(sites: Mapping[str, SwapSite]) -> dict[str, list[str]]:
    """Names of sites by model; a model is called as what stands before the slash."""
    found: dict[int, list[str]] = {}
    for name, at in sites.items():
        found.setdefault(id(at.model), []).append(name)
    return {names[0].split("/", 1)[0]: names for names in found.values()}


@torch.no_grad()
def _run(
    sites: Mapping[str, SwapSite], images: Any, tokens: list[int] | None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Activations by the crosscoder's names `[image token d]`, outputs by model."""
    acts, outputs = {}, {}
    for model, names in _models(sites).items():
        run = sites[names[0]].model.run(images, capture=[sites[n].site for n in names])
        for n in names:
            acts[n] = run.cache[sites[n].site] if tokens is None else run.cache[sites[n].site][:, tokens]
        outputs[model] = run.output.double()
    return acts, outputs


@torch.no_grad()
def _codes(d: "Dictionary", acts: Mapping[str, Tensor]) -> Tensor:
    return d.encode(acts).detach()


@torch.no_grad()
def _activity(
    d: "Dictionary", sites: Mapping[str, SwapSite], base: Any, source: Any, batch: int, tokens: list[int] | None
) -> np.ndarray:
    """Mean code over all tokens, times the norm of what it writes."""
    total, n = torch.zeros(d.n_codes, dtype=torch.float64), 0
    for images in (base, source):
        for start in range(0, len(images), batch):
            codes = _codes(d, _run(sites, images[start : start + batch], tokens)[0])
            total += codes.double().sum((0, 1)).cpu()
            n += codes.shape[0] * codes.shape[1]
    return (total / n * d.W_dec.detach().double().norm(dim=1).cpu()).numpy()


def _adding(change: Tensor):
    return lambda x: x + change.detach().to(x)
