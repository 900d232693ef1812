"""Taking a spurious cue out of a zero-shot classifier by its heads, with the controls of the recipe (methods.md 2.3).

The released recipe (**C**) puts three things at their mean over images, in the sum of terms of the embedding: the
chosen heads (those about the cue), *all* layers but the last four, and *all* MLPs. So a part of any gain may come from
the other two. Every row of that recipe stands here beside the others alone, beside the chosen heads alone, beside as
many random heads, and beside the chosen heads ablated in the forward pass, where later blocks react.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch

from mechvis import stats
from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.errors import BadData, OutOfRange
from mechvis.means import means
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.store.forward import reader
from probes.textspan.head_sites import head_sites, mean_edits
from probes.textspan.reading import chosen, read, tower_of
from probes.textspan.tasks import Task, check_tasks

LAST = 4
"""Layers from the end that the recipe keeps."""

WORDS = {
    "ablated": "what is at its mean over the reference images",
    "accuracy": "over all images; low and high: 95 % interval over images",
    "worst": "accuracy of the worst group; worst_low and worst_high: its interval",
    "worst_group": "which group that is",
    "heads": "how many heads were chosen (or drawn)",
    "n": "images",
}


def remove_cue(
    clip: Any,
    images: ImageSet,
    heads: Sequence[str],
    task: Task,
    *,
    reference: ImageSet,
    groups: np.ndarray | None = None,
    last: int = LAST,
    draws: int = 20,
    batch_size: int = 32,
    seed: int = 0,
    allow_overlap: bool = False,
    progress: bool = True,
) -> Record:
    """Accuracy of a zero-shot classifier, overall and in its worst group, with heads about a cue at their mean.

    Args:
        clip: a wrapped CLIP model.
        images: images to judge on.
        heads: the heads about the cue, by name.
        task: what is asked for, with the prompts of the classifier.
        reference: images for the means, disjoint from `images`.
        groups: group of each image; None: those of the images.
        last: layers from the end that the recipe keeps (**C**: 4).
        draws: random groups of as many heads.
        batch_size: images per forward pass.
        seed: of the random heads and the intervals.
        allow_overlap: accept images that are in the reference too.
        progress: show a progress bar.

    Returns:
        Record: `conditions`, one row per combination; `groups`, its accuracy in every group.

    Raises:
        BadData: no groups.
        SplitOverlap: images and reference share an image.
        UnknownName: no such head.
        OutOfRange: no draw, or a number of layers that is none.

    Example:
        >>> remove_cue(clip, images, found.labelled("background"), task, reference=others)   # doctest: +SKIP
    """
    tower = tower_of(clip)
    groups = images.groups if groups is None else np.asarray(groups)
    if groups is None or len(groups) != len(images):
        raise BadData(f"{images.name!r} has no groups: a cue shows where groups differ. Pass groups=, one per image.")
    if not allow_overlap:
        refuse_overlap(reference, images, what="reference and evaluation images")
    if draws < 1 or last < 1:
        raise OutOfRange(f"draws={draws}, last={last}: give at least 1 of each.")
    check_tasks({task.name: task}, len(images), task.prompts.shape[1])
    settings: dict[str, Any] = {"layers": None, "batch_size": batch_size}
    head_mean, rest_mean, n = 0.0, {}, 0
    for batch in read(clip, reference, **settings):
        head_mean = head_mean + batch.heads.sum(0)
        rest_mean = {name: rest_mean.get(name, 0.0) + each.sum(0) for name, each in batch.others.items()}
        n += len(batch.where)
    names, kinds = batch.names, batch.kinds
    places = chosen(names, heads)
    others_of = [i for i in range(len(names)) if i not in places]
    generator = np.random.default_rng(seed)
    drawn = [np.sort(generator.permutation(others_of)[: len(places)]) for _ in range(draws)]
    if len(others_of) < len(places):
        raise BadData(f"{len(places)} of {len(names)} heads are chosen: there are not as many others to compare with.")
    first_kept = max(len(tower.parts.blocks) - last, 0)
    early = [i for i, (layer, _) in enumerate(batch.keys) if layer < first_kept]
    mlps = [name for name, kind in kinds.items() if kind == "mlp"]
    conditions: dict[str, tuple[list[int], bool]] = {
        "nothing (the model)": ([], False),
        "heads": (places, False),
        "others alone": (early, True),
        "heads and others (the recipe)": (sorted({*places, *early}), True),
    }
    conditions |= {f"random {i}": (list(each), False) for i, each in enumerate(drawn)}
    conditions |= {f"random and others {i}": (sorted({*each, *early}), True) for i, each in enumerate(drawn)}
    correct = {name: np.zeros(len(images)) for name in conditions}
    for batch in read(clip, images, **settings, progress=progress):
        for name, (gone, with_mlps) in conditions.items():
            edited = batch.whole + (head_mean[gone] / n - batch.heads[:, gone]).sum(1)
            if with_mlps:
                edited = edited + sum(rest_mean[mlp] / n - batch.others[mlp] for mlp in mlps)
            correct[name][batch.where] = task.correct(edited, batch.where)
    correct["heads, in the forward pass"] = _forward(
        tower, images, [names[i] for i in places], task, reference, batch_size
    )
    rows, by_group = [], []
    for name, right in _averaged(correct).items():
        worst = min(np.unique(groups), key=lambda group: right[groups == group].mean())
        known = stats.bootstrap(right, seed=seed)
        within = stats.bootstrap(right[groups == worst], seed=seed)
        rows.append(
            {"ablated": name, "accuracy": known.effect[0], "low": known.low[0], "high": known.high[0]}
            | {"worst": within.effect[0], "worst_low": within.low[0], "worst_high": within.high[0]}
            | {"worst_group": str(worst), "heads": 0 if name in _WITHOUT else len(places), "n": len(images)}
        )
        by_group += [
            {"ablated": name, "group": str(group), "accuracy": float(right[groups == group].mean())}
            | {"n": int((groups == group).sum())}
            for group in np.unique(groups)
        ]
    return Record(
        kind="cue_removal",
        title=f"A cue taken out of {task.name}: {len(places)} heads, {len(images)} images",
        tables={"conditions": pl.DataFrame(rows), "groups": pl.DataFrame(by_group)},
        facts={"n": len(images), "reference": len(reference), "heads": [names[i] for i in places], "last": last}
        | {"early_heads": len(early), "mlps": len(mlps), "draws": draws},
        words=WORDS,
        caveats=(
            "Compare the recipe with `others alone`: only what it adds to that is due to the chosen heads.",
            "Rows with random heads are means over draws, image by image.",
            "All but the last row edit the sum of terms of the embedding (the direct path).",
        ),
        provenance=provenance(model=tower, images=images, seed=seed, reference=reference.fingerprint),
    )


_WITHOUT = ("nothing (the model)", "others alone")


def _averaged(correct: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The conditions, with the draws of random heads averaged image by image."""
    found = {name: each for name, each in correct.items() if not name.startswith("random")}
    for start in ("random and others", "random"):
        draws = [each for name, each in correct.items() if name.rpartition(" ")[0] == start]
        found[f"{start.replace('random', 'random heads')} ({len(draws)} draws)"] = np.mean(draws, axis=0)
    return found


def _forward(
    tower: Any, images: ImageSet, heads: Sequence[str], task: Task, reference: ImageSet, batch_size: int
) -> np.ndarray:
    sites = head_sites(tower)
    average = means(tower, reference, sorted({sites[head][0] for head in heads}), batch_size=batch_size)
    _, changes = mean_edits(heads, sites, average)
    reads, right = reader(tower, images), np.zeros(len(images))
    for start in range(0, len(images), batch_size):
        where = np.arange(start, min(start + batch_size, len(images)))
        output = tower.run(reads(where), edits=changes).output.double()
        unit = torch.nn.functional.normalize(output, dim=1).cpu().numpy()
        right[where] = task.correct(unit, where)
    return right
