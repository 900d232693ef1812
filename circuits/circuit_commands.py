"""`mechvis circuit find|eval|draw`: a circuit from images to a folder, its judgement on other images, its picture.

`compare` is in `circuits/comparison/command.py`.
"""

from pathlib import Path
from typing import Any, Literal

from circuits.comparison.command import compare
from mechvis.cli import columns, say
from mechvis.commands import calls, read_images, read_model

Change = Literal[
    "object", "background", "colour", "hue", "grey", "shape", "texture", "tokens", "nearest", "zero", "noise"
]


@calls(
    "circuits.task:task",
    "circuits.attribution.eap:eap",
    "circuits.search.select:select",
    "circuits.search.acdc:acdc",
    "circuits.search.edge_pruning:edge_pruning",
    "circuits.pairs.make:make_pairs",
    "circuits.pairs.aligned:aligned",
    "circuits.pairs.check:check_pairs",
    "mechvis.models.load:load",
    "mechvis.clip:HookedCLIP.classifier",
    "mechvis.data.folder:folder",
)
def find(
    *,
    model: str,
    images: str,
    out: Path,
    change: Change = "object",
    corrupt: str | None = None,
    max_failing: float | None = None,
    entropy_ratio: float | None = None,
    max_undistinguished: float = 0.5,
    ablation: Literal["patch", "zero", "mean", "mean_positional", "resample"] = "patch",
    reference: str | None = None,
    metric: str = "logit_diff",
    method: Literal["ig", "eap", "ig_activations", "clean_corrupt", "patch", "acdc", "pruning"] = "ig",
    steps: int = 10,
    rule: Literal["midpoint", "left", "right"] | None = None,
    verify: int | None = None,
    n: int = 50,
    how: Literal["top", "greedy"] = "top",
    signed: bool = False,
    tau: float = 0.01,
    target_sparsity: float = 0.9,
    prune: bool = True,
    budget: str | None = None,
    seed: int = 0,
    progress: bool = True,
    device: str | None = None,
    templates: tuple[str, ...] = (),
    metadata: Path | None = None,
    masks: Path | None = None,
    label_column: str = "label",
    group_column: str | None = None,
    on_corrupt: Literal["error", "skip"] = "error",
    allow_overlap: bool = False,
) -> None:
    """Find the edges that carry a behaviour, from pairs of images, and save them as a circuit with its picture.

    Args:
        model: a bundled name, a folder, or hf:<folder or hub id>.
        images: the clean images: a folder, or scenes[:n[:seed]].
        out: folder for the circuit: circuit.json, edges.parquet, circuit.svg, graph.json; scores/ holds all edges.
        change: what the corrupt half is (ablation patch): see `mechvis patch --help`.
        corrupt: instead of --change: a folder of images aligned one to one with --images.
        max_failing: check the pairs first, keep those that pass, and stop if more than this share fails.
        entropy_ratio: with --max-failing: largest rise of entropy from clean to corrupt.
        max_undistinguished: largest share of pairs to whose halves the model may give one class.
        ablation: what a cut edge carries: the corrupt half (patch), or zero, mean, mean_positional, resample.
        reference: images for the means.
        metric: logit, logit_diff, log_odds, logprob, prob, kl, js.
        method: ig, eap, ig_activations, clean_corrupt (edge attribution), patch (each edge exactly), acdc, pruning.
        steps: of the path, for ig and ig_activations.
        rule: where on the path gradients are taken.
        verify: attribution: edges to measure exactly, for the agreement that is printed; default: 32 in small models.
        n: edges of the circuit, for scores (not acdc and pruning).
        how: top: the n best; greedy: grown from the read-out.
        signed: rank scores with their sign.
        tau: acdc: largest rise of the divergence that cutting one edge may cause, in nats.
        target_sparsity: pruning: share of edges to cut.
        prune: drop edges on no path from the embedding to the read-out.
        budget: memory for activations, e.g. 8GB.
        seed: of whatever is drawn.
        progress: show progress bars.
        device: where to put the model, e.g. cuda.
        templates: for CLIP: prompts with {} for the class name; default: "a photo of a {}".
        metadata: the image folder's table; default: metadata.csv, .jsonl or .parquet in the folder.
        masks: the image folder's mask folder.
        label_column: the table's column of labels.
        group_column: the table's column of groups.
        on_corrupt: skip files that cannot be decoded, instead of stopping.
        allow_overlap: accept reference images that are evaluated too.
    """
    from mechvis.files import ensure_writable

    ensure_writable(out)
    options = _options(metadata, masks, label_column, group_column, on_corrupt)
    made = _task(
        model, images, change=change, corrupt=corrupt, max_failing=max_failing, entropy_ratio=entropy_ratio,
        max_undistinguished=max_undistinguished, ablation=ablation, reference=reference, metric=metric, budget=budget,
        seed=seed, device=device, templates=templates, options=options, allow_overlap=allow_overlap,
    )  # fmt: skip
    say(f"{made!r}\n")
    if method == "acdc":
        from circuits.search.acdc import acdc

        circuit = acdc(made, tau, prune=prune, out=out / "acdc", progress=progress)
    elif method == "pruning":
        from circuits.search.edge_pruning import edge_pruning

        circuit = edge_pruning(made, target_sparsity, prune=prune, seed=seed, progress=progress)
    else:
        from circuits.search.select import select

        scores = _scores(made, method, steps=steps, rule=rule, verify=verify, seed=seed, progress=progress)
        scores.save(out / "scores")
        circuit = select(scores, n, how=how, signed=signed, prune=prune)
        say(_agreement(scores))
    kept = made.measure(circuit.kept[None])
    say(f"{circuit}\n\nfaithfulness on these images: {float(made.faithfulness(kept)[0]):.3f} (all edges 1, none 0)")
    circuit.save(out)
    picture = _draw(circuit, made.model, made.clean, out, 80)
    say(f"saved in {out}: circuit.json, edges.parquet, {', '.join(picture)}")
    say("judge it on other images: mechvis circuit eval --circuit " + str(out) + " --model ... --images ...")


@calls(
    "circuits.evaluation.evaluate:evaluate",
    "circuits.task:task",
    "circuits.pairs.make:make_pairs",
    "circuits.pairs.aligned:aligned",
    "circuits.pairs.check:check_pairs",
    "mechvis.models.load:load",
    "mechvis.clip:HookedCLIP.classifier",
    "mechvis.data.folder:folder",
)
def evaluate(
    *,
    circuit: Path,
    model: str,
    images: str,
    change: Change = "object",
    corrupt: str | None = None,
    max_failing: float | None = None,
    entropy_ratio: float | None = None,
    max_undistinguished: float = 0.5,
    ablation: Literal["patch", "zero", "mean", "mean_positional", "resample"] = "patch",
    reference: str | None = None,
    metric: str = "logit_diff",
    level: Literal["quick", "full"] = "quick",
    n_random: int = 100,
    out: Path | None = None,
    budget: str | None = None,
    seed: int = 0,
    progress: bool = True,
    device: str | None = None,
    templates: tuple[str, ...] = (),
    metadata: Path | None = None,
    masks: Path | None = None,
    label_column: str = "label",
    group_column: str | None = None,
    on_corrupt: Literal["error", "skip"] = "error",
    allow_overlap: bool = False,
) -> None:
    """Judge a saved circuit on other images: is it enough, is it needed, and is it better than chance?

    Args:
        circuit: folder of `mechvis circuit find`.
        model: a bundled name, a folder, or hf:<folder or hub id>; of the circuit's architecture.
        images: the clean images: a folder, or scenes[:n[:seed]]; other ones than the circuit was found on.
        change: what the corrupt half is (ablation patch): see `mechvis patch --help`.
        corrupt: instead of --change: a folder of images aligned one to one with --images.
        max_failing: check the pairs first, keep those that pass, and stop if more than this share fails.
        entropy_ratio: with --max-failing: largest rise of entropy from clean to corrupt.
        max_undistinguished: largest share of pairs to whose halves the model may give one class.
        ablation: what a cut edge carries: the corrupt half (patch), or zero, mean, mean_positional, resample.
        reference: images for the means.
        metric: logit, logit_diff, log_odds, logprob, prob, kl, js.
        level: full adds completeness, minimality and the sensitivity block.
        n_random: random circuits of equal size and layer profile.
        out: folder for the result.
        budget: memory for activations, e.g. 8GB.
        seed: of whatever is drawn.
        progress: show progress bars.
        device: where to put the model, e.g. cuda.
        templates: for CLIP: prompts with {} for the class name; default: "a photo of a {}".
        metadata: the image folder's table; default: metadata.csv, .jsonl or .parquet in the folder.
        masks: the image folder's mask folder.
        label_column: the table's column of labels.
        group_column: the table's column of groups.
        on_corrupt: skip files that cannot be decoded, instead of stopping.
        allow_overlap: accept images that the circuit was found on, and reference images that are evaluated too.
    """
    from circuits.circuit import Circuit
    from circuits.evaluation.evaluate import evaluate as judge
    from mechvis.files import ensure_writable

    if out is not None:
        ensure_writable(out)
    found = Circuit.load(circuit)
    made = _task(
        model, images, change=change, corrupt=corrupt, max_failing=max_failing, entropy_ratio=entropy_ratio,
        max_undistinguished=max_undistinguished, ablation=ablation, reference=reference, metric=metric, budget=budget,
        seed=seed, device=device, templates=templates,
        options=_options(metadata, masks, label_column, group_column, on_corrupt), allow_overlap=allow_overlap,
    )  # fmt: skip
    found.check_model(made.model)
    result = judge(
        found, made, level=level, n_random=n_random, seed=seed, allow_overlap=allow_overlap, progress=progress
    )
    say(str(result))
    if out is None:
        say("\nnothing was saved; --out FOLDER keeps it.")
        return
    result.save(out)
    say(f"\nsaved in {out}")


@calls("circuits.drawing.figure:draw", "circuits.drawing.attention:attention_pictures", "mechvis.models.load:load")
def draw(
    *,
    circuit: Path,
    path: Path | None = None,
    max_edges: int = 80,
    model: str | None = None,
    images: str | None = None,
    image: int = 0,
    device: str | None = None,
) -> None:
    """Draw a saved circuit; with a model and images, each head shows what it attends to.

    Args:
        circuit: folder of `mechvis circuit find`.
        path: where to: a file that ends in svg, pdf or png; default: circuit.svg in the circuit's folder.
        max_edges: of a larger circuit so many edges are drawn.
        model: the circuit's model, for pictures of attention.
        images: images for them: a folder, or scenes[:n[:seed]].
        image: which of them.
        device: where to put the model, e.g. cuda.
    """
    from circuits.circuit import Circuit
    from circuits.drawing.attention import attention_pictures
    from circuits.drawing.figure import draw as drawn
    from mechvis.errors import BadData

    if (model is None) != (images is None):
        raise BadData("pictures of attention need both --model and --images.")
    found = Circuit.load(circuit)
    pictures = None
    if model is not None:
        listed = read_images(images)
        loaded = read_model(model, listed, device=device)
        found.check_model(loaded)
        if not 0 <= image < len(listed):
            raise BadData(f"--image {image}: there are {len(listed)} images.")
        pixels = loaded.inputs(listed[[image]])
        pictures = attention_pictures(loaded, pixels, found.nodes) if _heads(found) else None
    place = circuit / "circuit.svg" if path is None else path
    drawn(found, pictures=pictures, max_edges=max_edges, path=place)
    say(f"drawn: {place}")


def _heads(circuit: Any) -> list[str]:
    return [name for name in circuit.nodes if "H" in name]


def _options(
    metadata: Path | None, masks: Path | None, label_column: str, group_column: str | None, on_corrupt: str
) -> dict[str, Any]:
    return {
        "metadata": metadata,
        "masks": masks,
        "label_column": label_column,
        "group_column": group_column,
        "on_corrupt": on_corrupt,
    }


def _task(
    model: str,
    images: str,
    *,
    change: str,
    corrupt: str | None,
    max_failing: float | None,
    entropy_ratio: float | None,
    max_undistinguished: float,
    ablation: str,
    reference: str | None,
    metric: str,
    budget: str | None,
    seed: int,
    device: str | None,
    templates: tuple[str, ...],
    options: dict[str, Any],
    allow_overlap: bool,
) -> Any:
    """The task that the words mean."""
    from circuits.pairs import check_pairs
    from circuits.pairs.words import read_pairs
    from circuits.task import task

    listed = read_images(images, **options)
    loaded = read_model(model, listed, device=device, templates=templates)
    what: Any = listed
    if ablation == "patch":
        what = read_pairs(loaded, images, listed, change, corrupt=corrupt, seed=seed, **options)
        if max_failing is not None:
            check = check_pairs(loaded, what, max_failing, entropy_ratio=entropy_ratio)
            say(f"{check!r}\n")
            what = check.kept(what)
    others = None if reference is None else read_images(reference, **options)
    return task(
        loaded, what, ablation=ablation, metric=metric, reference=others, max_undistinguished=max_undistinguished,
        budget=budget, seed=seed, allow_overlap=allow_overlap,
    )  # fmt: skip


def _scores(task: Any, method: str, *, steps: int, rule: Any, verify: int | None, seed: int, progress: bool) -> Any:
    """All edges by one method."""
    if method == "patch":
        from circuits.edge_patching import patch_edges

        return patch_edges(task, seed=seed, progress=progress)
    from circuits.attribution.eap import eap

    return eap(task, method=method, steps=steps, rule=rule, verify=verify, seed=seed, progress=progress)


def _agreement(scores: Any) -> str:
    """What the exact measurements say about the estimates."""
    found = scores.provenance.get("agreement")
    if not found:
        return ""
    rows = [
        ("measured exactly (top, random)", f"{found['n_top']}, {found['n_random']}"),
        ("rank correlation", _number(found["spearman"])),
        ("same sign, of the top", _number(found["sign"])),
        ("estimated / exact, of the top", _number(found["ratio"])),
        ("largest random one / largest of the top", _number(found["missed"])),
    ]
    return columns(rows, ("estimates beside exact patching", "")) + "\n"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _draw(circuit: Any, model: Any, pixels: Any, out: Path, max_edges: int) -> list[str]:
    """The picture and the JSON file, where there is anything to draw."""
    from circuits.drawing.attention import attention_pictures
    from circuits.drawing.export import export_json
    from circuits.drawing.figure import draw as drawn

    if not len(circuit):
        return []
    shown = attention_pictures(model, pixels[:1], circuit.nodes) if _heads(circuit) else None
    drawn(circuit, pictures=shown, max_edges=max(max_edges, len(circuit)), path=out / "circuit.svg")
    export_json(circuit, out / "graph.json")
    return ["circuit.svg", "graph.json"]


commands = {"find": find, "eval": evaluate, "draw": draw, "compare": compare}
"""What `mechvis circuit` offers."""
