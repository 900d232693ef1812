"""What part of the embedding's variation do heads write, and what MLPs: overall, and within each property.

Of a term `c` of the embedding `z`, `share = tr Cov(c, z) / tr Cov(z, z)` adds up to one over all terms, exactly. Taken
inside the subspace that a property's values span (:mod:`probes.textspan.inside`), it says who writes that property
into the embedding. A text span can only name what heads write: where the shares of MLPs are large, it tells a small
part of the story.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float

from mechvis.errors import ShapeMismatch
from mechvis.provenance import provenance
from mechvis.record import Record
from probes.textspan.reading import LAYERS, Layers, read, tower_of

WORDS = {
    "term": "a head, an MLP, a bias, or everything before the chosen layers",
    "kind": "what it is",
    "within": "everything, or the subspace of a property",
    "share": "share of the embedding's variance over images; shares of all terms add up to one",
    "n": "images",
}


def term_shares(
    clip: Any,
    images: Any,
    subspaces: Mapping[str, Float[np.ndarray, "k d_embed"]] | None = None,
    *,
    layers: Layers = LAYERS,
    batch_size: int = 32,
    progress: bool = True,
) -> Record:
    """Shares of all terms in the embedding's variance, in one pass.

    Args:
        clip: a wrapped CLIP model.
        images: an `ImageSet`, or pixels.
        subspaces: name -> orthonormal basis, such as `subspace(bank, pool, "colour")`; besides everything.
        layers: layers with terms of their own.
        batch_size: images per forward pass.
        progress: show a progress bar.

    Returns:
        Record: `terms`, one row per term and subspace; `kinds`, added up by kind.

    Raises:
        ShapeMismatch: a basis that is not orthonormal, or of another width.

    Example:
        >>> term_shares(clip, images, {"colour": subspace(bank, pool, "colour")}).tables["kinds"]   # doctest: +SKIP
    """
    tower = tower_of(clip)
    names: list[str] = []
    kinds: list[str] = []
    bases: dict[str, np.ndarray | None] = {"everything": None}
    for name, basis in (subspaces or {}).items():
        basis = np.asarray(basis, float)
        if basis.ndim != 2 or not np.allclose(basis @ basis.T, np.eye(len(basis)), atol=1e-6):
            raise ShapeMismatch(f"the basis of {name!r} is not orthonormal rows [k d_embed].")
        bases[name] = basis
    total, products, sums = 0, {name: 0.0 for name in bases}, {name: (0.0, 0.0) for name in bases}
    shift: np.ndarray | None = None
    for batch in read(clip, images, layers=layers, batch_size=batch_size, progress=progress):
        names = [*batch.names, *batch.others]
        kinds = ["head"] * len(batch.names) + [batch.kinds[name] for name in batch.others]
        terms = np.concatenate([batch.heads, np.stack(list(batch.others.values()), axis=1)], axis=1)
        if shift is None:
            # Near the mean from the start, so that products of large means do not drown the variance.
            shift = terms.mean(0)
        terms = terms - shift
        total += len(terms)
        for name, basis in bases.items():
            if basis is not None and basis.shape[1] != terms.shape[2]:
                raise ShapeMismatch(f"the basis of {name!r} has {basis.shape[1]} columns, embeddings {terms.shape[2]}.")
            along = terms if basis is None else terms @ basis.T
            whole = along.sum(1)
            products[name] = products[name] + np.einsum("itd,id->t", along, whole)
            sums[name] = (sums[name][0] + along.sum(0), sums[name][1] + whole.sum(0))
    rows = []
    for name in bases:
        spread = products[name] / total - np.einsum("td,d->t", sums[name][0] / total, sums[name][1] / total)
        share = spread / spread.sum()
        rows += [
            {"term": term, "kind": kind, "within": name, "share": float(share[i]), "n": total}
            for i, (term, kind) in enumerate(zip(names, kinds, strict=True))
        ]
    table = pl.DataFrame(rows)
    by_kind = table.group_by("within", "kind", maintain_order=True).agg(pl.col("share").sum(), pl.col("n").first())
    return Record(
        kind="term_shares",
        title=f"Who writes the embedding's variance, {total} images",
        tables={"kinds": by_kind, "terms": table},
        facts={"n": total},
        words=WORDS,
        caveats=(
            "A share can be negative: a term that varies against the embedding.",
            "Direct effects: a head whose work is read by a later MLP counts under that MLP.",
        ),
        provenance=provenance(model=tower, images=images if hasattr(images, "fingerprint") else None),
    )
