"""The certificate that every planted model carries: is the planted circuit the only one?

Measured on images that training never saw (benchmark plan A.5, **X**). One test at a time is not enough: a model can
pass every single test and still lose a quarter of its accuracy when all outside places are exchanged at once. So
subsets are tested: random ones, all of them, and the worst.

=====================  ================================================================================================
figure                 what is measured, on `n` images
=====================  ================================================================================================
`accuracy`             plain answers
`interchange`          per planted place: the answer the program gives, on rows whose label it changes
`random subsets`       the same for random joint exchanges of planted and outside places, as in training
`outside at once`      accuracy while every outside place and path comes from another image
`inputs resampled`     accuracy while all planted inputs come from another image: the rate at which labels agree
`worst subset`         lowest accuracy over all combinations of outside groups
`survives sources`     share of images answered rightly under *every one* of 32 random sources for all of the outside
`node ratio`           largest mean effect of an outside head over the smallest of a planted head (exact patching)
`edge ratio`           the same for edges, as node pairs
`probes`               linear probes: what carriers and decoys know of each variable
`baselines`            AUROC of active against outside nodes by layer, size of writes, size of weights
=====================  ================================================================================================

The twin, trained on behaviour alone, is scored against the placement of its planted sibling: it must fail.
"""

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechvis.axes import Labels, Pixels
from mechvis.models.parts import TowerParts
from mechvis.testing.trained.answers import answer
from mechvis.testing.trained.exact import edge_effects, node_effects
from mechvis.testing.trained.families import PairFamily, family, family_names
from mechvis.testing.trained.interchange import Donor, Trace, all_rows, forward
from mechvis.testing.trained.placement import Placement
from mechvis.testing.trained.places import node_of
from mechvis.testing.trained.probes import probe_table
from mechvis.testing.trained.scenes import Scenes
from mechvis.testing.trained.shallow import area_under_curve, shallow_scores
from mechvis.testing.trained.subsets import random_interchange
from mechvis.testing.trained.task import PlantedTask

SEED = 20_000
"""First seed of the certificate's images."""
SOURCES = 32


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is certified."""

    parts: TowerParts
    """`model.parts`."""
    task: PlantedTask
    """Its task."""
    placement: Placement
    """Where the program is, or, for a twin, where it is in the planted sibling."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Images:
    """Held-out images and their plain forward."""

    scenes: Scenes
    pixels: Pixels
    labels: Labels
    trace: Trace
    others: Tensor
    """For each image another one."""


@torch.no_grad()
def certify(subject: Subject, *, n: int = 1000, seed: int = SEED, thorough: bool = True) -> dict[str, Any]:
    """Measure the certificate.

    Args:
        subject: model, task and placement.
        n: images of every figure; the tables of effects and the worst subset use a quarter.
        seed: of the images; the families and probes take the next ones.
        thorough: False leaves out the worst subset, the effects under all families, and the probes.

    Returns:
        Figures by the names of the table above, ready for JSON.

    Raises:
        BadData: `n` below one.

    Example:
        >>> planted = load("colour-if-shape")                                             # doctest: +SKIP
        >>> certify(planted.subject, n=200, thorough=False)["outside at once"]            # doctest: +SKIP
        1.0
    """
    images = _images(subject, n, seed)
    few = max(1, n // 4)
    pairs = family(subject.task, subject.placement, "all", few, seed=seed + 1)
    effects = _effects(subject, pairs)
    found: dict[str, Any] = {
        "n": n,
        "seed": seed,
        "accuracy": _share(images.trace.logits, images.labels),
        "interchange": _interchange(subject, images),
        "random subsets": _random_subsets(subject, images, seed),
        "outside at once": _accuracy_with(subject, images, subject.placement.outside_places),
        "inputs resampled": _accuracy_with(subject, images, subject.placement.inputs),
        "labels agree": _share(images.labels, images.labels[images.others]),
        "survives sources": _survival(subject, images, seed),
        **_ratios(subject, pairs, effects),
        "baselines": {
            name: area_under_curve(scores, pairs.truth.nodes)
            for name, scores in shallow_scores(subject.parts, images.trace).items()
        },
        "exact": {kind: area_under_curve(effects[kind], getattr(pairs.truth, kind)) for kind in ("nodes", "edges")},
    }
    if thorough:
        found["worst subset"] = _worst_subset(subject, images, few)
        found["probes"] = probe_table(subject.parts, subject.task, subject.placement, seed=seed + 2, n=(n + n // 2, n))
        found["families"] = {
            name: _table(subject, family(subject.task, subject.placement, name, few, seed=seed + 3))
            for name in family_names(subject.task)
        }
    return _rounded(found)


def _images(subject: Subject, n: int, seed: int) -> _Images:
    scenes = subject.task.scenes(n, seed=seed)
    pixels = subject.task.render(scenes)
    others = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return _Images(
        scenes=scenes,
        pixels=pixels,
        labels=subject.task.labels(scenes),
        trace=forward(subject.parts, pixels),
        others=others,
    )


def _share(answers: Tensor, labels: Tensor) -> float:
    answers = answers.argmax(-1) if answers.ndim == 2 else answers
    return float((answers == labels).float().mean())


def _accuracy_with(subject: Subject, images: _Images, places: tuple[str, ...], few: int | None = None) -> float:
    """Accuracy while some places come from other images."""
    order = images.others if few is None else images.others[:few]
    donor = Donor(trace=images.trace, order=order, chosen=all_rows(places))
    logits = forward(subject.parts, images.pixels[:few], [donor]).logits
    return _share(logits, images.labels[:few])


def _interchange(subject: Subject, images: _Images) -> dict[str, dict[str, Any]]:
    found = {}
    source = images.scenes[images.others]
    for place, variable in subject.placement.planted.items():
        expected = answer(subject.task, subject.placement, images.scenes, source, {place: True})
        donor = Donor(trace=images.trace, order=images.others, chosen={place: True})
        answers = forward(subject.parts, images.pixels, [donor]).logits.argmax(-1)
        changed = expected != images.labels
        found[place] = {
            "variable": variable,
            "changed rows": int(changed.sum()),
            "accuracy": _share(answers[changed], expected[changed]),
            "accuracy, all rows": _share(answers, expected),
        }
    return found


def _random_subsets(subject: Subject, images: _Images, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    shares = []
    for _ in range(4):
        drawn = random_interchange(subject.task, subject.placement, images.scenes, images.trace, generator)
        shares.append(_share(forward(subject.parts, images.pixels, drawn.donors).logits, drawn.labels))
    return sum(shares) / len(shares)


def _survival(subject: Subject, images: _Images, seed: int) -> float:
    generator = torch.Generator().manual_seed(seed + 4)
    alive = torch.ones(len(images.labels), dtype=torch.bool)
    for _ in range(SOURCES):
        order = torch.randperm(len(alive), generator=generator)
        donor = Donor(trace=images.trace, order=order, chosen=all_rows(subject.placement.outside_places))
        alive &= forward(subject.parts, images.pixels, [donor]).logits.argmax(-1) == images.labels
    return float(alive.float().mean())


def _worst_subset(subject: Subject, images: _Images, few: int) -> dict[str, Any]:
    groups = subject.placement.outside
    worst, groups_of_worst, count = 1.0, (), 0
    for size in range(1, len(groups) + 1):
        for chosen in itertools.combinations(groups, size):
            places = tuple(place for group in chosen for place in groups[group])
            accuracy = _accuracy_with(subject, images, places, few)
            count += 1
            if accuracy < worst:
                worst, groups_of_worst = accuracy, chosen
    plain = _share(images.trace.logits[:few], images.labels[:few])
    return {"subsets": count, "n": few, "accuracy": worst, "plain": plain, "groups": list(groups_of_worst)}


def _effects(subject: Subject, pairs: PairFamily) -> dict[str, dict[str, Tensor]]:
    """Exact effects `[image]` of all nodes but the embedding, and of all edges."""
    nodes = [node for node in pairs.truth.nodes if node != "embed"]
    return {
        "nodes": node_effects(subject.parts, pairs, nodes),
        "edges": edge_effects(subject.parts, pairs, list(pairs.truth.edges)),
    }


def _ratios(subject: Subject, pairs: PairFamily, effects: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    planted = {node_of(place) for place in subject.placement.inputs}
    heads = {name: values for name, values in effects["nodes"].items() if name in subject.placement.outside_heads}
    edges = effects["edges"]
    return {
        "node ratio": _ratio(heads, {name: effects["nodes"][name] for name in planted}),
        "edge ratio": _ratio(
            {name: values for name, values in edges.items() if pairs.truth.edges[name] == "out"},
            {name: values for name, values in edges.items() if pairs.truth.edges[name] == "active"},
        ),
    }


def _ratio(out: dict[str, Tensor], active: dict[str, Tensor]) -> dict[str, Any]:
    loudest = max(out, key=lambda name: abs(float(out[name].mean())))
    weakest = min(active, key=lambda name: float(active[name].mean()))
    largest, smallest = abs(float(out[loudest].mean())), float(active[weakest].mean())
    return {
        "worst": loudest,
        "effect": largest,
        "mean absolute effect": max(float(values.abs().mean()) for values in out.values()),
        "weakest": weakest,
        "weakest effect": smallest,
        # An effect of the wrong sign is no small ratio: nothing is planted there.
        "ratio": largest / smallest if smallest > 0 else float("inf"),
    }


def _table(subject: Subject, pairs: PairFamily) -> dict[str, Any]:
    """Grade and exact mean effect of everything under one family."""
    effects = _effects(subject, pairs)
    restored = node_effects(subject.parts, pairs, list(effects["nodes"]), denoise=True)
    return {
        "pairs": len(pairs),
        "label differs": int(pairs.flips.sum()),
        "nodes": {
            name: {
                "grade": pairs.truth.nodes[name],
                "noising": float(values.mean()),
                "denoising": float(restored[name].mean()),
            }
            for name, values in effects["nodes"].items()
        },
        "edges": {
            name: {"grade": pairs.truth.edges[name], "noising": float(values.mean())}
            for name, values in effects["edges"].items()
        },
    }


def _rounded(value: Any) -> Any:
    """Four decimals are more than `n` images carry; infinity is null in JSON."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, float):
        return round(value, 4) if abs(value) != float("inf") else None
    return value
