"""Baselines: against scikit-learn and scipy, on data whose answer is known, as dictionaries that save and load."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment, nnls

import sae
from mechvis.errors import BadData, MechvisWarning, NotFinite, RefusedMethod, ShapeMismatch, UnknownName
from sae import baselines
from sae.baselines.non_negative import solved
from sae.baselines.semi_nmf import factorised

N, D = 400, 12


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(N, D, generator=generator, dtype=torch.float64) @ torch.randn(
        D, D, generator=generator, dtype=torch.float64
    )
    return mixed + torch.linspace(-2, 5, D, dtype=torch.float64)


MAKERS = {
    "pca": lambda x: baselines.pca(x, 5),
    "pca k": lambda x: baselines.pca(x, k=3),
    "pca unsigned": lambda x: baselines.pca(x, k=3, signed=False),
    "ica": lambda x: baselines.ica(x, 5, tolerance=0.01, steps=2000),
    "kmeans": lambda x: baselines.kmeans(x, 7),
    "nmf": lambda x: baselines.nmf(x, 5, shift=True),
    "semi_nmf": lambda x: baselines.semi_nmf(x, 7),
    "semi_nmf k": lambda x: baselines.semi_nmf(x, 7, k=2),
    "random": lambda x: baselines.random_dictionary(x, 30, k=4),
    "identity": baselines.identity,
    "zero": baselines.zero,
    "mean": baselines.mean,
}


def fvu(x, y):
    return float((x - y.detach()).square().sum() / (x - x.mean(0)).square().sum())


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_baseline_is_a_dictionary_that_saves_and_loads(rows, name, dtype, tmp_path):
    x = rows[:200].to(dtype)
    d = MAKERS[name](x)
    assert isinstance(d, sae.Dictionary) and d.W_dec.dtype == dtype
    again = sae.load(d.save(tmp_path / "d"))
    assert again.fingerprint == d.fingerprint
    assert torch.equal(again(x), d(x))
    assert torch.allclose(d.W_dec.norm(dim=1), torch.ones(d.n_latents, dtype=dtype), atol=1e-5)
    assert torch.allclose(d.decode(d.encode(x)), d(x))
    assert d.encode(x[None, :4]).shape == (1, 4, d.n_codes)


def test_fits_know_their_sites_and_several_lie_side_by_side(rows):
    d = baselines.pca({"a": rows[:, :5], "b": rows[:, 5:]})
    assert d.ends.reads == {"a": 5, "b": 7}
    torch.testing.assert_close(d({"a": rows[:, :5], "b": rows[:, 5:]}), rows)


def test_pca_equals_scikit_learn_and_its_error_is_the_variance_left(rows):
    from sklearn.decomposition import PCA

    theirs = PCA(5).fit(rows.numpy())
    d = baselines.pca(rows, 5)
    expected = theirs.inverse_transform(theirs.transform(rows.numpy()))
    np.testing.assert_allclose(d(rows).numpy(force=True), expected, atol=1e-10)
    assert fvu(rows, d(rows)) == pytest.approx(1 - sum(d.provenance["fit"]["explained"]), abs=1e-6)
    torch.testing.assert_close(baselines.pca(rows)(rows), rows)


def test_the_k_largest_coefficients_are_the_best_k_of_orthogonal_directions(rows):
    d = baselines.pca(rows, k=2)
    codes = d.encode(rows)
    assert (codes.count_nonzero(1) == 2).all() and (codes < 0).any()
    full = baselines.pca(rows).encode(rows)
    left = full.square().sum(1) - full.square().topk(2, dim=1).values.sum(1)
    torch.testing.assert_close((rows - d(rows)).detach().square().sum(1), left.detach())
    # The control: the first two directions for every row are worse.
    assert fvu(rows, baselines.pca(rows, 2)(rows)) > fvu(rows, d(rows))


@pytest.mark.parametrize("k", [None, 3])
def test_without_signs_two_latents_per_direction_say_the_same(rows, k):
    signed, split = baselines.pca(rows, k=k), baselines.pca(rows, k=k, signed=False)
    codes = split.encode(rows)
    assert split.n_latents == 2 * signed.n_latents and (codes >= 0).all()
    torch.testing.assert_close(split(rows), signed(rows))
    assert torch.equal(codes.count_nonzero(1), signed.encode(rows).count_nonzero(1))


def test_ica_finds_independent_sources_that_pca_does_not():
    generator = np.random.default_rng(0)
    sources = generator.laplace(size=(3000, 4))
    mixing = generator.normal(size=(4, 4))
    x = sources @ mixing
    truth = mixing / np.linalg.norm(mixing, axis=1, keepdims=True)

    def matched(d):
        cosine = np.abs(truth @ d.W_dec.numpy(force=True).T)
        return cosine[linear_sum_assignment(-cosine)].min()

    assert matched(baselines.ica(x)) > 0.99
    assert matched(baselines.pca(x)) < 0.99
    torch.testing.assert_close(baselines.ica(x)(torch.from_numpy(x)), torch.from_numpy(x), atol=1e-8, rtol=0)


def test_ica_and_nmf_say_when_they_did_not_settle(rows):
    with pytest.warns(MechvisWarning, match="did not settle in 2 steps"):
        d = baselines.ica(rows, steps=2)
    assert d.provenance["fit"]["settled"] is False
    with pytest.warns(MechvisWarning, match="NMF did not settle in 1 steps"):
        baselines.nmf(rows.abs(), 5, steps=1)


def test_kmeans_equals_scikit_learn(rows):
    from sklearn.cluster import KMeans

    d = baselines.kmeans(rows, 6, seed=3)
    centred = rows.numpy() - rows.numpy().mean(0)
    theirs = KMeans(6, n_init=1, random_state=3).fit(centred)
    np.testing.assert_array_equal(d.encode(rows).argmax(1).numpy(), theirs.predict(centred))
    np.testing.assert_allclose(
        d(rows).numpy(force=True), theirs.cluster_centers_[theirs.labels_] + rows.numpy().mean(0), atol=1e-10
    )
    assert (d.encode(rows).count_nonzero(1) == 1).all()


@pytest.mark.parametrize("alike", [False, True])
def test_non_negative_codes_equal_scipy(rows, alike):
    d = baselines.semi_nmf(rows, 7)
    if not alike:  # directions of semi-NMF nearly coincide; these do not
        with torch.no_grad():
            d.W_dec.copy_(torch.nn.functional.normalize(torch.randn(7, D, dtype=torch.float64), dim=1))
    codes = d.encode(rows[:40]).numpy(force=True)
    W, b = d.W_dec.numpy(force=True), d.b_dec.numpy(force=True)
    expected = np.stack([nnls(W.T, row - b)[0] for row in rows[:40].numpy()])
    if not alike:
        np.testing.assert_allclose(codes, expected, atol=1e-5)
    x = rows[:40].numpy() - b
    errors = [np.square(x - f @ W).sum() for f in (codes, expected)]
    assert errors[0] == pytest.approx(errors[1], rel=0.06 if alike else 1e-10)


def test_codes_of_a_choice_are_the_best_for_that_choice(rows):
    d = baselines.random_dictionary(rows, 30, k=4)
    codes = d.encode(rows[:30]).numpy(force=True)
    W, x = d.W_dec.numpy(force=True), (rows[:30] - d.b_dec).numpy(force=True)
    for row, found in zip(x, codes, strict=True):
        chosen = np.argsort(-(W @ row))[:4]
        np.testing.assert_allclose(found[chosen], nnls(W[chosen].T, row)[0], atol=1e-6)
        assert set(found.nonzero()[0]) <= set(chosen)


def test_one_gram_for_all_equals_one_for_each():
    generator = torch.Generator().manual_seed(1)
    W = torch.randn(6, 9, generator=generator, dtype=torch.float64)
    target = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    gram = W @ W.T
    torch.testing.assert_close(solved(target, gram, 3000), solved(target, gram.expand(5, 6, 6), 3000))


def test_semi_nmf_never_gets_worse_and_finds_planted_parts():
    generator = np.random.default_rng(0)
    truth = generator.normal(size=(4, 20))
    codes = generator.exponential(size=(500, 4)) * (generator.random((500, 4)) < 0.4)
    x = codes @ truth
    Z, W, errors = factorised(x, 4, steps=300, tolerance=0)
    assert (Z >= 0).all() and (np.diff(errors) <= 1e-9 * errors[0]).all()
    assert errors[-1] < 0.02 * np.square(x).sum()
    cosine = (truth / np.linalg.norm(truth, axis=1, keepdims=True)) @ (W / np.linalg.norm(W, axis=1, keepdims=True)).T
    found = cosine[linear_sum_assignment(-cosine)].mean()
    assert found > 0.95
    # The control: PCA of the same size has no larger error, and its directions are further off, whatever their signs.
    planted = torch.from_numpy(truth / np.linalg.norm(truth, axis=1, keepdims=True))
    other = (planted @ baselines.pca(x, 4).W_dec.detach().T).abs().numpy()
    assert other[linear_sum_assignment(-other)].mean() < found


def test_nmf_needs_what_is_never_negative(rows):
    with pytest.raises(BadData, match=r"never negative; row .* Use semi_nmf, or shift=True"):
        baselines.nmf(rows, 4)
    d = baselines.nmf(rows.abs(), 4)
    assert (d.W_dec >= 0).all() and (d.encode(rows.abs()) >= 0).all()


def test_random_directions_lie_where_they_are_asked_to(rows):
    with_covariance = baselines.random_dictionary(rows, 200, k=4, like="covariance")
    isotropic = baselines.random_dictionary(rows, 200, k=4)
    axis = baselines.pca(rows, 1).W_dec[0]
    assert (with_covariance.W_dec @ axis).abs().mean() > 1.5 * (isotropic.W_dec @ axis).abs().mean()
    points = baselines.random_dictionary(rows, N, k=1, like="rows")
    assert fvu(rows, points(rows)) < 1e-9  # every row is its own direction
    assert not torch.equal(baselines.random_dictionary(rows, 30, k=4, seed=1).W_dec, isotropic.W_dec[:30])


def test_the_ends_of_the_scale(rows):
    assert torch.equal(baselines.identity(rows)(rows), rows)
    assert torch.equal(baselines.zero(rows)(rows), torch.zeros_like(rows))
    assert fvu(rows, baselines.mean(rows)(rows)) == pytest.approx(1)
    assert (baselines.zero(rows).encode(rows) == 0).all()


def test_bad_input_is_refused(rows):
    broken = rows.clone()
    broken[7, 0] = torch.nan
    with pytest.raises(NotFinite, match="row 7 holds NaN or Inf"):
        baselines.pca(broken)
    with pytest.raises(ShapeMismatch, match=r"rows are \[row d\]"):
        baselines.ica(rows[0])
    with pytest.raises(BadData, match="PCA finds between 1 and 12 here"):
        baselines.pca(rows, 13)
    with pytest.raises(BadData, match="ICA finds"):
        baselines.ica(rows, 0)
    with pytest.raises(BadData, match="k-means finds between 1 and 400"):
        baselines.kmeans(rows, 401)
    with pytest.raises(BadData, match="semi-NMF finds"):
        baselines.semi_nmf(rows, 500)
    with pytest.raises(BadData, match="steps=0"):
        baselines.semi_nmf(rows, 5, steps=0)
    with pytest.raises(BadData, match="k=9 of 5 latents"):
        baselines.pca(rows, 5, k=9)
    with pytest.raises(BadData, match="k=40 of 30"):
        baselines.random_dictionary(rows, 30, k=40)
    with pytest.raises(UnknownName, match="kind of random directions"):
        baselines.random_dictionary(rows, 30, k=4, like="uniform")
    with pytest.raises(BadData, match="500 directions from 400 rows"):
        baselines.random_dictionary(rows, 500, k=4, like="rows")
    with pytest.raises(BadData, match="at least 2"):
        baselines.pca(rows[:1])
    with pytest.raises(ShapeMismatch, match="nothing"):
        baselines.identity({})


def test_a_baseline_is_not_trained(rows):
    with pytest.raises(RefusedMethod, match="'linear' is a baseline: it is fitted"):
        sae.train(rows, baselines.Linear(n_latents=4), sae.Training(tokens=800, batch=100), progress=False)
    with pytest.raises(BadData, match="choose='project' needs k"):
        baselines.NonNegative(n_latents=4, choose="project")
