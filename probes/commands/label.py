"""`mechvis label`: which concept every unit detects, judged on held-out images."""

from pathlib import Path
from typing import Literal

from mechvis.cli import columns as aligned
from mechvis.cli import say
from mechvis.commands import calls, read_images


@calls(
    "probes.unit_labels.study:label_units",
    "probes.unit_labels.concepts:concepts_of",
    "probes.unit_labels.concepts:concepts_from_texts",
    "mechvis.models.load:load",
    "mechvis.data.folder:folder",
)
def label(
    *,
    model: str,
    images: str,
    reduce: Literal["max", "mean", "cls", "none"],
    sites: tuple[str, ...] = ("blocks.*.mlp.hook_post",),
    columns: tuple[str, ...] = (),
    texts: Path | None = None,
    clip: str | None = None,
    method: Literal[
        "soft_wpmi", "wpmi", "rank_reorder", "cosine", "cosine_cubed", "correlation", "linear", "logical",
        "network_dissection",
    ] = "soft_wpmi",
    measure: str = "pearson",
    shuffles: int = 5,
    shown: int = 6,
    top: int = 12,
    out: Path | None = None,
    seed: int = 0,
    progress: bool = True,
    device: str | None = None,
    metadata: Path | None = None,
    masks: Path | None = None,
    label_column: str = "label",
    group_column: str | None = None,
    on_corrupt: Literal["error", "skip"] = "error",
) -> None:  # fmt: skip
    """Label neurons, heads or other units with concepts, and say which labels hold on images not used for the choice.

    Concepts are the labels and columns of words of the images, or the texts of a file, judged by a model of images and
    texts. A label says what goes with a unit's activation, not what the unit does.

    Args:
        model: a bundled name, a folder, or hf:<folder or hub id>; of CLIP models, the image tower.
        images: a folder of images, or scenes[:n[:seed]].
        reduce: how the values of a unit's tokens become one: the largest or mean of the patches, the class token, none.
        sites: where the units are; neurons by default; *attn.hook_z for heads.
        columns: concepts from these columns of the images (label for the labels); default: all columns of words.
        texts: a file with one text per line, instead of columns.
        clip: the model of images and texts that compares images with texts; default: the model itself.
        method: how labels are chosen.
        measure: how labels are judged.
        shuffles: runs on shuffled concepts, for the control.
        shown: units whose images are kept for the report.
        top: rows that are printed.
        out: folder for the table, images and report.html.
        seed: of the halves, shuffles and bootstrap.
        progress: show a progress bar.
        device: where to put the model, e.g. cuda.
        metadata: the image folder's table; default: metadata.csv, .jsonl or .parquet in the folder.
        masks: the image folder's mask folder.
        label_column: the table's column of labels.
        group_column: the table's column of groups.
        on_corrupt: skip files that cannot be decoded, instead of stopping.
    """
    import mechvis
    from mechvis.errors import BadData
    from probes.unit_labels.concepts import concepts_from_texts, concepts_of
    from probes.unit_labels.study import label_units

    if texts is None and clip is not None:
        raise BadData("--clip compares images with --texts, and there are none. Add them, or leave it out.")
    if texts is not None and columns:
        raise BadData("concepts come from --texts or from --columns, not from both.")
    found = read_images(
        images,
        metadata=metadata,
        masks=masks,
        label_column=label_column,
        group_column=group_column,
        on_corrupt=on_corrupt,
    )
    loaded = mechvis.load(model, device=device)
    if texts is None:
        concepts = concepts_of(found, columns or None)
    else:
        said = loaded if clip is None else mechvis.load(clip, device=device)
        concepts = concepts_from_texts(said, found, _lines(texts))
    labels = label_units(
        getattr(loaded, "vision", loaded),
        found,
        concepts,
        sites=list(sites),
        reduce=reduce,
        method=method,
        measure=measure,
        shuffles=shuffles,
        shown=shown,
        seed=seed,
        progress=progress,
    )
    say(labels.summary())
    rows = [
        (
            *(row[name] for name in ("unit", "label", "source")),
            f"{row['held_out']:.3f}",
            f"[{row['low']:.3f}, {row['high']:.3f}]",
            f"{row['random_unit']:.3f}" if row["random_unit"] is not None else "none",
            row["n"],
        )
        for row in labels.detectors().head(top).iter_rows(named=True)
    ]
    if rows:
        say("\n" + aligned(rows, ("unit", "label", "source", measure, "95 % interval", "random unit", "images")))
    if out is None:
        say("\nnothing was saved; --out FOLDER keeps the table and writes a report.")
        return
    labels.save(out)
    say(f"\nsaved in {out}: units.parquet, {labels.report(out / 'report.html').name}")


def _lines(file: Path) -> list[str]:
    """One text per line; empty lines are left out."""
    from mechvis.errors import BadData

    if not file.is_file():
        raise BadData(f"--texts {file}: there is no such file.")
    found = [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
    if not found:
        raise BadData(f"--texts {file} holds no text; write one per line.")
    return list(dict.fromkeys(found))
