"""HCEP: explain embeddings by paths through a hierarchy of concepts, and judge the paths.

    1. vectors relative to the hierarchy's centre (embeddings at unit length first)
    2. a path per vector by beam search (`hb_omp`); as comparators, flat OMP over the same differences with as many
       atoms as the hierarchy is deep, and flat OMP over absolute embeddings (one atom names the concept)
    3. where the true concept is known: precision and recall of the support against the true path (in a graph, the best
       of the allowed paths), and how often the last concept is right

Source: methods.md 2.6 (**N**).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from mechvis.errors import BadData, OutOfRange, ShapeMismatch, SplitOverlap
from mechvis.provenance import provenance
from mechvis.record import Record, finite
from mechvis.stats import RESAMPLES, bootstrap, paired_difference
from probes.codes.beam import hb_omp
from probes.codes.hierarchy import Hierarchy, digests
from probes.codes.pursuit import omp
from probes.codes.words import unit

HB, FLAT, NEAREST = "HB-OMP", "OMP", "nearest concept"


class HcepPaths(Record):
    """Paths of some images, from :func:`hcep`.

    Tables: `methods` (precision, recall and accuracy with intervals, where the truth is known; else what each method
    leaves unexplained) and `paths` (per image: the concepts, coefficients, residual). `arrays["codes"]` are the
    coefficients `[image edge]`, for a classifier on top; `arrays["edges"]` the paths.
    """

    KIND: ClassVar[str] = "hcep"

    def of(self, image: int) -> list[tuple[str, float]]:
        """Concepts from the root down, each with its difference's coefficient.

        Raises:
            OutOfRange: no such image.
        """
        paths = self.tables["paths"]
        if not 0 <= image < paths.height:
            raise OutOfRange(f"image {image}: there are 0 to {paths.height - 1}.")
        row = paths.row(image, named=True)
        return list(zip(row["path"], row["coefficients"], strict=True))


def hcep(
    embeddings: Float[np.ndarray, "image d"],
    hierarchy: Hierarchy,
    *,
    truth: Int[np.ndarray, " image"] | None = None,
    beam: int = 16,
    min_gain: float = 1e-3,
    positive: bool = True,
    normalise: bool = True,
    names: Sequence[str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    allow_overlap: bool = False,
) -> HcepPaths:
    """Explain embeddings by paths.

    Args:
        embeddings: images that the hierarchy was not placed by.
        hierarchy: with embeddings.
        truth: true concept per image.
        beam: hypotheses that go on.
        min_gain: an extension must lower the residual by this share of the vector's norm.
        positive: an extension's coefficient must be positive when it is made (**X**); False: either sign.
        normalise: embeddings at unit length first (as `place_by_images` does).
        names: of the images.
        resamples: of the bootstrap.
        seed: of the bootstrap.
        allow_overlap: judge by embeddings that the hierarchy was placed by.

    Returns:
        HcepPaths: methods compared, and a path per image.

    Raises:
        BadData: a hierarchy without embeddings.
        OutOfRange: a true concept that does not exist.
        SplitOverlap: truth is given, and the hierarchy was placed by some of these embeddings.
        ShapeMismatch, NotFinite.

    Example:
        >>> found = hcep(clip.encode_image(images), tree, truth=concepts)                      # doctest: +SKIP
        >>> found.of(0)                                                                        # doctest: +SKIP
        [('round', 0.9), ('ring', 1.1), ('red ring', 0.8)]
    """
    if hierarchy.embeddings is None:
        raise BadData("this hierarchy has no embeddings yet: use .placed(...), or place_by_images, place_by_texts.")
    embeddings = finite("the embeddings", np.asarray(embeddings, dtype=np.float64))
    if embeddings.ndim != 2 or embeddings.shape[1] != len(hierarchy.centre):
        raise ShapeMismatch(f"embeddings should be [image {len(hierarchy.centre)}], got {list(embeddings.shape)}.")
    if names is not None and len(names) != len(embeddings):
        raise ShapeMismatch(f"{len(embeddings)} images need as many names, got {len(names)}.")
    if truth is not None and hierarchy.placed_by is not None and not allow_overlap:
        seen = int(np.isin(digests(embeddings), hierarchy.placed_by).sum())
        if seen:
            raise SplitOverlap(
                f"the hierarchy was placed by {seen} of these {len(embeddings)} images, which then look better "
                "explained than they are. Judge by others, or pass allow_overlap=True."
            )
    x = (unit(embeddings, "embedding") if normalise else embeddings) - hierarchy.centre
    found = hb_omp(x, hierarchy, beam=beam, min_gain=min_gain, positive=positive)
    flat = omp(x, hierarchy.differences, min(hierarchy.depth, len(hierarchy.edges)))
    nearest = 1 + omp(x, hierarchy.embeddings[1:], 1, non_negative=True).support[:, 0]
    codes = np.zeros((len(x), len(hierarchy.edges)))
    rows, picks = (found.edges >= 0).nonzero()
    codes[rows, found.edges[rows, picks]] = found.coefficients[rows, picks]
    size = np.maximum(np.linalg.norm(x, axis=1), 1e-300)
    measured: dict[str, dict[str, np.ndarray]] = {
        HB: {"unexplained": found.residuals / size},
        FLAT: {"unexplained": flat.residuals[:, -1] / size},
    }
    options = {"resamples": resamples, "seed": seed}
    if truth is not None:
        truth = _concepts(truth, len(x), hierarchy)
        supports = {HB: found.edges, FLAT: flat.support}
        for name, edges in supports.items():
            precision, recall = support_quality(edges, truth, hierarchy)
            measured[name] |= {"precision": precision, "recall": recall}
        measured[HB]["accuracy"] = (found.nodes == truth).astype(float)
        measured[NEAREST] = {"accuracy": (nearest == truth).astype(float)}
    ends = np.array(hierarchy.names, dtype=object)
    children = np.array([child for _, child in hierarchy.edges])
    paths = pl.DataFrame(
        {
            "image": np.arange(len(x)) if names is None else list(names),
            "path": [[ends[children[e]] for e in row if e >= 0] for row in found.edges],
            "coefficients": [
                row[: int((edges >= 0).sum())].round(4).tolist()
                for row, edges in zip(found.coefficients, found.edges, strict=True)
            ],
            "unexplained": found.residuals / size,
            **({} if truth is None else {"true": ends[truth].tolist(), "right": found.nodes == truth}),
        }
    )
    facts: dict[str, Any] = {"beam": beam, "min_gain": min_gain, "positive": positive}
    facts |= {"concepts": len(hierarchy.names), "images": len(x)}
    facts |= {"depth": hierarchy.depth, "tree": hierarchy.is_tree, "normalised": normalise}
    if truth is not None:
        gain = paired_difference(measured[HB]["precision"], measured[FLAT]["precision"], **options)
        ends_of = {"mean": gain.effect, "low": gain.low, "high": gain.high}
        facts["precision gained on OMP"] = {
            name: None if np.isnan(value[0]) else float(value[0]) for name, value in ends_of.items()
        }
        chance = np.mean(np.bincount(truth, minlength=len(hierarchy.names))[list(hierarchy.leaves)].max() / len(truth))
        facts["share of the most frequent leaf"] = float(chance)
    return HcepPaths(
        title=f"Paths of {len(x)} images through {len(hierarchy.names)} concepts",
        tables={"methods": _methods(measured, options), "paths": paths},
        arrays={"codes": codes, "edges": found.edges},
        facts=facts,
        words={
            "precision": "share of the picked differences that lie on the true path (the best allowed one in a graph)",
            "recall": "share of the true path's differences that were picked",
            "accuracy": "is the last concept of the path (or the nearest one by cosine) the true one?",
            "unexplained": "norm of the residual over that of the vector",
            HB: "beam search along the hierarchy",
            FLAT: "flat matching pursuit over the same differences, as many as the hierarchy is deep",
            NEAREST: "the concept with the largest cosine, without any path",
        },
        caveats=(
            "A path always exists: look at how much it leaves unexplained before believing it.",
            "Flat OMP picks as many atoms as the hierarchy is deep, also for vectors whose path is shorter.",
        ),
        provenance=provenance(seed={"bootstrap": seed}),
    )


def support_quality(
    edges: Int[np.ndarray, "image pick"], truth: Int[np.ndarray, " image"], hierarchy: Hierarchy
) -> tuple[Float[np.ndarray, " image"], Float[np.ndarray, " image"]]:
    """Precision and recall of picked edges (-1: none) against the true path; in a graph, of the path that fits best.

    A support without any edge has precision 0.
    """
    known = {node: [set(path) for path in hierarchy.paths(int(node))] for node in np.unique(truth)}
    precision, recall = np.zeros(len(edges)), np.zeros(len(edges))
    for row, (picked, node) in enumerate(zip(edges, truth, strict=True)):
        chosen = set(picked[picked >= 0].tolist())
        best = max(known[node], key=lambda path: (len(path & chosen), -len(path)))
        shared = len(best & chosen)
        precision[row] = shared / len(chosen) if chosen else 0.0
        recall[row] = shared / len(best) if best else 1.0
    return precision, recall


def _concepts(truth: Any, n: int, hierarchy: Hierarchy) -> np.ndarray:
    truth = np.asarray(truth)
    if truth.shape != (n,):
        raise ShapeMismatch(f"{n} images need as many true concepts, got {list(truth.shape)}.")
    last = len(hierarchy.names) - 1
    if truth.dtype.kind not in "iu" or truth.min() < 1 or truth.max() > last:
        raise OutOfRange(f"true concepts are numbers 1 to {last} (0 is the root); use hierarchy.index(name).")
    return truth


def _methods(measured: dict[str, dict[str, np.ndarray]], options: dict[str, Any]) -> pl.DataFrame:
    rows = []
    for method, values in measured.items():
        row: dict[str, Any] = {"method": method, "n": len(next(iter(values.values())))}
        for name in ("precision", "recall", "accuracy", "unexplained"):
            if name not in values:
                row |= {name: None, f"{name}_low": None, f"{name}_high": None}
                continue
            known = bootstrap(values[name], **options)
            row |= {name: known.effect[0], f"{name}_low": known.low[0], f"{name}_high": known.high[0]}
        rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None).with_columns(pl.col(pl.Float64).fill_nan(None))
