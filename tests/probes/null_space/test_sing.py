"""SING on heads whose null space is known (F8), against other implementations, and on the bundled models."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from sklearn.linear_model import Ridge

import mechvis
from mechvis import edits, testing
from mechvis.errors import (
    BadData,
    FailedCheck,
    NotFinite,
    OutOfRange,
    RefusedMethod,
    ShapeMismatch,
    SplitOverlap,
    UnknownName,
)
from mechvis.plots.null_space import null_space_plane
from mechvis.record import load_record
from probes.null_space import (
    LinearHead,
    NullReading,
    Translator,
    compare_null_spaces,
    directed_edit,
    fit_translator,
    linear_head,
    null_space,
    quality,
    read_null_space,
    shift,
    sing,
    soft_null_space,
)
from probes.null_space.angles import angle, angles_to, unit
from probes.null_space.edit import edit_table
from probes.null_space.scores import controls

D, CLASSES, RANK, EMBED, N = 20, 8, 6, 30, 300


@pytest.fixture(scope="module")
def drawn():
    """F8: a head of rank 6 on 20 dimensions, features, a translator that reads everything, texts."""
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(CLASSES, RANK)) @ generator.normal(size=(RANK, D))
    head = LinearHead(weight=weight, bias=generator.normal(size=CLASSES))
    features = generator.normal(size=(N, D))
    isometry = np.linalg.qr(generator.normal(size=(EMBED, D))).Q
    translator = Translator(weight=isometry, bias=np.zeros(EMBED))
    texts = generator.normal(size=(4, EMBED))
    return head, features, translator, texts


def test_logits_of_equivalent_features_are_the_same(drawn):
    head, features, _, _ = drawn
    space = null_space(head)
    assert (space.rank, space.null_dim) == (RANK, D - RANK)
    np.testing.assert_allclose(head(space.equivalent(features)), head(features), atol=1e-12)
    kept = space.equivalent(features, features.mean(0))
    np.testing.assert_allclose(head(kept), head(features), atol=1e-12)
    np.testing.assert_allclose(kept @ space.null, np.tile(features.mean(0) @ space.null, (N, 1)), atol=1e-12)
    assert np.abs(head(features - 0.1 * space.principal[:, 0]) - head(features)).max() > 0.1, "the control must move"


def test_the_null_space_of_the_decision_is_one_dimension_larger(drawn):
    _, features, _, _ = drawn
    # A head whose rows do not sum to zero in its range: rank 6, centred 5 of its 8 x 20.
    ones = LinearHead(weight=np.vstack([np.eye(RANK, D), np.zeros((2, D))]) + 1, bias=np.zeros(CLASSES))
    assert null_space(ones).rank == RANK + 1 and null_space(ones, centered=True).rank == RANK
    full = LinearHead(weight=np.random.default_rng(1).normal(size=(6, D)), bias=np.zeros(6))
    assert (null_space(full).rank, null_space(full, centered=True).rank) == (6, 5)
    moved = full(null_space(full, centered=True).equivalent(features)) - full(features)
    assert np.abs(moved).max() > 0.1, "logits move"
    np.testing.assert_allclose(moved, np.repeat(moved[:, :1], 6, 1), atol=1e-12, err_msg="but all by the same")


def test_a_translator_that_ignores_the_null_space_sees_no_shift(drawn):
    head, features, whole, texts = drawn
    space = null_space(head)
    blind = Translator(weight=whole.weight @ space.principal @ space.principal.T, bias=whole.bias)
    found = shift(blind, head.weight, features, space.equivalent(features), texts)
    assert found.IS.max() < 1e-5 and np.abs(found.AS).max() < 1e-5 and found.logits.max() < 1e-12
    assert shift(whole, head.weight, features, space.equivalent(features), texts).IS.min() > 10
    with pytest.raises(BadData, match="reads nothing of the null space"):
        directed_edit(space, blind, features, texts[0], 0.1)
    reading = read_null_space(head, features, blind, texts, list("abcd"))
    assert reading.tables["edits"].height == 0 and reading.model_row()["IS"] < 1e-5


def test_the_constructed_angle_of_25_degrees(drawn):
    head, _, translator, _ = drawn
    space = null_space(head)
    p, nu = space.principal[:, 0], space.null[:, 0]
    f = (p + np.tan(np.radians(25)) * nu)[None]
    found = shift(translator, head.weight, f, space.equivalent(f), (translator.weight @ p)[None])
    np.testing.assert_allclose(found.IS, 25.0, atol=1e-9)
    np.testing.assert_allclose(found.AS, 25.0, atol=1e-9)
    np.testing.assert_allclose(found.share, np.sin(np.radians(25)), atol=1e-12)


def test_angles_agree_with_arccos_and_are_exact_where_it_is_not():
    generator = np.random.default_rng(3)
    a, b = generator.normal(size=(50, 7)), generator.normal(size=(50, 7))
    expected = np.degrees(np.arccos((unit(a) * unit(b)).sum(1)))
    np.testing.assert_allclose(angle(a, b), expected, atol=1e-9)
    assert angle(a, 3 * a).max() < 1e-12
    near = np.vstack([b, a[:3] + 1e-9 * b[:3], -a[:2]])
    plain = np.stack([angle(a, np.broadcast_to(text, a.shape)) for text in near], axis=1)
    np.testing.assert_allclose(angles_to(a, near), plain, atol=1e-9)
    assert 0 < angles_to(a, near)[0, 50] < 1e-6
    with pytest.raises(ShapeMismatch, match="not one joint space"):
        angles_to(a, b[:, :3])
    assert angle(a, -a).min() == pytest.approx(180)
    with pytest.raises(NotFinite, match=r"vector at \[2\] is zero"):
        angle(np.vstack([a[:2], 0 * a[:1]]), a[:3])


def test_controls_move_the_logits_and_have_the_null_parts_length(drawn):
    head, features, translator, texts = drawn
    space = null_space(head)
    part = space.part(features)
    found = controls(space, translator, head.weight, features, part, texts, draws=3)
    assert set(found) == {"principal", "random", "null"}
    length = np.linalg.norm(part, axis=1) / np.linalg.norm(features, axis=1)
    for one in found.values():
        np.testing.assert_allclose(one.share, length, atol=1e-12)
    assert found["principal"].logits.min() > 0.1 and found["random"].logits.mean() > 0.1
    assert found["null"].logits.max() < 1e-12
    # The translator keeps lengths: geometry says what both must be.
    own = shift(translator, head.weight, features, features - part, texts).IS
    np.testing.assert_allclose(own, np.degrees(np.arcsin(length)), atol=1e-9)
    assert abs(found["null"].IS.mean() - np.degrees(np.arctan(length)).mean()) < 3


def test_ridge_is_scikit_learns():
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(60, 9)) + 2, generator.normal(size=(60, 4))
    for strength in (0.0, 0.7, 30.0):
        ours = fit_translator(x, y, strengths=[strength])
        theirs = Ridge(alpha=strength, solver="svd").fit(x, y)
        np.testing.assert_allclose(ours.weight, theirs.coef_, atol=1e-10)
        np.testing.assert_allclose(ours(x), theirs.predict(x), atol=1e-10)


def test_validation_chooses_the_strength_that_the_noise_asks_for():
    generator = np.random.default_rng(2)
    x = generator.normal(size=(60, 40))
    y = x[:, :2] @ generator.normal(size=(2, 5)) + 3 * generator.normal(size=(60, 5))
    clean = fit_translator(x, x[:, :2] @ generator.normal(size=(2, 5)))
    noisy = fit_translator(x, y)
    assert noisy.strength > 1000 * clean.strength
    fresh = generator.normal(size=(500, 40))
    truth = fresh[:, :2] @ generator.normal(size=(2, 5))
    assert quality(noisy, fresh, truth)["r2"][0] < quality(fit_translator(fresh, truth), fresh, truth)["r2"][0]


def test_quality_by_hand(drawn):
    _, features, translator, texts = drawn
    noise = np.random.default_rng(4).normal(size=(N, EMBED))
    true = translator(features) + 0.3 * noise
    found = quality(translator, features, true, texts, resamples=200)
    expected = 1 - (0.09 * noise**2).sum() / ((true - true.mean(0)) ** 2).sum()
    assert found["r2"][0] == pytest.approx(expected, abs=1e-12) and found["r2"][1] < expected < found["r2"][2]
    scores = unit(translator(features)) @ unit(texts).T, unit(true) @ unit(texts).T
    assert found["score_correlation"][0] == pytest.approx(np.corrcoef(scores[0].ravel(), scores[1].ravel())[0, 1])
    assert quality(translator, features, translator(features))["r2"][0] == 1.0
    shuffled = quality(translator, features[::-1], true, resamples=50)
    assert shuffled["r2"][0] < 0, "other images' embeddings are no better than the mean"


def test_gradient_is_torchs(drawn):
    _, features, translator, texts = drawn
    f = torch.from_numpy(features[:5]).requires_grad_(True)
    translated = f @ torch.from_numpy(translator.weight).T + torch.from_numpy(translator.bias)
    torch.cosine_similarity(translated, torch.from_numpy(texts[:1])).sum().backward()
    np.testing.assert_allclose(translator.gradient(features[:5], texts[0]), f.grad.numpy(), atol=1e-12)


def test_directed_edits_move_the_meaning_and_no_logit(drawn):
    head, features, translator, texts = drawn
    space = null_space(head)
    table = edit_table(space, translator, head.weight, features, texts[:1], ["a"])
    assert table["angle"].to_list() == sorted(table["angle"]) and table["angle"][0] == 0
    assert table["angle"][-1] > 10 and table["logits"].max() < 1e-12
    step = directed_edit(space, translator, features, texts[0], 0.2) - features
    np.testing.assert_allclose(np.linalg.norm(step, axis=1), 0.2 * np.linalg.norm(features, axis=1))
    wrong = null_space(head, tol=head.weight.max() * 1e3)
    with pytest.raises(FailedCheck, match="tolerance of the null space is too large"):
        edit_table(wrong, translator, head.weight, features, texts[:1], ["a"])


def test_soft_null_space_keeps_its_promise():
    generator = np.random.default_rng(5)
    left, right = (np.linalg.qr(generator.normal(size=(12, 12))).Q for _ in range(2))
    head = LinearHead(weight=left @ np.diag(10.0 ** -np.arange(12)) @ right, bias=np.zeros(12))
    features = generator.normal(size=(100, 12))
    assert null_space(head).null_dim == 0
    soft = soft_null_space(head, features, logit_change=1e-4)
    moved = np.abs(head(soft.equivalent(features)) - head(features)).max()
    assert soft.kind == "soft" and 4 <= soft.null_dim <= 8
    assert moved == pytest.approx(soft.logit_change) and moved <= 1e-4
    one_more = features - (features @ right[soft.rank - 1 :].T) @ right[soft.rank - 1 :]
    assert np.abs(head(one_more) - head(features)).max() > 1e-4, "and is as large as it can be"
    with pytest.raises(BadData, match="removing the weakest direction alone moves a logit"):
        soft_null_space(head, features, logit_change=1e-14)
    with pytest.raises(BadData, match="12 classes on 12 dimensions"):
        read_null_space(
            head, features, Translator(weight=np.eye(12), bias=np.zeros(12)), np.eye(12)[:1], ["a"], soft=None
        )


def test_a_low_rank_float32_head_is_not_of_full_rank():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 3, generator=generator) @ torch.randn(3, 20, generator=generator)
    eps = float(np.finfo(np.float32).eps)
    rounded = LinearHead(weight=weight.double().numpy(), bias=np.zeros(8), eps=eps)
    assert null_space(rounded).rank == 3
    assert null_space(LinearHead(weight=rounded.weight, bias=rounded.bias)).rank == 8, "as if it were float64"


@pytest.fixture(scope="module")
def vit():
    return mechvis.load("scenes-vit")


@pytest.fixture(scope="module")
def clip():
    return mechvis.load("scenes-clip")


@pytest.fixture(scope="module")
def reading(vit, clip):
    texts = [f"a {b} background" for b in ("striped", "dotted", "brick", "zigzag")]
    texts += [f"a photo of a {shape}" for shape in ("circle", "star", "heart")]
    fit = mechvis.data.scenes(n=300, seed=11)
    return sing(vit, clip, mechvis.data.scenes(n=160, seed=12), fit, texts, draws=3, progress=False)


def test_scenes_reading(reading, tmp_path):
    row = reading.model_row()
    # The head's rows sum to zero (training left no common part), so logits and decision have the same null space.
    assert (row["null_dim"], row["classes"], row["d"]) == (121, 8, 128)
    assert reading.facts["logit_change"] < 1e-4
    assert row["IS"] > 1 and row["IS_low"] <= row["IS"] <= row["IS_high"]
    assert row["IS_per_dim"] == pytest.approx(row["IS"] / 121)
    rows = {one["removed"]: one for one in reading.tables["controls"].iter_rows(named=True)}
    assert rows["principal"]["logits"] > 1 and rows["the null part"]["logits"] < 1e-4
    assert reading.tables["edits"]["logits"].max() < 1e-4 and reading.tables["edits"]["text"].n_unique() == 7
    assert reading.tables["classes"]["n"].sum() == 160
    # What the classifier cannot see knows the background: it points to the texture that is there.
    images = mechvis.data.scenes(n=160, seed=12)
    for background in ("striped", "dotted", "brick", "zigzag"):
        found = reading.among(images.columns["background"] == background)
        assert found["text"][0] == f"a {background} background" and found["high"][0] < 0
    with pytest.raises(BadData, match="no image is chosen"):
        reading.among(np.zeros(160, bool))
    reading.save(tmp_path / "reading")
    again = load_record(tmp_path / "reading")
    assert again.table.equals(reading.table) and NullReading.load(tmp_path / "reading").strongest(2).height == 2
    assert reading.report(tmp_path / "page.html").stat().st_size > 10_000


def test_edited_features_give_the_same_answers_in_the_model(vit, clip):
    images = mechvis.data.scenes(n=16, seed=13)
    head = linear_head(vit)
    run = vit.run(images, capture=[head.site])
    np.testing.assert_allclose(head(run.cache[head.site].double().numpy()), run.logits.double().numpy(), atol=1e-4)
    features = run.cache[head.site].double().numpy()
    translator = fit_translator(features, clip.encode_image(images).double().numpy())
    text = clip.encode_text(["a striped background"])[0].double().numpy()
    edited = directed_edit(null_space(head), translator, features, text, 0.5)
    patched = vit.run(images, edits=[edits.patch(head.site, torch.from_numpy(edited).float())])
    assert (patched.logits - run.logits).abs().max() < 1e-4
    assert np.abs(edited - features).max() > 0.1


def test_a_poor_translator_is_told(drawn):
    head, features, translator, texts = drawn
    noise = 3 * np.random.default_rng(9).normal(size=(N, EMBED))
    poor = read_null_space(head, features, translator, texts, list("abcd"), embeddings=translator(features) + noise)
    assert "translator is poor" in poor.caveats[0]
    row = poor.model_row()
    assert row["translator_r2_low"] < row["translator_r2"] < row["translator_r2_high"] < 0.5
    good = read_null_space(head, features, translator, texts, list("abcd"), embeddings=translator(features))
    assert not any("poor" in line for line in good.caveats)
    unjudged = read_null_space(head, features, translator, texts, list("abcd"))
    assert "was not judged" in unjudged.caveats[0]


def test_the_mean_of_the_null_part_can_stay(drawn):
    """Mean ablation: a constant null part is then no shift at all."""
    head, features, translator, texts = drawn
    space = null_space(head)
    constant = space.equivalent(features) + 3 * space.null[:, 0]
    whole = read_null_space(head, constant, translator, texts, list("abcd"))
    kept = read_null_space(head, constant, translator, texts, list("abcd"), mean=constant.mean(0))
    assert whole.model_row()["IS"] > 10 and kept.model_row()["IS"] < 1e-6
    assert (whole.facts["fill"], kept.facts["fill"]) == ("zero", "mean")


def test_several_models_in_one_table(drawn, reading):
    head, features, translator, texts = drawn
    small = read_null_space(head, features, translator, texts, list("abcd"), name="rank 6")
    wide = LinearHead(weight=head.weight[:3], bias=head.bias[:3])
    large = read_null_space(wide, features, translator, texts, list("abcd"), name="rank 3")
    found = compare_null_spaces({"six": small, "three": large})
    assert set(found.table["model"]) == {"six", "three"}
    by_name = {row["model"]: row for row in found.table.iter_rows(named=True)}
    assert by_name["three"]["IS"] > by_name["six"]["IS"], "a larger null space"
    assert "Null dimensions differ (14 to 17)" in found.caveats[0]
    assert found.figures()
    with pytest.raises(BadData, match="at least two models"):
        compare_null_spaces({"six": small})
    with pytest.raises(BadData, match="different texts"):
        compare_null_spaces({"six": small, "scenes": reading})
    centred = read_null_space(head, features, translator, texts, list("abcd"), centered=True)
    with pytest.raises(BadData, match="differ in 'centered'"):
        compare_null_spaces({"six": small, "centred": centred})


def test_bad_input(vit, clip, drawn):
    head, features, translator, texts = drawn
    images = mechvis.data.scenes(n=8, seed=1)
    with pytest.raises(SplitOverlap, match="must not share images"):
        sing(vit, clip, images, images, ["a circle"], progress=False)
    with pytest.raises(BadData, match="no texts"):
        sing(vit, clip, images, mechvis.data.scenes(n=8, seed=2), [], progress=False)
    with pytest.raises(UnknownName, match="unknown fill"):
        sing(vit, clip, images, mechvis.data.scenes(n=8, seed=2), ["a circle"], fill="median", progress=False)
    with pytest.raises(RefusedMethod, match="zero-shot head divides by the length"):
        linear_head(clip.classifier(["circle", "star"]))
    with pytest.raises(BadData, match="no head"):
        linear_head(clip.vision)
    with pytest.raises(ShapeMismatch, match="one target per image"):
        fit_translator(features, features[:5])
    with pytest.raises(BadData, match="too few to fit"):
        fit_translator(features[:3], features[:3])
    with pytest.raises(OutOfRange, match="between 0 and 1"):
        fit_translator(features, features, validation=1.0)
    with pytest.raises(BadData, match="same for all images"):
        fit_translator(np.ones((10, 3)), np.ones((10, 3)))
    broken = features.copy()
    broken[7, 1] = np.nan
    with pytest.raises(NotFinite, match="first in row 7"):
        read_null_space(head, broken, translator, texts, list("abcd"))
    with pytest.raises(OutOfRange, match="draws=0"):
        read_null_space(head, features, translator, texts, list("abcd"), draws=0)
    with pytest.raises(ShapeMismatch, match="3 names for 4 texts"):
        read_null_space(head, features, translator, texts, list("abc"))
    with pytest.raises(OutOfRange, match="tol=-1"):
        null_space(head, tol=-1)
    with pytest.raises(ShapeMismatch, match="weight \\[class d\\]"):
        LinearHead(weight=np.ones(3), bias=np.ones(3))
    with pytest.raises(UnknownName, match="unknown column 'IS_low'"):
        null_space_plane(["a"], pl.DataFrame({"IS": [1.0]}))


@pytest.mark.parametrize(
    "name", ["vit", "deit-distilled", "clip-classifier", "dinov2-classifier", "beit-mean", "siglip-classifier"]
)
def test_the_matrix_of_a_head_is_the_head_whatever_it_reads(name):
    """CLS, two tokens side by side, mean of the patches, attention pooling."""
    model = mechvis.load(testing.tiny(name, dtype=torch.float64), preprocess=testing.tiny_preprocess())
    head = linear_head(model)
    pixels = torch.rand(3, 3, 12, 12, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    run = model.run(pixels, capture=[head.site])
    testing.assert_close(torch.from_numpy(head(run.cache[head.site].numpy())), run.logits, 1e-12, "head as a matrix")
    assert null_space(head).null_dim == max(head.weight.shape[1] - len(head.weight), 0)


def test_a_non_linear_head_is_refused():
    model = testing.shortcut_vit()
    parts, head = model.parts, model.parts.head
    model.__dict__["parts"] = replace(parts, head=lambda x: head(x).tanh())
    with pytest.raises(RefusedMethod, match="head is not linear"):
        linear_head(model)
    model.__dict__["parts"] = parts
    assert linear_head(model).weight.shape == (3, 14)
