"""Screening in bfloat16: close to float32, honest about what is which, and the model as it was."""

import numpy as np
import pytest
import torch

import mechvis
from mechvis import testing
from mechvis.errors import BadData, OutOfRange, ResultMismatch, UnknownName
from mechvis.screen import agreement
from mechvis.sweep import sweep
from mechvis.units import KINDS

pytestmark = pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")

N = 8


@pytest.fixture(scope="module")
def model():
    return mechvis.load(testing.tiny("vit"), preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="module")
def pixels():
    return testing.tiny_input("vit", n=N)


def quiet(model, images, **more):
    return sweep(model, images, **{"progress": False, **more})


@pytest.mark.parametrize("kind", [*KINDS, "patches"])
@pytest.mark.parametrize("edit", ["zero", "mean_positional", "patch"])
def test_screened_effects_are_near_and_the_top_is_exact(model, pixels, kind, edit):
    settings = {"units": kind, "edit": edit, "metric": ["logit_diff", "prob"]}
    settings["groups"] = (2, 2) if kind == "patches" else None
    settings["source"] = pixels.flip(0).contiguous() if edit == "patch" else None
    full = quiet(model, pixels, **settings)
    found = quiet(model, pixels, screen="bf16", recheck=0.3, **settings)
    n_units = full.rows().height
    for metric in found.metrics:
        rows, expected = found.rows(metric), full.rows(metric)["effect"].to_numpy()
        exact = (rows["precision"] == "float32").to_numpy()
        assert exact.sum() == max(1, round(0.3 * n_units))
        assert np.abs(rows["effect"].to_numpy() - expected)[exact].max() < 1e-5
        assert np.abs(rows["screened_effect"].to_numpy() - expected).max() < 0.05 * np.abs(expected).max() + 2e-3
        assert np.allclose(rows["effect"].to_numpy()[~exact], rows["screened_effect"].to_numpy()[~exact], atol=1e-12)
        assert (rows["effect"].to_numpy() != rows["screened_effect"].to_numpy())[exact].any()
        assert found.baseline[metric] == pytest.approx(full.baseline[metric], abs=1e-6)
    # The units that were measured again are those that the screening put first.
    size = found.rows()["screened_effect"].abs().to_numpy()
    exact = (found.rows()["precision"] == "float32").to_numpy()
    assert size[exact].min() >= size[~exact].max()


@pytest.mark.parametrize("family", ["dinov3", "beit", "siglip"])
@pytest.mark.parametrize("kind", ["heads", "neurons", "mlp_out", "pool_heads"])
def test_families(family, kind):
    """Rotary positions and a gate, position bias and LayerScale, a pooling by attention."""
    if family == "siglip":
        clip = mechvis.load(testing.tiny(family), preprocess=testing.tiny_preprocess(), tokenizer=testing.Words())
        model = clip.classifier(["circle", "star", "a blue square"])
    elif kind == "pool_heads":
        return
    else:
        model = mechvis.load(testing.tiny(family), preprocess=testing.tiny_preprocess())
    if model.parts.head is None:
        from dataclasses import replace

        parts = replace(model.parts, head=lambda pooled: pooled[:, :5])
        model = mechvis.hooked.HookedViT(model.bare, parts, preprocess=model.preprocess)
    pixels = testing.tiny_input("vit", n=4)
    full = quiet(model, pixels, units=kind, metric="logit").rows()["effect"].to_numpy()
    found = quiet(model, pixels, units=kind, metric="logit", screen="bf16", recheck=1).rows()["screened_effect"]
    assert np.abs(found.to_numpy() - full).max() < 0.05 * np.abs(full).max() + 1e-3


def test_the_plain_engine_screens_too(model, pixels):
    settings = {"screen": "bf16", "recheck": 3, "metric": "logit"}
    fast, slow = (quiet(model, pixels, engine=engine, **settings) for engine in ("wave", "plain"))
    difference = fast.rows()["screened_effect"] - slow.rows()["screened_effect"]
    assert difference.abs().max() < 0.02


def test_what_is_reported(model, pixels):
    found = quiet(model, pixels, screen="bf16", recheck=6)
    facts = found.provenance["screen"]
    full = quiet(model, pixels).rows()["effect"].to_numpy()
    chosen = np.flatnonzero((found.rows()["precision"] == "float32").to_numpy())
    expected = agreement(found.rows()["screened_effect"].to_numpy(), full[chosen], chosen)
    assert facts["spearman"] == pytest.approx(expected["spearman"]) and facts["kept"] == expected["kept"]
    assert (facts["recheck"], facts["units"], facts["screened_images"]) == (6, 12, N)
    assert facts["spearman"] > 0.8 and 0 < facts["deviation"] < 0.01
    text = repr(found)
    assert (
        "6 of 12 units measured again in float32" in text and "rank correlation" in text and "of their first 3" in text
    )
    assert "screened in bf16, 6 of 12 in float32" in found.title
    assert "screened" not in repr(quiet(model, pixels))


def test_agreement_by_hand():
    screened = np.array([5.0, -4.0, 3.0, 2.0, 1.0, np.nan])
    found = agreement(screened, np.array([5.0, -3.0, 3.5, 2.0]), np.array([0, 1, 2, 3]))
    assert found["spearman"] == pytest.approx(0.8)  # one pair of neighbours swapped: 1 - 6 * 2 / (4 * 15)
    assert (found["kept"], found["kept_of"], found["deviation"]) == (0.5, 2, 1.0)


def test_safe_counts_what_the_rest_cannot_reach():
    found = agreement(np.array([5.0, 4.0, 1.0, 0.5]), np.array([5.2, 1.1]), np.array([0, 1]))
    assert found["deviation"] == pytest.approx(2.9) and found["safe"] == 1  # 1 + 2.9 < 5.2
    everything = agreement(np.array([2.0, 1.0]), np.array([2.0, 1.0]), np.array([0, 1]))
    assert (everything["safe"], everything["spearman"], everything["deviation"]) == (2, 1.0, 0.0)
    one = agreement(np.array([2.0, 1.0]), np.array([2.0]), np.array([0]))
    assert one["spearman"] is None and one["safe"] == 1
    flat = agreement(np.array([2.0, 2.0]), np.array([2.0, 1.0]), np.array([0, 1]))
    assert flat["spearman"] is None


def test_screening_on_some_images(model, pixels):
    found = quiet(model, pixels, screen="bf16", recheck=4, screen_share=0.5, seed=2)
    rows = found.rows()
    exact = (rows["precision"] == "float32").to_numpy()
    assert rows["n"].to_list() == [N if one else N // 2 for one in exact]
    seen = np.isfinite(found.values["logit_diff"][~exact]).any(0)
    assert seen.sum() == N // 2
    full = quiet(model, pixels, seed=2)
    assert np.abs(found.values["logit_diff"] - full.values["logit_diff"])[exact].max() < 1e-5
    assert "on 4 of 8 images" in found.provenance["screen"]["statement"]


def test_groups_that_differ_between_images(model, pixels):
    labels = torch.randint(0, 3, (N, 3, 3), generator=torch.Generator().manual_seed(0))
    found = quiet(model, pixels, units="patches", groups=labels, screen="bf16", recheck=3, screen_share=0.4)
    assert found.rows().height == 9 and (found.rows()["precision"] == "float32").sum() == 3


def test_targets_and_files(model, pixels, tmp_path):
    settings = {"screen": "bf16", "recheck": 3, "metric": "logit", "targets": [1, 2]}
    found = quiet(model, pixels, out=tmp_path, **settings)
    assert found.table["target"].unique().len() == 2
    again = quiet(model, pixels, out=tmp_path, **settings)
    assert again.table.equals(found.table) and mechvis.Result.load(tmp_path).table.equals(found.table)
    assert "measured again" in repr(mechvis.Result.load(tmp_path))
    with pytest.raises(ResultMismatch, match="differs in: recheck"):
        quiet(model, pixels, out=tmp_path, **{**settings, "recheck": 4})


def test_the_model_is_left_as_found(model, pixels):
    before = model.fingerprint
    with testing.assert_untouched(model):
        quiet(model, pixels, screen="bf16")
    assert model.fingerprint == before and not torch.is_autocast_enabled("cpu")

    def broken(logits, target, contrast, clean):
        raise KeyboardInterrupt

    with testing.assert_untouched(model), pytest.raises(KeyboardInterrupt):
        quiet(model, pixels, screen="bf16", metric=broken)
    assert not torch.is_autocast_enabled("cpu")
    testing.assert_close(model(pixels), model.parts.reference(pixels), 1e-6)


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"screen": "fp8"}, UnknownName, "unknown screening precision 'fp8'"),
        ({"recheck": 0}, OutOfRange, "recheck=0: there are 12"),
        ({"recheck": 13}, OutOfRange, "there are 12"),
        ({"recheck": 0.0}, OutOfRange, "a share lies above 0"),
        ({"recheck": float("nan")}, OutOfRange, "a share"),
        ({"recheck": True}, BadData, "expected a number"),
        ({"screen_share": 1.5}, OutOfRange, "screen_share=1.5"),
    ],
)
def test_bad_settings(model, pixels, settings, error, text):
    with pytest.raises(error, match=text):
        quiet(model, pixels, **{"screen": "bf16", **settings})


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_refused(dtype):
    model = mechvis.load(testing.tiny("vit", dtype=dtype), preprocess=testing.tiny_preprocess())
    with pytest.raises(BadData, match="a float32 model"):
        quiet(model, testing.tiny_input("vit", n=3, dtype=dtype), screen="bf16")
