"""Causal paths of a class: the search, the pruning, the controls, as one call."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

import polars as pl
from torch import Tensor

from circuits.causal_paths import controls as chance
from circuits.causal_paths.effects import Effects
from circuits.causal_paths.graph import PathGraph
from circuits.causal_paths.joint import Edges, Joint, connected, prune
from circuits.causal_paths.nodes import OUT
from circuits.causal_paths.runs import Recording, Runs, mean_run
from circuits.causal_paths.search import Found, PathSettings, Search, check_images
from circuits.causal_paths.stability import stability
from circuits.causal_paths.synergy import synergies
from circuits.causal_paths.tables import tables
from circuits.edges.graph import EdgeGraph
from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.errors import BadData, OutOfRange, SplitOverlap, unknown
from mechvis.progress import track
from mechvis.provenance import provenance


def causal_paths(
    model: Any,
    images: Any,
    *,
    reference: Any,
    target: str | int | None = None,
    settings: PathSettings | None = None,
    mean: Literal["positional", "all"] = "positional",
    aggregate: Literal["max", "mean"] = "max",
    prune_below: float = 0.005,
    pairs: int = 10,
    halves: int = 10,
    random_graphs: int = 20,
    others: Any = None,
    budget: str | int | None = None,
    seed: int = 0,
    progress: bool = True,
    allow_overlap: bool = False,
) -> PathGraph:
    """Find the units that a class's answers run through, and what they say to each other.

    Args:
        model: a wrapped model with a head.
        images: `ImageSet` or pixels. With a target, only those count that the model gives the class; the others serve
            the control with shuffled classes.
        reference: images for the means, other ones.
        target: the class, by name or index; None: every image counts for the class that it is given.
        settings: how the search goes.
        mean: what takes a unit's place: its mean per token (`positional`), or over all tokens.
        aggregate: how activations are summed up over tokens, for the table.
        prune_below: loss of joint faithfulness that dropping an edge may cost.
        pairs: of so many of the strongest units, all pairs are measured together; 0 for none.
        halves: half-samples for the stability, at least two; 0 for none.
        random_graphs: random graphs of the same shape; 0 for none.
        others: images of all classes for the control with shuffled classes, where `images` are of one class only.
        budget: memory for activations.
        seed: of draws and bootstraps (the settings have their own for the tests).
        progress: show progress bars.
        allow_overlap: accept reference images that are measured too.

    Raises:
        BadData: no head, too few images of the class, an impossible number, nothing to explain.
        UnknownName, OutOfRange: no such class, or a setting out of range.
        SplitOverlap: reference images among the images.
        UnsupportedModel: a stream that is no sum of its components.
        NotFinite: an output is NaN or Inf.

    Example:
        >>> graph = causal_paths(model, images, reference=others, target="circle")                 # doctest: +SKIP
        >>> graph.kept                                                                             # doctest: +SKIP
        ('L1N4->out', 'L0N2->L1N4')
    """
    settings = PathSettings() if settings is None else settings
    _check(model, mean, aggregate, prune_below, halves, pairs, random_graphs)
    name, ids, pool = _pixels(model, images)
    means = _means(model, images, pool, reference, mean, allow_overlap)
    runs, rows, target_index, words = _task_set(model, pool, target, budget)
    check_images(len(runs))
    classes = runs.logits.argmax(-1)
    search = Search(Effects(runs, means, classes, settings.norm), settings)
    steps = ["search", "pruning", "random graphs", "shuffled classes", "half-samples", "pairs"]
    with track(len(steps), "causal paths", " steps", show=progress) as bar:
        found = search.find()
        bar.update(1)
        joint = Joint(search.effects)
        kept, shares = _pruned(search, joint, found, prune_below)
        bar.update(1)
        tried = _controls(search, joint, found, kept, pool, target_index, others, random_graphs, aggregate, seed)
        bar.update(2)
        steady = stability(search, halves, seed) if halves else {}
        bar.update(1)
        nodes, edges, values = tables(search, found, kept, aggregate, seed)
        synergy = synergies(search.effects, nodes["unit"].to_list()[:pairs], seed)
        bar.update(1)
    return PathGraph(
        title=f"causal paths of {words} ({name})",
        target=words,
        nodes=nodes,
        edges=edges,
        synergy=synergy,
        images=_image_table(model, [ids[row] for row in rows], classes),
        tested=found.tested,
        faithfulness=shares,
        controls=tried,
        stability=steady,
        flags=_flags(found, shares, tried, steady, synergy),
        settings={**asdict(settings), "mean": mean, "aggregate": aggregate, "prune_below": prune_below},
        provenance=provenance(
            model=model,
            images=images if isinstance(images, ImageSet) else None,
            seed={"draws": seed, "tests": settings.seed},
            paths={"rows": search.effects.rows, "norm of edges": settings.norm, "norm of units": "recomputed"},
        ),
        values=values,
    )


def _check(
    model: Any, mean: str, aggregate: str, prune_below: float, halves: int, pairs: int, random_graphs: int
) -> None:
    EdgeGraph.of(model)
    if model.parts.head is None:
        raise BadData("causal paths lead to an answer, and this model has no head. For CLIP: clip.classifier(names).")
    if mean not in ("positional", "all"):
        raise unknown("mean", mean, ("positional", "all"))
    if aggregate not in ("max", "mean"):
        raise unknown("way to sum up over tokens", aggregate, ("max", "mean"))
    if not 0 <= prune_below < 1:
        raise OutOfRange(f"prune_below={prune_below}: a share of the behaviour, from 0 to below 1.")
    if halves == 1 or min(halves, pairs, random_graphs) < 0:
        raise OutOfRange(
            f"halves={halves}, pairs={pairs}, random_graphs={random_graphs}: at least 2 half-samples or 0, and no "
            "negative numbers."
        )


def _pixels(model: Any, images: Any) -> tuple[str, list[str], Tensor]:
    pixels = model.inputs(images)
    if isinstance(images, ImageSet):
        return images.name, list(images.ids), pixels
    return "pixels", [f"image {i}" for i in range(len(pixels))], pixels


def _means(model: Any, images: Any, pool: Tensor, reference: Any, mean: str, allow_overlap: bool) -> Recording:
    if isinstance(images, ImageSet) and isinstance(reference, ImageSet):
        if not allow_overlap:
            refuse_overlap(images, reference, what="images that means are made of and images that are measured")
        return mean_run(model, model.inputs(reference), positional=mean == "positional")
    pixels = model.inputs(reference)
    if not allow_overlap and pixels.shape[1:] == pool.shape[1:]:
        known = {image.cpu().numpy().tobytes() for image in pool}
        if shared := sum(image.cpu().numpy().tobytes() in known for image in pixels):
            raise SplitOverlap(
                f"{shared} of the reference images are measured too; pass others, or allow_overlap=True if you know "
                "why."
            )
    return mean_run(model, pixels, positional=mean == "positional")


def _task_set(
    model: Any, pool: Tensor, target: str | int | None, budget: Any
) -> tuple[Runs, list[int], int | None, str]:
    """The images of the class, their positions, the class's index and name."""
    if target is None:
        return Runs(model, pool, budget=budget), list(range(len(pool))), None, "each image's own class"
    logits = Runs(model, pool, budget=budget, share=0.0).logits
    index = int(model.class_index(target, logits.shape[-1]))
    rows = (logits.argmax(-1) == index).nonzero()[:, 0]
    names = model.parts.class_names
    words = names[index] if names else f"class {index}"
    if not len(rows):
        raise BadData(f"the model gives none of the {len(pool)} images the class {words!r}.")
    return Runs(model, pool[rows], budget=budget), rows.tolist(), index, words


def _pruned(search: Search, joint: Joint, found: Found, allowed: float) -> tuple[Edges, dict[str, Any]]:
    expanded = _expanded(found.edges)
    shares = {"full": float(joint.full.mean()), "empty": float(joint.empty.mean())}
    if not found.edges:
        return (), {"found": 0.0, "kept": 0.0, "top": 0.0, **shares}
    strength = {edge: float(effect.kl.mean()) for edge, effect in search.effects.edges(found.edges).items()}
    kept = prune(joint, found.edges, expanded, strength, allowed=allowed)
    top = tuple(edge for edge in found.edges if edge[1] == OUT)
    return kept, {
        "found": joint.faithfulness(connected(found.edges), expanded),
        "kept": joint.faithfulness(kept, expanded),
        "top": joint.faithfulness(top, ()),
        **shares,
    }


def _expanded(edges: Edges) -> set[str]:
    """Units whose inputs are known."""
    return {reader for _, reader in edges if reader != OUT}


def _controls(
    search: Search,
    joint: Joint,
    found: Found,
    kept: Edges,
    pool: Tensor,
    target: int | None,
    others: Any,
    draws: int,
    how: str,
    seed: int,
) -> dict[str, Any]:
    tried: dict[str, Any] = {"loud units": chance.loud_units(search, how)}

    def attempt(name: str, control: Callable[[], Any]) -> None:
        try:
            tried[name] = control()
        except BadData as error:
            tried[name] = {"not run": str(error)}

    def random() -> dict[str, Any]:
        values = chance.random_graphs(joint, kept, _expanded(found.edges), search.names, draws, seed)
        own = joint.faithfulness(kept, _expanded(found.edges))
        at_least = int((values >= own).sum())
        return {"values": values.tolist(), "own": own, "p": (1 + at_least) / (1 + draws)}

    if draws and kept:
        attempt("random graphs", random)
    elif draws:
        tried["random graphs"] = {"not run": "the graph is empty"}
    mixed = pool if others is None else search.model.inputs(others)
    attempt("shuffled classes", lambda: chance.shuffled_classes(search, mixed, target, seed))
    return tried


def _image_table(model: Any, ids: list[str], classes: Tensor) -> pl.DataFrame:
    names = model.parts.class_names
    answers = [names[i] if names else str(i) for i in classes.tolist()]
    return pl.DataFrame({"id": ids, "answer": answers})


def _flags(
    found: Found, shares: dict[str, Any], tried: dict[str, Any], steady: dict[str, Any], synergy: pl.DataFrame
) -> tuple[str, ...]:
    flags = []
    if not found.nodes:
        flags.append("no unit of the first level does more than units as loud: there is no graph")
    elif shares["full"] <= shares["empty"]:
        flags.append(
            f"with every unit at its mean the model is surer of the class ({shares['empty']:.3g}) than on the images "
            f"({shares['full']:.3g}): faithfulness says nothing here"
        )
    elif shares["kept"] < 0.5:
        flags.append(f"the graph carries {shares['kept']:.3f} of the behaviour: most of it runs elsewhere")
    if tried.get("random graphs", {}).get("p", 0.0) > 0.05:
        flags.append(f"random graphs of this shape are as faithful (p = {tried['random graphs']['p']:.3g})")
    if slipped := tried.get("shuffled classes", {}).get("kept"):
        flags.append(f"with shuffled classes the search still keeps {', '.join(slipped)}")
    if steady and steady["unstable"]:
        flags.append(
            f"half-samples agree on {steady['nodes']:.2f} of the units and {steady['edges']:.2f} of the edges: unstable"
        )
    # Of two units on one path the synergy is negative, as it should be: only what hides is said.
    hidden = synergy.filter(pl.col("significant") & (pl.col("synergy logit") / pl.col("joint logit") > 0.5))
    if hidden.height:
        some = ", ".join(f"{a} and {b}" for a, b in hidden.select("first", "second").head(3).iter_rows())
        flags.append(f"units that stand in for each other, single effects understate them: {some}")
    return tuple(flags)
