"""Model cards with measured figures: `README.md` for people, `figures.json` for the tests that measure again.

Three kinds of scenes are kept apart: the training data, the scenes on which the heads to remove are chosen
(`CHOICE_SEED`), and the scenes behind the figures (`FIGURE_SEED` and up).
"""

import json
from pathlib import Path
from typing import Any

from transformers import CLIPModel, ViTForImageClassification

from mechvis.data.scenes import BACKGROUNDS, COLOURS, SHAPES
from mechvis.models.training.classifier import ClassifierPlan
from mechvis.models.training.clip import PROMPTS, zero_shot
from mechvis.models.training.measure import GroupScenes, probe_accuracy, shortcut_figures

CHOICE_SEED = 200
"""Data set on which the heads to remove are chosen."""
FIGURE_SEED = 100_000
"""First data set of the card's figures."""
REMOVED = 3
"""Number of heads whose joint removal the card reports."""


def measure_vit(model: ViTForImageClassification, *, n: int = 1000) -> dict[str, Any]:
    """The figures of a classifier's card.

    Args:
        model: In eval mode.
        n: Scenes per group; the head table uses a quarter of them.

    Returns:
        Fractions and nats, as they go into `figures.json`.
    """
    probe = probe_accuracy(model.vit, fit=4 * n, test=2 * n, seed=FIGURE_SEED)
    groups = {name: GroupScenes(name, n=n, seed=FIGURE_SEED + 2) for name in ("consistent", "conflicting")}
    removed = _best_guarded(_head_table(model, n=n // 4, seed=CHOICE_SEED))
    whole, without = (shortcut_figures(model, groups, heads) for heads in ((), removed))
    return {
        "probe": {"fit": 4 * n, "test": 2 * n, "seed": FIGURE_SEED, "accuracy": probe},
        "groups": {"n": n, "seed": FIGURE_SEED + 2, "whole": whole},
        "without_heads": {
            "heads": removed,
            "choice_seed": CHOICE_SEED,
            "n": n,
            "seed": FIGURE_SEED + 2,
            "figures": without,
        },
        "heads": _head_table(model, n=n // 4, seed=FIGURE_SEED + 3),
    }


def _head_table(model: ViTForImageClassification, *, n: int, seed: int) -> dict[str, Any]:
    groups = {name: GroupScenes(name, n=n, seed=seed) for name in ("consistent", "conflicting")}
    layers, heads = range(model.config.num_hidden_layers), range(model.config.num_attention_heads)
    zeroed = {f"{layer}.{head}": shortcut_figures(model, groups, [(layer, head)]) for layer in layers for head in heads}
    return {"n": n, "seed": seed, "whole": shortcut_figures(model, groups), "zeroed": zeroed}


def _best_guarded(table: dict[str, Any]) -> list[tuple[int, int]]:
    # the whole model's BIG is common to all heads and does not change their order
    ranked = sorted(table["zeroed"].items(), key=lambda item: item[1]["big"] + item[1]["damage"])
    return sorted(tuple(int(part) for part in key.split(".")) for key, _ in ranked[:REMOVED])


def write_vit_card(figures: dict[str, Any], folder: Path, plan: ClassifierPlan) -> Path:
    """Write a classifier's card.

    Args:
        figures: From `measure_vit`.
        folder: The model folder.
        plan: How the classifier was fitted.

    Returns:
        The card.
    """
    n, probe = figures["groups"]["n"], figures["probe"]["accuracy"]
    whole, without = figures["groups"]["whole"], figures["without_heads"]["figures"]
    few, base = figures["heads"]["n"], figures["heads"]["whole"]
    rows = "\n".join(
        f"| {key.replace('.', ', ')} | {100 * (row['consistent'] - base['consistent']):+.1f} "
        f"| {100 * (row['conflicting'] - base['conflicting']):+.1f} "
        f"| {100 * (row['object_only'] - base['object_only']):+.1f} | {row['bir']:.3f} "
        f"| {base['big'] - row['big']:+.4f} | {base['big'] - row['big'] - row['damage']:+.4f} |"
        for key, row in figures["heads"]["zeroed"].items()
    )
    names = ", ".join(f"({layer}, {head})" for layer, head in figures["without_heads"]["heads"])
    text = f"""# scenes-vit

A small vision transformer with a *learned* background shortcut, for trying interpretability methods on a model whose
flaw is known. It names the shape in procedural scenes (`mechvis.data.scenes`):
{", ".join(SHAPES)}.

* Architecture: `ViTForImageClassification`, 64 x 64 pixels, patch 8, 4 layers of 4 heads of 32, MLP 256, float32.
* Backbone: trained on fresh scenes whose shape and background are independent, to name shape, background and colour. A
  second stage asks for a wide background margin and a moderate shape margin, with a mild group lasso on each head's
  value and output matrices, so that heads that matter little shrink: after the first stage alone, the same classifier
  hardly used the background.
* Classifier: ridge-regularised logistic regression on the frozen backbone's CLS features of {plan.images} scenes whose
  background agrees with the shape in {100 * plan.correlation:.0f} % of cases (ridge {plan.ridge}). Nothing else plants
  the shortcut.
* Train again: `mechvis zoo train scenes-vit --out folder`. The settings are the code's defaults. Bits depend on
  processor and thread count (this file: one thread).
* Not for use on photographs: it has only ever seen these scenes.

## Figures

Held-out scenes: neither training nor the choice of settings and heads has used them.

| what | n | value |
| --- | --- | --- |
| linear probe on CLS features, uncorrelated scenes: shape | {2 * n} | {100 * probe["shape"]:.1f} % |
| same: background | {2 * n} | {100 * probe["background"]:.1f} % |
| same: colour | {2 * n} | {100 * probe["colour"]:.1f} % |
| classifier, background agrees with shape | {n} | {100 * whole["consistent"]:.1f} % |
| classifier, background conflicts with shape | {n} | {100 * whole["conflicting"]:.1f} % |
| classifier, background painted over (object only) | {2 * n} | {100 * whole["object_only"]:.1f} % |
| background influence ratio, both groups | {2 * n} | {whole["bir"]:.3f} |

Zeroing heads {names} together (the {REMOVED} best guarded scores on other scenes): agreeing
{100 * without["consistent"]:.1f} %, conflicting {100 * without["conflicting"]:.1f} %, object only
{100 * without["object_only"]:.1f} %, background influence ratio {without["bir"]:.3f}.

Probes are fitted on {figures["probe"]["fit"]} scenes. The background influence ratio is sum BIG / (sum BIG + sum FIG)
with Jensen-Shannon divergences, given masks and the image's mean colour as fill.

## One head at a time

Change in percentage points when one head's output is zeroed, n = {few} per group (without zeroing: agreeing
{100 * base["consistent"]:.1f} %, conflicting {100 * base["conflicting"]:.1f} %, object only
{100 * base["object_only"]:.1f} %, ratio {base["bir"]:.3f}). Score: mean fall of BIG in nats; guarded score:
minus the mean change of the object-only prediction.

| layer, head | agreeing | conflicting | object only | ratio | score | guarded |
| --- | --- | --- | --- | --- | --- | --- |
{rows}
"""
    return _write(folder, text, figures)


def measure_clip(model: CLIPModel, *, n: int = 2000) -> dict[str, Any]:
    """The figures of the card of two towers in eval mode, on `n` uncorrelated scenes."""
    accuracy = zero_shot(model, n, seed=FIGURE_SEED + 4)
    return {"zero_shot": {"n": n, "seed": FIGURE_SEED + 4, "accuracy": accuracy}}


def write_clip_card(figures: dict[str, Any], folder: Path) -> Path:
    """Write the card of two towers from the figures of `measure_clip`; returns the card."""
    n, accuracy = figures["zero_shot"]["n"], figures["zero_shot"]["accuracy"]
    prompts = "\n".join(f"* {name}: {'; '.join(f'`{prompt}`' for prompt in PROMPTS[name])}" for name in PROMPTS)
    text = f"""# scenes-clip

A small CLIP for procedural scenes (`mechvis.data.scenes`): {len(SHAPES)} shapes, {len(COLOURS)} colours,
{len(BACKGROUNDS)} backgrounds.

* Architecture: `CLIPModel`, joint space of 64. Image tower: 64 x 64 pixels, patch 8, 4 layers of 4 heads of 32, MLP
  256. Text tower: 2 causal layers of 4 heads of 32, at most 16 tokens. Float32. Word-level tokenizer.
* Data: fresh scenes whose shape, background and colour are independent, with captions; in every second step each
  caption names one factor only. The image tower started from the backbone of `scenes-vit`.
* Train again: `mechvis.models.training.train("scenes-clip", folder)`. The settings are the code's defaults. Bits depend
  on processor and thread count.
* Not for use on photographs or on words outside the captions: it has only ever seen these scenes.

## Figures

Zero-shot accuracy on {n} held-out uncorrelated scenes. The prompts' text embeddings are averaged per class; their
wording also occurs in the training captions, so this is recognition without a classifier, not transfer to new wording.

| factor | accuracy |
| --- | --- |
| shape | {100 * accuracy["shape"]:.1f} % |
| colour | {100 * accuracy["colour"]:.1f} % |
| background | {100 * accuracy["background"]:.1f} % |

Prompts:

{prompts}
"""
    return _write(folder, text, figures)


def _write(folder: Path, text: str, figures: dict[str, Any]) -> Path:
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder / "README.md"
