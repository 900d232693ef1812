"""Rankings of heads before the gates of a ranking card: exact ones, and three ways to get them wrong.

* exact: effects of mean or zero ablation, measured on 48 images, judged on 72 others;
* shuffled: the exact effects under other heads' names (another head on top);
* off by one layer: the effects of one layer under the names of the next;
* transposed O: what each head writes along the score's gradient, by W_O transposed.

Subjects: trained planted models (2 x 4 heads), but not `class_specific`: its images show two classes alike, so the
difference of their logits has no effects that could come back.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from einops import einsum, rearrange

import mechvis
from mechvis.cards import CardData, ranking_card
from mechvis.results import Result
from mechvis.target import Target
from mechvis.testing import evidence

RANKINGS = ("ranking: exact mean", "ranking: exact zero", "ranking: shuffled heads", "ranking: off-by-one layer",
            "ranking: transposed O")  # fmt: skip
MADE_ON, JUDGED_ON = 48, 72


def ranking_gates(name: str, seed: int) -> dict[str, Any]:
    """The gates of a smoke card: `{"subject", "gates": {id: [status, statistic]}}`."""
    title, model, made_on, judged_on = _subject(seed)
    result = _ranking(name.split(": ")[1], model, made_on, seed)
    found = ranking_card(result, CardData(model=model, images=judged_on), level="smoke", seed=seed)
    return {"subject": title, "gates": {gate.id: [gate.status, gate.statistic] for gate in found.gates}}


@lru_cache(maxsize=1)
def _subject(seed: int) -> tuple[str, Any, Any, Any]:
    variants = [name for name in evidence.variants_of("B") if name != "class_specific"]
    variant = variants[seed % len(variants)]
    numbers = evidence.seeds_of(variant)
    planted = evidence.load(variant, numbers[seed // len(variants) % len(numbers)])
    pixels = evidence.variant(variant).draw(MADE_ON + JUDGED_ON, 3_000 + seed).pixels
    return planted.name, planted.model, pixels[:MADE_ON], pixels[MADE_ON:]


def _ranking(how: str, model: Any, pixels: torch.Tensor, seed: int) -> Result:
    edit = "zero" if how == "exact zero" else "mean_positional"
    exact = mechvis.sweep(model, pixels, units="heads", edit=edit, metric="logit_diff", seed=seed, progress=False)
    if how.startswith("exact"):
        return exact
    values = exact.values["logit_diff"]
    layers, heads = len(model.parts.blocks), model.parts.blocks[0].attn.n_heads
    if how == "shuffled heads":
        wrong = values[_another_top(values.mean(1), seed)]
    elif how == "off-by-one layer":
        wrong = np.roll(values.reshape(layers, heads, -1), 1, 0).reshape(values.shape)
    else:
        wrong = _transposed(model, pixels)
    units = exact.rows("logit_diff").select("layer", "head").to_dicts()
    return Result.from_values(exact.kind, exact.title, units, {"logit_diff": wrong}, provenance=exact.provenance)


def _another_top(effects: np.ndarray, seed: int) -> np.ndarray:
    """An order of the heads in which another one is on top: the same one would not be wrong where it matters."""
    generator = np.random.default_rng([seed, 5])
    while True:
        order = generator.permutation(len(effects))
        if effects[order].argmax() != effects.argmax():
            return order


def _transposed(model: Any, pixels: torch.Tensor) -> np.ndarray:
    """`[unit image]`: each head's write to CLS along the gradient of the predicted logit, by W_O transposed."""
    n_layers = len(model.parts.blocks)
    sites = [f"blocks.{layer}.{name}" for layer in range(n_layers) for name in ("attn.hook_z", "hook_attn_out")]
    run = model.run(pixels, capture=sites, grad=True)
    score = Target(classes=run.output.argmax(1)).read(run.output).sum()
    writes = [f"blocks.{layer}.hook_attn_out" for layer in range(n_layers)]
    gradients = torch.autograd.grad(score, [run.cache[site] for site in writes])
    rows = []
    for layer, gradient in enumerate(gradients):
        weight = model.parts.blocks[layer].attn.out_weight().detach()
        flat = rearrange(weight, "head d_head d_model -> (head d_head) d_model")
        turned = rearrange(flat.T, "(head d_head) d_model -> head d_head d_model", head=len(weight))
        z = run.cache[f"blocks.{layer}.attn.hook_z"].detach()[:, 0]
        rows.append(
            einsum(z, turned, gradient[:, 0], "image head d_head, head d_head d_model, image d_model -> head image")
        )
    return torch.cat(rows).numpy()
