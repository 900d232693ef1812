"""`mechvis attribute`: maps over patches by a named method, saved with a report."""

from pathlib import Path
from typing import Literal

from mechvis.cli import say
from mechvis.commands.words import calls, read_images, read_model


@calls("mechvis.attribution.attribute:attribute", "mechvis.models.load:load", "mechvis.clip:HookedCLIP.classifier")
def attribute(
    *,
    model: str,
    images: str,
    method: str = "input_ig",
    target: str = "predicted",
    contrast: str | None = None,
    form: Literal["logit", "logit_diff", "prob", "logprob"] | None = None,
    out: Path | None = None,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
    device: str | None = None,
    templates: tuple[str, ...] = (),
) -> None:
    """Which patches does a score come from: maps by one method. `mechvis card` says how far to believe them.

    Args:
        model: a bundled name, a folder, or hf:<folder or hub id>.
        images: a folder of images, or scenes[:n[:seed]].
        method: a name, e.g. input_ig, grad_cam, chefer, legrad, rollout, occlusion, shapley, rise.
        target: predicted, true (labels), or the name of a class.
        contrast: what is subtracted: runner_up, or the name of a class.
        form: what is read: logit, logit_diff, prob, logprob; default by whether there is a contrast.
        out: folder for the maps and report.html.
        seed: of methods that draw random numbers.
        batch_size: images that are explained together.
        progress: show a progress bar.
        device: where to put the model, e.g. cuda.
        templates: for CLIP: prompts with {} for the class name; default: "a photo of a {}".
    """
    from mechvis.attribution.attribute import attribute as explain

    found = read_images(images)
    loaded = read_model(model, found, device=device, templates=templates)
    maps = explain(
        loaded,
        found,
        method,
        target=target,
        contrast=contrast,
        form=form,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    say(repr(maps))
    if out is None:
        say("\nnothing was saved; --out FOLDER keeps the maps and writes a report.")
        return
    maps.save(out)
    say(f"\nsaved in {out}: record.json, images.parquet, arrays.safetensors, {maps.report(out / 'report.html').name}")
