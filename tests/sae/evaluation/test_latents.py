"""Monosemanticity, stability, coherence, patch maps: fast forms against plain ones, on data with a known answer."""

import sys

import numpy as np
import pytest
import torch

import sae
from mechvis.errors import BadData, NotFinite, ShapeMismatch, UnknownName
from sae.evaluation.coherence import coherence, energy, hoyer, kappa_4
from sae.evaluation.monosemanticity import Sums, by_pairs, monosemanticity
from sae.evaluation.spatial import Sums as MapSums
from sae.evaluation.spatial import moran
from sae.evaluation.stability import Stability, matched, stability


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- monosemanticity -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lowest", [0.0, 0.7, -2.0])
def test_one_product_equals_the_loop_over_pairs(lowest):
    """sae-for-vlm loops over N² pairs; the one-product form is exact, whatever the least activation is."""
    a = random(60, 12).relu() * 3 + lowest
    e = random(60, 7, seed=1)
    np.testing.assert_allclose(monosemanticity(a, e).score, by_pairs(a, e), atol=1e-8)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:Sparse invariant checks")
@pytest.mark.parametrize("layout", ["dense", "coo", "csr"])
@pytest.mark.parametrize("size", [60, 13])
def test_sparse_and_streamed_are_the_same(layout, size):
    a, e = (random(60, 12) - 1).relu(), random(60, 7, seed=1)
    a[:, 3] = 0  # never active
    a[:, 4] += 1  # always active
    change = {"dense": lambda t: t, "coo": lambda t: t.to_sparse(), "csr": lambda t: t.to_sparse_csr()}[layout]
    sums = Sums()
    for x, y in zip(a.split(size), e.split(size), strict=True):
        sums.add(change(x), y)
    found = sums.found()
    np.testing.assert_allclose(found.score, by_pairs(a, e), atol=1e-8)
    assert np.isnan(found.score[3]) and found.images[3] == 0
    assert found.images[0] == int((a[:, 0] > 0).sum())


def test_latents_of_alike_images_score_one_and_careless_ones_as_all_pairs():
    groups = torch.eye(4, dtype=torch.float64)[torch.arange(80) % 4]
    a = torch.stack([groups[:, 0], torch.ones(80, dtype=torch.float64) + 1e-3 * random(80)], 1)
    found = monosemanticity(a, groups)
    assert found.score[0] == pytest.approx(1)
    assert found.score[1] == pytest.approx(found.all_pairs, abs=0.05)
    assert found.all_pairs == pytest.approx(19 / 79)


def test_one_active_image_makes_no_pair():
    a = torch.zeros(10, 1)
    a[3] = 5.0
    assert np.isnan(monosemanticity(a, random(10, 3)).score[0])


def test_monosemanticity_refuses_bad_input():
    with pytest.raises(ShapeMismatch, match="of the same images"):
        monosemanticity(torch.ones(4, 2), torch.ones(3, 2))
    with pytest.raises(NotFinite, match="NaN or Inf"):
        monosemanticity(torch.full((4, 2), torch.nan), torch.ones(4, 2))
    with pytest.raises(BadData, match="embedding of image 0 of a batch is zero"):
        monosemanticity(torch.ones(4, 2), torch.zeros(4, 2))
    with pytest.raises(BadData, match="at least two are needed"):
        monosemanticity(torch.ones(1, 2), torch.ones(1, 2))


# -- stability -------------------------------------------------------------------------------------------------------


def started(seed, n=24, rows=None):
    rows = random(200, 16) if rows is None else rows
    return sae.start(sae.TopK(n_latents=n, k=2, data_init=0.0), {"site": rows}, seed=seed)


def permuted(d, noise=0.0):
    import copy

    other = copy.deepcopy(d)
    order = torch.randperm(d.n_latents, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        moved = d.W_dec[order] + noise * random(*d.W_dec.shape, seed=2).to(d.W_dec)
        other.W_dec.copy_(moved / moved.norm(dim=1, keepdim=True))
    return other, order


@pytest.mark.parametrize("large", [4096, 2])
def test_a_permuted_dictionary_is_found_again_and_another_seed_is_not(large):
    d = started(0)
    again, order = permuted(d, noise=0.02)
    cosine, partner, mutual = matched(d.directions, again.directions, large=large)
    assert mutual.all() and (cosine > 0.97).all()
    np.testing.assert_array_equal(order[partner].numpy(), np.arange(24))
    table = stability({"a": d, "again": again, "other": started(1)}, large=large).table
    row = {(r["first"], r["second"]): r for r in table.iter_rows(named=True)}
    assert row["a", "again"]["same"] == 1 and row["a", "again"]["cosine_low"] > 0.97
    assert row["a", "other"]["cosine"] == pytest.approx(row["a", "other"]["random"], abs=0.08)
    assert row["a", "again"]["method"] == ("assignment" if large > 24 else "mutual nearest neighbours")


def test_the_assignment_is_one_to_one_and_best():
    from itertools import permutations

    a, b = random(5, 3), random(5, 3, seed=1)
    cosine, partner, _ = matched(a, b)
    unit = [t / t.norm(dim=1, keepdim=True) for t in (a, b)]
    table = (unit[0] @ unit[1].T).numpy()
    best = max(sum(table[i, p[i]] for i in range(5)) for p in permutations(range(5)))
    assert sorted(partner) == list(range(5)) and cosine.sum() == pytest.approx(best)
    fewer, partner, _ = matched(a, b[:3])
    assert np.isnan(fewer).sum() == 2 and (partner == -1).sum() == 2


def test_dead_latents_can_be_left_out_and_stability_saves(tmp_path):
    d = started(0)
    alive = np.arange(24) < 10
    found = stability({"a": d, "b": d}, alive={"a": alive, "b": alive})
    assert found.table["latents"][0] == 10
    assert Stability.load(found.save(tmp_path / "s")).table.equals(found.table)


def test_stability_refuses_bad_input():
    d = started(0)
    with pytest.raises(BadData, match="give two or more"):
        stability({"a": d})
    with pytest.raises(ShapeMismatch, match="width 16 and 8"):
        stability({"a": d, "b": started(0, rows=random(50, 8))})
    with pytest.raises(BadData, match="no latent of 'a' is alive"):
        stability({"a": d, "b": d}, alive={"a": np.zeros(24, bool)})
    with pytest.raises(ShapeMismatch, match=r"alive\['a'\] is bool"):
        stability({"a": d, "b": d}, alive={"a": np.ones(3, bool)})
    with pytest.raises(BadData, match="direction 1 is zero"):
        matched(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.eye(2))
    with pytest.raises(NotFinite, match="directions hold NaN"):
        matched(torch.full((2, 2), torch.nan), torch.eye(2))


# -- coherence -------------------------------------------------------------------------------------------------------


def test_coherence_of_known_directions():
    found = coherence(torch.eye(6))
    assert (found.coherence, found.mean_nearest) == (0, 0) and found.effective_rank == pytest.approx(6)
    twice = torch.cat([torch.eye(6), -3 * torch.eye(6)[:1], torch.zeros(1, 6)])
    found = coherence(twice)
    assert found.coherence == pytest.approx(1) and found.directions == 7
    assert coherence(torch.ones(5, 6)).effective_rank == pytest.approx(1)
    assert coherence(started(0)).directions == 24
    assert np.isnan(coherence(torch.zeros(3, 2)).coherence)
    with pytest.raises(ShapeMismatch, match=r"\[latent d\]"):
        coherence(torch.ones(3))
    with pytest.raises(NotFinite, match="NaN or Inf"):
        coherence(torch.full((2, 2), torch.inf))


def test_pieces_of_the_cosines_say_the_same(monkeypatch):
    whole = coherence(random(30, 5))
    # The package publishes the function under the name of its module.
    monkeypatch.setattr(sys.modules["sae.evaluation.coherence"], "_PIECE", 70)
    again = coherence(random(30, 5))
    assert again.coherence == pytest.approx(whole.coherence, rel=1e-12)
    assert again.mean_nearest == pytest.approx(whole.mean_nearest, rel=1e-12)


def test_sparsity_of_rows():
    one, two, flat = torch.eye(4)[:1], torch.tensor([[1.0, -1.0, 0.0, 0.0]]), torch.ones(1, 4)
    assert kappa_4(one) == 1 and kappa_4(two) == 0.5 and kappa_4(flat) == 0.25
    assert hoyer(one) == 1 and hoyer(flat) == 0 and 0 < hoyer(two) < 1
    assert torch.isnan(hoyer(torch.zeros(1, 4))) and torch.isnan(kappa_4(torch.zeros(1, 4)))
    with pytest.raises(ShapeMismatch, match="at least two latents"):
        hoyer(torch.ones(3, 1))
    np.testing.assert_allclose(energy(torch.tensor([[1.0, 0.0], [3.0, 2.0]]), 2 * torch.eye(2)), [20, 8])
    with pytest.raises(ShapeMismatch, match="codes of 2 latents, 3 directions"):
        energy(torch.ones(1, 2), torch.eye(3))


# -- patch maps ------------------------------------------------------------------------------------------------------


def loop(m, queen=False):
    """Moran's I by its definition."""
    h, w = m.shape
    z, above, count = m - m.mean(), 0.0, 0
    for i in range(h):
        for j in range(w):
            for di in (-1, 0, 1):
                for dj in (-1, 0, 1):
                    near = abs(di) + abs(dj)
                    if near and (near == 1 or queen) and 0 <= i + di < h and 0 <= j + dj < w:
                        above, count = above + z[i, j] * z[i + di, j + dj], count + 1
    return float(m.numel() / count * above / z.square().sum())


@pytest.mark.parametrize("neighbours", ["rook", "queen"])
def test_moran_is_its_definition(neighbours):
    maps = random(3, 5, 7)
    ours = moran(maps, neighbours)
    np.testing.assert_allclose(ours, [loop(m, neighbours == "queen") for m in maps], rtol=1e-10)


def test_moran_of_a_chequerboard_and_of_nothing():
    i, j = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    assert moran(((i + j) % 2).double()) == pytest.approx(-1)
    assert torch.isnan(moran(torch.full((6, 6), 3.0)))
    with pytest.raises(ShapeMismatch, match="at least two patches"):
        moran(torch.ones(1, 1))
    with pytest.raises(UnknownName, match="neighbours"):
        moran(torch.ones(2, 2), "knight")


def test_smooth_latents_are_told_from_scattered_ones():
    generator = torch.Generator().manual_seed(0)
    i, j = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    sums, images = MapSums(seed=0), 60
    for _ in range(3):
        centre = torch.rand(images // 3, 2, generator=generator) * 7
        blob = torch.exp(-((i - centre[:, 0, None, None]) ** 2 + (j - centre[:, 1, None, None]) ** 2) / 4).flatten(1)
        scattered = torch.rand(images // 3, 64, generator=generator)
        sums.add(torch.stack([blob, scattered, torch.zeros_like(blob)], 2), (8, 8))
    found = sums.found()
    assert found.moran[0] > 0.7 > 0.1 > abs(found.moran[1])
    # Where patches are shuffled, the mean is -1/(P - 1).
    assert found.shuffled[0] == pytest.approx(-1 / 63, abs=0.03)
    assert found.moran[0] > found.limit[0] and found.moran[1] < found.limit[1] + 0.03
    assert found.images.tolist() == [60, 60, 0] and np.isnan(found.moran[2])
    assert found.coherent in (0.5, 1.0)
    with pytest.raises(ShapeMismatch, match="of 8 x 8 patches"):
        sums.add(torch.zeros(1, 63, 3), (8, 8))
    with pytest.raises(BadData, match="no patch maps"):
        MapSums().found()
