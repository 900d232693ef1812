"""`mechvis probe`: what can be read from every layer, and whether the model uses it."""

from pathlib import Path
from typing import Any, Literal

from mechvis.cli import columns, say
from mechvis.commands import calls, read_images, read_model


@calls(
    "probes.linear.model:probe_model",
    "probes.linear.erasing:erase",
    "mechvis.models.load:load",
    "mechvis.clip:HookedCLIP.classifier",
    "mechvis.data.folder:folder",
)
def probe(
    *,
    model: str,
    images: str,
    target: str | None = None,
    sites: tuple[str, ...] = ("blocks.*.hook_resid_post",),
    tokens: tuple[Literal["cls", "mean", "registers", "all", "cls+mean", "read", "patches"], ...] = ("read",),
    types: str | None = None,
    together: str | None = None,
    baselines: tuple[Literal["random", "pixels"], ...] = ("random", "pixels"),
    fractions: tuple[float, float, float] = (0.6, 0.1, 0.3),
    weight_decays: tuple[float, ...] = (1e-3, 1e-2, 1e-1),
    ranks: tuple[int, ...] = (),
    code: bool = True,
    solver: Literal["auto", "scikit-learn", "lbfgs", "adam", "sgd"] = "auto",
    features_folder: Path | None = None,
    site: str | None = None,
    methods: tuple[Literal["projection", "inlp", "leace"], ...] = ("projection", "inlp", "leace"),
    randoms: int = 20,
    resamples: int = 2000,
    budget: str | None = None,
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
    """Linear probes of all layers, with control tasks, code lengths and baselines; or, at one --site, an erasure.

    A probe shows what can be read. Whether the model uses it is another question: --site blocks.2.hook_resid_post takes
    what a probe reads there out of the stream and measures the model's own output, beside random subspaces.

    Args:
        model: a bundled name, a folder, or hf:<folder or hub id>.
        images: a folder of images, or scenes[:n[:seed]].
        target: a column to read; default: the labels.
        sites: names or patterns of sites.
        tokens: which tokens; for an erasure the first counts.
        types: a column of groups for a second control task.
        together: a column of groups that are never cut between training and judging.
        baselines: a copy of the model with random weights, raw pixels.
        fractions: of training, validation and judged images.
        weight_decays: to choose from by the validation loss.
        ranks: probes of so many directions besides.
        code: compute online code lengths.
        solver: of the probes.
        features_folder: keep the features here, for more than fits into memory.
        site: erase the target at this site instead, and measure the model's own output.
        methods: of the erasure.
        randoms: random subspaces per method.
        resamples: of the bootstrap.
        budget: memory for activations, e.g. 8GB.
        out: folder for the record and report.html.
        seed: of split, controls, random weights and bootstrap.
        progress: show progress bars.
        device: where to put the model, e.g. cuda.
        templates: for CLIP: prompts with {} for the class name; default: "a photo of a {}".
        metadata: the image folder's table; default: metadata.csv, .jsonl or .parquet in the folder.
        masks: the image folder's mask folder.
        label_column: the table's column of labels.
        group_column: the table's column of groups.
        on_corrupt: skip files that cannot be decoded, instead of stopping.
    """
    seen = read_images(
        images,
        metadata=metadata,
        masks=masks,
        label_column=label_column,
        group_column=group_column,
        on_corrupt=on_corrupt,
    )
    loaded = read_model(model, seen, device=device, templates=templates)
    shared = {
        "target": target, "fractions": fractions, "resamples": resamples, "seed": seed, "progress": progress,
    }  # fmt: skip
    if site is not None:
        from probes.linear.erasing import erase

        found: Any = erase(loaded, seen, site=site, tokens=tokens[0], methods=methods, randoms=randoms, **shared)
        say(_erasures(found))
    else:
        from probes.linear.model import probe_model

        found = probe_model(
            loaded,
            seen,
            sites=sites,
            tokens=tokens,
            types=types,
            together=together,
            baselines=baselines,
            weight_decays=weight_decays,
            ranks=ranks,
            code=code,
            solver=solver,
            features_folder=features_folder,
            budget=budget,
            **shared,
        )
        say(_scores(found))
    if out is None:
        say("\nnothing was saved; --out FOLDER keeps the record and writes a page.")
        return
    found.save(out)
    say(f"\nsaved in {out}: record.json, tables, {found.report(out / 'report.html').name}")


def _scores(found: Any) -> str:
    """The table of layers, as text."""
    wanted = ("score", "control", "selectivity", "type_selectivity", "compression", "random_model")
    shown = [name for name in wanted if name in found.table.columns]
    rows = [
        (
            row["features"],
            f"{row['score']:.3f} [{row['score_low']:.3f}, {row['score_high']:.3f}]",
            *("none" if row[name] is None else f"{row[name]:.3f}" for name in shown[1:]),
            row["n"],
        )
        for row in found.table.iter_rows(named=True)
    ]
    flat = found.tables["baselines"].filter(found.tables["baselines"]["features"].is_null())
    beside = ", ".join(f"{row['baseline']} {row['score']:.3f}" for row in flat.iter_rows(named=True))
    heading = ("features", f"{found.facts['measure']} [95 %]", *shown[1:], "images")
    return f"{found.title}\n{columns(rows, heading)}\nbeside: {beside}"


def _erasures(found: Any) -> str:
    """The table of erasers, as text."""
    rows = [
        (
            row["eraser"] if row["control_for"] is None else f"  {row['eraser']} (rank of {row['control_for']})",
            row["rank"],
            f"{row['probe']:.3f}",
            f"{row['accuracy']:.3f}",
            f"{row['drop']:+.3f} [{row['drop_low']:+.3f}, {row['drop_high']:+.3f}]",
            f"{row['kl']:.4f}",
            row["n"],
        )
        for row in found.table.iter_rows(named=True)
    ]
    return f"{found.title}\n" + columns(rows, ("erased", "rank", "probe", "accuracy", "drop [95 %]", "KL", "images"))
