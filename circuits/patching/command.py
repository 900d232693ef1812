"""`mechvis patch`: activation patching from words to a table and a page."""

from pathlib import Path
from typing import Literal

from mechvis.cli import say
from mechvis.commands import calls, launched, read_groups, read_images, read_model, read_targets


@calls(
    "circuits.patching.patch:patch",
    "circuits.pairs.make:make_pairs",
    "circuits.pairs.aligned:aligned",
    "circuits.pairs.check:check_pairs",
    "mechvis.parallel.launch:start",
    "mechvis.models.load:load",
    "mechvis.clip:HookedCLIP.classifier",
    "mechvis.data.folder:folder",
)
def patch(
    *,
    model: str,
    images: str,
    change: Literal[
        "object", "background", "colour", "hue", "grey", "shape", "texture", "tokens", "nearest", "zero", "noise"
    ] = "object",
    corrupt: str | None = None,
    units: tuple[
        Literal[
            "heads", "q", "k", "v", "pattern", "result", "attn_out", "mlp_out", "neurons", "tokens", "patches",
            "pool_heads",
        ],
        ...,
    ] = ("heads",),
    groups: str | None = None,
    direction: Literal["both", "noise", "denoise"] = "both",
    metric: tuple[str, ...] = ("logit_diff",),
    targets: tuple[str, ...] | None = None,
    layers: tuple[int, ...] | None = None,
    aggregate: Literal["ratio_of_means", "mean_of_ratios"] = "ratio_of_means",
    tiny: float = 0.05,
    max_failing: float | None = None,
    entropy_ratio: float | None = 2.0,
    max_undistinguished: float = 0.5,
    engine: Literal["wave", "plain", "compiled"] = "wave",
    budget: str | None = None,
    out: Path | None = None,
    launch: str | None = None,
    top: int = 10,
    seed: int = 0,
    progress: bool = True,
    device: str | None = None,
    templates: tuple[str, ...] = (),
    metadata: Path | None = None,
    masks: Path | None = None,
    label_column: str = "label",
    group_column: str | None = None,
    on_corrupt: Literal["error", "skip"] = "error",
) -> None:  # fmt: skip
    """Put activations of changed images into runs of the images (and the reverse): which parts carry the difference?

    Clean images are those of --images. The corrupt half is made of them by --change, or given by --corrupt. With --out
    the result is saved there with a page; the same command continues an interrupted one.

    Args:
        model: a bundled name, a folder, or hf:<folder or hub id>.
        images: the clean images: a folder, or scenes[:n[:seed]].
        change: object or background swap (scenes: drawn exactly; folders: by masks), colour (scenes only), hue, grey,
            shape (patches of the object shuffled), texture (blur), tokens (object and background patches exchanged),
            nearest (image of another class), zero, noise.
        corrupt: instead of --change: a folder of images aligned one to one with --images.
        units: what is patched; q, k, v and pattern are parts of single heads; patches need --groups.
        groups: for patches: 4x4, object (where the clean or the corrupt object is), a .npy or a .json file.
        direction: noise (corrupt into clean), denoise (clean into corrupt), or both.
        metric: logit, logit_diff, log_odds, logprob, prob, accuracy, kl, js; the contrast is the corrupt class.
        targets: measure against these classes instead: names or numbers, or target:contrast.
        layers: only these layers.
        aggregate: the share is a ratio of means (over pairs), or a mean of ratios.
        tiny: pairs whose metric differs by less than this share of the mean difference count as tiny.
        max_failing: check the pairs first, keep those that pass, and stop if more than this share fails.
        entropy_ratio: for that check: corrupt predictions with so many times the clean entropy are collapsed.
        max_undistinguished: largest share of pairs with one prediction for both halves.
        engine: wave, its slow twin plain, or compiled.
        budget: memory for activations, e.g. 8GB.
        out: folder for the table, the per-pair values and report.html.
        launch: local:2 for two processes, slurm:nodes=2,partition=gpu,... for an array of jobs; needs --out.
        top: rows to print per metric and direction.
        seed: of what is drawn for the pairs, and of the bootstrap.
        progress: show a progress bar.
        device: where to put the model, e.g. cuda.
        templates: for CLIP: prompts with {} for the class name; default: "a photo of a {}".
        metadata: the image folder's table; default: metadata.csv, .jsonl or .parquet in the folder.
        masks: the image folder's mask folder.
        label_column: the table's column of labels.
        group_column: the table's column of groups.
        on_corrupt: skip files that cannot be decoded, instead of stopping.
    """
    if launched(launch, out):
        return
    from circuits.pairs import check_pairs
    from circuits.pairs.words import read_pairs
    from circuits.patching.patch import patch as run
    from circuits.patching.words import report, summary
    from mechvis.parallel import world

    said = None if groups is None else read_groups(groups)
    options = {
        "metadata": metadata,
        "masks": masks,
        "label_column": label_column,
        "group_column": group_column,
        "on_corrupt": on_corrupt,
    }
    found = read_images(images, **options)
    loaded = read_model(model, found, device=world().device(device), templates=templates)
    pairs = read_pairs(loaded, images, found, change, corrupt=corrupt, seed=seed, **options)
    check = None
    if max_failing is not None:
        check = check_pairs(loaded, pairs, max_failing, entropy_ratio=entropy_ratio)
        pairs = check.kept(pairs)
    result = run(
        loaded,
        pairs,
        units=units,
        groups=said,
        direction=direction,
        metric=metric,
        targets=read_targets(targets, loaded.parts.class_names),
        layers=layers,
        aggregate=aggregate,
        tiny=tiny,
        max_undistinguished=max_undistinguished,
        engine=engine,
        budget=budget,
        out=out,
        seed=seed,
        progress=progress,
    )
    if not world().leads:
        return
    if check is not None:
        say(f"{check!r}\n")
    say(summary(result, top))
    if out is None:
        say("\nnothing was saved; --out FOLDER keeps the table and writes a page.")
        return
    page = report(result, out / "report.html")
    say(f"\nsaved in {out}: table.parquet, values.safetensors, {page.name}")
    if {"patches", "tokens"} & set(units):
        where = f"mechvis.Result.load({str(out)!r}), {result.metrics[0]!r}"
        say(f"maps over the image: mechvis.patches.patch_maps({where})")
