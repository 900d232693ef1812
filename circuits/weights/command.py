"""`mechvis head-roles`: where the heads of a model look."""

from pathlib import Path
from typing import Any, Literal

from mechvis.cli import columns, say
from mechvis.commands import calls, read_images, read_model


@calls(
    "circuits.weights.roles:head_roles",
    "circuits.weights.roles:top_roles",
    "mechvis.models.load:load",
    "mechvis.clip:HookedCLIP.classifier",
    "mechvis.data.folder:folder",
)
def head_roles(
    *,
    model: str,
    images: str,
    queries: Literal["read", "patch", "all"] = "read",
    diffuse: float = 0.5,
    least: float = 0.1,
    layers: tuple[int, ...] | None = None,
    batch_size: int | None = None,
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
    """Name what each head looks at: CLS, registers, itself, neighbours, everything, the object or the background.

    A head is named by the role in which it lies furthest above its control, if it does so for sure. Nothing is ablated:
    a role says where a head looks, not that it matters.

    Args:
        model: a bundled name, a folder, or hf:<folder or hub id>.
        images: a folder of images (with masks: also object and background), or scenes[:n[:seed]].
        queries: whose attention counts for object and background: the tokens that are read, patches, or all.
        diffuse: share of the keys that a head must use, effectively, to count as diffuse.
        least: smallest excess over its control that gives a head its name, 0 to 1.
        layers: only these layers.
        batch_size: images per forward; default: by memory.
        out: folder for the table, the per-image values and report.html.
        seed: of the bootstrap.
        progress: show a progress bar.
        device: where to put the model, e.g. cuda.
        templates: for CLIP: prompts with {} for the class name; default: "a photo of a {}".
        metadata: the image folder's table; default: metadata.csv, .jsonl or .parquet in the folder.
        masks: the image folder's mask folder.
        label_column: the table's column of labels.
        group_column: the table's column of groups.
        on_corrupt: skip files that cannot be decoded, instead of stopping.
    """
    from circuits.weights.report import report_heads
    from circuits.weights.roles import head_roles as roles_of
    from circuits.weights.roles import top_roles

    found = read_images(
        images,
        metadata=metadata,
        masks=masks,
        label_column=label_column,
        group_column=group_column,
        on_corrupt=on_corrupt,
    )
    loaded = read_model(model, found, device=device, templates=templates)
    settings: dict[str, Any] = {"queries": queries, "diffuse": diffuse, "layers": layers, "batch_size": batch_size}
    roles = roles_of(loaded, found, seed=seed, progress=progress, **settings)
    named = top_roles(roles, least=least)
    say(_table(named))
    if out is not None:
        roles.save(out)
        page = report_heads(roles, out / "report.html", least=least)
        say(f"\nsaved in {out}: table.parquet, values.safetensors, {page.name}")
    else:
        say("\nnothing was saved; --out FOLDER keeps the table and writes a report.")


def _table(named: Any) -> str:
    rows = [
        (
            row["unit"],
            row["role"],
            f"{row['excess']:+.3f}",
            "none" if row["low"] is None else f"[{row['low']:+.3f}, {row['high']:+.3f}]",
            f"{row['score']:.3f}",
            f"{row['control']:.3f}",
            row["n"],
        )
        for row in named.iter_rows(named=True)
    ]
    return columns(rows, ("head", "role", "excess", "95 % interval", "score", "control", "images"))
