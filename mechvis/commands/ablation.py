"""`mechvis sweep`: ablate many units on many images, full, screened or certified."""

from pathlib import Path
from typing import Any, Literal

from mechvis.cli import columns, say
from mechvis.commands.processes import launched
from mechvis.commands.words import calls, only_with, read_groups, read_images, read_model, read_targets


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
    units: Literal["heads", "result", "attn_out", "mlp_out", "neurons", "tokens", "patches", "pool_heads"] = "heads",
    groups: str | None = None,
    edit: Literal["zero", "mean", "mean_positional", "resample", "patch"] = "zero",
    metric: tuple[str, ...] = ("logit_diff",),
    targets: tuple[str, ...] | None = None,
    labels: Literal["given", "predicted"] | None = None,
    reference: str | None = None,
    source: str | None = None,
    layers: tuple[int, ...] | None = None,
    engine: Literal["wave", "plain", "compiled"] = "wave",
    screen: Literal["bf16"] | None = None,
    recheck: int | float | None = None,
    screen_share: float = 1.0,
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
        units: what is ablated; tokens and patches (see --groups) are positions in the stream before a block.
        groups: for patches: 4x4 for a grid of cells, object for object and background by the images' masks, a .npy file
            with masks or label maps (superpixels) [image height width], or a .json file with lists of tokens by name.
        edit: what takes the unit's place; means are over reference images, patch is from the image aligned in --source.
        metric: logit, logit_diff, log_odds, logprob, prob, accuracy, kl, js; several cost no extra forward.
        targets: measure against these classes for every image: names or numbers, or target:contrast.
        labels: measure against the given labels or the model's predicted classes; default: given, where there are any.
        reference: images for the means, as in --images; default: a third of the images, then not evaluated.
        source: for patch: images aligned one to one with --images.
        layers: only these layers.
        engine: wave, its slow twin plain, or compiled (blocks by torch.compile).
        screen: bf16: measure all units in bfloat16 and only the first ones again in float32.
        recheck: screen: how many units to measure again, or which share of them; default: a sixteenth, at least four.
        screen_share: screen: share of the images to screen on.
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
    from mechvis.errors import BadData
    from mechvis.parallel import world

    narrow: dict[str, Any] = {
        "eps": eps, "delta": delta, "by": by, "tails": tails, "value_range": value_range, "audit": audit,
        "fresh_images": fresh_images, "max_images": max_images, "control": control, "control_images": control_images,
        "calibrated": calibrated,
    }  # fmt: skip
    again: dict[str, Any] = {"recheck": recheck, "screen_share": screen_share}
    only_with("certified", certified, narrow, of=sweep)
    only_with("screen", screen is not None, again, of=sweep)
    only_with("control", control, {"control_images": control_images}, of=sweep)
    if certified and screen is not None:
        raise BadData(
            "--certified guarantees the top units in float32 from few images, --screen ranks all units in bfloat16 on "
            "many. Leave one of them out."
        )
    if units == "patches" and groups is None:
        raise BadData("--units patches needs --groups, e.g. --groups 4x4 for a grid of cells.")
    if groups is not None and units != "patches":
        raise BadData(f"--groups says what patches are; with --units {units} leave it out, or add --units patches.")
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
    said = None if groups is None else read_groups(groups)
    found = read_images(images, **options)
    loaded = read_model(model, found, device=world().device(device), templates=templates)
    settings: dict[str, Any] = {
        "units": units,
        "groups": said,
        "edit": edit,
        "metric": metric,
        "targets": read_targets(targets, loaded.parts.class_names),
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
        result = certified_top(loaded, found, top=top, **narrow, **settings)
    else:
        result = full(loaded, found, screen=screen, **again, **settings)
    if not world().leads:
        return
    say(top_rows(result, top, by="selected" if certified else "effect"))
    if certified:
        say(f"\n{certificate(result)}")
    if screen is not None:
        say(f"\n{result.provenance['screen']['statement']}")
    if out is not None:
        page = result.report(out / "report.html")
        say(f"\nsaved in {out}: table.parquet, values.safetensors, {page.name}")
        if units in ("patches", "tokens"):
            say(f"maps over the image: mechvis.patches.patch_maps(mechvis.Result.load({str(out)!r}))")
    else:
        say("\nnothing was saved; --out FOLDER keeps the table and writes a report.")


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
