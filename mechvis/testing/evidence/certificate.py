"""Is the truth of a variant the model's own? Draw the images again with something changed, and look at the answers.

A generator can say what decides the *label*; only an experiment says what the *model* uses. Every check is a re-drawing
(no occlusion, no gradient, nothing that an explanation could share an error with): evidence exchanged, moved, removed;
distractors removed, moved, recoloured.
"""

from typing import Any

import torch

from mechvis.testing.evidence.task import Variant

IMAGES, SEED = 1000, 500_000
"""How many images a certificate has, and their seed: training and scores use other ones."""
ACCURACY = 0.99
FORMAT = "mechvis.evidence"
"""Of `certificate.json` beside the weights."""


def certify(model: Any, variant: Variant, *, n: int = IMAGES, seed: int = SEED) -> dict[str, Any]:
    """Accuracy and causal checks.

    Args:
        model: anything that gives logits for pixels: a wrapped model or a bare `ViTForImageClassification`.
        variant: whose images.
        n: number of images.
        seed: of the images.

    Returns:
        `format`, `version`, `accuracy`, `checks` (name, share of images, bound, holds), and `certified`: whether all
        hold.

    Example:
        >>> certify(load("object").model, variant("object"), n=64)["certified"]        # doctest: +SKIP
        True
    """
    scenes = variant.draw(n, seed)
    with torch.no_grad():
        before = _logits(model, scenes.pixels)
        rows = []
        for check in variant.checks():
            changed = check.changed(scenes)
            share = float(check.holds(before, _logits(model, changed.pixels), scenes, changed).float().mean())
            rows.append(
                {"name": check.name, "share": share, "at_least": check.at_least, "holds": share >= check.at_least}
            )
    accuracy = float(variant.right(before, scenes).float().mean())
    return {
        "format": FORMAT,
        "version": 1,
        "variant": variant.NAME,
        "images": n,
        "image_seed": seed,
        "accuracy": accuracy,
        "accuracy_at_least": ACCURACY,
        "checks": rows,
        "certified": accuracy >= ACCURACY and all(row["holds"] for row in rows),
    }


def _logits(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    found = [model(some) for some in pixels.split(256)]
    return torch.cat([one if isinstance(one, torch.Tensor) else one.logits for one in found])
