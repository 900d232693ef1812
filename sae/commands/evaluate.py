"""`mechvis sae eval`: dictionaries beside baselines, in one table."""

from pathlib import Path
from typing import Any, Literal

from mechvis.cli import columns, say
from mechvis.commands import calls, read_images, read_model

SHOWN = ("fvu", "l0", "dead", "loss_zero", "accuracy_zero", "kl_mean", "embedding_mean", "ms", "probe_1", "absorbed")
"""Columns that are printed, as far as they are known; the record has all."""


@calls(
    "sae.evaluation.table:evaluate",
    "sae.evaluation.folders:load_dictionaries",
    "mechvis.models.load:load",
    "mechvis.clip:HookedCLIP.classifier",
    "mechvis.data.folder:folder",
)
def evaluate(
    folders: tuple[Path, ...],
    /,
    *,
    model: str,
    images: str,
    site: str | None = None,
    out: Path | None = None,
    metrics: tuple[Literal["recovered", "monosemanticity", "probing", "spatial", "absorption", "coherence"], ...]
    | None = None,
    baselines: tuple[
        Literal["pca", "pca_rank", "ica", "kmeans", "nmf", "semi_nmf", "random", "identity", "zero", "mean"], ...
    ] = ("pca", "random", "identity", "zero"),
    reference: str | None = None,
    trained_on: str | None = None,
    allow_overlap: bool = False,
    judge: str | None = None,
    head: int | None = None,
    tokens: str = "all",
    pool: Literal["mean", "max"] = "mean",
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
    device: str | None = None,
    templates: tuple[str, ...] = (),
    metadata: Path | None = None,
    label_column: str = "label",
    group_column: str | None = None,
    on_corrupt: Literal["error", "skip"] = "error",
) -> None:
    """Judge dictionaries of one site beside baselines: FVU, L0, dead latents, what the model still does, concepts.

    Images must be others than those that trained the dictionaries.

    Args:
        folders: saved dictionaries, or a training run's folder with several.
        model: a bundled name, a folder, or hf:<folder or hub id>; of CLIP the zero-shot classifier.
        images: a folder of images, or scenes[:n[:seed]].
        site: the site, where the dictionaries were trained on a plain matrix.
        out: folder for the tables, per-latent numbers and report.html.
        metrics: which, besides FVU, L0, dead latents and cosine; default: all that the images allow.
        baselines: beside which.
        reference: images for baselines, means, probes and thresholds, as in --images; default: a third of the images.
        trained_on: the images that trained the dictionaries, as in --images, to make sure that none of them judges.
        allow_overlap: judge on images that trained them.
        judge: a model whose final embedding says which images are alike; default: the model itself.
        head: the only head, where a row is one head of a site with heads.
        tokens: all, cls, registers, prefix or patches.
        pool: one number per image and latent for probing and absorption.
        batch_size: images per forward.
        seed: of splits, baselines and resamples.
        progress: show progress bars.
        device: where to put model and dictionaries, e.g. cuda.
        templates: for CLIP: prompts with {} for the class name; default: "a photo of a {}".
        metadata: the image folder's table; default: metadata.csv, .jsonl or .parquet in the folder.
        label_column: the table's column of labels.
        group_column: the table's column of groups.
        on_corrupt: skip files that cannot be decoded, instead of stopping.
    """
    import mechvis
    from sae.evaluation.folders import load_dictionaries
    from sae.evaluation.table import evaluate as run

    options = {
        "metadata": metadata,
        "label_column": label_column,
        "group_column": group_column,
        "on_corrupt": on_corrupt,
    }

    def read(spec: str | None) -> Any:
        return None if spec is None else read_images(spec, **options)

    dictionaries = load_dictionaries(folders, device=device)
    found = read_images(images, **options)
    loaded = read_model(model, found, device=device, templates=templates)
    other = None if judge is None else mechvis.load(judge, device=device)
    evaluated = run(
        dictionaries,
        loaded,
        found,
        site,
        metrics=metrics,
        baselines=baselines,
        reference=read(reference),
        judge=getattr(other, "vision", other),
        trained_on=read(trained_on),
        allow_overlap=allow_overlap,
        head=head,
        tokens=tokens,
        pool=pool,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    say(shown(evaluated))
    if out is None:
        say("\nnothing was saved; --out FOLDER keeps the tables and writes a report.")
        return
    evaluated.save(out)
    page = evaluated.report(out / "report.html")
    say(f"\nsaved in {out}: tables, per-latent numbers, {page.name}")


def shown(evaluated: Any) -> str:
    """The main columns of an evaluation as text, with intervals and what to keep in mind."""
    table = evaluated.table
    names = [name for name in SHOWN if name in table.columns]
    rows = [(row["dictionary"], *(_cell(row, name) for name in names)) for row in table.iter_rows(named=True)]
    said = "".join(f"\n- {line}" for line in evaluated.caveats)
    return f"{evaluated.title}\n{columns(rows, ('dictionary', *names))}{said}"


def _cell(row: dict[str, Any], name: str) -> str:
    if row[name] is None:
        return "-"
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return f"{row[name]:.3f}" if low is None or high is None else f"{row[name]:.3f} [{low:.3f}, {high:.3f}]"
