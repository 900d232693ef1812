"""Gradients as a control variate: they estimate small changes of every kind of unit, and change no mean."""

import numpy as np
import pytest
import torch

import mechvis
from mechvis import testing
from mechvis.certified import certificate, certified_top
from mechvis.certified import first_order as gradients
from mechvis.errors import BadData
from mechvis.sweep import sweep
from mechvis.sweep_inputs import prepare
from mechvis.units import KINDS, SPECIAL_KINDS

pytestmark = pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")

N = 6
LABELS = torch.randint(-1, 3, (N, 12, 12), generator=torch.Generator().manual_seed(0))
GROUPS = {"grid": (2, 3), "per image": LABELS, "overlapping": {"all": range(1, 10), "with CLS": [0, 3, 4], "one": [4]}}


@pytest.fixture(scope="module")
def model():
    return mechvis.load(testing.tiny("vit", dtype=torch.float64), preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="module")
def pooled():
    clip = mechvis.load(
        testing.tiny("siglip", dtype=torch.float64), preprocess=testing.tiny_preprocess(), tokenizer=testing.Words()
    )
    return clip.classifier(["circle", "star", "a blue square"])


@pytest.mark.parametrize("kind", [*KINDS, *GROUPS, "pool_heads"])
def test_gradients_estimate_small_changes(model, pooled, kind):
    """Put in what differs little: the effect is then its first-order estimate, for every kind of unit."""
    pixels = testing.tiny_input("vit", n=N, dtype=torch.float64)
    units, groups = ("patches", GROUPS[kind]) if kind in GROUPS else (kind, None)
    settings = {
        "units": units, "groups": groups, "edit": "patch", "metric": "logit_diff", "labels": None, "reference": None,
        "source": pixels + 1e-4 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0)).double(),
        "layers": None, "engine": "wave", "seed": 0, "allow_overlap": False,
    }  # fmt: skip
    which = pooled if kind == "pool_heads" else model
    estimate = gradients.first_order(prepare(which, pixels, **settings), np.array([5, 0, 3]), progress=False)
    exact = sweep(which, pixels, progress=False, **settings).values["logit_diff"][:, [5, 0, 3]]
    assert np.abs(estimate - np.nan_to_num(exact)).max() < 0.01 * np.nanmax(np.abs(exact))
    if kind == "per image":
        assert np.isnan(exact).any() and (estimate[np.isnan(exact)] == 0).all(), "no patch, no share"


def test_every_kind_is_known_or_refused(model, monkeypatch):
    assert set(SPECIAL_KINDS) == {"patches", "pool_heads"}, "a new kind needs a rule, or is refused as below"
    monkeypatch.setattr(gradients, "WHOLE", ("mlp_out",))
    pixels = testing.tiny_input("vit", n=70, dtype=torch.float64)
    with pytest.raises(BadData, match=r"control=True knows the units .*, not attn_out\. Leave it out"):
        certified_top(model, pixels, top=1, units="attn_out", control=True, progress=False)


def test_the_control_variate_of_a_certified_top(model, tmp_path):
    pixels = testing.tiny_input("vit", n=300, dtype=torch.float64)
    quiet = {"top": 3, "progress": False}
    found = certified_top(model, pixels, eps=0.2, control=True, control_images=200, out=tmp_path, **quiet)
    assert found.provenance["certificate"]["certified"]
    assert "Gradients for the control variate: 200 images" in certificate(found)
    assert len(list((tmp_path / "gradients").glob("images-*.json"))) == -(-200 // gradients.BATCH)
    with pytest.raises(BadData, match="'accuracy' has none"):
        certified_top(model, pixels, control=True, metric="accuracy", **quiet)
    with testing.assert_untouched(model):
        certified_top(model, pixels, control=True, control_images=70, max_images=64, **quiet)
