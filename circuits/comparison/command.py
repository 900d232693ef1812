"""`mechvis circuit compare`: models on one set of images, or one model over several sets."""

from pathlib import Path
from typing import Any, Literal

from mechvis.cli import say
from mechvis.commands import calls, read_images, read_model


@calls(
    "circuits.comparison.models:compare_models",
    "circuits.comparison.data:compare_data",
    "circuits.comparison.corruptions:ladder",
    "circuits.comparison.alarm:alarm_threshold",
    "mechvis.models.load:load",
    "mechvis.clip:HookedCLIP.classifier",
    "mechvis.data.folder:folder",
)
def compare(
    *,
    models: tuple[str, ...],
    images: str | None = None,
    id_images: str | None = None,
    accuracies: Path | None = None,
    reference: str | None = None,
    others: tuple[str, ...] = (),
    mean_images: str | None = None,
    mean_share: float = 0.25,
    preset: Literal["mechvis", "inside-out"] = "mechvis",
    steps: int | None = None,
    rule: Literal["midpoint", "left", "right"] | None = None,
    tau: float = 0.3,
    bands: tuple[int, int] | None = None,
    per_source: bool = False,
    distance: Literal["spearman", "pearson", "cosine", "l2", "kendall", "weighted_jaccard"] = "spearman",
    top_mass: float = 0.95,
    mean_from: Literal["reference", "own"] = "reference",
    window: int | None = None,
    draws: int | None = None,
    kinds: tuple[Literal["blur", "noise", "contrast", "colour", "hue", "background"], ...] = (
        "blur", "noise", "contrast", "colour", "hue",
    ),
    severities: tuple[int, ...] = (1, 2, 3, 4, 5),
    tolerated: float | None = None,
    threshold: float | None = None,
    budget: str | None = None,
    out: Path | None = None,
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
) -> None:  # fmt: skip
    """Compare circuits: which model draws on its deep layers (DDB), or whether one model's circuit has shifted (CSS).

    With --images: DDB of each of the --models on these images, beside confidence and entropy, and, where accuracies are
    known, how far each score goes with them. With --reference and --others: the circuit shift score of one model on
    each other set, with its noise floor; --tolerated sets an alarm by corrupted copies of the labelled --images.

    Args:
        models: bundled names, folders, or hf:<folder or hub id>; one for --reference.
        images: images to rank the models on; with --reference, labelled images to corrupt for --tolerated.
        id_images: labelled images of the kind the models were trained on, for the accuracy at home and ATC.
        accuracies: JSON file, model to accuracy; default: from the labels of --images.
        reference: images as the model knows them.
        others: sets to compare with the reference.
        mean_images: images that the means are made of; default: a share of the images.
        mean_share: that share.
        preset: inside-out for the settings of the released code.
        steps: points on the integration path.
        rule: where they lie.
        tau: share of the layers in the low and in the high band.
        bands: instead of tau: number of low and of high layers.
        per_source: divide each band by its number of components; for models of different architecture.
        distance: between circuits.
        top_mass: share of the absolute mass that the compared edges carry; 1 for all edges.
        mean_from: means of the reference images for all sets, or each set's own.
        window: images on each side of a draw.
        draws: pairs of halves for the noise floor.
        kinds: corruptions for --tolerated.
        severities: their severities, 1 to 5.
        tolerated: lowest accuracy that is accepted; sets the alarm.
        threshold: alarm above this shift, instead of --tolerated.
        budget: memory for activations, e.g. 8GB.
        out: folder for the tables and report.html.
        seed: of splits, draws, corruptions and bootstrap.
        progress: show progress bars.
        allow_overlap: accept sets that share images with the reference.
        device: where to put the models, e.g. cuda.
        templates: for CLIP: prompts with {} for the class name; default: "a photo of a {}".
        metadata: the image folders' table; default: metadata.csv, .jsonl or .parquet in the folder.
        masks: the image folders' mask folder.
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

    def read(spec: str | None) -> Any:
        return None if spec is None else read_images(spec, **folder)

    shared = {
        "mean_images": read(mean_images), "mean_share": mean_share, "preset": preset, "steps": steps, "rule": rule,
        "budget": budget, "seed": seed, "progress": progress,
    }  # fmt: skip
    if reference is None:
        if others or images is None:
            raise BadData(
                "which comparison? Models: --models A B --images IMAGES. "
                "Data: --models A --reference IMAGES --others X Y."
            )
        from circuits.comparison.models import compare_models

        shown = read(images)
        found = compare_models(
            {spec: lambda spec=spec: read_model(spec, shown, device=device, templates=templates) for spec in models},
            shown,
            id_images=read(id_images),
            accuracies=_accuracies(accuracies),
            tau=tau,
            bands=bands,
            per_source=per_source,
            **shared,
        )
    else:
        if len(models) != 1 or not others:
            raise BadData(
                f"--reference watches one model over other sets; got {len(models)} models and {len(others)} sets. Give "
                "one of --models, and --others."
            )
        from circuits.comparison.data import compare_data

        home = read(reference)
        model = read_model(models[0], home, device=device, templates=templates)
        shared |= {
            "distance": distance, "top_mass": top_mass, "mean_from": mean_from, "window": window, "draws": draws,
            "allow_overlap": allow_overlap,
        }  # fmt: skip
        if tolerated is not None:
            from circuits.comparison.alarm import alarm_threshold
            from circuits.comparison.corruptions import ladder

            if images is None or threshold is not None:
                raise BadData("--tolerated needs labelled --images to corrupt, and no --threshold.")
            steps_of_it = ladder(read(images), kinds, severities, seed=seed)
            alarm = alarm_threshold(compare_data(model, home, steps_of_it, **shared), tolerated)
            say(f"{alarm}\n")
            threshold = alarm
        found = compare_data(model, home, {spec: read(spec) for spec in others}, threshold=threshold, **shared)
    say(found.summary())
    if out is None:
        say("\nnothing was saved; --out FOLDER keeps the tables and writes a page.")
        return
    found.save(out)
    say(f"\nsaved in {out}: table.parquet, {found.report(out / 'report.html').name}")


def _accuracies(file: Path | None) -> dict[str, float] | None:
    """Model to accuracy from a JSON file."""
    from mechvis.errors import BadData
    from mechvis.files import read_json

    if file is None:
        return None
    found = read_json(file)
    if not isinstance(found, dict) or not all(isinstance(value, int | float) for value in found.values()):
        raise BadData(f'{file} should hold one JSON object, model to accuracy, such as {{"runs/a": 0.91}}.')
    return found
