"""SURF and its sanity suite: the numbers of F8, by hand, against rivals that must be flagged, and on scenes-vit."""

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.decomposition import PCA

import mechvis
from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, SplitOverlap, UnknownName
from mechvis.record import load_record
from probes.null_space import LinearHead, linear_head
from probes.surf import (
    Evaluation,
    Explanation,
    SanitySuite,
    Surf,
    cav,
    errors,
    explain,
    frozen_gradient_surf,
    random_head,
    reconstruct_and_run,
    sanity_suite,
    shared,
    surf,
    surf_emd,
    surf_mae,
    surf_of_model,
    surrogate,
    trained_surrogate,
)
from probes.surf.sanity import cases, perfect


@pytest.fixture(scope="module")
def data():
    return random_head(400, seed=3)


def test_published_numbers_of_the_fixture():
    """Over seeds: perfect 0 / 0 / 1.00, random importance 2.72 / 0.444 / 0.49, both 4.88 / 0.806 / 0.16."""
    found = {case: [] for case in ("perfect", "random importance", "both")}
    for seed in range(20):
        evaluation = random_head(300, seed=seed)
        drawn = cases(evaluation.head, 5, np.random.default_rng(seed))
        for case, rows in found.items():
            one = errors(evaluation.logits, surrogate(drawn[case], evaluation.head, evaluation.embeddings))
            rows.append([one[name].mean() for name in ("mae", "emd", "top1")])
    expected = {"perfect": (0, 0, 1), "random importance": (2.72, 0.444, 0.49), "both": (4.88, 0.806, 0.16)}
    for case, numbers in expected.items():
        mean, spread = np.mean(found[case], 0), np.std(found[case], 0)
        # The specification's numbers are one seed of another implementation: within two spreads of seeds.
        assert (np.abs(mean - numbers) <= 2 * spread + 1e-9).all(), (case, mean, spread)


def test_a_perfect_explanation_is_the_head(data):
    whole = perfect(data.head, 5, np.random.default_rng(0))
    for vectors, alpha, row in zip(whole.concepts, whole.importances, data.head.weight, strict=True):
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(5), atol=1e-12)
        np.testing.assert_allclose(alpha @ vectors, row, atol=1e-12)
        assert (alpha >= 0).all()
    np.testing.assert_allclose(surrogate(whole, data.head, data.embeddings), data.logits, atol=1e-12)


def test_measures_by_hand(data):
    generator = np.random.default_rng(1)
    true, guessed = generator.normal(size=(30, 6)), generator.normal(size=(30, 6))
    found = errors(true, guessed, temperature=2.0)
    for i in range(30):
        p, q = (np.exp(side[i] / 2) / np.exp(side[i] / 2).sum() for side in (true, guessed))
        assert found["emd"][i] == pytest.approx(0.5 * np.abs(p - q).sum())
        assert found["rank"][i] == pytest.approx(spearmanr(true[i], guessed[i]).statistic)
        assert found["mae"][i] == pytest.approx(np.abs(true[i] - guessed[i]).mean())
    assert np.isnan(errors(true, np.zeros_like(true))["rank"]).all(), "all classes alike: no rank correlation"
    assert errors(np.array([[9.0, 0, 0]]), np.array([[0, 9.0, 0]]), temperature=0.1)["emd"][0] == pytest.approx(1)


def test_one_dictionary_with_importances_from_the_head(data):
    basis = np.linalg.qr(np.random.default_rng(2).normal(size=(20, 20))).Q
    whole = shared("basis", 3 * basis, data.head)
    np.testing.assert_allclose(surrogate(whole, data.head, data.embeddings), data.logits, atol=1e-12)
    half = shared("half", basis[:10], data.head)
    expected = data.embeddings @ basis[:10].T @ basis[:10] @ data.head.weight.T
    np.testing.assert_allclose(surrogate(half, data.head, data.embeddings), expected, atol=1e-12)
    assert half.one_dictionary and not perfect(data.head, 2, np.random.default_rng(0)).one_dictionary


def test_tokens_and_their_mean_agree_where_the_projection_is_linear(data):
    generator = np.random.default_rng(3)
    tokens = generator.normal(size=(50, 7, 20))
    explanation = shared("axes", np.eye(20)[:6], data.head)
    by_token = surrogate(explanation, data.head, tokens)
    np.testing.assert_allclose(by_token, surrogate(explanation, data.head, tokens.mean(1)), atol=1e-12)
    rectified = shared("rectified", np.eye(20)[:6], data.head, project=lambda rows, v: np.maximum(rows @ v.T, 0))
    by_hand = np.maximum(tokens[:, :, :6], 0).mean(1) @ data.head.weight[:, :6].T
    np.testing.assert_allclose(surrogate(rectified, data.head, tokens), by_hand, atol=1e-12)
    assert np.abs(by_hand - surrogate(rectified, data.head, tokens.mean(1))).max() > 0.1, "else not"


def test_an_offset_is_the_same_on_both_sides(data):
    mean = np.full(20, 5.0)
    head = LinearHead(weight=data.head.weight, bias=np.arange(8.0))
    explanation = shared("axes", np.eye(20)[:6], head, offset=mean)
    embeddings = data.embeddings + mean
    off = head(embeddings) - surrogate(explanation, head, embeddings)
    # As if it were subtracted from the embeddings of model and surrogate alike.
    plain = data.head(data.embeddings) - data.embeddings[:, :6] @ data.head.weight[:, :6].T
    np.testing.assert_allclose(off, plain, atol=1e-10)
    without = surrogate(explanation, head, embeddings, bias=False)
    np.testing.assert_allclose(surrogate(explanation, head, embeddings) - without, np.tile(head.bias, (400, 1)))


@pytest.mark.parametrize("metric", [surf_mae, surf_emd])
@pytest.mark.parametrize("shuffle", ["permute", "rescale"])
def test_surf_passes_its_own_suite(metric, shuffle):
    found = sanity_suite(metric, random_head(300, seed=1), shuffle=shuffle)
    assert found.passes and found.table["error"][0] < 1e-12
    assert found.tables["steps"]["draws_increasing"].to_list() == [1.0, 1.0, 1.0]
    assert "passes" in found.title


def test_older_designs_are_flagged(data, tmp_path):
    trained = sanity_suite(trained_surrogate, data, draws=1)
    assert not trained.passes
    agreement = 1 - trained.table["error"].to_numpy()
    assert agreement[3] > 0.85, "a trained surrogate says that fully random concepts are faithful"
    assert agreement[0] - agreement[3] < 0.08
    rebuilt = sanity_suite(reconstruct_and_run, data, draws=2)
    assert not rebuilt.passes and rebuilt.table["error"][1] < 1e-10, "importances are never looked at"
    assert "does not increase from perfect to random importance" in rebuilt.caveats[0]
    rebuilt.save(tmp_path / "suite")
    assert not SanitySuite.load(tmp_path / "suite").passes


def test_the_suite_sees_a_metric_that_is_noise_and_one_that_is_upside_down(data):
    generator = np.random.default_rng(5)
    assert not sanity_suite(lambda e, d: generator.random(len(d.embeddings)), data, name="noise").passes
    assert not sanity_suite(lambda e, d: -surf_mae(e, d), data, name="upside down").passes
    large = sanity_suite(surf_mae, data, least=100.0)
    assert not large.passes
    with pytest.raises(ShapeMismatch, match="one error per image"):
        sanity_suite(lambda e, d: np.zeros(3), data, name="short")
    with pytest.raises(NotFinite, match="errors of 'broken'"):
        sanity_suite(lambda e, d: np.full(len(d.embeddings), np.nan), data, name="broken")
    with pytest.raises(OutOfRange, match="parts=21"):
        sanity_suite(surf_mae, data, parts=21)
    with pytest.raises(OutOfRange, match="draws=0"):
        sanity_suite(surf_mae, data, draws=0)
    with pytest.raises(BadData, match="other images to train on"):
        trained_surrogate(perfect(data.head, 2, generator), Evaluation(head=data.head, embeddings=data.embeddings))


def test_pca_of_all_components_is_exact_and_fewer_are_the_projection(data):
    whole = explain("pca", data.head, data.fit, n_concepts=20, per_class=False)
    np.testing.assert_allclose(surrogate(whole, data.head, data.embeddings), data.logits, atol=1e-10)
    few = explain("pca", data.head, data.fit, n_concepts=4, per_class=False)
    rebuilt = PCA(4).fit(data.fit)
    rebuilt = rebuilt.inverse_transform(rebuilt.transform(data.embeddings))
    np.testing.assert_allclose(surrogate(few, data.head, data.embeddings), data.head(rebuilt), atol=1e-8)


def test_nmf_finds_the_planted_parts_of_signed_data():
    generator = np.random.default_rng(4)
    parts = np.kron(np.eye(3), np.ones((1, 4)))
    codes = generator.exponential(size=(300, 3)) * (generator.random((300, 3)) < 0.6)
    signed = codes @ parts - 2.0
    head = LinearHead(weight=generator.normal(size=(4, 12)), bias=np.zeros(4))
    found = explain("nmf", head, signed[:200], n_concepts=3, per_class=False)
    match = np.abs(found.concepts[0] @ parts.T / 2).max(0)
    assert match.min() > 0.99
    error = errors(head(signed[200:]), surrogate(found, head, signed[200:]))["mae"].mean()
    nothing = errors(head(signed[200:]), np.tile(head(signed).mean(0), (100, 1)))["mae"].mean()
    assert error < 0.05 * nothing


def test_semi_nmf_keeps_signed_directions_with_non_negative_codes():
    generator = np.random.default_rng(8)
    parts = np.linalg.qr(generator.normal(size=(10, 3))).Q.T
    codes = generator.exponential(size=(300, 3)) * (generator.random((300, 3)) < 0.4)
    rows = codes @ parts
    head = LinearHead(weight=generator.normal(size=(4, 10)), bias=np.zeros(4))
    found = explain("semi_nmf", head, rows[:200], n_concepts=4, per_class=False)
    assert (found.codes(rows, 0) >= 0).all()
    error = errors(head(rows[200:]), surrogate(found, head, rows[200:]))["mae"].mean()
    nothing = errors(head(rows[200:]), np.tile(head(rows).mean(0), (100, 1)))["mae"].mean()
    assert error < 0.3 * nothing


def test_kmeans_projects_onto_the_own_centre_only():
    generator = np.random.default_rng(6)
    centres = 10 * np.eye(5)[:3]
    rows = np.repeat(centres, 40, 0) + 0.1 * generator.normal(size=(120, 5))
    head = LinearHead(weight=generator.normal(size=(3, 5)), bias=np.zeros(3))
    found = explain("kmeans", head, rows, n_concepts=3, per_class=False)
    codes = found.codes(rows, 0)
    assert ((codes != 0).sum(1) == 1).all()
    assert errors(head(rows), surrogate(found, head, rows))["mae"].mean() < 0.5


def test_cavs_point_to_what_they_name():
    generator = np.random.default_rng(7)
    kind = np.array(["a", "b"])[generator.integers(0, 2, 400)]
    rows = generator.normal(size=(400, 6)) + 4.0 * np.where(kind == "b", 1, -1)[:, None] * np.eye(6)[2]
    head = LinearHead(weight=np.eye(2, 6), bias=np.zeros(2))
    found = cav(head, rows, {"kind": kind})
    assert found.concepts[0][1] @ np.eye(6)[2] > 0.95 and found.concepts[0][0] @ np.eye(6)[2] < -0.95
    with pytest.raises(BadData, match="one value only"):
        cav(head, rows, {"kind": np.full(400, "a")})
    with pytest.raises(BadData, match="no factors"):
        cav(head, rows, {})


@pytest.fixture(scope="module")
def scenes():
    vit = mechvis.load("scenes-vit")
    return vit, mechvis.data.scenes(n=320, seed=21), mechvis.data.scenes(n=120, seed=22)


def test_concept_methods_on_scenes(scenes, tmp_path):
    vit, fit, judged = scenes
    found = surf_of_model(vit, fit, judged, factors=["background"], n_concepts=5, progress=False)
    rows = {row["method"]: row for row in found.table.iter_rows(named=True)}
    assert set(rows) == {"pca", "nmf", "semi_nmf", "kmeans", "random", "cav", "perfect", "nothing"}
    assert rows["perfect"]["mae"] < 1e-4 and rows["perfect"]["top1"] == 1
    assert rows["perfect"]["rank"] == 1 and rows["nothing"]["rank_low"] <= rows["nothing"]["rank_high"]
    assert all(row["mae_low"] <= row["mae"] <= row["mae_high"] and row["n"] == 120 for row in rows.values())
    wide = surf_of_model(vit, fit, judged, methods=["pca", "random"], n_concepts=64, per_class=False, progress=False)
    assert wide.best() == "pca" and wide.pick(method="pca")["top1"] > wide.pick(method="random")["top1"] + 0.2
    found.save(tmp_path / "surf")
    assert load_record(tmp_path / "surf").table.equals(found.table) and Surf.load(tmp_path / "surf").best()
    assert found.report(tmp_path / "page.html").stat().st_size > 10_000
    with pytest.raises(SplitOverlap, match="made from and judged on"):
        surf_of_model(vit, fit, fit, progress=False)


def test_the_frozen_gradient_extension_is_surf_at_the_last_layer(scenes):
    vit, _, judged = scenes
    head, some = linear_head(vit), judged[:24]
    run = vit.run(some, capture=[head.site])
    rows = run.cache[head.site].double().numpy()
    vectors = np.linalg.qr(np.random.default_rng(0).normal(size=(128, 20))).Q.T
    last = frozen_gradient_surf(vit, some, head.site, vectors)
    plain = errors(head(rows), surrogate(shared("x", vectors, head), head, rows))
    np.testing.assert_allclose(last.arrays["mae/concepts"], plain["mae"], atol=1e-4)
    assert last.facts["explained"] == pytest.approx(1, abs=1e-5)
    full = frozen_gradient_surf(vit, some, "blocks.2.hook_resid_post", np.eye(128))
    assert full.pick(method="concepts")["mae"] < 1e-4, "all dimensions are kept"
    read = frozen_gradient_surf(vit, some, "blocks.3.hook_resid_post", vectors)
    assert read.facts["explained"] == pytest.approx(1, abs=1e-5), "with the last norm fixed the rest is linear"
    bent = frozen_gradient_surf(vit, some, "blocks.3.hook_resid_post", vectors, freeze="nothing")
    assert abs(bent.facts["explained"]) < 1e-4, "a norm's gradient is at right angles to what it norms"
    half = frozen_gradient_surf(vit, some, "blocks.2.hook_resid_post", vectors)
    assert half.pick(method="concepts")["mae"] > 0.05 and half.facts["experimental"]
    with pytest.raises(ShapeMismatch, match="has width 128, the concepts 64"):
        frozen_gradient_surf(vit, some, head.site, np.eye(64))
    with pytest.raises(UnknownName, match="matches 4 sites"):
        frozen_gradient_surf(vit, some, "blocks.*.hook_resid_post", np.eye(128))


def test_bad_input(data, scenes):
    with pytest.raises(UnknownName, match="unknown shuffle"):
        sanity_suite(surf_mae, data, shuffle="sort")
    with pytest.raises(UnknownName, match="unknown freeze"):
        frozen_gradient_surf(scenes[0], scenes[2], "hook_pooled", np.eye(128), freeze="mlp")
    with pytest.raises(BadData, match="must have length one, these have 2 to 2"):
        Explanation(name="long", concepts=(2 * np.eye(3),), importances=(np.ones(3),))
    with pytest.raises(ShapeMismatch, match="one importance each"):
        Explanation(name="short", concepts=(np.eye(3),), importances=(np.ones(2),))
    with pytest.raises(NotFinite, match="class 0: concepts"):
        Explanation(name="nan", concepts=(np.full((1, 3), np.nan),), importances=(np.ones(1),))
    with pytest.raises(ShapeMismatch, match="explains 1 classes in 3 dimensions"):
        surrogate(Explanation(name="one", concepts=(np.eye(3),), importances=(np.ones(3),)), data.head, data.embeddings)
    with pytest.raises(ShapeMismatch, match="projection of 400 rows onto 20 concepts"):
        bad = shared("bad", np.eye(20), data.head, project=lambda rows, v: rows[:5])
        surrogate(bad, data.head, data.embeddings)
    with pytest.raises(BadData, match="concept 1 is a vector of zeros"):
        shared("zero", np.diag([1.0, 0.0]), LinearHead(weight=np.eye(2), bias=np.zeros(2)))
    with pytest.raises(ShapeMismatch, match=r"embeddings must be \[image 20\]"):
        Evaluation(head=data.head, embeddings=np.ones((4, 7)))
    with pytest.raises(NotFinite, match="first at image 2"):
        Evaluation(head=data.head, embeddings=np.where(np.arange(4)[:, None] == 2, np.inf, np.ones((4, 20))))
    with pytest.raises(OutOfRange, match="temperature=0"):
        errors(np.ones((2, 3)), np.ones((2, 3)), temperature=0)
    with pytest.raises(UnknownName, match="unknown concept method 'ica'"):
        explain("ica", data.head, data.embeddings)
    with pytest.raises(BadData, match="images for 200 concepts"):
        explain("pca", data.head, data.embeddings, n_concepts=200)
    with pytest.raises(BadData, match="different names"):
        surf([], data)
