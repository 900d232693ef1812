"""`mechvis concepts`: what directions a class is made of inside a model, where they are, and how much they matter."""

from pathlib import Path
from typing import Any, Literal

from mechvis.cli import columns, say
from mechvis.commands import calls, read_images, read_model


@calls(
    "probes.concepts.craft:craft",
    "probes.concepts.ace:ace",
    "probes.concepts.mlp:mlp_concepts",
    "mechvis.models.load:load",
    "mechvis.clip:HookedCLIP.classifier",
    "mechvis.data.folder:folder",
)
def concepts(
    *,
    model: str,
    images: str,
    target: str | None = None,
    site: str | None = None,
    method: Literal["semi_nmf", "nmf", "pca", "kmeans", "dictionary", "ace", "snmf"] = "semi_nmf",
    n_concepts: int = 20,
    importance: Literal["sobol", "grad_input", "ig", "occlusion", "shapley", "tcav"] = "sobol",
    importance_images: int = 64,
    chosen: Literal["predicted", "labelled", "all"] = "predicted",
    fit_share: float = 0.5,
    prefix: Literal["keep", "mean"] = "keep",
    residual: Literal["drop", "keep"] = "drop",
    answer: Literal["logit", "probability", "margin"] = "logit",
    crop: float = 64 / 224,
    random: str | None = None,
    how: Literal["superpixels", "grid"] = "superpixels",
    runs: int = 5,
    layer: int | None = None,
    sparsity: float = 0.01,
    batch_size: int = 64,
    out: Path | None = None,
    seed: int = 0,
    progress: bool = True,
    device: str | None = None,
    templates: tuple[str, ...] = (),
    metadata: Path | None = None,
    masks: Path | None = None,
    label_column: str = "label",
    group_column: str | None = None,
    on_corrupt: Literal["error", "skip"] = "error",
) -> None:
    """Find concepts: directions in a layer that a class is made of, with maps and importance.

    The activations of a class's images are factored into concepts, and each is masked to see what the rest of the model
    makes of it (CRAFT); where images have masks, concepts are called object or background. With --method ace, segments
    of images are clustered and tested against --random segments. With --method snmf, neurons of one --layer that fire
    together are found; no class is needed.

    Args:
        model: a bundled name, a folder, or hf:<folder or hub id>.
        images: a folder of images (with masks: also object and background), or scenes[:n[:seed]].
        target: the class, by name or number.
        site: where; default the stream after the first half of the blocks.
        method: how the activations are factored; or ace, or snmf.
        n_concepts: how many; with ace the number of clusters.
        importance: how importance is measured.
        importance_images: at most so many images are asked for importance.
        chosen: images of the class: those the model predicts so, or those labelled so (not for ace: or all).
        fit_share: share of the images that the concepts are fitted on; the rest is measured.
        prefix: tokens before the patches (CLS): each image's own, or their mean.
        residual: what the concepts leave over: dropped or kept.
        answer: logit of the class, its probability, or its margin.
        crop: at hook_pooled: side of the crops, as a share of the image's.
        random: ace: other images, for random segments.
        how: ace: superpixels or cells of a grid.
        runs: ace: independent runs of the test.
        layer: snmf: which block.
        sparsity: snmf: share of the neurons in each concept.
        batch_size: images per forward.
        out: folder for the tables, arrays and report.html.
        seed: of everything random.
        progress: show progress bars.
        device: where to put the model, e.g. cuda.
        templates: for CLIP: prompts with {} for the class name; default: "a photo of a {}".
        metadata: the image folder's table; default: metadata.csv, .jsonl or .parquet in the folder.
        masks: the image folder's mask folder.
        label_column: the table's column of labels.
        group_column: the table's column of groups.
        on_corrupt: skip files that cannot be decoded, instead of stopping.
    """
    from mechvis.errors import BadData

    folder = {
        "metadata": metadata,
        "masks": masks,
        "label_column": label_column,
        "group_column": group_column,
        "on_corrupt": on_corrupt,
    }
    if method == "snmf" and layer is None:
        raise BadData("--method snmf looks at one MLP: say which with --layer.")
    if method != "snmf" and target is None:
        raise BadData(f"--method {method} is about a class: name it with --target.")
    if method == "ace" and (random is None or chosen == "all"):
        raise BadData("--method ace needs --random images, and --chosen predicted or labelled.")
    shown = read_images(images, **folder)
    loaded = read_model(model, shown, device=device, templates=templates)
    wanted = int(target) if target is not None and target.isdecimal() else target
    shared: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "progress": progress}
    if method == "ace":
        from probes.concepts.ace import ace

        found = ace(
            loaded, shown, read_images(random, **folder), wanted, site=site, how=how, n_clusters=n_concepts, runs=runs,
            chosen=chosen, **shared,
        )  # fmt: skip
        say(
            _table(found.table, ("concept", "score", "low", "high", "p_adjusted", "significant", "of_images", "object"))
        )
    elif method == "snmf":
        from probes.concepts.mlp import mlp_concepts

        found = mlp_concepts(loaded, shown, layer, n_concepts, sparsity=sparsity, fit_share=fit_share, **shared)
        say(_table(found.table, ("concept", "share", "active", "speaks_for", "effect", "auroc", "what")))
    else:
        from probes.concepts.craft import craft

        found = craft(
            loaded, shown, wanted, site=site, method=method, n_concepts=n_concepts, importance=importance,
            importance_images=importance_images, chosen=chosen, fit_share=fit_share, prefix=prefix, residual=residual,
            answer=answer, crop=crop, **shared,
        )  # fmt: skip
        say(_table(found.table, ("concept", "importance", "low", "high", "effect", "active", "auroc", "what")))
    for line in found.caveats:
        say(f"- {line}")
    if out is None:
        say("\nnothing was saved; --out FOLDER keeps the tables and writes a report.")
        return
    found.save(out)
    say(f"\nsaved in {out}: record.json, tables, arrays.safetensors, {found.report(out / 'report.html').name}")


def _table(table: Any, names: tuple[str, ...]) -> str:
    shown = [name for name in names if name in table.columns]
    rows = [
        tuple(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row)
        for row in table.select(shown).iter_rows()
    ]
    return columns(rows, tuple(name.replace("_", " ") for name in shown))
