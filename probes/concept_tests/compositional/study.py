"""Compositional concept extraction: an attribute's subspace is found, its values are the clusters in it, and it is
taken away before the next is looked for.

1. centre the representations, and hold some images out;
2. learn a subspace and its clusters (:mod:`probes.concept_tests.compositional.rotation`) for every number of clusters,
   from several starts; keep the one with the highest silhouette on held-out images. Among those that are within `tie`
   of it, keep the one whose subspace holds most variance (X): a square seen from one side is two clusters as tight as
   the four that it has, and the plain rule then falls for half of an attribute;
3. concepts = centres of the clusters, `centre R^T`;
4. `Z <- Z - Z R R^T`, and again from 2, in the space that is left (X): a direction that was taken away has no variance
   any more, and would make any clusters beside it look tight.

Concepts of different attributes are orthogonal by construction, those of one attribute are not. Beware: the silhouette
prefers too many clusters; rotations inside a subspace mean nothing, only the centres do; attributes come in the order
of their strength.

Source: CCE, methods2.md 17.2 (**C**).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Int

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.record import Record
from probes.concept_tests.compositional.rotation import learn_rotation, matrix, silhouette

_WORDS = {
    "step": "which subspace, first to last",
    "clusters": "how many clusters, chosen by the held-out silhouette",
    "silhouette": "on the images that the subspace was learnt from",
    "held_out": "silhouette of other images, each in its nearest cluster",
    "variance": "share of the variance of all representations inside the subspace",
    "images": "images of the cluster",
    "length": "length of the concept, the cluster's centre",
}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CompositionalConcepts(Record):
    """What :func:`compositional_concepts` found. Tables: `steps`, `choices` (every number of clusters), `concepts`.

    Arrays: `mean` `[d]`; per step `rotation/0` `[d m]` and `concepts/0` `[cluster d]`.
    """

    KIND = "compositional_concepts"

    @property
    def n_steps(self) -> int:
        """How many subspaces."""
        return self.table.height

    def rotation(self, step: int) -> Float[np.ndarray, "d m"]:
        """Orthonormal columns of a step's subspace.

        Raises:
            OutOfRange: no such step.
        """
        return self.arrays[f"rotation/{self._step(step)}"]

    def concepts(self, step: int) -> Float[np.ndarray, "cluster d"]:
        """The concepts of a step.

        Raises:
            OutOfRange: no such step.
        """
        return self.arrays[f"concepts/{self._step(step)}"]

    def assign(self, z: Float[np.ndarray, "image d"]) -> Int[np.ndarray, "step image"]:
        """The cluster of each image at each step; also for images that were not there before.

        Raises:
            ShapeMismatch, NotFinite: not representations of this width.
        """
        points = matrix(z).numpy()
        if points.shape[1] != len(self.arrays["mean"]):
            raise ShapeMismatch(f"the concepts are {len(self.arrays['mean'])} wide, got {list(points.shape)}.")
        # Subspaces are orthogonal, so what was taken away before does not change what a later one sees.
        centred = points - self.arrays["mean"]
        found = []
        for step in range(self.n_steps):
            rotation, concepts = self.rotation(step), self.concepts(step)
            found.append(_nearest(centred @ rotation, concepts @ rotation))
        return np.stack(found)

    def _step(self, step: int) -> int:
        if not 0 <= step < self.n_steps:
            raise OutOfRange(f"step {step} of {self.n_steps} (0 to {self.n_steps - 1}).")
        return step


def compositional_concepts(
    z: Float[np.ndarray, "image d"],
    *,
    m: int = 2,
    steps: int = 2,
    clusters: Sequence[int] = tuple(range(2, 10)),
    restarts: int = 3,
    epochs: int = 300,
    rate: float = 0.02,
    batch: int = 1000,
    held_out: float = 0.3,
    tie: float = 0.05,
    seed: int = 0,
    progress: bool = True,
    model: Any = None,
    images: Any = None,
) -> CompositionalConcepts:
    """Find subspaces whose clusters are concepts that combine.

    Args:
        z: representations.
        m: width of each subspace (**C**: 2 or 3, up to 10 for CLIP).
        steps: how many subspaces.
        clusters: numbers of clusters to try (**C**).
        restarts: random starts for each (**C**).
        epochs: steps of Adam for each start (**C**).
        rate: of Adam (X).
        batch: images per step at most.
        held_out: share of the images that choose the number of clusters (X).
        tie: silhouettes this near to the best count as equal (X); 0 for the plain rule.
        seed: of everything random.
        progress: show a progress bar.
        model: whose name goes into the record.
        images: likewise.

    Raises:
        ShapeMismatch, NotFinite: no `[image d]` of finite numbers.
        OutOfRange: more dimensions than there are, no steps, a share outside (0, 1).
        BadData: all images alike.

    Example:
        >>> found = compositional_concepts(z, m=2, steps=3)                                        # doctest: +SKIP
        >>> found.assign(z)[0]                                                                     # doctest: +SKIP
    """
    points = matrix(z).numpy()
    n, d = points.shape
    if steps < 1 or m < 1 or steps * m > d:
        raise OutOfRange(f"steps={steps} of m={m} dimensions need from 1 to {d} of them, the width of the data.")
    if not clusters or restarts < 1 or not 0 < held_out < 1 or tie < 0:
        raise OutOfRange(
            f"clusters={list(clusters)} (some), restarts={restarts} (from 1), held_out={held_out} (0 to 1), tie={tie} "
            "(from 0)."
        )
    order = np.random.default_rng(seed).permutation(n)
    last = round(n * held_out)
    test, train = order[:last], order[last:]
    if min(len(test), len(train)) <= max(clusters):
        raise BadData(
            f"{len(train)} images to learn from and {len(test)} held out are too few for {max(clusters)} clusters."
        )
    mean = points[train].mean(0)
    centred = points - mean
    basis, left = np.eye(d), centred
    total = np.square(centred[train]).sum()
    if not total > 0:
        raise BadData("all representations are the same; there are no concepts to find.")
    arrays, found, choices, concepts = {"mean": mean}, [], [], []
    with track(steps * len(clusters) * restarts, "compositional concepts", " fits", show=progress) as bar:
        for step in range(steps):
            tried = []
            for k in clusters:
                for restart in range(restarts):
                    rotation, centres, value = learn_rotation(
                        left[train], m, k, epochs=epochs, rate=rate, batch=batch, seed=seed + 1000 * step + restart
                    )
                    score = _silhouette(left[test] @ rotation, centres, batch)
                    held = float(np.square(left[train] @ rotation).sum() / total)
                    row = {"step": step, "clusters": k, "restart": restart, "objective": value, "held_out": score}
                    choices.append({**row, "variance": held})
                    tried.append((score, held, k, rotation, centres))
                    bar.update(1)
            best = max(one[0] for one in tried)
            equal = [one for one in tried if one[0] >= best - tie]
            score, held, k, rotation, centres = max(equal, key=lambda one: one[1])
            inside = left @ rotation
            whole = basis @ rotation
            arrays |= {f"rotation/{step}": whole, f"concepts/{step}": centres @ whole.T}
            sizes = np.bincount(_nearest(inside, centres), minlength=k)
            found.append(
                {
                    "step": step,
                    "clusters": k,
                    "silhouette": _silhouette(inside[train], centres, batch),
                    "held_out": score,
                    "variance": held,
                }
            )
            concepts += [
                {"step": step, "cluster": j, "images": int(sizes[j]), "length": float(np.linalg.norm(centres[j]))}
                for j in range(k)
            ]
            # The directions of what is left that are orthogonal to this subspace.
            rest = np.linalg.qr(rotation, mode="complete")[0][:, m:]
            basis, left = basis @ rest, left @ rest
    settings = {
        "m": m,
        "steps": steps,
        "clusters": list(clusters),
        "restarts": restarts,
        "epochs": epochs,
        "rate": rate,
    }
    return CompositionalConcepts(
        title=f"{steps} subspaces of {m} dimensions with {[row['clusters'] for row in found]} concepts",
        tables={"steps": pl.DataFrame(found), "choices": pl.DataFrame(choices), "concepts": pl.DataFrame(concepts)},
        arrays=arrays,
        facts={"images": n, "held out": len(test), "width": d, **settings},
        words=_WORDS,
        caveats=(
            "The silhouette tends to prefer more clusters than there are values: judge clusters by what is in them.",
            "Directions inside a subspace mean nothing by themselves; only the concepts do.",
        ),
        provenance=provenance(model=model, images=images, seed=seed, settings=settings),
    )


def _nearest(points: np.ndarray, centres: np.ndarray) -> Int[np.ndarray, " image"]:
    return np.square(points[:, None] - centres).sum(2).argmin(1)


def _silhouette(points: np.ndarray, centres: np.ndarray, batch: int) -> float:
    """Of images in their nearest clusters; -1 if that leaves one cluster only."""
    labels = _nearest(points, centres)[:batch]
    if len(np.unique(labels)) < 2:
        return -1.0
    return float(silhouette(torch.from_numpy(points[:batch]), torch.from_numpy(labels)))
