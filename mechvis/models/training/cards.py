"""Model cards with measured figures: `README.md` for people, `figures.json` for the tests that measure again.

Three kinds of scenes are kept apart: training data, the validation scenes on which settings and heads were chosen
(`CHOICE_SEED`), and the scenes behind the figures (`FIGURE_SEED` and up).
"""

import json
from pathlib import Path

from transformers import CLIPModel, ViTForImageClassification

from mechvis.data.scenes import BACKGROUNDS, COLOURS, SHAPES
from mechvis.models.training.classifier import ClassifierPlan
from mechvis.models.training.clip import PROMPTS, zero_shot
from mechvis.models.training.measure import GroupScenes, probe_accuracy, shortcut_figures

CHOICE_SEED = 200
"""Data set on which the classifier's settings and `SHORTCUT_HEADS` were chosen."""
FIGURE_SEED = 100_000
"""First data set of the card's figures."""
SHORTCUT_HEADS = ((0, 0), (0, 2), (0, 3))
"""Heads of the bundled `scenes-vit` whose joint removal was chosen on validation scenes."""


def write_vit_card(model: ViTForImageClassification, folder: Path, plan: ClassifierPlan, *, n: int = 1000) -> Path:
    """Measure a classifier and write its card.

    Args:
        model: In eval mode.
        folder: The model folder.
        plan: How the classifier was fitted.
        n: Scenes per group; the head table uses a quarter of them.

    Returns:
        The card.
    """
    probe = probe_accuracy(model.vit, fit=4 * n, test=2 * n, seed=FIGURE_SEED)
    groups = {name: GroupScenes(name, n=n, seed=FIGURE_SEED + 2) for name in ("consistent", "conflicting")}
    whole, without = (shortcut_figures(model, groups, heads) for heads in ((), SHORTCUT_HEADS))
    few = {name: GroupScenes(name, n=n // 4, seed=FIGURE_SEED + 3) for name in groups}
    table = {(): shortcut_figures(model, few)}
    for layer in range(model.config.num_hidden_layers):
        for head in range(model.config.num_attention_heads):
            table[(layer, head)] = shortcut_figures(model, few, [(layer, head)])
    figures = {
        "probe": {"fit": 4 * n, "test": 2 * n, "seed": FIGURE_SEED, "accuracy": probe},
        "groups": {"n": n, "seed": FIGURE_SEED + 2, "whole": whole},
        "without_heads": {"heads": SHORTCUT_HEADS, "n": n, "seed": FIGURE_SEED + 2, "figures": without},
        "heads": {
            "n": n // 4,
            "seed": FIGURE_SEED + 3,
            "whole": table[()],
            "zeroed": {f"{key[0]}.{key[1]}": value for key, value in table.items() if key},
        },
    }
    rows = "\n".join(
        f"| {key[0]}, {key[1]} | {100 * (row['consistent'] - table[()]['consistent']):+.1f} "
        f"| {100 * (row['conflicting'] - table[()]['conflicting']):+.1f} "
        f"| {100 * (row['object_only'] - table[()]['object_only']):+.1f} | {row['bir']:.3f} "
        f"| {table[()]['big'] - row['big']:+.4f} | {table[()]['big'] - row['big'] - row['damage']:+.4f} |"
        for key, row in table.items()
        if key
    )
    names = ", ".join(f"({layer}, {head})" for layer, head in SHORTCUT_HEADS)
    text = f"""# scenes-vit

A small vision transformer with a *learned* background shortcut, for trying interpretability methods on a model whose
flaw is known. It names the shape in procedural scenes (`mechvis.data.scenes`):
{", ".join(SHAPES)}.

* Architecture: `ViTForImageClassification`, 64 x 64 pixels, patch 8, 4 layers of 4 heads of 32, MLP 256, float32.
* Backbone: trained on fresh scenes whose shape and background are independent, to name shape, background and colour.
* Classifier: ridge-regularised logistic regression on the frozen backbone's CLS features of {plan.images} scenes whose
  background agrees with the shape in {100 * plan.correlation:.0f} % of cases (ridge {plan.ridge}). Nothing else plants
  the shortcut.
* Train again: `mechvis.models.training.train("scenes-vit", folder)`. The settings are the code's defaults. Bits depend
  on processor and thread count.
* Not for use on photographs: it has only ever seen these scenes.

## Figures

Held-out scenes, drawn from seeds that neither training nor the choice of settings has used.

| what | n | value |
| --- | --- | --- |
| linear probe on CLS features, uncorrelated scenes: shape | {2 * n} | {100 * probe["shape"]:.1f} % |
| same: background | {2 * n} | {100 * probe["background"]:.1f} % |
| same: colour | {2 * n} | {100 * probe["colour"]:.1f} % |
| classifier, background agrees with shape | {n} | {100 * whole["consistent"]:.1f} % |
| classifier, background conflicts with shape | {n} | {100 * whole["conflicting"]:.1f} % |
| classifier, background painted over (object only) | {2 * n} | {100 * whole["object_only"]:.1f} % |
| background influence ratio, both groups | {2 * n} | {whole["bir"]:.3f} |

Zeroing heads {names} together (chosen on other scenes): agreeing {100 * without["consistent"]:.1f} %, conflicting
{100 * without["conflicting"]:.1f} %, object only {100 * without["object_only"]:.1f} %, background influence ratio
{without["bir"]:.3f}.

Probes are fitted on {4 * n} scenes. The background influence ratio is sum BIG / (sum BIG + sum FIG) with
Jensen-Shannon divergences, given masks and the image's mean colour as fill.

## One head at a time

Change in percentage points when one head's output is zeroed, n = {n // 4} per group (without zeroing: agreeing
{100 * table[()]["consistent"]:.1f} %, conflicting {100 * table[()]["conflicting"]:.1f} %, object only
{100 * table[()]["object_only"]:.1f} %, ratio {table[()]["bir"]:.3f}). Score: mean fall of BIG in nats; guarded score:
minus the mean change of the object-only prediction.

| layer, head | agreeing | conflicting | object only | ratio | score | guarded |
| --- | --- | --- | --- | --- | --- | --- |
{rows}
"""
    return _write(folder, text, figures)


def write_clip_card(model: CLIPModel, folder: Path, *, n: int = 2000) -> Path:
    """Measure the two towers and write their card.

    Args:
        model: In eval mode.
        folder: The model folder.
        n: Uncorrelated scenes.

    Returns:
        The card.
    """
    accuracy = zero_shot(model, n, seed=FIGURE_SEED + 4)
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
    return _write(folder, text, {"zero_shot": {"n": n, "seed": FIGURE_SEED + 4, "accuracy": accuracy}})


def _write(folder: Path, text: str, figures: dict) -> Path:
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder / "README.md"
