"""What is bundled: `mechvis models`, `mechvis data export`, `mechvis zoo train`."""

from pathlib import Path
from typing import Literal

from mechvis.cli import columns, say
from mechvis.commands.words import SCENES_N, SCENES_SEED, calls


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
