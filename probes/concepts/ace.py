"""Concepts found without naming them: segments of a class's images, clustered, tested (ACE; methods.md 12, **K**).

1. Cut each image of the class into segments at several resolutions (:mod:`probes.concepts.segments`), enlarge each to
   the model's size, and see what a site holds for it.
2. k-means into about 25 clusters; of each keep the 40 segments nearest to the middle.
3. Drop clusters that come from few images: what occurs once or twice is no concept of the class.
4. Test each cluster for the class with TCAV, against random segments: those of other images, in runs that share no
   segment (:mod:`probes.concepts.tcav`), corrected over all clusters.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.errors import BadData, OutOfRange
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.record import Record
from probes.concepts.cav import Classifier
from probes.concepts.pieces import images_of_class
from probes.concepts.scores import Correction, score_concepts
from probes.concepts.segments import SIZES, How, segments_of
from probes.concepts.tail import class_of, named, pixels_of
from probes.concepts.tcav import Tokens, rows_of, slopes_of


class ACE(Record):
    """Clusters of segments; `table` has one row per cluster, the highest score first; pictures in `pictures`."""

    KIND = "ace"

    def figures(self) -> list[Any]:
        """The nearest segments of each cluster."""
        from mechvis.plots.concept_panel import concept_panel
        from mechvis.report.blocks import Figure

        captions = [
            f"{row['concept']}: {row['score']:.2f}" + (" *" if row["significant"] else "")
            for row in self.table.iter_rows(named=True)
        ][:10]
        panel = concept_panel(list(self.arrays["pictures"][:10]), captions=captions, title=self.title)
        return [Figure(panel, "Segments nearest to each cluster's middle; *: significant for the class.", raster=True)]


def ace(
    model: Any,
    images: ImageSet,
    random: ImageSet,
    target: int | str,
    *,
    site: str | None = None,
    tokens: Tokens = "read",
    how: How = "superpixels",
    sizes: Sequence[int] = SIZES,
    enlarge: bool = True,
    n_clusters: int = 25,
    keep: int = 40,
    least_images: float = 0.25,
    most: int = 40,
    random_images: int = 60,
    runs: int = 5,
    classifier: Classifier = "logistic",
    correction: Correction = "holm",
    level: float = 0.05,
    chosen: Literal["labelled", "predicted"] = "labelled",
    explained: int = 64,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> ACE:
    """Find and test concepts of a class among segments of its images (Ghorbani et al. 2019; **K**).

    Args:
        model: a wrapped model with a head.
        images: images with the class; segments come from one half of the class's images, the other half is explained.
        random: other images, whose segments are the random concept.
        target: class by name or number.
        site: where; default the stream after the first half of the blocks.
        tokens: see :func:`probes.concepts.tcav.tcav`.
        how: superpixels by k-means on colour and place (SLIC is not needed), or cells of a grid.
        sizes: segments per image at each resolution.
        enlarge: enlarge each segment to the whole image (**K**); False leaves it in its place and size, where
            enlarging would make another texture of it (**X**).
        n_clusters: clusters (**K**: 25).
        keep: segments kept per cluster, the nearest to its middle (**K**: 40).
        least_images: a cluster from a smaller share of the images is dropped (**X**).
        most: images that are cut into segments.
        random_images: random images that are cut.
        runs: independent runs of the test; each needs segments of its own, so they are few here, and the random ones
            many.
        classifier: see :mod:`probes.concepts.cav`.
        correction: over the clusters.
        level: of significance.
        chosen: images of the class: labelled, or predicted.
        explained: at most so many images are explained.
        batch_size: images per forward.
        seed: of everything random.
        progress: show a progress bar.

    Returns:
        ACE: per cluster the TCAV columns, `segments`, `images` (share of the images it comes from), and, where images
        have masks, `object`: share of the segments' pixels that is on the object.

    Raises:
        BadData: too few images or segments; no cluster is left.
        SplitOverlap: random images among the class's.
        UnknownName, OutOfRange.

    Example:
        >>> found = ace(model, images, random, "star")                                             # doctest: +SKIP
        >>> found.table.filter(pl.col("significant"))                                              # doctest: +SKIP
    """
    number = class_of(model, target)
    if not 0 <= least_images < 1 or n_clusters < 2 or keep < 4 * runs:
        raise OutOfRange(
            f"least_images={least_images} (0 to 1), n_clusters={n_clusters} (2 or more), keep={keep} (at least 4 for "
            f"each of {runs} runs)."
        )
    refuse_overlap(images, random, what="the class's images and the random ones")
    site = site or f"blocks.{max(len(model.parts.blocks) // 2 - 1, 0)}.hook_resid_post"
    own = images_of_class(model, named(model, images), number, chosen, batch_size)
    order = np.random.default_rng(seed).permutation(len(own))
    cut, shown = own[np.sort(order[: len(own) // 2])][:most], own[np.sort(order[len(own) // 2 :])][:explained]
    with track(len(cut) + min(random_images, len(random)), "segments", " images", show=progress) as bar:
        pieces, owner, on_object = _segments(model, cut, how, sizes, enlarge, seed, bar)
        others, _, _ = _segments(model, random[:random_images], how, sizes, enlarge, seed, bar)
    rows, random_rows = (rows_of(model, part.to(model.device, model.dtype), site, tokens) for part in (pieces, others))
    clusters, nearest = _clusters(rows, owner, len(cut), n_clusters, keep, least_images, seed)
    if not clusters:
        raise BadData(
            f"no cluster of {n_clusters} has {4 * runs} segments from {least_images:.0%} of the {len(cut)} images: ask "
            "for fewer clusters or runs, or give more images."
        )
    concepts = {f"s{i}": rows[chosen] for i, chosen in enumerate(nearest)}
    concepts = {name: value for name, value in concepts.items() if len(value) >= 4 * runs}
    tested = score_concepts(
        concepts,
        random_rows,
        {str(target): slopes_of(model, shown, site, number, tokens, batch_size=batch_size)},
        runs=runs,
        classifier=classifier,
        correction=correction,
        level=level,
        seed=seed,
    )
    about = []
    for name in concepts:
        chosen = nearest[int(name[1:])]
        row = {"concept": name, "segments": len(chosen), "of_images": len(np.unique(owner[chosen])) / len(cut)}
        about.append(row | ({"object": float(on_object[chosen].mean())} if on_object is not None else {}))
    table = tested.table.drop("images").join(pl.DataFrame(about), on="concept").sort("score", descending=True)
    pictures = np.stack([_colours(model, pieces[nearest[int(name[1:])][:6]]) for name in table["concept"]])
    return ACE(
        title=f"Segments of {target!r} at {site}",
        tables={"clusters": table},
        arrays={"pictures": pictures, "centres": np.stack([clusters[int(name[1:])] for name in table["concept"]])},
        facts={
            **tested.facts,
            "site": site,
            "segments": len(pieces),
            "random_segments": len(others),
            "cut_images": len(cut),
            "explained_images": len(shown),
            "clusters_left": len(concepts),
        },
        words={
            **tested.words,
            "of_images": "share of the cut images that the cluster's segments come from",
            "object": "share of the segments' pixels that is on the object",
        },
        caveats=(
            *tested.caveats,
            "A segment on a flat ground is an image that the model has never seen: a cluster may be about the outline "
            "of the segment, or about a texture at a scale that real images do not have (enlarge=False avoids that).",
        ),
        provenance=provenance(
            model=model, images=images, seed=seed, settings={"how": how, "sizes": list(sizes), "enlarge": enlarge}
        ),
    )


def _segments(
    model: Any, images: ImageSet, how: How, sizes: Sequence[int], enlarge: bool, seed: int, bar: Any
) -> tuple[Tensor, np.ndarray, np.ndarray | None]:
    """Segments of all images, the image of each, and how much of each is on the object."""
    found, owner, on_object = [], [], []
    masked = images.read_mask is not None
    for i in range(len(images)):
        pixels = pixels_of(model, images[i : i + 1]).cpu()
        colours = model.preprocess.unnormalise(pixels)[0].permute(1, 2, 0).double().numpy()
        pieces, masks = segments_of(pixels[0], colours, how, sizes, enlarge=enlarge, seed=seed)
        found.append(pieces)
        owner += [i] * len(pieces)
        if masked:
            mask = images[i : i + 1].masks_for(model.preprocess)[0].numpy()
            on_object += [float(mask[piece].mean()) for piece in masks]
        bar.update(1)
    pieces = torch.cat(found)
    if not len(pieces):
        raise BadData("no segment was found: ask for fewer, larger ones.")
    return pieces, np.array(owner), np.array(on_object) if masked else None


def _clusters(
    rows: np.ndarray, owner: np.ndarray, n_images: int, n_clusters: int, keep: int, least_images: float, seed: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Middles of the clusters that are left, and their nearest segments."""
    from sklearn.cluster import KMeans

    if len(rows) < n_clusters:
        raise BadData(f"{len(rows)} segments cannot make {n_clusters} clusters: give more images.")
    model = KMeans(n_clusters, n_init=3, random_state=seed).fit(rows)
    middles, nearest = [], []
    for cluster, middle in enumerate(model.cluster_centers_):
        own = np.flatnonzero(model.labels_ == cluster)
        order = own[np.argsort(((rows[own] - middle) ** 2).sum(1), kind="stable")][:keep]
        if len(np.unique(owner[own])) >= least_images * n_images and len(order) >= 4:
            middles.append(middle)
            nearest.append(order)
    return middles, nearest


def _colours(model: Any, pieces: Tensor) -> np.ndarray:
    colours = model.preprocess.unnormalise(pieces.float())
    return (colours * 255).round().byte().permute(0, 2, 3, 1).numpy()
