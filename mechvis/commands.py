"""The commands of the core: each reads its inputs, calls one public function, and says what came out.

Nothing heavy is imported before a command runs. Every flag is a parameter of the public function that the command
calls (`calls` says which), except for the few that say where models, images and outputs lie.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from mechvis.cli import columns, say, typed

if TYPE_CHECKING:
    from mechvis.data import ImageSet

logger = logging.getLogger(__name__)

SCENES_N, SCENES_SEED, SCENES_CORRELATION = 600, 500, 0.5
"""What `scenes` means without numbers: half of the images agree with their background, half conflict, so that both
groups are measured equally well. None of the bundled models was trained, tuned or described on this seed."""

F = TypeVar("F", bound=Callable)


def calls(*functions: str) -> Callable[[F], F]:
    """Say which public functions a command hands its flags to, as `module:function`; a test holds it to that."""

    def mark(command: F) -> F:
        command.calls = functions
        return command

    return mark


@calls()
def models() -> None:
    """List the bundled models, and what can be loaded besides."""
    from mechvis.models import zoo

    rows = []
    for name in zoo.names():
        known, folder = zoo.describe(name), zoo.path(name)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        rows.append((name, known.architecture, f"{size / 1e6:.1f} MB" if size else "missing", known.summary))
    say(columns(rows, ("model", "transformers class", "size", "what it is")))
    for name in zoo.names():
        if measured := card_table(zoo.card(name) if (zoo.path(name) / "README.md").is_file() else ""):
            say(f"\n{name}, as measured (from its model card):\n{measured}")
    say(
        "\nWherever a MODEL is asked for you can give\n"
        "  a name from above\n"
        "  a folder that transformers' save_pretrained wrote\n"
        "  hf:<folder or hub id>   from the Hugging Face hub (needs its network, or its cache)\n"
        "In Python, mechvis.load also takes a module that is in memory."
    )


def card_table(card: str) -> str:
    """The tables of a model card that hold measured figures (a percent sign), as they are written there.

    Example:
        >>> say(card_table("# x\\n| set | right |\\n|---|---|\\n| all | 97 % |\\n\\nWords.\\n| a |\\n|---|\\n| b |\\n"))
        | set | right |
        |---|---|
        | all | 97 % |
    """
    blocks: list[list[str]] = [[]]
    for line in card.splitlines():
        if line.startswith("|"):
            blocks[-1].append(line)
        elif blocks[-1]:
            blocks.append([])
    return "\n\n".join("\n".join(block) for block in blocks if any("%" in line for line in block))


@calls("mechvis.graph:HookGraph.match")
def sites(model: str, /, *, match: tuple[str, ...] = ()) -> None:
    """Show the hook graph of a model: every site, its shape, and what it reads.

    Args:
        model: a bundled name, a folder, or hf:<folder or hub id>.
        match: names or patterns (* and ?); default: all sites.
    """
    import mechvis

    logging.getLogger("mechvis").setLevel(logging.WARNING)  # the parity line is printed below
    loaded = mechvis.load(model)
    towers = {"vision": loaded.vision, "text": loaded.text} if hasattr(loaded, "vision") else {"": loaded}
    wanted = {name: tuple(match) for name in towers}
    if match and len(towers) > 1:
        # A pattern may name one tower (vision.blocks.*) or mean both.
        wanted = {name: tuple(p.removeprefix(f"{name}.") for p in match if _meant(p, name, towers)) for name in towers}
    for name, tower in towers.items():
        if match and not wanted[name]:
            continue
        graph = tower.graph
        rows = []
        for site in map(graph.__getitem__, graph.match(wanted[name]) if match else graph.names):
            shape = " ".join(
                a if size is None else f"{a}={size}" for a, size in zip(site.axes, site.sizes, strict=True)
            )
            reads = ", ".join(_short(read, site.layer) for read in site.reads)
            rows.append((site.name, f"[{shape}]", reads, "on demand" if site.on_demand else ""))
        say(f"{tower.title or model}: {tower.parts.family}, {len(graph)} sites\n{tower.parity}\n")
        say(columns(rows, ("site", "shape", "reads", "")) + "\n")


def _meant(pattern: str, tower: str, towers: dict[str, Any]) -> bool:
    named = [other for other in towers if pattern.startswith(f"{other}.")]
    return not named or tower in named


def _short(site: str, layer: int | None) -> str:
    """A site's name as seen from its own block."""
    return site.removeprefix(f"blocks.{layer}.")


@calls("mechvis.data.scenes:scenes", "mechvis.data.export:export")
def data_export(
    name: Literal["scenes"],
    folder: Path,
    /,
    *,
    n: int = SCENES_N,
    seed: int = SCENES_SEED,
    correlation: float | None = None,
    group: Literal["consistent", "conflicting"] | None = None,
    show: Literal["both", "object", "background"] = "both",
    start: int = 0,
    overwrite: bool = False,
) -> None:
    """Write a bundled data set as an ordinary image folder with masks and a metadata table.

    Args:
        name: which data set.
        folder: where to; it must be new, or an earlier export with --overwrite.
        n: number of images.
        seed: number of the data set.
        correlation: probability that the background is the shape's partner texture; default: independent.
        group: only scenes whose background agrees with the shape, or only those where it conflicts.
        show: the whole scene, the object on flat grey, or the background alone.
        start: number of the first image.
        overwrite: replace an earlier export.
    """
    import mechvis

    images = mechvis.data.scenes(n, seed=seed, correlation=correlation, group=group, show=show, start=start)
    place = mechvis.data.export(images, folder, overwrite=overwrite)
    say(f"{len(images)} images in {place}")


data = {"export": data_export}


@calls("mechvis.models.training.recipes:train")
def zoo_train(
    name: str,
    /,
    *,
    out: Path,
    seed: int = 0,
    images: int | None = None,
    device: str = "cpu",
    backbone: Path | None = None,
    bf16: bool = True,
    resume: bool = True,
    progress: bool = True,
    measure: bool = True,
) -> None:
    """Train a bundled model again, from nothing; the same command continues an interrupted run.

    Args:
        name: scenes-backbone, scenes-vit or scenes-clip.
        out: the model folder; checkpoints go to its sub-folder `training`.
        seed: 0 is the seed of the bundled models; any other number gives a sibling.
        images: training images of each stage; default: the recipe's.
        device: cpu or cuda.
        backbone: folder of a trained backbone; default: train one first.
        bf16: train under bfloat16 autocast, as the bundled models were.
        resume: continue from the checkpoints in --out.
        progress: show progress, images per second and the remaining time.
        measure: measure the figures of the model card at the end.
    """
    from mechvis.models.training import train

    place = train(
        name,
        out,
        seed=seed,
        images=images,
        device=device,
        backbone=backbone,
        bf16=bf16,
        resume=resume,
        progress=progress,
        measure=measure,
    )
    say(f"model: {place}")


zoo = {"train": zoo_train}


@calls(
    "mechvis.sweep:sweep",
    "mechvis.certified.top:certified_top",
    "mechvis.parallel.launch:start",
    "mechvis.models.load:load",
    "mechvis.clip:HookedCLIP.classifier",
    "mechvis.data.folder:folder",
)
def sweep(
    *,
    model: str,
    images: str,
    units: Literal["heads", "result", "attn_out", "mlp_out", "neurons", "tokens"] = "heads",
    edit: Literal["zero", "mean", "mean_positional", "resample", "patch"] = "zero",
    metric: tuple[str, ...] = ("logit_diff",),
    labels: Literal["given", "predicted"] | None = None,
    reference: str | None = None,
    source: str | None = None,
    layers: tuple[int, ...] | None = None,
    engine: Literal["wave", "plain"] = "wave",
    budget: str | None = None,
    out: Path | None = None,
    launch: str | None = None,
    top: int = 10,
    certified: bool = False,
    eps: float = 0.1,
    delta: float = 0.05,
    by: Literal["effect", "size"] = "effect",
    tails: Literal["student", "guarded", "bernstein"] = "guarded",
    value_range: float | None = None,
    audit: float = 0.05,
    fresh_images: int = 1024,
    max_images: int | None = None,
    control: bool = False,
    control_images: int = 4096,
    calibrated: bool = False,
    seed: int = 0,
    progress: bool = True,
    allow_overlap: bool = False,
    device: str | None = None,
    templates: tuple[str, ...] = (),
    metadata: Path | None = None,
    masks: Path | None = None,
    label_column: str = "label",
    group_column: str | None = None,
    on_corrupt: Literal["error", "skip"] = "error",
) -> None:
    """Ablate every head (or other unit) on every image and rank them by what it does to the output.

    Positive effect: ablating the unit lowers the metric, so the unit supported the behaviour. With --out the result is
    saved there with a report; the same command continues an interrupted one.

    Args:
        model: a bundled name, a folder, or hf:<folder or hub id>.
        images: a folder of images, or scenes[:n[:seed]].
        units: what is ablated.
        edit: what takes the unit's place; means are over reference images, patch is from the image aligned in --source.
        metric: logit, logit_diff, log_odds, logprob, prob, accuracy, kl, js; several cost no extra forward.
        labels: measure against the given labels or the model's predicted classes; default: given, where there are any.
        reference: images for the means, as in --images; default: a third of the images, then not evaluated.
        source: for patch: images aligned one to one with --images.
        layers: only these layers.
        engine: wave, or its slow twin plain.
        budget: memory for activations, e.g. 8GB.
        out: folder for the table, the per-image values and report.html.
        launch: local:2 for two processes, slurm:nodes=2,partition=gpu,... for an array of jobs; needs --out.
        top: rows to print; with --certified: units to find.
        certified: find the --top units only, with a guarantee, from as few images as that allows.
        eps: certified: tolerance, as a share of the effect on rank --top.
        delta: certified: probability with which the guarantee may fail.
        by: certified: largest effect, or largest absolute effect (size).
        tails: certified: how means are bounded; student needs fewer images and misses units that rarely matter.
        value_range: certified, bernstein: largest minus smallest possible effect, e.g. 2 for prob.
        audit: certified: share of units that are measured to the end even if they are rejected.
        fresh_images: certified: images on which each returned unit is measured again.
        max_images: certified: images to draw at most.
        control: certified: lower the variance by gradients.
        control_images: certified: images with gradients.
        calibrated: certified: narrower intervals, chosen by simulation on the first images.
        seed: of resampling, of the split, of the order of the images and of the bootstrap.
        progress: show a progress bar.
        allow_overlap: accept reference images that are evaluated too.
        device: where to put the model, e.g. cuda.
        templates: for CLIP: prompts with {} for the class name; default: "a photo of a {}".
        metadata: the image folder's table; default: metadata.csv, .jsonl or .parquet in the folder.
        masks: the image folder's mask folder.
        label_column: the table's column of labels.
        group_column: the table's column of groups.
        on_corrupt: skip files that cannot be decoded, instead of stopping.
    """
    from mechvis.parallel import world

    if launched(launch, out):
        return
    from mechvis.certified import certificate, certified_top
    from mechvis.sweep import sweep as full

    options = {
        "metadata": metadata,
        "masks": masks,
        "label_column": label_column,
        "group_column": group_column,
        "on_corrupt": on_corrupt,
    }
    found = read_images(images, **options)
    loaded = read_model(model, found, device=world().device(device), templates=templates)
    settings: dict[str, Any] = {
        "units": units,
        "edit": edit,
        "metric": metric,
        "labels": labels,
        "reference": None if reference is None else read_images(reference, **options),
        "source": None if source is None else read_images(source, **options),
        "layers": layers,
        "engine": engine,
        "budget": budget,
        "out": out,
        "seed": seed,
        "progress": progress,
        "allow_overlap": allow_overlap,
    }
    if certified:
        result = certified_top(
            loaded,
            found,
            top=top,
            eps=eps,
            delta=delta,
            by=by,
            tails=tails,
            value_range=value_range,
            audit=audit,
            fresh_images=fresh_images,
            max_images=max_images,
            control=control,
            control_images=control_images,
            calibrated=calibrated,
            **settings,
        )
    else:
        result = full(loaded, found, **settings)
    if not world().leads:
        return
    say(top_rows(result, top, by="selected" if certified else "effect"))
    if certified:
        say(f"\n{certificate(result)}")
    if out is not None:
        page = result.report(out / "report.html")
        say(f"\nsaved in {out}: table.parquet, values.safetensors, {page.name}")
    else:
        say("\nnothing was saved; --out FOLDER keeps the table and writes a report.")


def launched(launch: str | None, out: Path | None) -> bool:
    """Start the same command as several processes, if that is asked for and this is not one of them.

    Raises:
        BadData: several processes, and no folder in which they could share the work.
    """
    from mechvis.errors import BadData
    from mechvis.parallel import start, world
    from mechvis.parallel.world import LAUNCHED

    several = launch is not None or world().size > 1
    if several and out is None:
        raise BadData("several processes share their work through a folder: give --out FOLDER.")
    if launch is None or LAUNCHED in os.environ:
        return False
    words = typed()
    if not words:
        raise BadData("launch= starts the words of a command line; in Python use mechvis.parallel.start.")
    if start([sys.executable, "-m", "mechvis", *words], launch=launch, logs=out / "jobs"):
        say(f"the result will be in {out}.")
    return True


def top_rows(result: Any, k: int, by: str = "effect") -> str:
    """The first rows (by a column of numbers) of each metric of a result, with intervals, as text."""
    parts = []
    for metric in result.metrics:
        rows = [
            (row["unit"], f"{row['effect']:+.4f}", _interval(row), row["n"], "yes" if row["significant"] else "")
            for row in result.top(k, by=by, metric=metric).iter_rows(named=True)
        ]
        total = result.rows(metric).height
        parts.append(
            f"{result.title}: effect on {metric} (clean {result.baseline[metric]:.4f}), "
            f"{min(k, total)} of {total} units\n"
            + columns(rows, ("unit", "effect", "95 % interval", "images", "survives FDR"))
        )
    return "\n\n".join(parts)


def _interval(row: dict) -> str:
    return "none" if row["low"] is None or row["high"] is None else f"[{row['low']:+.4f}, {row['high']:+.4f}]"


def read_images(spec: str, **options: Any) -> "ImageSet":
    """The images that a word on the command line means: `scenes`, `scenes:n`, `scenes:n:seed` (half of them with the
    background that agrees with the shape), or a folder.

    Args:
        spec: the word.
        options: for folders, passed to `mechvis.data.folder`.

    Raises:
        BadData: neither a folder nor a data set.

    Example:
        >>> read_images("scenes:4:9")
        ImageSet('scenes', 4 images, 8 classes, masks, 2 groups, captions)
    """
    import mechvis
    from mechvis.errors import BadData

    name, *numbers = spec.split(":")
    if name == "scenes" and len(numbers) <= 2 and all(number.isdecimal() for number in numbers):
        n, seed = [*map(int, numbers), *(SCENES_N, SCENES_SEED)[len(numbers) :]]
        return mechvis.data.scenes(n, seed=seed, correlation=SCENES_CORRELATION)
    if not Path(spec).expanduser().is_dir():
        raise BadData(
            f"no images at {spec!r}: give a folder, or scenes[:n[:seed]], e.g. scenes:512:7. "
            "`mechvis data export scenes FOLDER` writes an example of a folder."
        )
    return mechvis.data.folder(spec, **options)


def read_model(spec: str, images: "ImageSet", *, device: str | None = None, templates: Sequence[str] = ()) -> Any:
    """The model that a word on the command line means; a CLIP model gets the images' classes as its zero-shot head.

    Raises:
        BadData: a CLIP model, and images without class names.
    """
    import mechvis
    from mechvis.errors import BadData

    loaded = mechvis.load(spec, device=device)
    if not hasattr(loaded, "classifier"):
        return loaded
    if not images.class_names:
        raise BadData(
            f"{spec} needs class names for its zero-shot head, and {images.name!r} has none: use class folders or a "
            "label column."
        )
    return loaded.classifier(images.class_names, templates) if templates else loaded.classifier(images.class_names)


@calls("mechvis.results:Result.report")
def report(folder: Path, /, *, out: Path | None = None) -> None:
    """Write the HTML report of a saved result or study.

    Args:
        folder: what --out of another command named, or Result.save wrote.
        out: the HTML file; default: report.html in the folder.
    """
    page = load_saved(folder).report(folder / "report.html" if out is None else out)
    say(f"report: {page}")


def load_saved(folder: str | Path) -> Any:
    """A saved result or study, whatever kind it is: anything with `.report(path)`.

    The kind is the word `format` of the manifest in the folder; the entry-point group `mechvis.reports` says who reads
    it, so that other packages' studies can be opened too.

    Raises:
        BadData: the folder holds nothing that is known.
    """
    from mechvis.errors import BadData

    folder = Path(folder)
    readers = {point.name: point for point in entry_points(group="mechvis.reports")}
    found = {}
    for file in sorted(folder.glob("*.json")):
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            continue
        if isinstance(manifest, dict) and isinstance(manifest.get("format"), str):
            found[manifest["format"]] = file.name
    usable = [name for name in found if name in readers]
    if not usable:
        what = f"holds {', '.join(found)}, for which no reader is installed" if found else "holds no saved result"
        raise BadData(
            f"{folder} {what if folder.is_dir() else 'is not a folder'}. Readable: {', '.join(sorted(readers))}."
        )
    # A study keeps the plain result of its sweep beside its own manifest; the study is the whole of it.
    chosen = next((name for name in usable if name != "mechvis.result"), usable[0])
    return readers[chosen].load()(folder)


@calls("mechvis.selftest:selftest")
def selftest(*, seed: int = 0) -> int:
    """Check this installation on models whose answer is known; takes less than a minute.

    Args:
        seed: of the random models and images.
    """
    from mechvis.selftest import selftest as run

    logging.getLogger("mechvis").setLevel(logging.WARNING)  # the table says it
    checks = run(seed=seed)
    rows = [(check.name, check.expected, check.measured, "ok" if check.ok else "FAILED") for check in checks]
    say(columns(rows, ("check", "expected", "measured", "")))
    failed = sum(not check.ok for check in checks)
    say(f"\n{len(checks) - failed} of {len(checks)} checks passed")
    return int(failed > 0)
