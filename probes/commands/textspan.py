"""`mechvis textspan`: which texts span what the heads of a CLIP model write."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mechvis.cli import columns, say
from mechvis.commands import calls, read_images

if TYPE_CHECKING:
    from probes.textspan.record import TextSpan

_PICTURES = 6
"""Images that heat maps are drawn for."""


@calls(
    "probes.textspan.span:text_span",
    "probes.textspan.heat:text_heat",
    "probes.textspan.heat:token_heat",
    "probes.textspan.confirm_span:confirm_span",
    "mechvis.models.load:load",
    "mechvis.data.folder:folder",
)
def textspan(
    *,
    model: str,
    images: str,
    bank: str = "general",
    layers: int = -4,
    m: int = 20,
    rank: int | None = None,
    svd_center: bool = True,
    score: Literal["deviation", "normalised"] = "deviation",
    unit_pool: bool = True,
    center_pool: bool = False,
    convention: Literal["linear", "even_split"] = "linear",
    permutations: int = 9999,
    alpha: float = 0.01,
    fdr: float = 0.05,
    draws: int = 5,
    texts: tuple[str, ...] = (),
    heads: tuple[str, ...] = (),
    test: str | None = None,
    allow_overlap: bool = False,
    cache: Path | None = None,
    batch_size: int = 32,
    out: Path | None = None,
    seed: int = 0,
    progress: bool = True,
    device: str | None = None,
    metadata: Path | None = None,
    masks: Path | None = None,
    label_column: str = "label",
    group_column: str | None = None,
    on_corrupt: Literal["error", "skip"] = "error",
) -> None:
    """Find the texts that span what each head of a CLIP model writes, and name heads by properties of their texts.

    With --texts: heat maps of these texts over the first images. With --test: the named heads are ablated in the
    forward pass, on images that the names do not come from, with means over --images, against random heads. The test
    images have to say what the properties of the bank are, in columns or class names.

    Args:
        model: a bundled name, a folder, or hf:<folder or hub id>, of a CLIP model.
        images: a folder of images, or scenes[:n[:seed]].
        bank: general, scenes, or a .txt, .json or .csv file of texts.
        layers: whose heads: that many last layers, as a negative number.
        m: texts per head.
        rank: directions that texts are projected onto; default: the width of a head.
        svd_center: are these directions those of the centred writes?
        score: how texts are compared.
        unit_pool: bring texts to unit length first.
        center_pool: take the mean of the texts off.
        convention: what becomes of constant terms of the decomposition.
        permutations: deals of the properties over the texts, for the p-values.
        alpha: largest p-value of a head's name.
        fdr: largest p-value of a named head after correction for properties and heads.
        draws: random pools, and random groups of heads.
        texts: draw heat maps of these texts.
        heads: of these heads only.
        test: confirm the names on these images.
        allow_overlap: accept test images that are among --images.
        cache: a folder that keeps the embeddings of the texts.
        batch_size: images per forward pass.
        out: folder for the tables, figures and report.html.
        seed: of halves, random pools, deals and intervals.
        progress: show progress bars.
        device: where to put the model, e.g. cuda.
        metadata: the image folder's table; default: metadata.csv, .jsonl or .parquet in the folder.
        masks: the image folder's mask folder.
        label_column: the table's column of labels.
        group_column: the table's column of groups.
        on_corrupt: skip files that cannot be decoded, instead of stopping.
    """
    import mechvis
    from mechvis.commands import only_with
    from mechvis.errors import BadData
    from probes.textspan.span import text_span

    only_with("texts", bool(texts), {"heads": heads}, of=textspan)
    only_with("test", test is not None, {"allow_overlap": allow_overlap}, of=textspan)
    if texts and out is None:
        raise BadData("--texts draws heat maps: say where with --out FOLDER.")
    folder: dict[str, Any] = {
        "metadata": metadata, "masks": masks, "label_column": label_column, "group_column": group_column,
        "on_corrupt": on_corrupt,
    }  # fmt: skip
    shown = read_images(images, **folder)
    clip = mechvis.load(model, device=device)
    found = text_span(
        clip, shown, bank, layers=layers, m=m, rank=rank, svd_center=svd_center, score=score, unit_pool=unit_pool,
        center_pool=center_pool, convention=convention, permutations=permutations, alpha=alpha, fdr=fdr, draws=draws,
        cache=cache, batch_size=batch_size, seed=seed, progress=progress,
    )  # fmt: skip
    say(_summary(found))
    if test is not None:
        _confirm(
            clip, found, read_images(test, **folder), bank, out, reference=shown, draws=draws, batch_size=batch_size,
            seed=seed, allow_overlap=allow_overlap, progress=progress, cache=cache,
        )  # fmt: skip
    if out is None:
        say("\nnothing was saved; --out FOLDER keeps the tables and writes a report.")
        return
    found.save(out)
    page = found.report(out / "report.html")
    say(f"\nsaved in {out}: {', '.join(f'{name}.parquet' for name in found.tables)}, {page.name}")
    if texts:
        say(f"heat maps in {_drawn(clip, shown, texts, heads or None, layers, out, progress)}")


def _summary(found: "TextSpan") -> str:
    rows = [
        (
            row["head"], row["label"], row["inside"], f"{row['explained']:.2f}", f"{row['held_out']:.2f}",
            f"{row['random']:.2f}", f"{row['pca']:.2f}", f"{row['overlap']:.2f}", "; ".join(row["texts"][:2]),
        )
        for row in found.table.iter_rows(named=True)
    ]  # fmt: skip
    head = ("head", "texts about", "lies along", "explained", "other half", "random", "at most", "overlap", "texts")
    return f"{found.title}\n{columns(rows, head)}\n\n" + "\n".join(f"- {line}" for line in found.caveats)


def _confirm(clip: Any, found: "TextSpan", test: Any, bank: str, out: Path | None, **settings: Any) -> None:
    from probes.textspan.confirm_span import confirm_span

    if not found.labels() and not found.labels(by="inside"):
        say("\nno head is named by a property, so there is nothing to confirm.")
        return
    confirmed = confirm_span(clip, found, test, bank, **settings)
    rows = [
        (
            row["group"], row["task"], str(row["heads"]), f"{row['clean']:.3f}", f"{row['ablated']:.3f}",
            f"{row['drop']:+.3f}", f"[{row['low']:+.3f}, {row['high']:+.3f}]", f"{row['random']:+.3f}",
            f"{row['p']:.3f}", str(row["n"]),
        )
        for row in confirmed.table.iter_rows(named=True)
    ]  # fmt: skip
    head = ("ablated", "asked for", "heads", "before", "after", "fall", "95 % interval", "random heads", "p", "images")
    said = "\n".join(f"- {line}" for line in confirmed.caveats)
    say(f"\n{confirmed.title}: accuracy\n{columns(rows, head)}\n\n{said}")
    if out is not None:
        confirmed.save(out / "confirmed")
        confirmed.report(out / "confirmed" / "report.html")


def _drawn(clip: Any, images: Any, texts: tuple[str, ...], heads: Any, layers: int, out: Path, progress: bool) -> str:
    from mechvis import files
    from mechvis.plots.token_heat import token_heat
    from probes.textspan.heat import text_heat

    some = images[: min(_PICTURES, len(images))]
    heat = text_heat(clip, some, texts, layers=layers, heads=heads, progress=progress)
    preprocess = clip.vision.preprocess
    pixels = some.pixels_for(preprocess)
    mean, std = (pixels.new_tensor(each)[:, None, None] for each in (preprocess.mean, preprocess.std))
    seen = ((pixels * std + mean).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    figure = token_heat(
        list(seen), heat.maps, list(texts), title=f"Heat of texts{'' if heads is None else f', {heads}'}"
    )
    with files.replacing(out / "heat.png") as file:
        figure.savefig(file, format="png", dpi=150)
    return str(out / "heat.png")
