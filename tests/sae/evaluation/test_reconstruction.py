"""FVU, cosine, L0, dead latents: against scikit-learn, streamed against plain, and without the defects of others."""

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from mechvis.errors import BadData, NotFinite, ShapeMismatch
from mechvis.stats import interval_of
from sae.evaluation.intervals import columns, of_sums, ratio
from sae.evaluation.reconstruction import Reconstruction, density, fvu


def planted(n=600, d=8, seed=0, centred=True):
    """Rows whose columns have different means, and a reconstruction that explains little but these means."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.linspace(-1.5, 1.5, d, dtype=torch.float64)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    noise = noise - noise.mean(0) if centred else noise
    return means + noise, means + 0.0877 * noise


def test_columns_means_do_not_count_as_explained():
    """overcomplete `r2_score` takes one mean for all columns: it reported .573 where 1 - FVU was .168."""
    y, y_hat = planted()
    against_one_mean = 1 - float((y - y_hat).square().sum() / (y - y.mean()).square().sum())
    assert against_one_mean == pytest.approx(0.573, abs=0.02)
    assert 1 - fvu(y, y_hat) == pytest.approx(0.168, abs=0.002)
    assert 1 - fvu(y, y_hat) == pytest.approx(r2_score(y.numpy(), y_hat.numpy(), multioutput="variance_weighted"))


def test_streamed_equals_plain_whatever_the_batches():
    y, y_hat = planted()
    y, y_hat = (t.reshape(60, 10, 8) for t in (y, y_hat))
    codes = (y_hat > 1).double()
    found = []
    for size in (1, 7, 60):
        sums = Reconstruction()
        for a, b, c in zip(y.split(size), y_hat.split(size), codes.split(size), strict=True):
            sums.add(a, b, c)
        found.append(sums.found()["all"])
    for fit in found:
        assert fit.fvu[0] == pytest.approx(fvu(y.flatten(0, 1), y_hat.flatten(0, 1)), rel=1e-12)
        np.testing.assert_allclose(fit.fvu, found[0].fvu, rtol=1e-10)
        assert fit.l0[0] == pytest.approx(float(codes.sum(2).mean())) and (fit.rows, fit.images) == (600, 60)
        np.testing.assert_array_equal(fit.frequency, codes.mean((0, 1)).numpy())


def test_a_large_mean_costs_no_digits():
    y, y_hat = planted()
    far = torch.tensor([3e5, -2e5] * 4, dtype=torch.float64)
    sums = Reconstruction()
    sums.add((y + far).reshape(60, 10, 8), (y_hat + far).reshape(60, 10, 8), torch.zeros(60, 10, 1))
    assert sums.found()["all"].fvu[0] == pytest.approx(fvu(y, y_hat), rel=1e-6)


def test_sums_come_first_and_are_divided_once():
    """Prisma prints a mean of per-batch ratios: an image with little variance counts as much as one with a lot."""
    y, y_hat = planted()
    y, y_hat = (t.reshape(60, 10, 8).clone() for t in (y, y_hat))
    y[:30] = y[:30].mean((0, 1)) + (y[:30] - y[:30].mean((0, 1))) * 0.01  # little variance, badly explained
    sums = Reconstruction()
    sums.add(y, y_hat, torch.zeros(60, 10, 1))
    ratios = [fvu(a, b) for a, b in zip(y, y_hat, strict=True)]
    right = fvu(y.flatten(0, 1), y_hat.flatten(0, 1))
    assert sums.found()["all"].fvu[0] == pytest.approx(right)
    assert np.mean(ratios) > 5 * right


def test_cosine_is_of_vectors_not_of_columns_of_the_batch():
    """Prisma takes the cosine with dim=0."""
    y = torch.tensor([[[3.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 5.0]]])
    turned = y.flip(2)
    sums = Reconstruction()
    sums.add(y, turned, torch.zeros(2, 2, 1))
    assert sums.found()["all"].cosine[0] == 0
    over_batch = torch.nn.functional.cosine_similarity(
        y.flatten(0, 1), 2 * y.flatten(0, 1) + turned.flatten(0, 1), dim=0
    )
    per_row = torch.nn.functional.cosine_similarity(y.flatten(0, 1), 2 * y.flatten(0, 1) + turned.flatten(0, 1), dim=1)
    sums = Reconstruction()
    sums.add(y, 2 * y + turned, torch.zeros(2, 2, 1))
    assert sums.found()["all"].cosine[0] == pytest.approx(float(per_row.mean()), abs=1e-6)
    assert float(over_batch.mean()) != pytest.approx(float(per_row.mean()), abs=1e-2)


def test_types_are_told_apart_and_add_up():
    y, y_hat = (t.reshape(60, 10, 8).clone() for t in planted())
    y[:, 0] += 20  # a CLS token of its own
    codes = torch.zeros(60, 10, 3)
    codes[:, 0, 0] = 1
    codes[:, 1:, 1] = -1
    sums = Reconstruction()
    sums.add(y, y_hat, codes, ["cls", *["patch"] * 9])
    found = sums.found()
    assert list(found) == ["all", "cls", "patch"]
    assert found["cls"].fvu[0] == pytest.approx(fvu(y[:, 0], y_hat[:, 0]))
    assert found["patch"].fvu[0] == pytest.approx(fvu(y[:, 1:].flatten(0, 1), y_hat[:, 1:].flatten(0, 1)))
    assert found["all"].fvu[0] == pytest.approx(fvu(y.flatten(0, 1), y_hat.flatten(0, 1)))
    assert (found["cls"].dead, found["patch"].dead, found["all"].dead) == pytest.approx((2 / 3, 2 / 3, 1 / 3))
    assert found["all"].l0[0] == 1  # codes with signs count
    assert found["all"].rows == found["cls"].rows + found["patch"].rows == 600


def test_rows_that_do_not_vary_have_no_fvu():
    sums = Reconstruction()
    sums.add(torch.ones(4, 2, 3), torch.zeros(4, 2, 3), torch.zeros(4, 2, 1))
    assert sums.found()["all"].cells()["fvu"] is None
    with pytest.raises(BadData, match="no variance to explain"):
        fvu(torch.ones(4, 3), torch.zeros(4, 3))


def test_the_interval_covers_and_shrinks():
    hits = []
    for seed in range(40):
        y, y_hat = planted(n=300, seed=seed, centred=False)
        sums = Reconstruction()
        sums.add(y.reshape(60, 5, 8), y_hat.reshape(60, 5, 8), torch.zeros(60, 5, 1))
        value, low, high = sums.found()["all"].fvu
        assert low < value < high
        hits.append(low <= 0.8323 <= high)  # (1 - .0877)²
    # The ratio is far surer than either sum here, so that coverage is about the level or above.
    assert np.mean(hits) >= 0.85


def test_of_sums_is_the_bootstrap_of_mechvis(monkeypatch):
    generator = np.random.default_rng(0)
    a, b = generator.random(50), generator.random(50) + 1
    ours = of_sums(np.divide, a, b, seed=3)
    theirs = interval_of(lambda x, y: x.sum() / y.sum(), a, b, seed=3)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert ratio(a, b, seed=3) == ours
    monkeypatch.setattr("sae.evaluation.intervals._KEEP", 0)
    monkeypatch.setattr("sae.evaluation.intervals._PIECE", 700)  # pieces say the same as the whole
    np.testing.assert_allclose(ratio(a, b, seed=3), ours, rtol=1e-12)
    assert np.isnan(of_sums(np.divide, a[:1], b[:1])[1])
    assert columns("x", (1.0, float("nan"), 2.0)) == {"x": 1.0, "x_low": None, "x_high": 2.0}
    with pytest.raises(ShapeMismatch, match="all as long"):
        of_sums(np.divide, a, b[:3])
    with pytest.raises(NotFinite, match="column 1"):
        of_sums(np.divide, a, np.full(50, np.nan))


def test_density_leaves_the_dead_out():
    edges, counts = density(np.array([0.0, 0.001, 0.0012, 0.5, 1.0, 1e-9]))
    assert counts.sum() == 5 and counts[0] == 1
    assert counts[np.searchsorted(edges, -3, side="right") - 1] == 2
    with pytest.raises(BadData, match="between 0 and 1"):
        density(np.array([1.5]))


def test_bad_input_is_refused():
    sums, y = Reconstruction(), torch.zeros(2, 3, 4)
    with pytest.raises(BadData, match="nothing was counted"):
        sums.found()
    with pytest.raises(ShapeMismatch, match=r"\[image token ...\]"):
        sums.add(y, y[:1], torch.zeros(2, 3, 1))
    with pytest.raises(ShapeMismatch, match="2 types for 3 rows"):
        sums.add(y, y, torch.zeros(2, 3, 1), ["cls", "patch"])
    with pytest.raises(NotFinite, match="what was written hold NaN"):
        sums.add(y, y * torch.nan, torch.zeros(2, 3, 1))
    with pytest.raises(ShapeMismatch, match=r"rows are \[row d\]"):
        fvu(y, y)
