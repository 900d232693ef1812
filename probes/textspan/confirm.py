"""Are heads that texts name after a property needed for it? Ablation in the forward pass, against random heads.

1. Groups of heads (those that TextSpan named) are put at their mean over reference images, per token position, in the
   forward pass, so that later blocks react (what heads write directly is a part of what they do).
2. Zero-shot accuracy and margin (right text minus best wrong one, cosine) of every property, before and after.
3. The same for random groups of as many other heads.

A group is confirmed for its property if accuracy falls there, more than for random heads, and not elsewhere. The fall
on the direct path alone (methods.md 2.1, **C**: terms of the embedding at their mean) stands beside it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch

from mechvis import stats
from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.errors import BadData, OutOfRange, unknown
from mechvis.means import means
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.record import Record
from mechvis.store.forward import reader
from probes.textspan.head_sites import head_sites, mean_edits
from probes.textspan.reading import read, tower_of
from probes.textspan.tasks import Task, check_tasks

WORDS = {
    "group": "the heads that are ablated together",
    "task": "the property that is asked for",
    "heads": "how many heads",
    "clean": "accuracy before",
    "ablated": "accuracy after",
    "drop": "fall of the accuracy; low and high: 95 % interval over images",
    "random": "fall of the accuracy by as many random other heads, mean over draws; random_high: the largest of them",
    "p": "share of the draws whose fall is at least as large (counting the group itself)",
    "margin_drop": "fall of (cosine with the right text - cosine with the best wrong one); margin_low, margin_high",
    "margin_random": "the same by random heads, mean; margin_p: share of draws with at least that fall",
    "direct_drop": "fall of the accuracy when only what the heads write directly is at its mean",
    "n": "images",
}


def confirm_heads(
    clip: Any,
    images: ImageSet,
    groups: Mapping[str, Sequence[str]],
    tasks: Mapping[str, Task],
    *,
    reference: ImageSet,
    draws: int = 20,
    batch_size: int = 64,
    seed: int = 0,
    allow_overlap: bool = False,
    progress: bool = True,
) -> Record:
    """Ablate groups of heads and ask for every property.

    Args:
        clip: a wrapped CLIP model.
        images: images to judge on.
        groups: name -> heads (`L1H0`), such as `found.labels()` of a `TextSpan`.
        tasks: name -> task about these images.
        reference: images for the means, disjoint from `images`; should also be disjoint from those of the text span.
        draws: random groups per number of heads, of heads outside the group; at most as many as there are.
        batch_size: images per forward pass.
        seed: of the random groups and the intervals.
        allow_overlap: accept images that are in the reference too.
        progress: show a progress bar.

    Returns:
        Record: table `groups`, one row per group and task; table `draws` with the fall of every random group.

    Raises:
        SplitOverlap: images and reference share an image.
        UnknownName: no such head.
        BadData: an empty group, no group, no head outside a group.

    Example:
        >>> confirm_heads(clip, images, found.labels(), tasks, reference=others).table     # doctest: +SKIP
    """
    tower = tower_of(clip)
    if not allow_overlap:
        refuse_overlap(reference, images, what="reference and evaluation images")
    if draws < 1:
        raise OutOfRange(f"draws={draws}: compare with at least one random group.")
    sites = head_sites(tower)
    everything = list(sites)
    plan = {name: _checked(name, heads, everything) for name, heads in groups.items()}
    if not plan:
        raise BadData("no group of heads to ablate.")
    generator = np.random.default_rng(seed)
    random = {name: _random_groups(generator, everything, heads, draws) for name, heads in plan.items()}
    sets = list(dict.fromkeys([*plan.values(), *(heads for drawn in random.values() for heads in drawn)]))
    average = means(tower, reference, sorted({site for site, _, _ in sites.values()}), batch_size=batch_size)
    planned = [mean_edits(heads, sites, average) for heads in sets]
    reads = reader(tower, images)
    n, names = len(images), list(tasks)
    values = np.empty((1 + len(sets), len(tasks), 2, n))
    with track(n * (1 + len(sets)), "ablating heads", " images", show=progress) as bar:
        for start in range(0, n, batch_size):
            where = np.arange(start, min(start + batch_size, n))
            pixels = reads(where)
            size = tuple(pixels.shape[2:])
            clean = tower.run(pixels, capture=[f"blocks.{layer}.hook_resid_pre" for layer, _ in planned])
            outputs = [clean.output]
            for layer, changes in planned:
                # The stream before the first ablated block is that of the clean run.
                begin = clean.cache[f"blocks.{layer}.hook_resid_pre"] if layer else pixels
                outputs.append(tower.run(begin, edits=changes, start_at_layer=layer, size=size).output)
            if not start:
                check_tasks(tasks, n, outputs[0].shape[1])
            for number, output in enumerate(outputs):
                unit = torch.nn.functional.normalize(output.double(), dim=1).cpu().numpy()
                for place, task in enumerate(tasks.values()):
                    values[number, place, :, where] = np.stack(
                        [task.correct(unit, where), task.margin(unit, where)], axis=-1
                    )
                bar.update(len(where))
    direct = _direct(clip, images, reference, plan, tasks, batch_size)
    falls = values[:1] - values[1:]
    rows = []
    for name, heads in plan.items():
        others = [sets.index(each) for each in random[name]]
        for place, task in enumerate(names):
            own = falls[sets.index(heads), place]
            known = stats.bootstrap(np.stack([*own, values[0, place, 0]]), seed=seed)
            by_chance = falls[others, place].mean(-1)
            p = (1 + (by_chance >= known.effect[:2] - 1e-12).sum(0)) / (1 + len(others))
            rows.append(
                {"group": name, "task": task, "heads": len(heads), "clean": known.effect[2]}
                | {"ablated": known.effect[2] - known.effect[0], "drop": known.effect[0]}
                | {"low": known.low[0], "high": known.high[0], "random": by_chance[:, 0].mean()}
                | {"random_high": by_chance[:, 0].max(), "p": p[0], "margin_drop": known.effect[1]}
                | {"margin_low": known.low[1], "margin_high": known.high[1], "margin_random": by_chance[:, 1].mean()}
                | {"margin_p": p[1], "direct_drop": direct[name][task], "n": n}
            )
    drawn = [
        {"group": name, "task": task, "random_heads": " ".join(heads)}
        | {"drop": float(falls[sets.index(heads), place, 0].mean())}
        | {"margin_drop": float(falls[sets.index(heads), place, 1].mean())}
        for name in plan
        for heads in random[name]
        for place, task in enumerate(names)
    ]
    return Record(
        kind="head_confirmation",
        title=f"Heads ablated in the forward pass, {len(plan)} groups, {n} images",
        tables={"groups": pl.DataFrame(rows), "draws": pl.DataFrame(drawn)},
        facts={"n": n, "reference": len(reference), "draws": {name: len(drawn) for name, drawn in random.items()}}
        | {"groups": {name: list(heads) for name, heads in plan.items()}},
        words=WORDS,
        caveats=(
            f"Means over {len(reference)} reference images that are not among the {n} judged.",
            "p cannot fall below 1 / (number of random groups + 1).",
            "Random groups are drawn from all other heads of the model, also from layers that do more or less.",
        ),
        provenance=provenance(model=tower, images=images, seed=seed, reference=reference.fingerprint),
    )


def _checked(name: str, heads: Iterable[str], everything: Sequence[str]) -> tuple[str, ...]:
    heads = tuple(dict.fromkeys([heads] if isinstance(heads, str) else heads))
    for head in heads:
        if head not in everything:
            raise unknown("head", head, everything)
    if not heads:
        raise BadData(f"the group {name!r} holds no head.")
    if len(everything) - len(heads) < len(heads):
        raise BadData(
            f"the group {name!r} holds {len(heads)} of {len(everything)} heads: there are not as many others."
        )
    return tuple(sorted(heads, key=list(everything).index))


def _random_groups(
    generator: np.random.Generator, everything: Sequence[str], heads: Sequence[str], draws: int
) -> list[tuple[str, ...]]:
    """Different groups of as many heads, none of them in the group itself."""
    others = [head for head in everything if head not in heads]
    found: dict[tuple[str, ...], None] = {}
    for _ in range(50 * draws):
        if len(found) == draws:
            break
        found[tuple(others[i] for i in sorted(generator.permutation(len(others))[: len(heads)]))] = None
    return list(found)


def _direct(
    clip: Any,
    images: ImageSet,
    reference: ImageSet,
    plan: Mapping[str, Sequence[str]],
    tasks: Mapping[str, Task],
    batch_size: int,
) -> dict[str, dict[str, float]]:
    """Fall of the accuracy when terms of the embedding are at their mean; heads without a term of their own: 0."""
    total, average = 0, 0.0
    for batch in read(clip, reference, layers=None, batch_size=batch_size):
        average, total = average + batch.heads.sum(0), total + len(batch.where)
    average = average / total
    falls = {name: dict.fromkeys(tasks, 0.0) for name in plan}
    for batch in read(clip, images, layers=None, batch_size=batch_size):
        for name, heads in plan.items():
            places = [batch.names.index(head) for head in heads if head in batch.names]
            edited = batch.whole + (average[places] - batch.heads[:, places]).sum(1)
            for task, asked in tasks.items():
                change = asked.correct(batch.whole, batch.where).sum() - asked.correct(edited, batch.where).sum()
                falls[name][task] += float(change) / len(images)
    return falls
