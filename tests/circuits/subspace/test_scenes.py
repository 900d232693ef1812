"""The bundled classifier: where the last layer's CLS row holds the shape, and what a study says about it."""

import numpy as np
import pytest
import torch

import mechvis
from circuits.subspace import DasSettings, Drawer, accuracy_of, scene_variable, site_tail, subspace_study
from mechvis import testing
from mechvis.data.scenes import sample_factors, scene_set
from mechvis.errors import RefusedMethod

N = 700


@pytest.fixture(scope="module")
def model():
    return mechvis.load("scenes-vit")


@pytest.fixture(scope="module")
def factors():
    return sample_factors(N, seed=11)


@pytest.fixture(scope="module")
def tail(model, factors):
    images = scene_set(factors, name="scenes", ids=tuple(f"scene/{i}" for i in range(N)), recipe="seed 11")
    return site_tail(model, images, "blocks.3.hook_resid_post", tokens="cls")


def test_drawn_answers_are_the_models_own(model, tail, factors):
    variable = scene_variable(factors[:60], "background", answers="drawn", model=model)
    assert torch.equal(variable.labels, tail.clean[:60].argmax(1)), "with its own background a scene is itself"
    pairs = Drawer(torch.arange(60), seed=0).rounds(60)
    changes = (variable.answer(pairs.base, pairs.source) != variable.labels[pairs.base]).double().mean()
    assert 0.2 < float(changes) < 0.6, "the background often decides"


def test_a_full_swap_of_the_last_row_is_the_source(tail, factors):
    variable = scene_variable(factors, "shape")
    right = (tail.clean.argmax(1) == variable.labels).nonzero().flatten()
    pairs = Drawer(right, within=factors.background, seed=0).rounds(300)
    every = torch.eye(tail.width)
    assert accuracy_of(tail, variable, pairs, every).iia == 1.0


def test_the_shortcut_makes_the_behaviour_incomplete(tail, factors):
    with pytest.raises(RefusedMethod, match=r"3\d\.\d%\); at most 10%"):
        subspace_study(tail, scene_variable(factors, "shape"), progress=False)


@pytest.mark.slow
def test_shape_takes_seven_rows_of_the_last_cls_row(model, tail, factors):
    """Eight shapes need seven directions; every seed finds the same ones, and no diagnostic objects."""
    variable = scene_variable(factors, "shape")
    with testing.assert_untouched(model):
        study = subspace_study(
            tail,
            variable,
            ks=(1, 4, 7),
            seeds=3,
            settings=DasSettings(steps=400, rate=1e-2),
            held_out=torch.from_numpy(factors.background >= 6),
            within=factors.background,
            max_dropped=0.45,
            control_seeds=1,
            progress=False,
        )
    assert study.k == 7 and study.iia > 0.95
    assert 0.28 < study.images["dropped"] / N < 0.4
    one = {
        name: float(np.median(study.accuracy(name, k=7)["iia"])) for name in ("DAS", "mean difference", "probe", "PCA")
    }
    assert one["DAS"] > one["probe"] > one["mean difference"] > one["PCA"]
    assert study.accuracy("random", k=7)["iia"].max() < 0.25
    assert study.accuracy("DAS, shuffled V")["iia"].max() < 0.3
    assert study.verdict == "not flagged"
    numbers = dict(zip(study.diagnosis["number"], study.diagnosis["value"], strict=True))
    assert numbers["stability over seeds"] > 0.95 and numbers["row share"] > 0.8
