"""Strategies (methods2.md 17.4: two planted ones, ARI 1), quality of factorisations, and their figures."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from mechvis.errors import BadData, BadImages, NotFinite, OutOfRange, ShapeMismatch, UnknownName
from mechvis.plots.concept_panel import concept_panel
from mechvis.plots.strategy_graph import strategy_graph
from probes.concepts import Strategies, extraction, factorise, planted_parts, strategies
from probes.concepts.quality import frechet, held_out, neighbour_distance, sliced_wasserstein
from probes.concepts.strategies import clusters, shares_of, wilson


def two_strategies(n=120, k=6, seed=0, noise=0.3):
    """Half of the images rely on concept 0, half on concept 1; all have a little of everything."""
    generator = np.random.default_rng(seed)
    truth = np.arange(n) % 2
    importances = noise * generator.random((n, k))
    importances[np.arange(n), truth] += generator.uniform(1.5, 2.5, n)
    correct = np.where(truth == 0, generator.random(n) < 0.95, generator.random(n) < 0.3)
    return importances, truth, correct


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("plane", ["pca", "tsne"])
def test_two_planted_strategies_are_told_apart(seed, plane):
    importances, truth, correct = two_strategies(seed=seed)
    found = strategies(importances, correct=correct, plane=plane, nulls=5, seed=seed)
    images = found.tables["images"]
    assert adjusted_rand_score(truth, images["strategy"].to_numpy()) == 1.0
    assert len(found.tables["strategies"]) == 2 and found.facts["separate"]
    place = images.select("x", "y").to_numpy()
    own, other = (np.linalg.norm(place - place[truth == side].mean(0), axis=1)[truth == 0] for side in (0, 1))
    assert (own < other).all(), "they are apart in the plane, too"


def test_prevalence_and_reliability():
    importances, truth, correct = two_strategies()
    found = strategies(importances, correct=correct, names=list("abcdef"), nulls=2)
    first, second, *others = found.table.iter_rows(named=True)
    assert (first["quadrant"], second["quadrant"]) == ("common and reliable", "common and unreliable")
    assert first["reliability"] == pytest.approx(correct[truth == 0].mean())
    assert second["reliability"] == pytest.approx(correct[truth == 1].mean())
    assert first["reliability_low"] > second["reliability_high"]
    assert all(row["quadrant"] == "rare" and row["reliability"] is None and row["dominant_n"] == 0 for row in others)
    assert found.table["prevalence"].sum() == pytest.approx(1)
    table = found.tables["strategies"]
    assert sorted(table["accuracy"].to_list()) == pytest.approx(
        sorted([correct[truth == 0].mean(), correct[truth == 1].mean()])
    )
    assert found.facts["reliable"] == pytest.approx(correct.mean()) and found.facts["common"] == pytest.approx(1 / 6)


def test_importances_without_strategies_are_not_told_apart():
    """The control: independent importances; k-means finds clusters all the same."""
    importances = np.random.default_rng(0).gamma(1.0, size=(150, 6))
    found = strategies(importances, nulls=20)
    assert len(found.tables["strategies"]) >= 2
    assert not found.facts["separate"] and any("not told apart" in line for line in found.caveats)


def test_only_support_counts_unless_asked_otherwise():
    importances = np.array([[2.0, -6.0, 2.0]] * 8)
    np.testing.assert_allclose(shares_of(importances)[0][0], [0.5, 0, 0.5])
    np.testing.assert_allclose(shares_of(importances, "absolute")[0][0], [0.2, 0.6, 0.2])
    importances[0] = -1
    found = strategies(importances, nulls=0)
    assert found.facts["left_out"] == 1 and len(found.tables["images"]) == 7
    assert found.tables["images"]["image"][0] == "image 1"
    assert len(found.tables["strategies"]) == 1, "equal images are one strategy"


def test_strategies_are_kept_and_drawn(tmp_path):
    importances, _, correct = two_strategies()
    found = strategies(importances, correct=correct, nulls=2, title="Strategies of 'star'")
    again = Strategies.load(found.save(tmp_path / "found"))
    assert again.table.equals(found.table)
    figure = again.figures()[0].fig
    assert figure.axes[0].get_xlabel() == "hollow: the model is wrong"
    assert again.report(tmp_path / "report.html").exists()
    assert len(strategies(importances, nulls=0).figures()) == 1, "also without knowing who is right"


def test_strategies_refuse_what_does_not_fit():
    importances, _, correct = two_strategies()
    with pytest.raises(ShapeMismatch, match="3 entries in names, 6 are wanted"):
        strategies(importances, names=["a", "b", "c"])
    with pytest.raises(ShapeMismatch, match="119 entries in correct"):
        strategies(importances, correct=correct[1:])
    with pytest.raises(ShapeMismatch, match="image concept"):
        strategies(importances[0])
    with pytest.raises(BadData, match="0 of 120 images"):
        strategies(-np.abs(importances))
    with pytest.raises(OutOfRange, match="200 strategies of 120"):
        strategies(importances, n_strategies=200)
    with pytest.raises(UnknownName, match="absolute"):
        strategies(importances, support="negative")
    with pytest.raises(UnknownName, match="tsne"):
        strategies(importances, plane="umap")
    with pytest.raises(BadData, match="t-SNE of 6"):
        strategies(importances[:6], plane="tsne", nulls=0)
    with pytest.raises(NotFinite, match="importances"):
        strategies(importances * np.nan)
    with pytest.raises(OutOfRange, match="3 of 2"):
        wilson(3, 2)
    assert clusters(np.eye(3)[[0, 0, 1, 1, 1, 2, 2, 2, 2]], None, 6, 0)[0].tolist() == [2, 2, 1, 1, 1, 0, 0, 0, 0]


def test_wilson_against_scipy():
    from scipy.stats import binomtest

    for right, n in ((0, 5), (3, 7), (50, 60)):
        theirs = binomtest(right, n).proportion_ci(method="wilson")
        assert wilson(right, n) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


# quality


def test_the_true_number_of_parts_is_stable_and_an_unstructured_one_is_not():
    planted = planted_parts(600, 6, 24, seed=3)
    noise = np.random.default_rng(0).normal(size=(600, 24))
    true, wild = (extraction(rows, ["semi_nmf"], 6, folds=3, progress=False) for rows in (planted.rows, noise))
    assert true.table["stability"][0] > 0.98 > 0.8 > wild.table["stability"][0]
    assert true.table["error"][0] < 0.25 < wild.table["error"][0]


def test_methods_compared_on_held_out_rows(tmp_path):
    planted = planted_parts(400, 6, 24, seed=3)
    found = extraction(planted.rows, ["semi_nmf", "pca", "kmeans"], 6, folds=3, progress=False)
    rows = {row["method"]: row for row in found.table.iter_rows(named=True)}
    assert rows["pca"]["error"] < rows["semi_nmf"]["error"] < rows["kmeans"]["error"]
    assert rows["pca"]["sparsity"] == 0 and rows["semi_nmf"]["sparsity"] > 0.5
    assert rows["kmeans"]["sparsity"] == pytest.approx(5 / 6)
    assert rows["semi_nmf"]["stability"] > rows["kmeans"]["stability"]
    assert rows["semi_nmf"]["stability_least"] <= rows["semi_nmf"]["stability"] <= rows["semi_nmf"]["stability_most"]
    assert len(found.tables["folds"]) == 9
    assert found.save(tmp_path / "found") and found.report(tmp_path / "report.html").exists()


def test_rows_of_one_image_stay_together():
    """Twins on both sides of a fold would be judged on themselves."""
    rows = np.repeat(np.random.default_rng(0).normal(size=(40, 20)), 5, axis=0)
    owner = np.repeat(np.arange(40), 5)
    apart = extraction(rows, ["semi_nmf"], 30, groups=owner, folds=4, progress=False, sparsity=0)
    mixed = extraction(rows, ["semi_nmf"], 30, folds=4, progress=False, sparsity=0)
    assert mixed.table["error"][0] < 0.5 * apart.table["error"][0]


def test_distances_of_distributions_by_hand():
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(2000, 3))
    shift = np.array([1.0, 2.0, 2.0])
    assert frechet(rows + shift, rows) == pytest.approx(9, abs=1e-9)
    assert frechet(rows, rows) == pytest.approx(0, abs=1e-9)
    assert frechet(2 * rows, rows) == pytest.approx(np.cov(rows.T, bias=True).trace(), rel=0.05)
    assert sliced_wasserstein(rows, rows) == 0
    line = generator.normal(size=(100, 1))
    assert sliced_wasserstein(3 + line, line) == pytest.approx(3 / line.std(), abs=1e-9)
    known = np.arange(5.0)[:, None]
    assert neighbour_distance(np.array([[10.0]]), known, 2) == pytest.approx(7)
    with pytest.raises(OutOfRange, match="6-th neighbour among 5"):
        neighbour_distance(known, known, 6)


def test_frechet_equals_the_textbook_formula():
    from scipy.linalg import sqrtm

    generator = np.random.default_rng(1)
    first, second = generator.normal(size=(50, 4)), 2 * generator.normal(size=(60, 4)) @ generator.normal(size=(4, 4))
    one, two = (np.cov(rows.T, bias=True) for rows in (first, second))
    apart = first.mean(0) - second.mean(0)
    expected = apart @ apart + np.trace(one + two - 2 * sqrtm(one @ two).real)
    assert frechet(first, second) == pytest.approx(expected, rel=1e-6)


def test_held_out_rows_that_are_far_away_look_unreal():
    planted = planted_parts(300, 4, 12)
    fitted = factorise(planted.rows[:200], "semi_nmf", 4)
    fair = held_out(fitted, planted.rows[:200], planted.rows[200:])
    assert fair["ood"] < 1.5 and fair["wasserstein"] < 0.2
    blind = factorise(planted.rows[:200], "semi_nmf", 1)
    assert held_out(blind, planted.rows[:200], planted.rows[200:])["frechet"] > fair["frechet"] + 0.2


def test_quality_refuses_what_does_not_fit():
    rows = planted_parts(40, 3, 8).rows
    with pytest.raises(OutOfRange, match="folds=1"):
        extraction(rows, n_concepts=3, folds=1)
    with pytest.raises(BadData, match="2 images cannot be cut into 4 folds"):
        extraction(rows, n_concepts=3, groups=np.arange(40) % 2)
    with pytest.raises(ShapeMismatch, match="40 rows"):
        extraction(rows, n_concepts=3, groups=np.arange(3))


# figures


def test_concept_panel_shows_every_concept():
    picture = np.zeros((8, 8, 3), np.uint8)
    figure = concept_panel(
        [[picture, picture], [picture]], maps=[[np.eye(2), np.ones((2, 2))], [np.zeros((2, 2))]], captions=["$a", "b"]
    )
    assert len(figure.axes) == 6 and figure.axes[0].get_ylabel() == r"\$a"
    assert len(concept_panel([[picture]], captions=["c"]).axes) == 1
    with pytest.raises(ShapeMismatch, match="captions"):
        concept_panel([[picture]], captions=[])
    with pytest.raises(ShapeMismatch, match="no concept"):
        concept_panel([], captions=[])
    with pytest.raises(ShapeMismatch, match="one entry per picture"):
        concept_panel([[picture]], maps=[[]], captions=["c"])
    with pytest.raises(OutOfRange, match="negative"):
        concept_panel([[picture]], maps=[[-np.eye(2)]], captions=["c"])
    with pytest.raises(BadImages, match="uint8"):
        concept_panel([[picture.astype(float)]], captions=["c"])


def test_strategy_graph_refuses_what_does_not_fit():
    options = {"prevalence": [0.5, 0.5], "reliability": [1.0, None], "names": ["a", "b"]}
    assert strategy_graph(np.eye(2), np.array([0, 1]), right=[True, False], **options).axes
    with pytest.raises(ShapeMismatch, match="one strategy per image"):
        strategy_graph(np.eye(2), np.array([0]), **options)
    with pytest.raises(ShapeMismatch, match="one entry per image"):
        strategy_graph(np.eye(2), np.array([0, 1]), right=[True], **options)
    with pytest.raises(ShapeMismatch, match="one entry per concept"):
        strategy_graph(np.eye(2), np.array([0, 1]), **{**options, "names": ["a"]})
    with pytest.raises(NotFinite, match="places"):
        strategy_graph(np.eye(2) * np.nan, np.array([0, 1]), **options)
