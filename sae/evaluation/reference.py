"""Rows of reference images: what baselines are fitted on, and what "the mean" of a mean ablation is.

They are other images than those that are judged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.errors import BadData, SplitOverlap, unknown
from mechvis.progress import track
from sae import baselines
from sae.evaluation.place import Place

if TYPE_CHECKING:
    from sae.dictionary import Dictionary

BASELINES = ("pca", "pca_rank", "ica", "kmeans", "nmf", "semi_nmf", "random", "identity", "zero", "mean")
FIT_ROWS = 16_384
"""Rows that baselines are fitted on, drawn from all rows of the reference images."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reference:
    """What reference images give."""

    means: dict[str, Tensor]
    """Mean activation of each site by position, with all its axes."""
    rows: dict[str, Float[Tensor, "row d"]]
    """Some rows of each site, the same ones everywhere."""


@torch.no_grad()
def reference_rows(
    model: Any,
    images: Any,
    places: Mapping[str, Place],
    *,
    batch_size: int = 64,
    n_rows: int = FIT_ROWS,
    seed: int = 0,
    progress: bool = True,
) -> Reference:
    """Run the reference images once.

    Args:
        model: a wrapped model.
        images: an `ImageSet`.
        places: what is taken of sites, by any name.
        batch_size: images per forward.
        n_rows: rows that are kept.
        seed: which.
        progress: show a progress bar.
    """
    by_site = {place.site: place for place in places.values()}
    sites = list(by_site)
    generator = torch.Generator().manual_seed(seed)
    totals: dict[str, Tensor] = {}
    kept: dict[str, list[Tensor]] = {site: [] for site in sites}
    each = max(1, -(-n_rows // len(images)))
    with track(len(images), "reference images", " images", show=progress) as bar:
        for start in range(0, len(images), batch_size):
            run = model.run(images[start : start + batch_size], capture=sites, stop_when_captured=True)
            order = None
            for site in sites:
                value = run.cache[site]
                total = value.sum(0, dtype=torch.float64)
                totals[site] = totals[site] + total if site in totals else total
                rows = by_site[site].take(value)
                if order is None:
                    drawn = [torch.randperm(rows.shape[1], generator=generator)[:each] for _ in range(len(rows))]
                    order = torch.stack(drawn).to(rows.device)
                kept[site].append(rows[torch.arange(len(rows), device=rows.device)[:, None], order].flatten(0, 1))
            bar.update(len(value))
    return Reference(
        means={site: (total / len(images)).to(model.dtype) for site, total in totals.items()},
        rows={site: torch.cat(parts) for site, parts in kept.items()},
    )


def baseline(name: str, rows: Mapping[str, Tensor], n_latents: int, k: int, seed: int = 0) -> "Dictionary":
    """A baseline of the size of a dictionary.

    Args:
        name: pca (all directions, the k largest coefficients of each row), pca_rank (the first k directions), ica,
            kmeans, nmf (activations shifted to be never negative), semi_nmf, random, identity, zero, mean.
        rows: activations by site.
        n_latents: latents of the dictionary it stands beside; fewer where a method cannot find as many.
        k: active latents per row.
        seed: of what is random.

    Raises:
        UnknownName: none of these.
    """
    width = sum(t.shape[1] for t in rows.values())
    n_rows = len(next(iter(rows.values())))
    most = min(width, n_rows)
    k = max(1, min(k, n_latents))
    few = min(n_latents, most)
    made = {
        "pca": lambda: baselines.pca(rows, k=min(k, most)),
        "pca_rank": lambda: baselines.pca(rows, min(k, most)),
        "ica": lambda: baselines.ica(rows, k=min(k, most), seed=seed),
        "kmeans": lambda: baselines.kmeans(rows, min(n_latents, n_rows), seed=seed),
        "nmf": lambda: baselines.nmf(rows, few, k=min(k, few), shift=True, seed=seed),
        "semi_nmf": lambda: baselines.semi_nmf(rows, few, k=min(k, few), seed=seed),
        "random": lambda: baselines.random_dictionary(rows, n_latents, k=k, seed=seed),
        "identity": lambda: baselines.identity(rows),
        "zero": lambda: baselines.zero(rows),
        "mean": lambda: baselines.mean(rows),
    }
    if name not in made:
        raise unknown("baseline", name, BASELINES)
    return made[name]()


def refuse_training_images(name: str, dictionary: Any, images: Any, trained_on: Any = None) -> str | None:
    """Raise where a dictionary is judged on images that it was trained on, as far as that can be known.

    Args:
        name: of the dictionary.
        dictionary: its provenance says what it was trained on.
        images: that judge.
        trained_on: the images that trained it, where they are at hand: then every image is compared.

    Returns:
        What could not be checked, in a sentence; None where it could.

    Raises:
        SplitOverlap: the same set, or shared images.
        BadData: `trained_on` is no image set.
    """
    from mechvis.data.images import ImageSet, refuse_overlap

    if trained_on is not None:
        if not isinstance(trained_on, ImageSet):
            raise BadData(f"trained_on is an ImageSet, got {type(trained_on).__name__}.")
        refuse_overlap(trained_on, images, what=f"images that trained {name!r} and images that judge it")
        return None
    known = dictionary.provenance.get("rows")
    data = known.get("data", {}) if isinstance(known, Mapping) else {}
    if not data:
        return f"{name}: nothing says which images trained it; give trained_on= to have them compared."
    if data.get("fingerprint") == images.fingerprint:
        raise SplitOverlap(
            f"{name!r} was trained on these very images ({data.get('name')}, {data.get('n')} images): judge it on "
            "others, e.g. images.split(...), or give allow_overlap=True if you know why."
        )
    trained = f"{name}: trained on {data.get('name', 'images')} ({data.get('n', '?')} images)"
    if data.get("fingerprint"):
        return f"{trained}; not the same set, but they may share images. Give trained_on= to have them compared."
    return f"{trained}; whether they share images with these is not known. Give trained_on= to have them compared."
