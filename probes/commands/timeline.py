"""`mechvis timeline`: at which depth a model decides, by group of images."""

from pathlib import Path
from typing import Any, Literal

from mechvis.cli import columns, say
from mechvis.commands import calls, read_images, read_model


@calls(
    "probes.timeline.decide:decision_timeline",
    "mechvis.models.load:load",
    "mechvis.clip:HookedCLIP.classifier",
    "mechvis.data.folder:folder",
)
def timeline(
    *,
    model: str,
    images: str,
    train: str | None = None,
    anchors: tuple[str, ...] = ("resid_post",),
    tokens: Literal["read", "cls", "mean", "cls+mean"] = "read",
    target: str | None = None,
    fractions: tuple[float, float, float] = (0.6, 0.1, 0.3),
    k: int = 2,
    ks: tuple[int, ...] = (1, 2, 3, 4),
    settle_p: float = 0.9,
    follow: tuple[str, ...] = (),
    corruptions: tuple[str, ...] = (),
    confidences: tuple[float, ...] = (0.0, 0.5, 0.7, 0.9, 0.95),
    cost: Literal["flops", "seconds"] = "flops",
    weight_decays: tuple[float, ...] = (1e-3, 1e-2, 1e-1),
    draws: int = 2000,
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
    """When the running prediction settles: a linear probe per anchor, read on held-out images, group by group.

    Args:
        model: a bundled name, a folder, or hf:<folder or hub id>.
        images: a folder of images, or scenes[:n[:seed]].
        train: other images that train the probes; default: a part of the images.
        anchors: resid_post, half (embedding, after attention, after MLP), or sites.
        tokens: what a probe reads of each anchor.
        target: label (default), predicted (the model's own answer), or a column.
        fractions: of training, validation and judged images.
        k: so many anchors after the decision must agree with it.
        ks: windows of the sweep.
        settle_p: least probability of a sure decision.
        follow: other classes to follow: partner (scenes: the shape that goes with the background), or columns of class
            names.
        corruptions: mild ones, such as noise:1 blur:2 brightness:1.
        confidences: least confidences of the exit rules.
        cost: how compute is counted.
        weight_decays: of the probes, chosen per anchor by the validation loss.
        draws: of the dip test.
        resamples: of the bootstrap.
        budget: memory for activations, e.g. 8GB.
        out: folder for the record and report.html.
        seed: of split, dip test, bootstrap and noise.
        progress: show progress bars.
        device: where to put the model, e.g. cuda.
        templates: for CLIP: prompts with {} for the class name; default: "a photo of a {}".
        metadata: the image folders' table; default: metadata.csv, .jsonl or .parquet in the folder.
        masks: the image folders' mask folder.
        label_column: the table's column of labels.
        group_column: the table's column of groups.
        on_corrupt: skip files that cannot be decoded, instead of stopping.
    """
    from probes.timeline.decide import decision_timeline

    folder = {
        "metadata": metadata, "masks": masks, "label_column": label_column, "group_column": group_column,
        "on_corrupt": on_corrupt,
    }  # fmt: skip
    seen = read_images(images, **folder)
    learner = None if train is None else read_images(train, **folder)
    loaded = read_model(model, seen, device=device, templates=templates)
    found = decision_timeline(
        loaded,
        seen,
        train=learner,
        anchors=anchors[0] if len(anchors) == 1 else anchors,
        tokens=tokens,
        target=target,
        fractions=fractions,
        k=k,
        ks=ks,
        settle_p=settle_p,
        follow={name: _followed(name, loaded, seen) for name in follow},
        corruptions=[_corruption(word) for word in corruptions],
        confidences=confidences,
        cost=cost,
        weight_decays=weight_decays,
        draws=draws,
        resamples=resamples,
        budget=budget,
        seed=seed,
        progress=progress,
    )
    say(_lines(found))
    if out is None:
        say("\nnothing was saved; --out FOLDER keeps the record and writes a page.")
        return
    found.save(out)
    say(f"\nsaved in {out}: record.json, tables, {found.report(out / 'report.html').name}")


def _followed(name: str, model: Any, images: Any) -> Any:
    """Class numbers that a word means: the background's partner, or a column of class names."""
    import numpy as np

    from mechvis.errors import BadData, unknown
    from probes.timeline.decide import partner_of_background

    if name == "partner":
        return partner_of_background(images)
    if name not in images.columns:
        raise unknown("column to follow", name, ["partner", *images.columns])
    classes = list(model.parts.class_names or images.class_names)
    column = [str(value) for value in images.columns[name]]
    if strange := sorted(set(column) - set(classes)):
        raise BadData(f"--follow {name}: {strange[0]!r} is no class; a column to follow holds names of classes.")
    return np.array([classes.index(value) for value in column])


def _corruption(word: str) -> tuple[str, int]:
    """`noise:1` as a pair."""
    from mechvis.errors import BadData

    kind, _, severity = word.partition(":")
    if severity not in ("1", "2"):
        raise BadData(f"--corruptions {word}: expected a kind and a severity of 1 or 2, e.g. noise:1.")
    return kind, int(severity)


def _lines(found: Any) -> str:
    """The table of groups, and accuracy by anchor, as text."""
    rows = [
        (
            row["group"],
            f"{row['mean']:.2f} [{row['mean_low']:.2f}, {row['mean_high']:.2f}]",
            f"{row['mean_settle']:.2f} [{row['mean_settle_low']:.2f}, {row['mean_settle_high']:.2f}]",
            *(f"{row[word]:.0%}" for word in ("early", "middle", "late", "fallback", "stable_wrong", "final_accuracy")),
            row["n"],
        )
        for row in found.table.iter_rows(named=True)
    ]
    names = (
        "group",
        "l* [95 %]",
        "settle [95 %]",
        "early",
        "middle",
        "late",
        "never",
        "stable, wrong",
        "last",
        "images",
    )
    anchors = found.tables["anchors"]
    groups = list(dict.fromkeys(anchors["group"]))
    by_site = [
        (site, *(f"{anchors.filter(group=group, site=site)['accuracy'][0]:.3f}" for group in groups))
        for site in found.facts["anchors"]
    ]
    return f"{found.title}\n{columns(rows, names)}\n\n{columns(by_site, ('accuracy at', *groups))}"
