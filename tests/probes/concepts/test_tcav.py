"""TCAV: planted concepts are found, random ones are not, and why runs must not share images."""

import numpy as np
import polars as pl
import pytest
import torch

import mechvis
from mechvis import testing
from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, SplitOverlap, UnknownName
from probes.concepts import cav, score_concepts, tcav
from probes.concepts.scores import TCAV, welch
from probes.concepts.tcav import rows_of, slopes_of

D = 24
TEXTURES = ("striped", "barred", "diagonal", "checkered", "dotted", "brick", "zigzag", "speckled")


def slopes_along(direction, n=40, noise=0.5, seed=0):
    generator = np.random.default_rng(seed)
    return direction + noise * generator.normal(size=(n, D)) / np.sqrt(D)


@pytest.fixture(scope="module")
def planted():
    """Concepts along, against and across what the class depends on, and one that is no concept."""
    generator = np.random.default_rng(0)
    axes = np.eye(D)
    rows = {
        name: generator.normal(size=(200, D)) + 2.5 * axis
        for name, axis in {"for": axes[0], "against": -axes[0], "across": axes[1], "none": 0 * axes[0]}.items()
    }
    return rows, generator.normal(size=(900, D)), {"class": slopes_along(axes[0])}


def test_planted_concepts(planted):
    found = score_concepts(*planted, runs=12)
    rows = {row["concept"]: row for row in found.table.iter_rows(named=True)}
    assert rows["for"]["score"] == 1 and rows["against"]["score"] == 0
    assert rows["for"]["significant"] and rows["against"]["significant"]
    assert rows["for"]["slope"] > 0.7 and rows["against"]["slope"] < -0.7
    assert not rows["across"]["significant"] and not rows["none"]["significant"]
    assert rows["across"]["accuracy"] > 0.7, "there is a concept, but the class does not depend on it"
    assert rows["none"]["accuracy"] < 0.65 and 0.2 < rows["none"]["random_score"] < 0.8
    assert found.facts["per_run"] == 16 and rows["for"]["random_runs"] == 22
    vectors = found.arrays["vectors/for"]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1)
    assert (vectors[:, 0] > 0.6).all()


def rejections(fresh, trials=60):
    generator = np.random.default_rng(0)
    count = 0
    for trial in range(trials):
        slopes = {"class": slopes_along(generator.normal(size=D), seed=trial)}
        pool = generator.normal(size=(620, D))
        found = score_concepts(
            {"random": pool[:160]}, pool[160:], slopes, runs=10, fresh=fresh, correction="none", seed=trial,
            classifier="difference",
        )  # fmt: skip
        count += found.table["p"][0] <= 0.05
    return count / trials


def test_random_concepts_are_rarely_significant_with_independent_runs():
    """5 % is asked; the binomial error of 60 trials is 2.8 points."""
    assert rejections(fresh=True) <= 0.12


def test_random_concepts_are_often_significant_when_runs_share_images():
    """The control that must fail: the published habit of one concept set in all runs."""
    assert rejections(fresh=False) >= 0.2


def test_more_tests_need_smaller_p(planted):
    rows, random, slopes = planted
    alone = score_concepts({"none": rows["none"]}, random, slopes, runs=12)
    together = score_concepts(rows, random, slopes, runs=12)
    assert (together.table["p_adjusted"] >= together.table["p"]).all()
    assert alone.table["p_adjusted"][0] == alone.table["p"][0]
    plain = score_concepts(rows, random, slopes, runs=12, correction="none")
    assert plain.table["p_adjusted"].to_list() == plain.table["p"].to_list()
    bh = score_concepts(rows, random, slopes, runs=12, correction="bh")
    assert (bh.table["p_adjusted"] <= together.table["p_adjusted"]).all()


def test_welch_against_scipy_and_its_floor():
    from scipy.stats import ttest_ind

    generator = np.random.default_rng(0)
    first, second = generator.normal(size=12), 0.5 + 2 * generator.normal(size=9)
    assert welch(first, second) == pytest.approx(ttest_ind(first, second, equal_var=False).pvalue)
    assert welch(np.ones(4), np.zeros(4)) == pytest.approx(2 / 70), "eight runs cannot show less"
    assert welch(np.ones(4), np.ones(4)) == 1


def test_vectors_of_both_classifiers():
    generator = np.random.default_rng(1)
    spread = np.array([1.0, 6.0] + [1.0] * 6)
    rows = generator.normal(size=(400, 8)) * spread
    concept = rows[:200] + np.array([2.0, 2.0] + [0.0] * 6)
    logistic, difference = (cav(concept, rows[200:], classifier=kind) for kind in ("logistic", "difference"))
    assert logistic.vector[0] > 0.9, "the side that tells best"
    assert difference.vector[1] > 0.2 > abs(logistic.vector[1]), "the way the rows move, noisy axes included"
    assert logistic.accuracy > difference.accuracy > 0.5
    assert cav(rows[:200], rows[200:]).accuracy == pytest.approx(0.5, abs=0.12)


def test_vector_of_logistic_regression_equals_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    generator = np.random.default_rng(0)
    concept, random = generator.normal(size=(30, 5)) + 1, generator.normal(size=(30, 5))
    found = cav(concept, random, held_out=1e-9)
    order = [np.random.default_rng(0).permutation(30)]
    generator = np.random.default_rng(0)
    order = [generator.permutation(30)[1:] for _ in range(2)]
    rows = np.concatenate([concept[order[0]], random[order[1]]])
    rows -= np.mean([concept[order[0]].mean(0), random[order[1]].mean(0)], axis=0)
    rows /= np.sqrt((rows**2).sum(1).mean())
    theirs = LogisticRegression(C=100 / 58, max_iter=500).fit(rows, np.repeat([1, 0], 29)).coef_[0]
    np.testing.assert_allclose(found.vector, theirs / np.linalg.norm(theirs), atol=1e-4)


# the model


@pytest.mark.parametrize("tokens", ["read", "cls", "mean"])
def test_slopes_are_what_a_step_does(tokens):
    model = mechvis.load(testing.rand_vit(), preprocess=testing.tiny_preprocess())
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(3, *pixels_shape(model), generator=generator, dtype=model.dtype)
    site = "blocks.1.hook_resid_post"
    slopes = slopes_of(model, pixels, site, 0, tokens)
    run = model.run(pixels, capture=[site])
    step = torch.randn(slopes.shape[1], generator=generator, dtype=model.dtype)
    prefix = len(model.parts.prefix)
    where = {"cls": [0], "read": list(model.parts.reads or []), "mean": list(range(prefix, model.parts.n_tokens))}[
        tokens
    ]
    moved = []
    for sign in (1e-5, -1e-5):
        stream = run.cache[site].clone()
        stream[:, where] += sign * step
        moved.append(model.run(stream, start_at_layer=2).output[:, 0])
    np.testing.assert_allclose(slopes @ step.numpy(), ((moved[0] - moved[1]) / 2e-5).numpy(), atol=1e-6)


def pixels_shape(model):
    return model.parts.channels, *model.parts.image_size


@pytest.fixture(scope="module")
def model():
    return mechvis.load("scenes-vit")


def backgrounds(n, textures, seed=31):
    shown = mechvis.data.scenes(n, seed=seed, show="background")
    return {name: shown[shown.columns["background"] == name] for name in textures}


def test_textures_speak_for_the_class_that_was_planted(model):
    """scenes-vit took circle for striped, square for barred, ...: TCAV says so from backgrounds without any object."""
    names = TEXTURES[:3]
    found = tcav(
        model, mechvis.data.scenes(160, seed=21), backgrounds(640, names),
        mechvis.data.scenes(400, seed=32, show="background"), targets=model.parts.class_names[:3], runs=8,
        progress=False,
    )  # fmt: skip
    scores = found.table.pivot("target", index="concept", values="score").select(model.parts.class_names[:3]).to_numpy()
    assert scores.argmax(1).tolist() == [0, 1, 2] and np.diag(scores).min() > 0.75
    assert found.table["accuracy"].min() > 0.75
    assert found.kind == TCAV.KIND and len(found.figures()) == 1


@pytest.mark.slow
def test_all_textures_survive_the_correction_and_random_sets_do_not(model):
    concepts = backgrounds(2600, TEXTURES)
    concepts["random set"] = mechvis.data.scenes(320, seed=33, show="background")
    found = tcav(
        model, mechvis.data.scenes(400, seed=21), concepts, mechvis.data.scenes(1300, seed=32, show="background"),
        targets=model.parts.class_names, progress=False,
    )  # fmt: skip
    certain = found.significant().filter(pl.col("score") > 0.5)
    partners = dict(zip(TEXTURES, model.parts.class_names, strict=True))
    right = [row for row in certain.iter_rows(named=True) if partners.get(row["concept"]) == row["target"]]
    assert len(right) >= 7
    assert not found.table.filter(pl.col("concept") == "random set")["significant"].any()
    best = {row["target"]: row["concept"] for row in found.table.sort("score").iter_rows(named=True)}
    assert all(partners[best[name]] == name for name in model.parts.class_names)


def test_rows_are_those_of_the_features(model):
    from probes.features import collect

    shown = mechvis.data.scenes(5, seed=1)
    rows = rows_of(model, shown, "blocks.2.hook_resid_post", "mean")
    np.testing.assert_array_equal(
        rows, collect(model, shown, "blocks.2.hook_resid_post", tokens="mean", dtype="float64", progress=False)[
            "blocks.2.hook_resid_post:mean"
        ],
    )  # fmt: skip
    with pytest.raises(BadData, match="name one"):
        rows_of(model, shown, "blocks.*.hook_resid_post")


def test_kept(planted, tmp_path):
    found = score_concepts(*planted, runs=6)
    again = TCAV.load(found.save(tmp_path / "found"))
    assert again.table.equals(found.table) and again.significant().height >= 1
    assert again.report(tmp_path / "report.html").exists()
    assert "Significant means" in " ".join(again.caveats)
    assert "too sure of itself" in " ".join(score_concepts(*planted, runs=6, fresh=False).caveats)


def test_bad_inputs(planted, model):
    rows, random, slopes = planted
    with pytest.raises(BadData, match=r"60 independent runs of 8 images need 480 images of every concept .* are 200"):
        score_concepts(rows, random, slopes, runs=60)
    with pytest.raises(BadData, match="1440 random ones"):
        score_concepts(rows, random, slopes, runs=60)
    with pytest.raises(BadData, match="per_run=500"):
        score_concepts(rows, random, slopes, fresh=False, per_run=500)
    with pytest.raises(OutOfRange, match="runs=2"):
        score_concepts(rows, random, slopes, runs=2)
    with pytest.raises(UnknownName, match="holm"):
        score_concepts(rows, random, slopes, correction="bonferroni")
    with pytest.raises(BadData, match="at least one concept"):
        score_concepts({}, random, slopes)
    with pytest.raises(ShapeMismatch, match="slopes of 'class'"):
        score_concepts(rows, random, {"class": np.ones((3, 5))})
    with pytest.raises(NotFinite, match="the concept 'for'"):
        score_concepts({"for": rows["for"] * np.nan}, random, slopes)
    with pytest.raises(BadData, match="at least 4 of each"):
        cav(random[:3], random[3:9])
    with pytest.raises(BadData, match="the same images"):
        cav(np.ones((8, 3)), np.ones((8, 3)))
    with pytest.raises(UnknownName, match="logistic"):
        cav(random[:9], random[9:20], classifier="svm")
    with pytest.raises(ShapeMismatch, match="one width"):
        cav(random[:9], random[9:20, :3])
    shown = mechvis.data.scenes(20, seed=21)
    with pytest.raises(SplitOverlap, match="the concept 'x'"):
        tcav(model, shown, {"x": shown[:5]}, mechvis.data.scenes(20, seed=22), targets=0, progress=False)
    with pytest.raises(SplitOverlap, match="random images and the concept 'x'"):
        other = mechvis.data.scenes(20, seed=22)
        tcav(model, shown, {"x": other[:5]}, other, targets=0, progress=False)
    with pytest.raises(UnknownName, match="read"):
        slopes_of(model, shown, "blocks.1.hook_resid_post", 0, "patches")
