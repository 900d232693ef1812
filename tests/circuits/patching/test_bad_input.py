"""What patching refuses, and what it says then."""

import dataclasses

import numpy as np
import pytest
import torch

import mechvis
from circuits.pairs import Pairs, aligned
from circuits.patching import HeadPart, patch
from mechvis.errors import BadData, BadImages, NotFinite, OutOfRange, ShapeMismatch, UnknownName
from mechvis.units import Unit

pytestmark = pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")


@pytest.fixture(scope="module")
def given(family):
    model, clean, corrupt = family("vit")
    return model, aligned(model, clean, corrupt)


def quiet(given, **more):
    return patch(*given, **{"progress": False, "max_undistinguished": 1.0, **more})


@pytest.mark.parametrize(
    "settings,error,text",
    [
        ({"direction": "forwards"}, UnknownName, "unknown direction 'forwards'"),
        ({"aggregate": "median"}, UnknownName, "Valid: ratio_of_means, mean_of_ratios"),
        ({"engine": "fast"}, UnknownName, "unknown engine"),
        ({"tiny": 2}, OutOfRange, "tiny=2 is a share"),
        ({"max_undistinguished": -1}, OutOfRange, "max_undistinguished=-1"),
        ({"metric": "logit_dif"}, UnknownName, "Nearest: logit_diff"),
        ({"metric": []}, BadData, "at least one metric"),
        ({"units": "queries"}, UnknownName, "unknown unit kind 'queries'"),
        ({"units": ["heads", 3]}, BadData, "HeadPart"),
        ({"units": []}, BadData, "no units given"),
        ({"units": ["q", HeadPart(1, "q", 2)]}, BadData, "listed twice"),
        ({"units": ["heads", Unit(0, "heads", 1)]}, BadData, "listed twice"),
        ({"units": [HeadPart(1, "x", 2)]}, UnknownName, "unknown part of a head 'x'"),
        ({"units": [HeadPart(1, "v", 9)]}, OutOfRange, "does not exist"),
        ({"units": [HeadPart(7, "v", 0)]}, OutOfRange, "layers 0 to 2"),
        ({"units": "q", "layers": [5]}, OutOfRange, "layer 5 does not exist"),
        ({"units": "heads", "groups": (2, 2)}, BadData, "alone"),
        ({"units": ["patches", "heads"], "groups": (2, 2)}, BadData, "alone"),
        ({"units": "patches"}, BadData, "needs groups="),
        ({"units": "patches", "groups": "object"}, BadData, "needs object masks"),
        ({"units": "pool_heads"}, BadData, "no attention pooling"),
        ({"units": ["heads", "pool_heads"], "layers": [0]}, BadData, "leave layers= out"),
        ({"units": [HeadPart(1, "v", 0), Unit(0, "mlp_out")], "layers": [2]}, BadData, r"in the layers \[2\]"),
        ({"targets": 99}, OutOfRange, "does not exist"),
        ({"budget": "lots"}, BadData, "not a size"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else None,
)
def test_refused(given, settings, error, text):
    with pytest.raises(error, match=text):
        quiet(given, **settings)


def test_a_metric_that_is_the_same_on_both_halves(given):
    def constant(logits, target, contrast, clean):
        return torch.full(logits.shape[:-1], 7.0, dtype=logits.dtype)

    with pytest.raises(BadData, match=r"constant is the same on both halves of all 4 pairs .mean 7.*0 / 0"):
        quiet(given, metric=constant)
    model, pairs = given
    same = Pairs(name="same", clean=pairs.clean, corrupt=pairs.clean, ids=pairs.ids)
    with pytest.raises(BadData, match="logit_diff is the same on both halves"):
        patch(model, same, progress=False, max_undistinguished=1)


def test_differences_that_cancel(given):
    """Each pair and its reverse, measured against one class for all."""
    model, pairs = given
    both = aligned(model, torch.cat([pairs.clean, pairs.corrupt]), torch.cat([pairs.corrupt, pairs.clean]))
    with pytest.raises(BadData, match=r"logit\[LABEL_1\] between the halves cancel.*mean_of_ratios"):
        patch(model, both, metric="logit", targets=1, progress=False, max_undistinguished=1)
    found = patch(
        model, both, metric="logit", targets=1, progress=False, max_undistinguished=1, aggregate="mean_of_ratios"
    )
    assert found.provenance["patching"]["metrics"]["logit[LABEL_1]"]["reversed"] == 4
    assert found.table["effect"].is_finite().all() and found.table["ratio_of_means"].null_count() == found.table.height


def test_a_metric_of_another_shape_or_with_nan(given):
    def summed(logits, target, contrast, clean):
        return logits.sum()

    def root(logits, target, contrast, clean):
        return (logits.amax(-1) - clean.amax(-1)).sqrt()

    def sometimes(logits, target, contrast, clean):
        value = logits.amax(-1)
        return torch.where(torch.isclose(value, value.flatten()[0]) & (logits.ndim == 3), torch.nan, value)

    with pytest.raises(ShapeMismatch, match=r"'summed' gives \[\] for 4 clean images"):
        quiet(given, metric=summed)
    with pytest.raises(NotFinite, match="'root' is NaN or Inf on"):
        quiet(given, metric=root)
    with pytest.raises(NotFinite, match="sometimes is NaN on pair 0 with L0H0 patched"):
        quiet(given, metric=sometimes)


def test_pairs_that_the_model_does_not_tell_apart(given):
    model, pairs = given
    alike = aligned(model, pairs.clean, pairs.clean + 1e-6)
    with pytest.raises(BadData, match=r"one class for both halves of 4 of 4 pairs .*max_undistinguished=0.5"):
        patch(model, alike, progress=False)
    found = patch(model, alike, progress=False, max_undistinguished=1)
    facts = found.provenance["patching"]
    assert facts["undistinguished"] == 4 and facts["one_class"] == 4


def test_pairs_with_next_to_no_difference_are_counted(given):
    model, pairs = given
    corrupt = pairs.corrupt.clone()
    corrupt[2] = pairs.clean[2] + 1e-5
    found = patch(model, aligned(model, pairs.clean, corrupt), progress=False, max_undistinguished=1, metric="logit")
    assert found.provenance["patching"]["metrics"]["logit"]["tiny"] == 1
    assert (found.rows("logit[noise]")["excluded"] == 0).all(), "harmless in a ratio of means"
    found = patch(
        model, aligned(model, pairs.clean, corrupt), progress=False, max_undistinguished=1, metric="logit",
        aggregate="mean_of_ratios",
    )  # fmt: skip
    assert (found.rows("logit[noise]")["excluded"] == 1).all()
    assert np.isnan(found.values["logit[noise]"][:, 2]).all()


def test_other_things_than_pairs_and_other_models(given):
    model, pairs = given
    with pytest.raises(BadData, match=r"pairs are made by circuits.pairs .*got Tensor"):
        patch(model, pairs.clean, progress=False)
    headless = mechvis.hooked.HookedViT(
        model.bare, dataclasses.replace(model.parts, head=None), preprocess=model.preprocess
    )
    with pytest.raises(BadData, match="has no head"):
        patch(headless, pairs, progress=False)
    labelled = dataclasses.replace(pairs, clean_labels=torch.arange(4), class_names=tuple("stuvwxyz"))
    with pytest.raises(BadData, match=r"count the classes s, t, u.*Make the pairs for this model"):
        patch(model, labelled, progress=False)
    small = dataclasses.replace(pairs, clean=pairs.clean[..., :8], corrupt=pairs.corrupt[..., :8])
    with pytest.raises(BadImages, match="expected images of 12 x 12"):
        patch(model, small, progress=False)
    broken = dataclasses.replace(pairs, corrupt=pairs.corrupt * float("nan"))
    with pytest.raises(BadImages, match="NaN or Inf in the pixels"):
        patch(model, broken, progress=False)
    outside = dataclasses.replace(pairs, corrupt_labels=torch.tensor([0, 1, 2, 99]))
    with pytest.raises(OutOfRange, match="label 99"):
        patch(model, outside, progress=False)


def test_masks_of_one_half_are_enough(given):
    model, pairs = given
    masks = torch.zeros(4, 12, 12, dtype=torch.bool)
    masks[:, :8, :8] = True
    found = quiet((model, dataclasses.replace(pairs, corrupt_masks=masks)), units="patches", groups="object")
    assert set(found.table["group"]) == {"object", "background", "prefix"}
