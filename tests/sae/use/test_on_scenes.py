"""A quickly trained dictionary in the small classifier with a background shortcut: neutral, replaced, repaired."""

import numpy as np
import pytest
import torch

import mechvis
from mechvis import edits
from mechvis.stats import bootstrap
from sae.splicing import splice
from sae.steering.quality import auroc

pytestmark = pytest.mark.slow
SITE = "blocks.2.hook_resid_post"
LATENTS = f"{SITE}.hook_latents"


def logits_of(model, images, **more):
    return torch.cat([model.run(images[i : i + 64], **more).logits for i in range(0, len(images), 64)])


def right(logits, images):
    return (logits.argmax(1) == images.label_tensor).double().numpy()


@pytest.fixture(scope="module")
def codes(scenes_vit_dictionary):
    model, d, images = scenes_vit_dictionary
    spliced = splice(model, d)
    some = [spliced.run(images[i : i + 64], capture=[LATENTS]).cache[LATENTS] for i in range(0, len(images), 64)]
    return torch.cat(some)


def test_neutral_with_the_error_term_and_worse_without(scenes_vit_dictionary):
    model, d, images = scenes_vit_dictionary
    clean = logits_of(model, images)
    kept, replaced = splice(model, d), splice(model, d, error=False)
    assert torch.equal(logits_of(kept, images), clean)
    assert torch.equal(logits_of(kept, images, capture=[LATENTS, f"{SITE}.hook_error"]), clean)
    own, other = right(clean, images).mean(), right(logits_of(replaced, images), images).mean()
    assert 0.125 < other < own, (own, other)


def test_ablating_background_latents_helps_where_the_background_misleads(scenes_vit_dictionary, codes):
    """Latents are chosen on half of the images by how well they tell one background from the others, and judged on the
    other half."""
    model, d, images = scenes_vit_dictionary
    chosen, judged = np.arange(0, 512, 2), np.arange(1, 512, 2)
    strength = codes.amax(1).double().numpy()[chosen]
    ground = np.asarray(images.columns["background"])[chosen]
    tells = np.stack([[auroc(s, ground == name) for name in np.unique(ground)] for s in strength.T]).max(1)
    alive = (strength > 0).mean(0) > 0.02
    score = np.where(alive, tells, -np.inf)
    picked = np.argsort(-score)[:24].tolist()
    test = images[judged]
    conflicting = test[np.flatnonzero(np.asarray(test.groups) == "conflicting")]
    spliced = splice(model, d)

    def gain(latents):
        after = logits_of(spliced, conflicting, edits=[edits.zero(LATENTS, units=latents)])
        return right(after, conflicting) - right(logits_of(model, conflicting), conflicting)

    own = bootstrap(gain(picked))
    rng, others = np.random.default_rng(0), np.flatnonzero(alive)
    random = [gain(rng.permutation(others)[:24].tolist()).mean() for _ in range(10)]
    assert own.effect[0] > max(random), (own.effect[0], random)
    assert own.low[0] > 0


def test_sweeps_find_the_latents_that_matter(scenes_vit_dictionary):
    model, d, images = scenes_vit_dictionary
    spliced, few = splice(model, d), images[np.arange(16)]
    units = mechvis.units.units_of(spliced, "latents")[:40]
    fast = mechvis.sweep(spliced, few, units=units, progress=False)
    with pytest.warns(mechvis.errors.EffectlessEdit):
        slow = mechvis.sweep(spliced, few, units=units, engine="plain", progress=False)
    assert np.abs(fast.values["logit_diff"] - slow.values["logit_diff"]).max() < 1e-4
