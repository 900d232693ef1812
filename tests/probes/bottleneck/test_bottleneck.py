"""Concept bottlenecks on features whose answer is known: F12 (methods2.md 17.1, 17.5) and planted concepts."""

import numpy as np
import pytest

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, SplitOverlap, UnknownName
from probes.bottleneck import (
    Bottleneck,
    Concepts,
    bottleneck,
    bypass,
    intervene,
    leakage,
    precheck,
    random_concepts,
)
from probes.bottleneck.entropy import held_out_cross_entropy
from probes.features import Features

D, LOCATIONS = 12, 4


def as_features(rows, labels, first=0, **columns):
    n = len(rows)
    return Features(
        rows={"hook_pooled": rows},
        sites={"hook_pooled": "hook_pooled"},
        layers={"hook_pooled": None},
        n_images=n,
        labels=labels,
        class_names=tuple(f"class {i}" for i in range(int(labels.max()) + 1)),
        ids=tuple(f"made/{first + i}" for i in range(n)),
        columns=columns,
    )


def concept_bag(n, seed, noise=0.1):
    """F12: four orthonormal concepts, each present with probability .25 per location; class = largest of three sums."""
    basis = np.linalg.qr(np.random.default_rng(12).standard_normal((D, D)))[0].T
    generator = np.random.default_rng(seed)
    present = generator.random((n, LOCATIONS, 4)) < 0.25
    z = present @ basis[:4] + noise * generator.standard_normal((n, LOCATIONS, D))
    counts = present.mean(1)
    logits = np.stack([2 * counts[:, 0], 2 * counts[:, 1], 0.7 * counts[:, 2] + 0.15], axis=1)
    return z.mean(1), logits.argmax(1), present.any(1), basis[:4]


@pytest.fixture(scope="module")
def bag():
    z, y, present, basis = concept_bag(1200, 0)
    z_test, y_test, present_test, _ = concept_bag(600, 1)
    named = Concepts(names=("c0", "c1", "c2", "c3"), directions=basis, normalise=False)
    return as_features(z, y), as_features(z_test, y_test, 10_000), named, present, present_test


# bypass


@pytest.mark.parametrize("normalise", [True, False])
def test_orthonormal_random_words_are_the_linear_probe(bag, normalise):
    train, test, *_ = bag
    words = random_concepts(D, D, orthonormal=True, normalise=normalise, seed=3)
    found = bypass(train, test, words)
    assert found.pick(vocabulary="concepts")["from_probe"] <= 1e-6
    assert found.facts["equals_probe"] and found.facts["bypassed"] and found.facts["rank"] == D
    assert "rank of the features (12)" in found.facts["why"]
    # Any twelve words do: they need not be orthogonal.
    assert bypass(train, test, random_concepts(D, D, normalise=normalise, seed=4)).facts["equals_probe"]


def test_the_true_concepts_do_not_bypass_and_four_random_words_do(bag):
    train, test, named, *_ = bag
    true = bypass(train, test, named)
    assert not true.facts["bypassed"] and true.facts["rank"] == 4
    assert true.facts["over_random"] > 0.15 and true.facts["over_random_low"] > 0.02
    random = bypass(train, test, random_concepts(4, D, normalise=False, seed=77), draws=8)
    assert random.facts["bypassed"] and "random words do as well" in random.facts["why"]
    assert not random.facts["equals_probe"]


# H(Y|C)


def test_precheck_accepts_the_true_concepts(bag):
    train, test, named, *_ = bag
    found = precheck(train, test, named, draws=2)
    true, random, whole = (found.pick(set=name)["entropy"] for name in ("concepts", "random words", "features"))
    assert found.facts["accepted"] and true < whole + 0.05 and random > true + 0.3
    assert random < found.facts["class_entropy"] + 0.02
    assert found.pick(set="concepts")["z"] > 5


def test_gap_of_orthonormal_random_words_is_nothing(bag):
    """methods2.md 17.5: the gap to other random words is 0 within two standard errors."""
    train, test, *_ = bag
    found = precheck(train, test, random_concepts(D, D, orthonormal=True, normalise=False, seed=3), draws=6)
    row = found.pick(set="concepts")
    assert abs(row["z"]) <= 2 and not found.facts["accepted"]


def test_precheck_with_a_pool_of_words(bag):
    train, test, named, *_ = bag
    pool = random_concepts(30, D, normalise=False, seed=8)
    found = precheck(train, test, named, words=pool, draws=2, steps=50)
    assert found.facts["accepted"] and found.arrays["random"].shape == (2, 600)
    with pytest.raises(OutOfRange, match="the pool has 4"):
        precheck(train, test, pool, words=named, draws=2, steps=5)


def test_certainty_on_the_stopping_images_is_not_believed():
    """Separable classes with a few wrong labels in the test images: the cross-entropy stays what the errors cost."""
    generator = np.random.default_rng(0)
    y, y_test = generator.integers(0, 4, 400), generator.integers(0, 4, 200)
    x, x_test = (10 * np.eye(4)[labels] + 0.1 * generator.standard_normal((len(labels), 4)) for labels in (y, y_test))
    clean = held_out_cross_entropy(x, y, x_test, y_test)
    assert clean.mean() < 0.05
    spoilt = np.where(np.arange(200) < 4, (y_test + 1) % 4, y_test)
    assert held_out_cross_entropy(x, y, x_test, spoilt).max() <= np.log(4 * 101) + 1e-9


# the head


@pytest.fixture(scope="module")
def cbm(bag):
    train, test, named, *_ = bag
    return bottleneck(train, test, named, draws=2)


def test_head_reads_the_right_concepts(cbm):
    own = cbm.pick(what="bottleneck")
    assert own["accuracy"] > 0.9 and own["low"] < own["accuracy"] < own["high"] and own["n"] == 600
    random = cbm.table.filter(cbm.table["what"].str.contains("random words")).row(0, named=True)
    assert random["difference_low"] > 0.1
    for label, concept in (("class 0", "c0"), ("class 1", "c1"), ("class 2", "c2")):
        row = cbm.weights([label]).row(0, named=True)
        assert row["weight"] > 0 or row["concept"] != concept, "a class does not shun its own concept"
    assert cbm.weights(["class 0"]).row(0, named=True)["concept"] == "c0"
    assert cbm.facts["kkt"] <= 1e-5


def test_contributions_add_up(cbm, bag):
    z = bag[1]["hook_pooled"]
    total = cbm.contributions(z, "class 1").sum(1) + cbm.arrays["bias"][1]
    np.testing.assert_allclose(total, cbm.logits(z)[:, 1], atol=1e-12)
    with pytest.raises(UnknownName, match="Nearest: class 1"):
        cbm.contributions(z, "clas 1")


def test_few_concepts_per_class(bag):
    train, test = bag[0].take(slice(0, 300)), bag[1].take(slice(0, 100))
    words = random_concepts(24, D, normalise=False, seed=1)
    found = bottleneck(train, test, words, nec=3, draws=0, steps=20)
    assert 0 < found.facts["nec"] <= 3 and found.facts["lam"] > 7e-4
    assert bottleneck(train, test, words, nec=24, draws=0, steps=20).facts["nec"] > 3


def test_the_non_linear_layer_is_not_merged_with_the_words(bag):
    """With all twelve directions a linear chain is the probe; the elementwise layer is not linear in the features."""
    train, test, *_ = bag
    words = random_concepts(D, D, orthonormal=True, normalise=False, seed=3)
    x = test["hook_pooled"]
    for layer, far in (("linear", 1e-9), ("relu", 0.05)):
        found = bottleneck(train, test, words, layer=layer, draws=0)
        f = found.logits
        bent = f((x[:100] + x[100:200]) / 2) - (f(x[:100]) + f(x[100:200])) / 2
        assert (np.abs(bent).max() <= far) == (layer == "linear")


def test_distillation_pulls_towards_the_teacher(bag):
    train, test, named, *_ = bag
    wrong = np.roll(np.eye(3)[train.labels], 1, axis=1) * 8
    told = bottleneck(train, test, named, teacher=wrong, teacher_weight=1.0, draws=0)
    said = told.logits(test["hook_pooled"]).argmax(1)
    assert (said == (test.labels + 1) % 3).mean() > 0.9
    assert not bottleneck(train, test, named, teacher=None, draws=0, steps=20).facts["distilled"]


def test_save_and_load(cbm, bag, tmp_path):
    again = Bottleneck.load(cbm.save(tmp_path / "cbm"))
    np.testing.assert_array_equal(again.logits(bag[1]["hook_pooled"]), cbm.logits(bag[1]["hook_pooled"]))
    assert again.weights().equals(cbm.weights()) and again.concepts.names == ("c0", "c1", "c2", "c3")
    assert "Accuracy of the bottleneck beside" in again.report(tmp_path / "cbm.html").read_text()


# interventions and leakage


def test_correcting_concepts_helps_and_spoiling_them_does_not(bag):
    train, test, named, present, present_test = bag
    noisy = [
        as_features(
            f["hook_pooled"] + 0.25 * np.random.default_rng(i).standard_normal((f.n_images, D)), f.labels, 10_000 * i
        )
        for i, f in enumerate((train, test))
    ]
    cbm = bottleneck(*noisy, named, draws=0)
    curve = intervene(cbm, *noisy, present, present_test, most=3)
    rows = curve.table.to_dicts()
    assert rows[0]["gained"] == 0 and rows[0]["accuracy"] == cbm.pick(what="bottleneck")["accuracy"]
    assert rows[3]["gained_low"] > 0.05 and rows[3]["accuracy"] >= rows[1]["accuracy"]
    assert rows[3]["random_high"] < rows[0]["accuracy"], "the control must hurt"
    assert curve.tables["concepts"]["wrong"].min() > 0 and rows[0]["touched"] == 1.0
    everyone = intervene(cbm, *noisy, present, present_test, most=1, conditional_on="all")
    assert everyone.table["gained"][1] > 0


def test_leakage_of_planted_scores():
    """Scores that tell presence only leak nothing; a faint code of the class in them does."""
    generator = np.random.default_rng(0)

    def made(n, code, first):
        truth = np.repeat(generator.random((n, 1)) < 0.5, 3, axis=1)
        y = generator.integers(0, 2, n)
        z = truth + 0.05 * generator.standard_normal((n, 3))
        z[:, 0] += code * (2 * y - 1)
        return as_features(np.concatenate([z, np.ones((n, 1))], axis=1), y, first), truth

    axes = Concepts(names=("a", "b", "c"), directions=np.eye(3, 4), normalise=False)
    for code, leaks in ((0.0, False), (0.2, True)):
        (train, truth), (test, test_truth) = made(600, code, 0), made(400, code, 5000)
        row = leakage(train, test, axes, truth=truth, test_truth=test_truth, draws=4).pick(what="leakage")
        assert (row["low"] > 0.05) == leaks
        assert leaks or abs(row["accuracy"]) < 0.06


def test_leakage_without_truth_is_what_scores_tell_together():
    generator = np.random.default_rng(0)

    def made(n, shared, first):
        y, noise = generator.integers(0, 2, n), shared * generator.standard_normal(n)
        z = np.stack([y + noise, noise + 0.3 * generator.standard_normal(n)], axis=1)
        return as_features(z, y, first)

    axes = Concepts(names=("a", "b"), directions=np.eye(2), normalise=False)
    apart = leakage(made(500, 0.0, 0), made(400, 0.0, 5000), axes, draws=3).pick(what="leakage")
    together = leakage(made(500, 1.5, 0), made(400, 1.5, 5000), axes, draws=3).pick(what="leakage")
    assert abs(apart["accuracy"]) < 0.02 and together["low"] > 0.15


# what is refused


def test_bad_concepts():
    with pytest.raises(ShapeMismatch, match="one row per name"):
        Concepts(names=("a",), directions=np.ones((2, 3)))
    with pytest.raises(BadData, match="'b' is zero"):
        Concepts(names=("a", "b"), directions=np.eye(2) * [[1.0], [0.0]])
    with pytest.raises(NotFinite, match="NaN or Inf"):
        Concepts(names=("a",), directions=np.full((1, 2), np.nan))
    with pytest.raises(BadData, match="'a' repeats"):
        Concepts(names=("a", "a"), directions=np.eye(2))
    with pytest.raises(BadData, match="has length zero"):
        Concepts(names=("a",), directions=np.ones((1, 2))).scores(np.zeros((1, 2)))
    with pytest.raises(UnknownName, match="Nearest: red"):
        Concepts(names=("red",), directions=np.ones((1, 2))).index("rde")
    with pytest.raises(BadData, match="one of both"):
        random_concepts(3)
    with pytest.raises(OutOfRange, match="right angles"):
        random_concepts(3, 2, orthonormal=True)


def test_training_images_cannot_judge(bag):
    train, test, named, present, _ = bag
    for call in (precheck, bypass, bottleneck, leakage):
        with pytest.raises(SplitOverlap, match="given twice"):
            call(train, train, named)
        with pytest.raises(SplitOverlap, match="100 in both"):
            call(train, train.take(slice(0, 100)), named)
    cbm = bottleneck(train, test, named, draws=0, steps=5)
    with pytest.raises(SplitOverlap, match="given twice"):
        intervene(cbm, train, train, present, present)


def test_bad_settings(bag, cbm):
    train, test, named, present, present_test = bag
    with pytest.raises(OutOfRange, match="at least two"):
        precheck(train, test, named, draws=1)
    with pytest.raises(OutOfRange, match="positive penalty"):
        bypass(train, test, named, ridge=0.0)
    with pytest.raises(UnknownName, match="layer"):
        bottleneck(train, test, named, layer="gelu")
    with pytest.raises(UnknownName, match="teacher"):
        bottleneck(train, test, named, teacher="hook_logits")
    with pytest.raises(ShapeMismatch, match="teacher's logits are"):
        bottleneck(train, test, named, teacher=np.ones((3, 3)))
    with pytest.raises(ShapeMismatch, match="Were they taken at another site"):
        bottleneck(train, test, Concepts(names=("a",), directions=np.ones((1, 5))))
    with pytest.raises(BadData, match="2 matrices; say which"):
        bottleneck(*(as_two(features) for features in (train, test)), named)
    with pytest.raises(BadData, match="no training image is of class 2"):
        bottleneck(train.take(train.labels < 2), test, named)
    with pytest.raises(ShapeMismatch, match="truth of the training images"):
        intervene(cbm, train, test, present[:5], present_test)
    with pytest.raises(BadData, match="all of the training images have 'c0'"):
        intervene(cbm, train, test, present | [True, False, False, False], present_test)
    with pytest.raises(UnknownName, match="condition"):
        intervene(cbm, train, test, present, present_test, conditional_on="classes")
    with pytest.raises(ShapeMismatch, match="or of neither"):
        leakage(train, test, named, truth=present)
    with pytest.raises(ShapeMismatch, match="concept scores are"):
        cbm.logits_of(np.ones((2, 3)))


def as_two(features):
    both = as_features(features["hook_pooled"], features.labels, int(features.ids[0].split("/")[1]))
    both.rows["other"] = both.rows["hook_pooled"]
    return both
