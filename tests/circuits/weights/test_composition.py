"""Composition scores: against dense numpy and transformer_lens, on a planted path, and on random weights."""

import copy

import numpy as np
import pytest
import torch
from transformer_lens.utilities import composition_scores

from circuits.weights import composition, ov, qk
from circuits.weights.chance import by_chance, frames, shares
from mechvis import testing
from mechvis.errors import BadData, NotFinite, OutOfRange, RefusedMethod, UnknownName
from mechvis.models.load import wrap

KINDS = ("q", "k", "v")


def load(bare):
    return wrap(bare, preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="module")
def model():
    return load(testing.rand_vit())


@pytest.fixture(scope="module")
def found(model):
    return composition(model)


def cube(table, kind, value="score", layers=3, heads=4):
    array = np.full((layers, heads, layers, heads), np.nan)
    for row in table.table.iter_rows(named=True):
        if row["kind"] == kind:
            array[row["source_layer"], row["source_head"], row["layer"], row["head"]] = row[value]
    return array


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_products_of_whole_matrices(model, kind, folded):
    scores = cube(composition(model, kinds=kind, folded=folded), kind)
    for second in range(3):
        for first in range(second):
            for h, g in np.ndindex(4, 4):
                writer = ov(model, first, h, folded=folded).AB.numpy()
                reader = (ov if kind == "v" else qk)(model, second, g, folded=folded).AB.numpy()
                reader = reader.T if kind == "k" else reader
                dense = np.linalg.norm(writer @ reader) / np.linalg.norm(writer) / np.linalg.norm(reader)
                assert scores[first, h, second, g] == pytest.approx(dense, abs=1e-12)
    assert np.isnan(scores[1, :, 1]).all() and np.isnan(scores[2, :, 0]).all(), "later heads write for earlier ones"


@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_the_function_of_transformer_lens(model, found, kind):
    def stacked(circuits):
        from transformer_lens import FactoredMatrix

        return FactoredMatrix(torch.stack([c.A for c in circuits]), torch.stack([c.B for c in circuits]))

    left = stacked([ov(model, layer) for layer in range(3)])
    right = left if kind == "v" else stacked([qk(model, layer) for layer in range(3)])
    theirs = composition_scores(left, right.T if kind == "k" else right).numpy()
    ours = cube(found, kind)
    seen = ~np.isnan(ours)
    assert seen.sum() == 3 * 16
    np.testing.assert_allclose(ours[seen], theirs[seen], atol=1e-12)


def test_equal_to_all_composition_scores_of_a_transformer_lens_bridge(tmp_path):
    from transformer_lens.model_bridge import TransformerBridge

    bare = testing.tiny("vit")
    bare.config.architectures = [type(bare).__name__]
    bare.config.save_pretrained(tmp_path)
    testing.tiny_preprocess().processor.save_pretrained(tmp_path)
    bridge = TransformerBridge.boot_transformers(str(tmp_path), hf_model=copy.deepcopy(bare), device="cpu")
    mine = composition(load(bare))
    seen_pairs = 0
    for kind in KINDS:
        theirs = bridge.all_composition_scores(kind.upper()).scores.detach().numpy()
        ours = cube(mine, kind)
        seen = ~np.isnan(ours)
        np.testing.assert_allclose(ours[seen], theirs[seen], atol=1e-5)
        seen_pairs += seen.sum()
    assert seen_pairs == 3 * 48


# chance


@pytest.mark.parametrize("ranks", [(1, 1), (1, 4), (3, 5), (6, 6), (12, 12)])
def test_moments_of_random_directions(ranks):
    """Against random orthogonal matrices: mean of score^2 is 1/d for any singular values, and the spread fits."""
    d, draws = 12, 20_000
    generator = np.random.default_rng(1)
    p, q = (shares(generator.random(rank) + 0.05) for rank in ranks)
    blocks = frames(d, *ranks, draws, seed=2)
    squares = np.einsum("i,nij,j->n", p, blocks**2, q)
    chance = by_chance(p, q, d)
    assert squares.mean() == pytest.approx(1 / d, rel=0.03)
    assert np.sqrt(squares).mean() == pytest.approx(float(chance.mean), rel=0.01)
    assert np.sqrt(squares).std() == pytest.approx(float(chance.sd), rel=0.05, abs=1e-6)


def test_p_values_of_random_directions_are_uniform():
    d, draws = 16, 4000
    generator = np.random.default_rng(3)
    p, q = shares(generator.random(4)), shares(generator.random(4))
    scores = np.sqrt(np.einsum("i,nij,j->n", p, frames(d, 4, 4, draws, seed=4) ** 2, q))
    ps = by_chance(p, q, d).p(scores)
    for level in (0.5, 0.1, 0.01):
        assert (ps <= level).mean() == pytest.approx(level, abs=3 * np.sqrt(level / draws) + 0.15 * level)


def test_rank_one_is_the_cosine_of_two_random_directions():
    from scipy.stats import beta

    chance = by_chance(np.ones(1), np.ones(1), 50)
    assert (float(chance.a), float(chance.b)) == pytest.approx((0.5, 24.5))
    assert chance.p(np.array(0.3)) == pytest.approx(beta.sf(0.09, 0.5, 24.5), rel=1e-12)
    assert float(chance.p(np.array(0.999999))) > 0, "no floor and no rounding to zero"


def test_orthogonal_matrices_leave_no_freedom():
    full = np.full(8, 1 / 8)
    chance = by_chance(full, full, 8)
    assert float(chance.sd) == 0 and float(chance.mean) == pytest.approx(8**-0.5)
    assert chance.p(np.array(8**-0.5)) == 1 and chance.z(np.array(8**-0.5)) == 0
    with pytest.raises(OutOfRange, match="d_model of at least 2"):
        by_chance(full, full, 1)
    with pytest.raises(OutOfRange, match="at least one, at most d"):
        frames(4, 5, 1, 3, 0)


def test_random_weights_score_as_chance_says(found):
    table = found.table
    for kind in KINDS:
        rows = table.filter(table["kind"] == kind)
        assert abs(rows["z"].mean()) < 3 / np.sqrt(rows.height), kind
        assert not rows["significant"].any()
        assert rows["chance"].is_between(0.8 * 16**-0.5, 16**-0.5).all()


# a planted path


def planted(kind, seed=0):
    """A random model in which head (0, 1) writes what head (2, 3) reads by one input: the same three directions."""
    bare = testing.tiny("vit", dtype=torch.float64, seed=seed, hidden_size=64, intermediate_size=32)
    first, second = bare.vit.layers[0].attention, bare.vit.layers[2].attention
    width = bare.config.hidden_size // 4
    generator = torch.Generator().manual_seed(7)
    frame = torch.linalg.qr(torch.randn(64, 3, generator=generator).double())[0]
    with torch.no_grad():
        mix = torch.randn(3, width, generator=generator).double()
        first.o_proj.weight[:, width : 2 * width] = frame @ mix
        reader = {"q": second.q_proj, "k": second.k_proj, "v": second.v_proj}[kind]
        reader.weight[3 * width :] = mix.T @ frame.T
    return load(bare)


@pytest.mark.parametrize("kind", KINDS)
def test_the_planted_path_is_found_and_no_other(kind):
    found = composition(planted(kind))
    first = found.top(1, by="z")
    assert first["unit"].to_list() == [f"L0H1->L2H3.{kind}"]
    significant = found.table.filter(found.table["significant"])["unit"].to_list()
    assert f"L0H1->L2H3.{kind}" in significant and len(significant) <= 2, "one in twenty discoveries may be false"
    assert first["excess"][0] > 0.2 and first["z"][0] > 8 and first["z"][0] > 2 * found.top(2, by="z")["z"][1]


def test_inert_heads_have_no_score():
    found = composition(testing.shortcut_vit(), kinds=("v",))
    rows = {row["unit"]: row for row in found.table.iter_rows(named=True)}
    assert rows["L0H1->L1H0.v"]["score"] is None and rows["L0H1->L1H0.v"]["p"] is None
    assert not rows["L0H1->L1H0.v"]["significant"]
    # Head (0, 0) promotes the evidence that (1, 0) and (1, 1) pass on, and nothing else does: three directions of 14.
    assert rows["L0H0->L1H0.v"]["score"] == pytest.approx(3**-0.5)
    assert rows["L0H0->L1H1.v"]["z"] > 5


# bad input


def test_rotary_models_have_value_composition_only():
    model = load(testing.tiny("dinov3"))
    assert composition(model, kinds=("v",)).table.height == 48
    with pytest.raises(RefusedMethod, match="rotary"):
        composition(model)


def test_bad_settings(model):
    with pytest.raises(UnknownName, match=r"unknown kind of composition 'o'.*Valid: q, k, v"):
        composition(model, kinds=("q", "o"))
    with pytest.raises(BadData, match=r"heads of two layers, got kinds \['v'\] and layers \[1\]"):
        composition(model, kinds="v", layers=[1])
    with pytest.raises(OutOfRange, match="layers 0 to 2"):
        composition(model, layers=[0, 5])
    with pytest.raises(UnknownName, match="unknown value of 'kind' 'x'"):
        composition(model, kinds="v").top(3, kind="x")


def test_weights_with_nan_say_where():
    bare = testing.rand_vit()
    model = load(bare)
    with torch.no_grad():
        bare.vit.layers[1].attention.o_proj.weight[0, 0] = float("nan")
    with pytest.raises(NotFinite, match="NaN or Inf in the weights of layer 1"):
        composition(model)


def test_the_model_is_left_as_it_was(model):
    with testing.assert_untouched(model):
        composition(model, folded=True)
