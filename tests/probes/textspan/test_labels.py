"""Names of heads, and the controls of a text span, on matrices whose answers are known."""

import itertools

import numpy as np
import polars as pl
import pytest

from mechvis.data.text_bank import TextBank, text_bank
from mechvis.errors import BadData, OutOfRange, ShapeMismatch, UnknownName
from probes.textspan.controls import agreement, crossed, explained_by, pca_bound, principal, random_pools
from probes.textspan.greedy import Span, span_moments
from probes.textspan.inside import inside, orthonormal, random_parts, subspace
from probes.textspan.labels import head_properties, labels
from probes.textspan.moments import moments_of


def bank_of(*properties):
    texts = tuple(f"text {i}" for i in range(len(properties)))
    return TextBank(name="made", texts=texts, properties=properties, words=texts)


def span_with(picks, explained):
    """Picks and shares are all that names look at."""
    return Span(
        picks=np.array(picks),
        explained=np.array(explained),
        basis=np.zeros((len(picks), 1)),
        mean=np.zeros(1),
        variance=1.0,
    )


# labels


def test_scores_are_shares_of_what_the_picks_explain():
    bank = bank_of(*["red"] * 10, *["round"] * 10)
    table = head_properties([span_with([0, 1, 12], [0.4, 0.3, 0.1])], bank, permutations=999)
    assert table["score"].to_list() == pytest.approx([0.875, 0.125])
    assert table["chance"].to_list() == pytest.approx([0.5, 0.5], abs=0.05)


def test_p_is_that_of_all_deals():
    """With 8 texts all deals of the properties can be listed: the share with at least this score is p."""
    bank = bank_of(*["red"] * 3, *["round"] * 5)
    weights, total, hits = np.array([0.5, 0.3, 0.2]), 0, 0
    for red in itertools.combinations(range(8), 3):
        score = weights[[i for i in range(3) if i in red]].sum()
        hits, total = hits + (score >= 0.8 - 1e-9), total + 1
    table = head_properties([span_with([0, 1, 5], [0.5, 0.3, 0.2])], bank, permutations=20_000)
    assert table["p"][0] == pytest.approx(hits / total, abs=0.01)
    assert hits / total > 0.05


def test_heads_about_a_property_are_named_and_others_are_not():
    bank = bank_of(*["red"] * 20, *["round"] * 20, *[""] * 60)
    picks = [[*range(8)], [*range(20, 28)], [0, 20, 40, 60, 1, 41, 61, 62]]
    table = head_properties([span_with(each, np.full(8, 0.1)) for each in picks], bank)
    assert labels(table) == ["red", "round", "none"]
    assert table["p"].min() == 1 / 10_000
    assert labels(table, alpha=1e-5) == ["none"] * 3
    # The name survives the correction for many heads, but not for too many that are about nothing.
    noise = [span_with([40 + i, 50 + i, 60 + i], [0.3, 0.2, 0.1]) for i in range(10)]
    weak = span_with([0, 1, 60, 61], [0.3, 0.2, 0.05, 0.05])
    alone = head_properties([weak], bank)
    crowd = head_properties([weak, *noise], bank)
    assert alone["q"][0] == alone["head_p"][0] and crowd["q"][0] > crowd["head_p"][0]
    assert (alone["head_p"] >= alone["p"].min()).all()


def test_names_without_meaning_are_rare():
    """Random picks: of 200 heads, hardly one is named."""
    bank = text_bank("scenes")
    rng = np.random.default_rng(0)
    spans = [span_with(rng.permutation(88)[:5], rng.random(5)) for _ in range(200)]
    table = head_properties(spans, bank, permutations=999)
    assert sum(name != "none" for name in labels(table)) <= 1
    per_head = table.group_by("head").agg(pl.col("head_p").first())["head_p"]
    assert (per_head < 0.05).mean() < 0.1
    assert 0.4 < (table["p"] < 0.5).mean() + (table["p"] == 1.0).mean() / 2 < 0.6


def test_many_properties_do_not_name_heads_by_chance():
    """The general bank has 29 properties: some p below 0.01 is to be expected, a named head is not."""
    bank = text_bank("general")
    rng = np.random.default_rng(1)
    spans = [span_with(rng.permutation(len(bank))[:8], np.sort(rng.random(8))[::-1]) for _ in range(48)]
    table = head_properties(spans, bank, permutations=1999)
    assert table.filter(pl.col("p") < 0.01).height > 3
    assert sum(name != "none" for name in labels(table)) <= 1
    per_head = table.group_by("head").agg(pl.col("head_p").first())["head_p"]
    assert 0.2 < (per_head < 0.5).mean() < 0.8


def test_a_head_without_variance_has_no_name():
    empty = Span(picks=np.zeros(0, int), explained=np.zeros(0), basis=np.zeros((0, 3)), mean=np.zeros(3), variance=0.0)
    table = head_properties([empty], bank_of("red", "round"))
    assert table["p"].to_list() == [1.0, 1.0] and labels(table) == ["none"]


# inside


def test_a_head_along_a_property_lies_inside_it():
    rng = np.random.default_rng(1)
    bank = text_bank("scenes")
    pool = rng.normal(size=(88, 64))
    basis = subspace(bank, pool, "colour")
    assert basis.shape == (5, 64)
    np.testing.assert_allclose(basis @ basis.T, np.eye(5), atol=1e-9)
    common = orthonormal(np.concatenate([subspace(bank, pool, name) for name in bank.property_names]))
    about = basis.T @ basis + 1e-3 * np.eye(64)
    nothing = common.T @ common
    table = inside(np.stack([about, nothing]), bank, pool, draws=199)
    colour = table.filter(pl.col("property") == "colour")
    assert colour["inside"][0] > 0.98 and colour["inside_p"][0] == 1 / 200
    assert colour["inside"][1] == pytest.approx(5 / 19) and colour["inside_chance"][1] == pytest.approx(5 / 19)
    assert labels(table, by="inside", fdr=0.05) == ["colour", "none"]


def test_random_subspaces_are_drawn_the_same_with_and_without_the_short_cut():
    """40 dimensions of which 6 are asked about: the rows that nobody asks about, drawn one by one and at once."""
    rng = np.random.default_rng(5)
    fast = np.stack([random_parts(rng, 8, 40, 6) for _ in range(4000)])
    slow = np.stack([random_parts(rng, 8, 40, 40)[:6] for _ in range(4000)])
    np.testing.assert_allclose(fast.mean(0), 8 / 40, atol=0.01)
    weights = np.arange(6.0)
    quantiles = [0.05, 0.25, 0.5, 0.75, 0.95]
    np.testing.assert_allclose(*(np.quantile(each @ weights, quantiles) for each in (fast, slow)), rtol=0.05)


# controls


@pytest.fixture(scope="module")
def heads():
    """Two heads of three directions each, which share none."""
    rng = np.random.default_rng(3)
    directions = np.linalg.qr(rng.normal(size=(16, 6)))[0].T
    draws = rng.normal(size=(400, 2, 3)) * [3, 2, 1]
    vectors = np.stack([draws[:, 0] @ directions[:3], draws[:, 1] @ directions[3:]], axis=1)
    return vectors + 0.01 * rng.normal(size=vectors.shape), np.concatenate([directions, rng.normal(size=(30, 16))])


def test_principal_components_are_the_bound(heads):
    vectors, pool = heads
    moments = moments_of(vectors)
    covariance = moments.covariance[0]
    bound = pca_bound(covariance, 5)
    values = np.linalg.eigvalsh(np.cov(vectors[:, 0].T, bias=True))[::-1]
    np.testing.assert_allclose(bound, (values / values.sum()).cumsum()[:5])
    assert (span_moments(moments, 0, pool, m=5).cumulative <= bound + 1e-9).all()
    basis = principal(covariance, 3)
    assert np.trace(basis @ covariance @ basis.T) / np.trace(covariance) == pytest.approx(bound[2])
    assert pca_bound(np.zeros((3, 3)), 2).tolist() == [0.0, 0.0]


def test_random_directions_explain_less_and_other_heads_nothing(heads):
    vectors, pool = heads
    moments = moments_of(vectors)
    spans = [span_moments(moments, head, pool, m=3) for head in (0, 1)]
    random, first = random_pools(moments, len(pool), m=3, draws=4)
    assert random.shape == (4, 2, 3) and len(first) == 2
    assert random[:, :, -1].max() < spans[0].cumulative[-1] - 0.1
    cross = crossed(spans, moments, 3)
    assert cross[0, 0, -1] > 0.999 and cross[1, 1, -1] > 0.999
    assert cross[0, 1, -1] < 0.01 and cross[1, 0, -1] < 0.01
    np.testing.assert_allclose(explained_by(spans[0], moments.covariance[0], 5)[:3], spans[0].cumulative, atol=1e-9)


def test_halves_agree_where_there_is_something_to_find(heads):
    vectors, pool = heads
    found = agreement((moments_of(vectors[::2]), moments_of(vectors[1::2])), pool, m=3)
    assert found.overlap.tolist() == [1.0, 1.0] and (found.subspace > 0.999).all() and (found.held_out > 0.99).all()
    noise = np.random.default_rng(4).normal(size=(60, 1, 16))
    lost = agreement((moments_of(noise[::2]), moments_of(noise[1::2])), pool, m=3)
    assert lost.overlap[0] < 0.7 and lost.held_out[0] < 0.5


def test_bad_input():
    bank, span = bank_of("red", "round"), span_with([0, 1], [0.5, 0.2])
    with pytest.raises(BadData, match="has no properties"):
        head_properties([span], bank_of("", ""))
    with pytest.raises(OutOfRange, match="fewer than 99"):
        head_properties([span], bank, permutations=10)
    with pytest.raises(OutOfRange, match="count at least one"):
        head_properties([span], bank, m=0)
    with pytest.raises(ShapeMismatch, match="picked text 5, and the bank 'made' has 2"):
        head_properties([span_with([5], [0.1])], bank)
    table = head_properties([span], bank)
    with pytest.raises(OutOfRange, match="alpha=2"):
        labels(table, alpha=2)
    with pytest.raises(UnknownName, match="kind of label 'text'"):
        labels(table, by="text")
    with pytest.raises(BadData, match="has one value"):
        subspace(TextBank(name="x", texts=("a",), properties=("p",), words=("w",)), np.eye(1), "p")
    with pytest.raises(BadData, match="no property of the text bank"):
        inside(np.eye(1)[None], TextBank(name="x", texts=("a",), properties=("p",), words=("w",)), np.eye(1))
    with pytest.raises(OutOfRange, match="fewer than 99"):
        inside(np.eye(2)[None], bank, np.eye(2), draws=3)
    moments = moments_of(np.random.default_rng(0).normal(size=(9, 1, 2)))
    with pytest.raises(OutOfRange, match="at least one random pool"):
        random_pools(moments, 4, m=2, draws=0)
    with pytest.raises(ShapeMismatch, match="2 spans for 1 heads"):
        crossed([span, span], moments, 2)
    for control in (pca_bound, principal):
        with pytest.raises(OutOfRange, match="at least one direction"):
            control(np.eye(2), 0)
