"""F12: which concepts carry the answers, what random vectors and a linear decoder reach, and how shares add up."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, SplitOverlap, UnknownName
from mechvis.testing.concept_worlds import concept_bag
from probes.concept_tests.completeness import (
    Completeness,
    Decoder,
    completeness,
    concept_scores,
    discover_concepts,
    located,
    merge_concepts,
)

QUICK = Decoder(hidden=32, steps=120, warm_steps=60, rate=1e-2)
LINEAR = Decoder(kind="linear", steps=80, warm_steps=60, rate=2e-2)
# A location of F12 may hold noise alone, which the division by the sum would blow up to a full concept.
SCORES = {"threshold": 0.3, "normalise": False}


@pytest.fixture(scope="module")
def bag():
    return concept_bag()


@pytest.fixture(scope="module")
def sets(bag):
    """600 training and 1,500 test images, labelled by what the model says but for a tenth of them."""
    made = []
    for n, seed in ((600, 1), (1500, 2)):
        z = bag.images(n, seed).float()
        right = bag.tail(z).argmax(1)
        wrong = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.1
        ids = [f"{seed}/{i}" for i in range(n)]
        made.append(located(z, bag.tail, labels=torch.where(wrong, (right + 1) % 4, right), ids=ids))
    return made


@pytest.fixture(scope="module")
def plain(sets):
    """Without labels: half the decoders."""
    return [replace(one, labels=None) for one in sets]


@pytest.fixture(scope="module")
def found(bag, sets):
    return completeness(*sets, bag.concepts, decoder=QUICK, seeds=1, random_draws=3, progress=False, **SCORES)


def test_the_four_concepts_are_complete(found):
    """The specification's .899, and .46 for four random vectors."""
    row = found.pick(set="concepts", decoder="mlp", against="model")
    assert row["eta"] == pytest.approx(0.899, abs=0.04) and row["low"] < row["eta"] < row["high"] and row["n"] == 1500
    random = found.pick(set="random", decoder="mlp", against="model")
    assert random["eta"] == pytest.approx(0.46, abs=0.2) and random["high"] < row["low"] and random["spread"] > 0.02
    assert found.eta("representation") == 1.0


def test_each_concepts_share(found):
    """The specification's .439, .442, .020, -.003, and their sum."""
    shares = np.array(list(found.shapley.values()))
    np.testing.assert_allclose(shares, [0.439, 0.442, 0.020, -0.003], atol=0.05)
    assert shares.sum() == pytest.approx(found.eta(), abs=1e-12), "exactly"
    rows = {row["concept"]: row for row in found.tables["shapley"].iter_rows(named=True)}
    assert rows["concept 3"]["alone"] == pytest.approx(-0.055, abs=0.06)
    by_class = found.tables["shapley_by_class"].group_by("concept", maintain_order=True).sum()["shapley"]
    np.testing.assert_allclose(by_class, shares, atol=1e-12)


def test_two_concepts_are_nearly_enough(bag, plain):
    """The specification has .778 here. A decoder that is trained to its end loses next to nothing without concepts 2
    and 3, in line with their shares."""
    two = completeness(*plain, bag.concepts[:2], decoder=QUICK, seeds=1, random_draws=1, progress=False, **SCORES)
    assert 0.778 - 0.05 < two.eta() < 0.96
    assert sum(two.shapley.values()) == pytest.approx(two.eta(), abs=1e-12)


def test_random_vectors_are_complete_too_if_there_are_enough(bag, plain):
    """A full basis at random: .77 in the specification. The pitfall that makes the control necessary."""
    drawn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(3))).Q
    many = completeness(*plain, drawn, decoder=QUICK, seeds=1, random_draws=1, shapley="none", progress=False, **SCORES)
    assert many.eta() == pytest.approx(0.77, abs=0.1)
    assert "shapley" not in many.tables
    with pytest.raises(BadData, match="no Shapley values were asked for"):
        many.shapley


def test_linear_and_labels_are_reported_beside(found):
    rows = {(r["set"], r["decoder"], r["against"]) for r in found.table.iter_rows(named=True)}
    expected = {(s, d, a) for s in ("concepts", "random") for d in ("mlp", "linear") for a in ("model", "labels")}
    assert rows == expected | {("representation", "none", "model"), ("representation", "none", "labels")}
    assert found.eta(decoder="linear") < found.eta() + 0.02
    assert found.facts["model accuracy"] == 1.0 and 0.4 < found.facts["best constant"] < 0.6
    row = found.pick(set="concepts", decoder="mlp", against="labels")
    assert row["accuracy"] < 0.95, "a tenth of the labels is wrong"
    by_hand = (row["accuracy"] - 0.25) / (0.9 - 0.25)
    assert row["eta_random_answer"] == pytest.approx(by_hand, abs=0.03)
    assert "random vectors reach" in found.caveats[0]


@pytest.mark.parametrize("estimator", ["permutation", "kernel"])
def test_other_estimators_agree(bag, plain, estimator):
    quick = {"decoder": LINEAR, "seeds": 1, "random_draws": 1, "progress": False, **SCORES}
    few = bag.concepts[[0, 1, 3]]
    exact = completeness(*plain, few, shapley="exact", **quick)
    # All six orders of three concepts come up, or nearly.
    other = completeness(*plain, few, shapley=estimator, orders=6, masks=60, **quick)
    got, expected = (np.array(list(x.shapley.values())) for x in (other, exact))
    np.testing.assert_allclose(got, expected, atol=0.03)
    assert got.sum() == pytest.approx(other.eta(), abs=1e-12 if estimator == "permutation" else 1e-3)


def test_repeatable_and_leaves_the_generator_alone(bag, plain):
    quick = {"decoder": Decoder(hidden=8, steps=5, warm_steps=2), "seeds": 2, "random_draws": 1, "progress": False}
    state = torch.get_rng_state()
    first, second = (completeness(*plain, bag.concepts[:2], **quick, **SCORES) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert first.table.equals(second.table) and first.shapley == second.shapley
    other = completeness(*plain, bag.concepts[:2], seed=9, **quick, **SCORES)
    assert not other.table.equals(first.table) and first.table["spread"][0] is not None


def test_saved_and_loaded(found, tmp_path):
    again = Completeness.load(found.save(tmp_path))
    assert again.eta() == found.eta() and again.shapley == found.shapley and again.facts == found.facts
    page = again.report(tmp_path / "r.html").read_text(encoding="utf-8")
    assert "The shares sum to eta" in page and "random vectors reach" in page


def test_what_is_refused(bag, sets):
    train, test = sets
    with pytest.raises(SplitOverlap, match="600 of the test images were used to train"):
        completeness(train, train, bag.concepts)
    with pytest.raises(SplitOverlap, match="1500 of the test images"):
        completeness(located(test.z, bag.tail), located(test.z.clone(), bag.tail), bag.concepts)
    with pytest.raises(ShapeMismatch, match="concepts 5"):
        completeness(train, test, torch.eye(5))
    with pytest.raises(ShapeMismatch, match="4 concepts need 4 different names, got 1"):
        completeness(train, test, bag.concepts, names=["a"] * 4)
    with pytest.raises(BadData, match="concept 1 is the zero vector"):
        completeness(train, test, torch.tensor([[1.0] * 12, [0.0] * 12]))
    with pytest.raises(NotFinite, match="concept vectors hold NaN"):
        completeness(train, test, torch.full((1, 12), float("nan")))
    with pytest.raises(UnknownName, match="unknown estimator of Shapley values 'monte carlo'"):
        completeness(train, test, bag.concepts, shapley="monte carlo")
    with pytest.raises(OutOfRange, match="a control is not optional"):
        completeness(train, test, bag.concepts, random_draws=0)
    with pytest.raises(OutOfRange, match="13 concepts have 8,192 sets"):
        completeness(train, test, torch.randn(13, 12), shapley="exact", decoder=Decoder(steps=1), progress=False)
    constant = located(test.z, lambda z: torch.nn.functional.pad(z.mean(1)[:, :2] * 0, (1, 0), value=1.0))
    with pytest.raises(BadData, match="hardly above that of the best constant answer"):
        completeness(train, constant, bag.concepts, decoder=Decoder(steps=1), progress=False)


def test_bad_representations(bag):
    z = bag.images(4).float()
    with pytest.raises(ShapeMismatch, match=r"floating point \[image location d\]"):
        located(z[:, 0], bag.tail)
    with pytest.raises(NotFinite, match="image 2 holds NaN"):
        located(torch.cat([z[:2], z[:1] * float("nan")]), bag.tail)
    with pytest.raises(ShapeMismatch, match="4 images but 3 labels"):
        located(z, bag.tail, labels=torch.zeros(3))
    with pytest.raises(ShapeMismatch, match="the tail gives logits"):
        located(z, lambda z: z)
    with pytest.raises(BadData, match="these images have no labels"):
        located(z, bag.tail).wanted("labels")
    with pytest.raises(UnknownName, match="unknown thing to compare answers with 'truth'"):
        located(z, bag.tail).wanted("truth")


def test_scores_by_hand():
    z = torch.tensor([[[3.0, 4.0], [1.0, 0.0], [0.0, -1.0]]])
    plain = concept_scores(z, torch.eye(2), threshold=0.7, normalise=False)
    assert plain.tolist() == [[[0.0, 4.0], [1.0, 0.0], [0.0, 0.0]]], "cosines are .6 and .8"
    divided = concept_scores(z, torch.eye(2), threshold=0.2)
    torch.testing.assert_close(divided[0, 0], torch.tensor([3.0, 4.0]) / 7.001)
    assert divided[0, 2].tolist() == [0.0, 0.0]
    with pytest.raises(OutOfRange, match="compared with a cosine"):
        concept_scores(z, torch.eye(2), threshold=1.0)
    with pytest.raises(ShapeMismatch, match="concepts \\[concept d\\]"):
        concept_scores(z, torch.eye(3))


def test_discovered_concepts(bag, plain):
    """Learnt concepts are as complete as the true ones, and the two that matter are among them."""
    train, test = plain
    settings = Decoder(hidden=32, steps=300, rate=1e-2)
    learnt = merge_concepts(discover_concepts(train, 6, decoder=settings, **SCORES))
    assert 3 <= len(learnt) <= 6 and torch.allclose(learnt.norm(dim=1), torch.ones(len(learnt)))
    found = completeness(
        train, test, learnt, decoder=QUICK, seeds=1, random_draws=2, shapley="none", progress=False, **SCORES
    )
    assert found.eta() > 0.75 and found.eta() > found.eta("random") + 0.1
    nearest = (learnt @ bag.concepts.float().T).max(0).values
    assert nearest[:2].min() > 0.8
    with pytest.raises(OutOfRange, match="k=0"):
        discover_concepts(train, 0)


def test_merging():
    near = torch.tensor([[1.0, 0.0], [0.99, 0.05], [0.0, 2.0], [-1.0, 0.0]])
    assert merge_concepts(near).tolist() == [[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]], "opposite is not alike"
    assert len(merge_concepts(near, cosine=1.0)) == 4
    with pytest.raises(OutOfRange, match="cosine=2"):
        merge_concepts(near, cosine=2)


def test_settings():
    with pytest.raises(UnknownName, match="unknown kind of decoder 'deep'"):
        Decoder(kind="deep")
    with pytest.raises(OutOfRange, match="steps=0: at least 1"):
        Decoder(steps=0)
    with pytest.raises(OutOfRange, match="rate=0"):
        Decoder(rate=0)
