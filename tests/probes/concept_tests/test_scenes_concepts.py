"""The bundled models: the classifier's logits hang on the background, those of the contrastive model do not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import mechvis
from mechvis.data.scene_factors import BACKGROUNDS, SHAPES
from probes.concept_tests import value_concepts
from probes.concept_tests.betting import concept_importance
from probes.concept_tests.completeness import Decoder, completeness, vit_located
from probes.features import collect

pytestmark = pytest.mark.slow
SITE = "blocks.2.hook_resid_post"
STAR = SHAPES.index("star")
PARTNER = f"background: {BACKGROUNDS[STAR]}"


def known(images):
    return {
        "shape": np.array(images.class_names)[images.labels],
        **{k: images.columns[k] for k in ("background", "colour")},
    }


@pytest.fixture(scope="module")
def conflicting():
    return [mechvis.data.scenes(n=800, seed=seed, group="conflicting") for seed in (22, 23)]


def test_what_the_classifiers_star_logit_depends_on(conflicting):
    model = mechvis.load("scenes-vit")
    learn = mechvis.data.scenes(n=600, seed=21)
    first, *others = (collect(model, some, [SITE, "hook_logits"], progress=False) for some in (learn, *conflicting))
    rows = first[f"{SITE}:read"]
    names, vectors = value_concepts(rows, known(learn))
    tested, reference = ((one[f"{SITE}:read"] - rows.mean(0)) @ vectors.T for one in others)
    logit, ids = others[0]["hook_logits"][:, STAR], conflicting[0].ids
    whole = concept_importance(logit, tested, names=names, orders=10, ids=ids, progress=False, model=model)
    assert whole.ranking[0] == PARTNER and PARTNER in whole.rejected
    few = [names.index(name) for name in ("shape: star", PARTNER, "colour: red", "colour: cyan")]
    each = concept_importance(
        logit, tested[:, few], names=[names[j] for j in few], kind="conditional", reference=reference[:, few],
        orders=10, ids=ids, progress=False, model=model,
    )  # fmt: skip
    assert each.ranking[0] == PARTNER and each.pick(concept=PARTNER)["rejection_rate"] >= 0.7
    assert each.pick(concept="colour: red")["rejection_rate"] <= 0.2


def test_what_the_contrastive_models_star_logit_depends_on(conflicting):
    clip = mechvis.load("scenes-clip")
    images = conflicting[0]
    with torch.no_grad():
        parts = [images[i : i + 64].pixels_for(clip.vision.preprocess) for i in range(0, len(images), 64)]
        found = torch.cat([clip.encode_image(part) for part in parts])
        shapes = clip.encode_text([f"a photo of a {shape}" for shape in SHAPES])
        texts = {
            "circle": "a photo of a circle",
            "checkered": "a checkered background",
            "striped": "a striped background",
            "red": "a photo of something red",
            "cyan": "a photo of something cyan",
        }
        concepts = clip.encode_text(list(texts.values()))
    logits = (found @ shapes.T).numpy()
    assert (logits.argmax(1) == images.labels).mean() > 0.95
    scores = (found @ concepts.T).numpy()
    result = concept_importance(
        logits[:, STAR], scores, names=list(texts), orders=10, ids=images.ids, progress=False, model=clip.vision
    )
    assert result.rejected == ("circle",) and result.pick(concept="circle")["correlation"] < 0


def test_completeness_of_what_is_known():
    """The stream before block 2, class token held at its mean: means of values carry more than random vectors."""
    model = mechvis.load("scenes-vit")
    sets = [mechvis.data.scenes(n=n, seed=seed) for n, seed in ((500, 11), (400, 12))]
    train = vit_located(model, sets[0], 2)
    test = vit_located(model, sets[1], 2, means=train)
    patches = train.z.shape[1]
    names, vectors = value_concepts(
        train.z.flatten(0, 1).numpy(), {name: np.repeat(column, patches) for name, column in known(sets[0]).items()}
    )
    found = completeness(
        replace(train, labels=None), replace(test, labels=None), torch.from_numpy(vectors), names=names, threshold=0.1,
        normalise=False, decoder=Decoder(hidden=128, steps=100, batch=32, rate=3e-3), seeds=1, random_draws=2,
        shapley="none", progress=False, model=model,
    )  # fmt: skip
    assert found.eta("random") < found.eta() < found.eta("representation") < 0.9
    assert found.eta("random", decoder="linear") < found.eta(decoder="linear") - 0.1
