"""`mechvis decompose`: what every head, MLP and bias writes into the output."""

from pathlib import Path
from typing import Any, Literal

from mechvis.cli import columns, say
from mechvis.commands.words import calls, read_images, read_model

SHOWN = 20
"""Terms that are printed, largest share first."""


@calls(
    "mechvis.decompose.decomposition:decompose",
    "mechvis.decompose.ablations:ablations",
    "mechvis.models.load:load",
    "mechvis.clip:HookedCLIP.classifier",
    "mechvis.data.folder:folder",
)
def decompose(
    *,
    model: str,
    images: str,
    layers: int | None = -4,
    of: Literal["output", "pooled", "embedding", "logits"] = "output",
    convention: Literal["linear", "even_split"] = "linear",
    pooling: Literal["heads", "through"] = "heads",
    reference: str | None = None,
    metric: str = "logit_diff",
    keep: bool = False,
    batch_size: int = 32,
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
    """Split the output into what heads, MLPs and biases write: an exact sum, with its remaining error.

    Args:
        model: a bundled name, a folder, or hf:<folder or hub id>.
        images: a folder of images, or scenes[:n[:seed]].
        layers: layers whose heads and MLPs are told apart, from the end (-4: the last four); None: all.
        of: output (logits if there is a head), pooled, embedding or logits.
        convention: linear (biases are terms of their own), or even_split (shared out, as in published code).
        pooling: of a model with attention pooling: its heads, or through them the layers.
        reference: images for means: heads and MLPs are also replaced by their mean, in the sum and in the forward pass.
        metric: what the ablations measure, e.g. logit_diff.
        keep: keep every term of every image.
        batch_size: images per forward.
        out: folder for the table and report.html; ablations/ beside them.
        seed: of the intervals.
        progress: show a progress bar.
        device: where to put the model, e.g. cuda.
        templates: for CLIP: prompts with {} for the class name; default: "a photo of a {}".
        metadata: the image folder's table; default: metadata.csv, .jsonl or .parquet in the folder.
        masks: the image folder's mask folder.
        label_column: the table's column of labels.
        group_column: the table's column of groups.
        on_corrupt: skip files that cannot be decoded, instead of stopping.
    """
    from mechvis.decompose import ablations as ablate
    from mechvis.decompose import decompose as split

    folder = {"metadata": metadata, "masks": masks, "label_column": label_column, "group_column": group_column}
    found = read_images(images, **folder, on_corrupt=on_corrupt)
    loaded = read_model(model, found, device=device, templates=templates)
    more: dict[str, Any] = {"batch_size": batch_size, "seed": seed, "progress": progress}
    parts = split(loaded, found, layers=layers, of=of, convention=convention, pooling=pooling, keep=keep, **more)
    say(_terms(parts.table))
    say(f"\n{parts.caveats[0]}")
    removed = None
    if reference is not None:
        averaged = read_images(reference, **folder, on_corrupt=on_corrupt)
        removed = ablate(loaded, found, reference=averaged, layers=layers, metric=metric, **more)
        say("\n" + _ablations(removed.table, metric))
    if out is None:
        say("\nnothing was saved; --out FOLDER keeps the tables and writes a report.")
        return
    parts.save(out)
    page = parts.report(out / "report.html")
    if removed is not None:
        removed.save(out / "ablations")
        removed.report(out / "ablations" / "report.html")
    say(f"\nsaved in {out}: record.json, terms.parquet, arrays.safetensors, {page.name}")


def _terms(table: Any) -> str:
    rows = table.sort("share", descending=True).head(SHOWN).iter_rows(named=True)
    has_direct = "direct" in table.columns
    header = ("term", "share", "low", "high", "spread", *(("direct",) if has_direct else ()))
    cells = [
        (row["term"], *(f"{row[name]:+.4f}" for name in ("share", "low", "high", "spread")))
        + ((f"{row['direct']:+.3f}",) if has_direct else ())
        for row in rows
    ]
    return columns(cells, header)


def _ablations(table: Any, metric: str) -> str:
    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:+.3f}"

    cells = [
        (row["group"], shown(row["direct"]), shown(row["forward"]), shown(row["accuracy_forward"]))
        for row in table.iter_rows(named=True)
    ]
    return columns(cells, ("at its mean", f"fall of {metric}, direct path", "forward pass", "accuracy left"))
