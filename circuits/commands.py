"""The commands of this package: each reads its inputs, calls one public function, and says what came out."""

from pathlib import Path
from typing import Literal

from mechvis.cli import say
from mechvis.commands import calls, launched, only_with, read_images, read_model


@calls(
    "circuits.cigma:cigma",
    "mechvis.parallel.launch:start",
    "mechvis.models.load:load",
    "mechvis.clip:HookedCLIP.classifier",
    "mechvis.data.folder:folder",
)
def cigma(
    *,
    model: str,
    images: str | None = None,
    selection: str | None = None,
    validation: str | None = None,
    evaluation: str | None = None,
    mask_source: Literal["auto", "given", "optimised"] = "auto",
    mode: Literal["zero", "mean_positional"] = "zero",
    fill: Literal["mean", "blur", "zero"] = "mean",
    tau: float = 1.0,
    rank_by: Literal["guarded", "cigma"] = "guarded",
    k: int | Literal["auto"] = "auto",
    candidates: tuple[int, ...] = (0, 1, 2, 3, 4, 8, 16, 32),
    max_cost: float = 0.05,
    greedy: bool = False,
    certified: bool = False,
    top: int = 16,
    eps: float = 0.1,
    delta: float = 0.05,
    tails: Literal["student", "guarded", "bernstein"] = "guarded",
    audit: float = 0.05,
    fresh_images: int = 1024,
    controls: int = 20,
    sensitivity: bool = True,
    reference: str | None = None,
    budget: str | None = None,
    out: Path | None = None,
    launch: str | None = None,
    save_model: Path | None = None,
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
) -> None:
    """Find the heads that make a classifier look at the background, remove them, and measure what that does.

    The images are split into selection (which heads), validation (how many) and evaluation (what it does). With --out
    the study is saved there with a report; with --save-model the model without these heads is written as an ordinary
    model folder. The same command continues an interrupted one.

    Args:
        model: a bundled name, a folder, or hf:<folder or hub id>.
        images: labelled images to split: a folder, or scenes[:n[:seed]].
        selection: instead of --images: the images that heads are scored on.
        validation: instead of --images: the images on which the number of heads is chosen.
        evaluation: instead of --images: the images that the outcome is measured on.
        mask_source: masks that come with the images, masks optimised on the model, or auto: given where there are any.
        mode: what ablating a head means.
        fill: what removed pixels become.
        tau: softmax temperature.
        rank_by: the guarded score, or the paper's raw one.
        k: number of heads to remove; auto chooses from --candidates on the validation images.
        candidates: numbers of heads to try.
        max_cost: largest loss of accuracy that any group may suffer on the validation images.
        greedy: re-score the rest after each accepted head, so that redundant heads are seen.
        certified: find the --top heads only, with a guarantee, from as few selection images as that allows.
        top: certified: heads to find.
        eps: certified: tolerance, as a share of the score on rank --top.
        delta: certified: probability with which the guarantee may fail.
        tails: certified: how means are bounded; student needs fewer images and misses heads that rarely matter.
        audit: certified: share of heads that are measured to the end even if they are rejected.
        fresh_images: certified: images on which each of the top heads is scored once it is found, at most.
        controls: draws of random heads of equal number.
        sensitivity: score some images again with another fill and compare the ranking.
        reference: images for the means of mean_positional, as in --images.
        budget: memory for activations, e.g. 8GB.
        out: folder for the study and report.html.
        launch: local:2 for two processes, slurm:nodes=2,partition=gpu,... for an array of jobs; needs --out.
        save_model: folder for the model without the chosen heads.
        seed: of splits, controls and bootstrap.
        progress: show progress bars.
        allow_overlap: accept splits that share images.
        device: where to put the model, e.g. cuda.
        templates: for CLIP: prompts with {} for the class name; default: "a photo of a {}".
        metadata: the image folder's table; default: metadata.csv, .jsonl or .parquet in the folder.
        masks: the image folder's mask folder.
        label_column: the table's column of labels.
        group_column: the table's column of groups.
        on_corrupt: skip files that cannot be decoded, instead of stopping.
    """
    from circuits.cigma import cigma as study_of
    from circuits.prune import save_pruned
    from mechvis.errors import BadData
    from mechvis.parallel import world

    only_with(
        "certified", certified,
        {"top": top, "eps": eps, "delta": delta, "tails": tails, "audit": audit, "fresh_images": fresh_images},
        of=cigma,
    )  # fmt: skip
    if launched(launch, out):
        return
    given = {"images": images, "selection": selection, "validation": validation, "evaluation": evaluation}
    options = {
        "metadata": metadata,
        "masks": masks,
        "label_column": label_column,
        "group_column": group_column,
        "on_corrupt": on_corrupt,
    }
    sets = {name: read_images(spec, **options) for name, spec in given.items() if spec is not None}
    if not sets:
        raise BadData("which images? Pass --images, or --selection, --validation and --evaluation.")
    loaded = read_model(model, next(iter(sets.values())), device=world().device(device), templates=templates)
    study = study_of(
        loaded,
        **sets,
        mask_source=mask_source,
        mode=mode,
        fill=fill,
        tau=tau,
        rank_by=rank_by,
        k=k,
        candidates=candidates,
        max_cost=max_cost,
        greedy=greedy,
        certified=certified,
        top=top,
        eps=eps,
        delta=delta,
        tails=tails,
        audit=audit,
        fresh_images=fresh_images,
        controls=controls,
        sensitivity=sensitivity,
        reference=None if reference is None else read_images(reference, **options),
        budget=budget,
        out=out,
        seed=seed,
        progress=progress,
        allow_overlap=allow_overlap,
    )
    if not world().leads:
        return
    say(study.summary())
    if save_model is not None:
        note = f"`{model}` after a CIGMA study ({'as saved in ' + str(out) if out else 'not saved'})."
        say(f"\nmodel without these heads: {save_pruned(study.apply(loaded), save_model, note=note)}")
    if out is not None:
        say(f"\nstudy: {out}\nreport: {study.report(out / 'report.html')}")
    elif save_model is None:
        say("\nnothing was saved; --out FOLDER keeps the study and its report, --save-model FOLDER the model.")
