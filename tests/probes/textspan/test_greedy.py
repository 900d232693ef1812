"""TextSpan as matrices: five planted texts come out in order with the shares of methods.md 2.2, in both forms."""

import numpy as np
import pytest

from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch, UnknownName
from probes.textspan.direct import span_direct
from probes.textspan.greedy import span_covariance, span_moments, span_of
from probes.textspan.moments import Moments, gather, moments_of

D, TEXTS, SD = 64, 200, np.array([5.0, 4.0, 3.0, 2.0, 1.0])
CUMULATIVE = [0.453, 0.746, 0.913, 0.983, 1.000]
PLANTED = [17, 140, 3, 77, 191]


def planted(seed=0, n=4000, noise=0.01, offset=3.0):
    """Vectors that vary along five texts of a random pool, around a mean that is far from zero."""
    rng = np.random.default_rng(seed)
    directions = np.linalg.qr(rng.normal(size=(D, 5)))[0].T
    pool = rng.normal(size=(TEXTS, D))
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)
    pool[PLANTED] = directions
    vectors = rng.normal(size=(n, 5)) * SD @ directions + offset * rng.normal(size=D)
    return vectors + noise * rng.normal(size=(n, D)), pool


@pytest.fixture(scope="module")
def data():
    return planted()


def test_the_planted_texts_come_in_order_with_their_shares(data):
    vectors, pool = data
    for span in (span_direct(vectors, pool, m=5, rank=5), span_of(vectors, pool, m=5, rank=5)):
        assert span.picks.tolist() == PLANTED
        np.testing.assert_allclose(span.cumulative, CUMULATIVE, atol=0.01)
        assert span.variance == pytest.approx(vectors.var(0).sum())


@pytest.mark.parametrize("score", ["deviation", "normalised"])
@pytest.mark.parametrize("svd_center", [True, False])
@pytest.mark.parametrize("rank", [12, None])
def test_both_forms_pick_the_same_twenty_on_full_rank_data(score, svd_center, rank):
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(300, D)) @ rng.normal(size=(D, D)) + 2
    pool = rng.normal(size=(TEXTS, D))
    settings = {"m": 20, "rank": rank, "score": score, "svd_center": svd_center}
    direct, fast = span_direct(vectors, pool, **settings), span_of(vectors, pool, **settings)
    assert direct.picks.tolist() == fast.picks.tolist() and len(fast) == (rank or 20)
    np.testing.assert_allclose(fast.explained, direct.explained, atol=1e-10)
    np.testing.assert_allclose(fast.basis, direct.basis, atol=1e-8)
    np.testing.assert_allclose(fast.basis @ fast.basis.T, np.eye(len(fast)), atol=1e-9)


def test_the_products_stay_exact_over_many_picks():
    rng = np.random.default_rng(6)
    vectors, pool = rng.normal(size=(400, D)) * np.geomspace(1, 1e-2, D), rng.normal(size=(500, D))
    direct, fast = span_direct(vectors, pool, m=60), span_of(vectors, pool, m=60)
    assert direct.picks.tolist() == fast.picks.tolist() and len(fast) == 60


def test_the_first_pick_is_the_text_along_which_the_vectors_vary_most(data):
    vectors, pool = data
    by_hand = (vectors @ pool.T).std(0).argmax()
    assert span_of(vectors, pool, m=1).picks[0] == by_hand


def test_without_centring_the_mean_takes_one_of_the_directions(data):
    """Rank 5 is exactly what the five texts need: the mean spends one of it, and the fifth text is lost."""
    vectors, pool = data
    for form in (span_direct, span_of):
        lost = form(vectors, pool, m=5, rank=5, svd_center=False)
        assert lost.picks[:4].tolist() == PLANTED[:4] and PLANTED[4] not in lost.picks
        assert lost.cumulative[-1] < 0.99


def test_a_pool_of_unequal_lengths_is_broken_unless_it_is_brought_to_unit_length(data):
    vectors, pool = data
    loud = pool.copy()
    loud[50] *= 8
    for form in (span_direct, span_of):
        assert 50 in form(vectors, loud, m=5, rank=5, unit_pool=False).picks[:2]
        assert form(vectors, loud, m=5, rank=5).picks.tolist() == PLANTED


def test_with_the_mean_of_the_texts_off_plain_texts_win():
    """Texts with a large common part; those that name two things have less of it, and win by that alone."""
    rng = np.random.default_rng(8)
    common, *things = np.linalg.qr(rng.normal(size=(D, 9)))[0].T
    plain = [2 * common + thing for thing in things]
    both = [2 * common + 1.2 * (things[i] + things[j]) for i in range(3) for j in range(3, 8)]
    vectors = rng.normal(size=(3000, 3)) * [3, 2.5, 2] @ np.array(things[:3])
    pool = np.array(plain + both)
    for form in (span_direct, span_of):
        assert form(vectors, pool, m=3, rank=3).picks[0] >= 8
        plain_ones = form(vectors, pool, m=3, rank=3, center_pool=True).picks
        assert plain_ones[:2].tolist() == [0, 1] and plain_ones[2] < 8


def test_it_stops_when_the_variance_is_used_up():
    vectors, pool = planted(noise=0.0)
    for form in (span_direct, span_of):
        assert len(form(vectors, pool, m=20, rank=D)) == 5
    assert len(span_of(np.ones((4, D)), pool)) == 0  # no variance at all


def test_reconstruction_is_the_mean_and_the_span(data):
    vectors, pool = data
    span = span_of(vectors, pool, m=5, rank=5)
    rebuilt = span.reconstruct(vectors)
    np.testing.assert_allclose(rebuilt.mean(0), vectors.mean(0), atol=1e-9)
    assert 1 - (vectors - rebuilt).var(0).sum() / span.variance == pytest.approx(span.cumulative[-1], abs=1e-9)
    assert np.abs(span.first(2).reconstruct(vectors) - vectors).max() > 1 > np.abs(rebuilt - vectors).max()


def test_a_random_pool_explains_less(data):
    vectors, pool = data
    random = np.random.default_rng(1).normal(size=pool.shape)
    worse, better = (span_of(vectors, texts, m=4, rank=5).cumulative for texts in (random, pool))
    assert (worse < better - 0.03).all()


# moments


def test_moments_in_one_pass_are_those_of_all_images():
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(101, 3, 5)) + 1e4  # a mean that would drown a sum of squares
    found = gather(np.array_split(vectors, 7))
    assert found.n == 101
    np.testing.assert_allclose(found.mean, vectors.mean(0), rtol=1e-12)
    for head in range(3):
        np.testing.assert_allclose(found.covariance[head], np.cov(vectors[:, head].T, bias=True), atol=1e-7)
    np.testing.assert_allclose(found.total, vectors.var(0).sum(-1), atol=1e-7)
    np.testing.assert_allclose(found.second[1], vectors[:, 1].T @ vectors[:, 1] / 101, rtol=1e-9)


def test_halves_add_up():
    vectors = np.random.default_rng(3).normal(size=(20, 2, 4))
    both = moments_of(vectors[:5]) + moments_of(vectors[5:])
    np.testing.assert_allclose(both.scatter, moments_of(vectors).scatter, atol=1e-10)


def test_bad_input():
    vectors, pool = np.random.default_rng(0).normal(size=(9, 4)), np.eye(4)
    with pytest.raises(ShapeMismatch, match="the head writes 4 numbers and the texts have 3"):
        span_of(vectors, np.eye(3))
    with pytest.raises(UnknownName, match="unknown score 'variance'"):
        span_direct(vectors, pool, score="variance")
    with pytest.raises(OutOfRange, match="m=0"):
        span_of(vectors, pool, m=0)
    with pytest.raises(OutOfRange, match="rank=0"):
        span_of(vectors, pool, rank=0)
    with pytest.raises(BadData, match="one text leaves nothing to choose"):
        span_of(vectors, pool[:1])
    with pytest.raises(NotFinite, match="the pool of texts holds 4 NaN"):
        span_covariance(np.zeros(4), np.eye(4), np.full((2, 2), np.nan))
    with pytest.raises(NotFinite, match="length zero"):
        span_of(vectors, np.zeros((3, 4)))
    with pytest.raises(ShapeMismatch, match="a mean of 3 numbers"):
        span_covariance(np.zeros(3), np.eye(4), pool)
    with pytest.raises(OutOfRange, match="head number 1 of 1"):
        span_moments(moments_of(vectors[:, None]), 1, pool)
    with pytest.raises(BadData, match="no batch"):
        gather([])
    with pytest.raises(NotFinite, match="head number 1"):
        moments_of(np.array([[[0.0], [np.nan]]]))
    with pytest.raises(ShapeMismatch, match=r"\[image head d_embed\]"):
        moments_of(np.zeros((2, 2)))
    with pytest.raises(BadData, match="at least one image"):
        moments_of(np.zeros((0, 2, 2)))
    with pytest.raises(ShapeMismatch, match="do not add up"):
        moments_of(np.zeros((2, 2, 2))) + moments_of(np.zeros((2, 3, 2)))
    with pytest.raises(ShapeMismatch, match="moments of 0 images"):
        Moments(n=0, mean=np.zeros((1, 2)), scatter=np.zeros((1, 2, 2)))
