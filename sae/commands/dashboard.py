"""`mechvis sae dashboard`: what the latents of a dictionary fire on, as one HTML file."""

from pathlib import Path
from typing import Literal

from mechvis.cli import say
from mechvis.commands import calls, read_images


@calls(
    "sae.dashboards.collect:latent_pages",
    "sae.dashboards.page:dashboard",
    "sae.formats.convert:load",
    "sae.dictionary:load",
    "mechvis.models.load:load",
    "mechvis.data.folder:folder",
)
def dashboard(
    folder: Path,
    /,
    *,
    model: str,
    images: str,
    out: Path,
    site: str | None = None,
    latents: int | None = None,
    n_top: int = 16,
    n_quantile: int = 8,
    groups: str | None = None,
    texts: str | None = None,
    clip: str | None = None,
    n_neighbours: int = 8,
    n_texts: int = 8,
    tokens: str = "all",
    thumbnail: int = 64,
    title: str | None = None,
    format: str | None = None,
    pages: Path | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
    device: str | None = None,
    metadata: Path | None = None,
    label_column: str = "label",
    group_column: str | None = None,
    on_corrupt: Literal["error", "skip"] = "error",
) -> None:
    """Show what latents fire on: top images with heat maps, classes, groups, texts, neighbours, in one HTML file.

    Args:
        folder: a saved dictionary, or another library's folder or file.
        model: a bundled name, a folder, or hf:<folder or hub id>; of CLIP the vision tower is read.
        images: a folder of images, or scenes[:n[:seed]].
        out: the HTML file.
        site: where the dictionary reads, if its own name for it is another.
        latents: so many, the most frequent ones; default: all that fire.
        n_top: strongest images per latent.
        n_quantile: images from its whole range, besides.
        groups: a column of the images in place of their groups.
        texts: for CLIP: general, scenes, or a .txt, .json or .csv file, for nearest texts.
        clip: a CLIP model for the texts, where --model is none.
        n_neighbours: neighbours of each kind.
        n_texts: texts of each kind.
        tokens: which tokens the dictionary is about: all, cls, registers, prefix or patches.
        thumbnail: longest side of the small pictures, in pixels.
        title: heading of the page.
        format: of the dictionary's files; default: told from them.
        pages: folder for the data behind the page.
        batch_size: images per forward.
        seed: of everything that is drawn.
        progress: show progress bars.
        device: where to put model and dictionary, e.g. cuda.
        metadata: the image folder's table; default: metadata.csv, .jsonl or .parquet in the folder.
        label_column: the table's column of labels.
        group_column: the table's column of groups.
        on_corrupt: skip files that cannot be decoded, instead of stopping.
    """
    import mechvis
    from mechvis.files import ensure_writable
    from mechvis.report.build import ensure_report_path
    from sae.dashboards import dashboard as draw
    from sae.dashboards import latent_pages
    from sae.formats import load

    # Before any work: a wrong path should not cost a run.
    ensure_report_path(out)
    if pages is not None:
        ensure_writable(pages)
    found = read_images(
        images, metadata=metadata, label_column=label_column, group_column=group_column, on_corrupt=on_corrupt
    )
    loaded = mechvis.load(model, device=device)
    tower = getattr(loaded, "vision", loaded)
    reader = None if clip is None else mechvis.load(clip, device=device)
    looked = latent_pages(
        loaded, found, load(folder, format).to(tower.device), site, latents=latents, n_top=n_top,
        n_quantile=n_quantile, groups=groups, texts=texts, clip=reader, n_neighbours=n_neighbours, n_texts=n_texts,
        tokens=tokens, thumbnail=thumbnail, batch_size=batch_size, seed=seed, progress=progress,
    )  # fmt: skip
    if pages is not None:
        looked.save(pages)
    say(repr(draw(looked, out, title=title)))
    for line in looked.caveats:
        say(f"- {line}")
