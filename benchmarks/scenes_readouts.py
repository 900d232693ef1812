"""What the read-outs say of the bundled models: `python -m benchmarks.scenes_readouts`.

1. `scenes-vit`: at which depth the shape is decided, where background and shape agree and where they conflict, with
   probes that were trained on scenes like those that the classifier was trained on, and on independent ones.
2. `scenes-clip`: which heads write shape, colour or background, by their texts; the named heads ablated in the forward
   pass; and where in the image the text of the object comes from, against its mask.

Writes `docs/scenes_readouts.md` and the figures beside it.
"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

import mechvis
import probes
from mechvis import files
from mechvis.cli import say

DOCS = Path(__file__).parent.parent / "docs"
TRAINED = {"as the classifier was trained": 0.95, "independent": None}
"""Name of the probes' training set -> share of scenes in it whose background agrees with the shape."""
PARTNER = "partner of the background"


def timelines() -> dict[str, Any]:
    """The timeline of the classifier, by the training set of the probes."""
    from probes.timeline import partner_of_background

    model = mechvis.load("scenes-vit")
    judged = mechvis.data.scenes(800, seed=71, correlation=0.5)
    follow = {PARTNER: partner_of_background(judged)}
    found = {}
    for seed, (name, correlation) in enumerate(TRAINED.items(), 72):
        train = mechvis.data.scenes(1500, seed=seed, correlation=correlation)
        found[name] = probes.decision_timeline(
            model, judged, train=train, anchors="half", follow=follow, draws=500, progress=False
        )
        _save(found[name].figure("settled"), f"scenes_timeline_{name.split()[0]}")
    return found


def spans() -> dict[str, Any]:
    """Heads by properties, confirmed by ablation on other images; maps against masks; the speed of the two forms."""
    from probes.textspan import compare_on_model, confirm_span, localisation, property_tasks, text_heat, text_span

    clip = mechvis.load("scenes-clip")
    found_on, test = mechvis.data.scenes(600, seed=81), mechvis.data.scenes(200, seed=82)
    bank = mechvis.data.text_bank("scenes")
    named = text_span(clip, found_on, bank, m=5, progress=False)
    for figure, name in zip(named.figures(), ("texts", "inside"), strict=True):
        _save(figure.fig, f"scenes_textspan_{name}")
    confirmed = confirm_span(clip, named, test, bank, reference=found_on[:200], draws=40, progress=False)
    tasks = property_tasks(bank, mechvis.data.encode_bank(clip, bank), test)
    groups = {f"{name} heads": heads for name, heads in named.labels(by="inside").items()}
    maps = localisation(clip, test, tasks, groups=groups, progress=False)
    shown = test[:4]
    texts = [f"a {colour} shape" for colour in ("red", "green")]
    heat = text_heat(clip, shown, texts)
    from mechvis.plots import token_heat

    colours = shown.columns["colour"]
    words = [f"{colour} {shown.class_names[shape]}" for colour, shape in zip(colours, shown.labels, strict=True)]
    figure = token_heat(shown.raw(), heat.maps, texts, masks=list(shown.masks.numpy()), captions=words)
    _save(figure, "scenes_heat")
    many = mechvis.data.scenes(5000, seed=83)
    speed = compare_on_model(clip, many, bank, progress=False)
    return {"named": named, "confirmed": confirmed, "maps": maps, "speed": speed}


def _save(figure: Any, name: str) -> None:
    """The same bytes for the same figure: no date, and names in the file that do not change."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "mechvis"}):
        figure.savefig(DOCS / f"{name}.svg", metadata={"Date": None})


def one_pass() -> list[dict[str, Any]]:
    """All layers of a model probed from one pass over the images, beside one pass per layer."""
    from benchmarks.models import SIZES
    from mechvis.data.preprocess import plain_scaling
    from probes.linear import one_pass_against_many

    scenes = mechvis.data.scenes(400, seed=91)
    found = [{"model": "scenes-vit, 400 images", **one_pass_against_many(mechvis.load("scenes-vit"), scenes)}]
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    module = ViTForImageClassification(ViTConfig(**SIZES["ViT-B/16"])).eval()
    model = mechvis.load(module, preprocess=plain_scaling(224, 224))
    pixels = torch.randn(16, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    return [*found, {"model": "ViT-B/16, 16 images", **one_pass_against_many(model, pixels, repeats=1, fit=False)}]


def main() -> None:
    """Measure, draw, write the page."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    depth, clip, layers = timelines(), spans(), one_pass()
    lines = [
        "# What the read-outs say of the bundled models",
        "",
        "`python -m benchmarks.scenes_readouts`. Scenes are made on the spot; images that judge are no images that "
        "train probes, name heads or give means. Intervals are 95 % over images.",
        "",
        *_depth(depth),
        *_clip(clip),
        *_one_pass(layers),
    ]
    files.write_text(DOCS / "scenes_readouts.md", "\n".join(lines) + "\n")
    say("\n".join(lines))
    say(f"\n{time.perf_counter() - started:.0f} s")


def _depth(found: dict[str, Any]) -> Iterator[str]:
    first = next(iter(found.values()))
    n = {row["group"]: row["n"] for row in first.table.iter_rows(named=True)}
    yield "## Where the classifier decides between shape and background"
    yield ""
    yield (
        f"`scenes-vit`, {n['consistent']} scenes whose background agrees with the shape and {n['conflicting']} in "
        "which it does not. A linear probe reads the shape from the class token at nine anchors: the embedding, then "
        "after the attention and after the MLP of each block. *Settle*: the first anchor from which the running "
        "prediction is the final one. The probes are trained on 1,500 other scenes, either as the classifier was (95 % "
        "agree) or with independent backgrounds."
    )
    yield ""
    anchors = [str(site).replace("blocks.", "L").replace(".hook_resid_", " ") for site in first.facts["anchors"]]
    yield "| probes trained on | group | settles at | " + " | ".join(anchors) + " |"
    yield "|---|---|---:|" + "---:|" * len(anchors)
    for name, record in found.items():
        for group in ("consistent", "conflicting"):
            row, rows = record.group(group), record.tables["anchors"].filter(pl.col("group") == group).sort("anchor")
            settled = f"{row['mean_settle']:.2f} [{row['mean_settle_low']:.2f}, {row['mean_settle_high']:.2f}]"
            yield f"| {name} | {group}: shape right | {settled} | " + _row(rows["accuracy"]) + " |"
        yield f"| {name} | conflicting: {PARTNER} | | " + _row(record.share_following(PARTNER, "conflicting")) + " |"
    yield ""
    for name in found:
        yield f"![Timeline, probes trained on scenes: {name}](scenes_timeline_{name.split()[0]}.svg)"
        yield ""
    yield (
        "Trained as the classifier was, a probe reads the background after the first attention and the object takes "
        "over in the second half; with independent backgrounds the two groups do not differ. So what a timeline shows "
        "depends on what its probes were taught."
    )
    yield ""


def _row(values: Any) -> str:
    return " | ".join(f"{value:.2f}" for value in np.asarray(values))


def _clip(found: dict[str, Any]) -> Iterator[str]:
    named, confirmed, maps, speed = (found[name] for name in ("named", "confirmed", "maps", "speed"))
    yield "## Heads of a small CLIP in words"
    yield ""
    yield (
        f"`scenes-clip`, {named.facts.get('n', 600)} scenes, {len(named.heads)} heads, the bank `scenes` "
        "(88 texts of three properties). *By texts*: the property that the head's first five texts belong to, where a "
        "permutation test says so. *Inside*: the property along whose values most of the head's variance lies, against "
        "random subspaces."
    )
    yield ""
    columns = [
        c for c in ("head", "label", "score", "p", "q", "inside", "inside_p", "explained") if c in named.table.columns
    ]
    yield from _markdown(named.table.select(columns))
    yield "First texts of each head:"
    yield ""
    for head in named.heads:
        yield f"* {head}: " + "; ".join(named.texts(head)["text"].to_list()[:4])
    yield ""
    yield "Score and permutation p-value of every property and head (score: share of what the head's texts explain that"
    yield "belongs to the property's texts; along: share of the head's variance along the property's values):"
    yield ""
    yield from _properties(named.tables["properties"])
    yield "![Properties of the heads' texts](scenes_textspan_texts.svg)"
    yield ""
    yield "![Variance of the heads along properties](scenes_textspan_inside.svg)"
    yield ""
    yield (
        "Colour is read in layer 1 and shape is written in layer 3; the background heads of layers 0 and 1 are not "
        "named by their texts at p < 0.01, and are by where their variance lies."
    )
    yield ""
    yield "### Named heads ablated (mean over other images, in the forward pass)"
    yield ""
    yield from _markdown(confirmed.tables["groups"])
    yield (
        "The named heads carry their own property and hardly the others: colour is redundant (its accuracy stays, its "
        "margin falls). *random*: the same number of other heads, 40 draws; p has a floor of 1/41."
    )
    yield ""
    yield "### Maps against the masks"
    yield ""
    yield from _markdown(maps.table)
    yield (
        "Maps of colour texts find the object (above the centre prior); maps of shape texts do not beat the prior, and "
        "the background heads lie on the background (AUROC far below one half), as they should."
    )
    yield ""
    yield "![Texts on images](scenes_heat.svg)"
    yield ""
    yield "### Covariance form beside direct form"
    yield ""
    yield from _speed(speed)


def _one_pass(found: list[dict[str, Any]]) -> Iterator[str]:
    yield ""
    yield "## All layers in one pass"
    yield ""
    yield "| model | passes | s | passes, a layer at a time | s | ratio | with the probes |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
    for row in found:
        fits = "probing_one_pass_s" in row
        whole = row["probing_per_layer_s"] / row["probing_one_pass_s"] if fits else None
        yield (
            f"| {row['model']} | {row['one_pass']} | {row['one_pass_s']:.2f} | {row['per_layer']} | "
            f"{row['per_layer_s']:.2f} | {row['ratio']:.2f} | {'' if whole is None else f'{whole:.2f}'} |"
        )
    yield ""
    yield "A pass for one layer stops at that layer. The features of both ways are compared."


def _properties(table: pl.DataFrame) -> Iterator[str]:
    names = list(dict.fromkeys(table["property"]))
    kinds = (("score", "p"), ("inside", "inside_p"))
    yield "| head | " + " | ".join(f"{name}: score (p) | {name}: along (p)" for name in names) + " |"
    yield "|---|" + "---:|" * 2 * len(names)
    for head in dict.fromkeys(table["head"]):
        rows = {row["property"]: row for row in table.filter(pl.col("head") == head).iter_rows(named=True)}
        cells = [f"{rows[name][value]:.2f} ({rows[name][p]:.4f})" for name in names for value, p in kinds]
        yield f"| {head} | " + " | ".join(cells) + " |"
    yield ""


def _markdown(table: pl.DataFrame) -> Iterator[str]:
    def cell(value: Any) -> str:
        if value is None:
            return ""
        if isinstance(value, float):
            return f"{value:.3g}" if value else "0"
        return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)

    yield "| " + " | ".join(table.columns) + " |"
    yield "|" + "---|" * table.width
    for row in table.iter_rows():
        yield "| " + " | ".join(map(cell, row)) + " |"
    yield ""


def _speed(found: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{found['n']:,} images, {found['heads']} heads, {found['texts']} texts, {found['m']} texts per head; both "
        f"pick the same. Direct {found['direct_s']:.2f} s, covariance {found['covariance_s']:.2f} s (of which "
        f"{found['moments_s']:.2f} s to gather the covariances): {found['ratio']:.1f} times faster, "
        f"{found['memory_ratio']:.1f} times less memory ({found['direct_bytes'] / 1e6:.1f} beside "
        f"{found['covariance_bytes'] / 1e6:.1f} MB). Forward passes and decomposition took {found['decompose_s']:.1f} "
        "s. What a decomposition costs on a ViT-B/16: [benchmarks/decomposition.md](../benchmarks/decomposition.md)."
    )


if __name__ == "__main__":
    main()
