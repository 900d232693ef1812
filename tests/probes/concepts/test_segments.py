"""Segments, ACE, and sparse concepts of an MLP's neurons."""

import numpy as np
import pytest
import torch

import mechvis
from mechvis import testing
from mechvis.errors import BadData, OutOfRange, ShapeMismatch, SplitOverlap, UnknownName
from probes.concepts import ace, groups, matched, mlp_concepts, writes
from probes.concepts.ace import ACE, _clusters
from probes.concepts.mlp import MLPConcepts
from probes.concepts.segments import cut_out, grid_segments, segments_of, superpixels
from probes.concepts.tail import pixels_of


@pytest.fixture(scope="module")
def model():
    return mechvis.load("scenes-vit")


# segments


def test_superpixels_follow_colours_and_a_grid_does_not():
    image = np.zeros((24, 24, 3))
    down, across = np.meshgrid(np.arange(24), np.arange(24), indexing="ij")
    disc = (down - 11) ** 2 + (across - 13) ** 2 < 49
    image[disc] = [1.0, 0.2, 0.1]
    found = superpixels(image, 16)
    assert found.shape == (24, 24) and len(np.unique(found)) <= 16

    def purity(labels):
        return np.mean([max(disc[labels == i].mean(), 1 - disc[labels == i].mean()) for i in labels.ravel()[::5]])

    assert purity(found) > 0.97 > purity(grid_segments((24, 24), 16)) + 0.02
    wide = superpixels(image, 16, compactness=50.0)
    assert purity(wide) < purity(found), "only place counts: the control"


def test_grid_cells_are_equal():
    labels = grid_segments((12, 12), 9)
    assert np.bincount(labels.ravel()).tolist() == [16] * 9
    assert len(np.unique(grid_segments((64, 64), 50))) == 49


def test_a_piece_is_its_pixels_enlarged_on_a_ground():
    pixels = torch.ones(3, 8, 8)
    labels = np.zeros((8, 8), int)
    labels[2:4, 2:6] = 1
    labels[3, 5] = 0
    pieces, masks = cut_out(pixels, labels, fill=-1.0)
    assert len(pieces) == 2 and pieces.shape[1:] == (3, 8, 8)
    assert masks[1].sum() == 7
    assert pieces[1, 0, 0, 0] == 1 and pieces[1, 0, 7, 7] == -1, "the corner that is not in it is filled"
    stays, _ = cut_out(pixels, labels, fill=-1.0, enlarge=False)
    assert ((stays[1, 0] == 1).numpy() == masks[1]).all(), "in its place and size"
    few, _ = cut_out(pixels, labels, least=10)
    assert len(few) == 1
    none, _ = cut_out(pixels, labels, least=100)
    assert none.shape == (0, 3, 8, 8)


def test_near_copies_are_left_out():
    pixels, colours = torch.rand(3, 16, 16), np.random.default_rng(0).random((16, 16, 3))
    once, _ = segments_of(pixels, colours, "grid", (4,))
    twice, _ = segments_of(pixels, colours, "grid", (4, 4))
    both, masks = segments_of(pixels, colours, "grid", (4, 16))
    assert len(once) == len(twice) == 4 and len(both) == len(masks) == 20


def test_segments_refuse_what_does_not_fit():
    with pytest.raises(UnknownName, match="superpixels"):
        segments_of(torch.zeros(3, 8, 8), np.zeros((8, 8, 3)), "slic")
    with pytest.raises(ShapeMismatch, match="colours"):
        superpixels(np.zeros((8, 8)), 2)
    with pytest.raises(OutOfRange, match="100 pieces of 64"):
        superpixels(np.zeros((8, 8, 3)), 100)
    with pytest.raises(OutOfRange, match="0 pieces"):
        grid_segments((8, 8), 0)
    with pytest.raises(ShapeMismatch, match=r"labels \[4, 4\]"):
        cut_out(torch.zeros(3, 8, 8), np.zeros((4, 4), int))


# ACE


def test_ace_finds_and_tests_clusters(model, tmp_path):
    images = mechvis.data.scenes(120, seed=21, correlation=0.8)
    found = ace(
        model, images, mechvis.data.scenes(30, seed=22), "star", how="grid", sizes=(4, 16), n_clusters=5, keep=24,
        runs=4, least_images=0.2, progress=False,
    )  # fmt: skip
    table = found.table
    assert 1 <= len(table) <= 5 and table["score"].is_sorted(descending=True)
    assert (table["segments"] <= 24).all() and (table["of_images"] > 0).all()
    assert table["object"].min() < 0.3 < table["object"].max() or len(table) < 3
    assert (table["p_adjusted"] >= table["p"]).all() and found.facts["segments"] > 50
    again = ACE.load(found.save(tmp_path / "found"))
    assert again.table.equals(table) and len(again.figures()) == 1
    assert found.arrays["pictures"].shape[0] == len(table) and found.arrays["pictures"].dtype == np.uint8


def test_clusters_of_known_kinds_and_one_that_is_rare():
    generator = np.random.default_rng(0)
    kinds = np.repeat(np.arange(4), [60, 50, 40, 30])
    owner = np.concatenate([generator.integers(0, 20, 150), np.zeros(30, int)])  # the last kind is in one image only
    middle = 5 * generator.normal(size=(4, 10))
    rows = middle[kinds] + 0.1 * generator.normal(size=(180, 10))
    middles, nearest = _clusters(rows, owner, 20, 4, 24, 0.25, 0)
    assert len(middles) == 3 and sorted(matched(np.array(middles), middle[:3])[0].tolist()) == [0, 1, 2]
    for own in nearest:
        assert len(own) == 24 and len(set(kinds[own])) == 1 and kinds[own[0]] != 3
    far = [np.linalg.norm(rows[own] - centre, axis=1) for own, centre in zip(nearest, middles, strict=True)]
    assert all((np.diff(each) >= 0).all() for each in far), "the nearest first"


def test_ace_refuses_what_makes_no_sense(model):
    images, other = mechvis.data.scenes(40, seed=21), mechvis.data.scenes(10, seed=22)
    with pytest.raises(SplitOverlap, match="random ones"):
        ace(model, images, images[:5], "star", progress=False)
    with pytest.raises(OutOfRange, match="keep=3"):
        ace(model, images, other, "star", keep=3, progress=False)
    with pytest.raises(BadData, match="cannot make 500 clusters"):
        ace(model, images, other, "star", how="grid", sizes=(4,), n_clusters=500, progress=False)
    with pytest.raises(BadData, match="ask for fewer clusters or runs"):
        ace(model, images, other, "star", how="grid", sizes=(4,), n_clusters=6, least_images=0.99, progress=False)


# neurons


@pytest.mark.parametrize("family", ["vit", "dinov2"])
def test_what_neurons_write_is_what_the_mlp_writes(family):
    """One neuron more by one at one token changes the MLP's write by its row, exactly; with LayerScale inside."""
    model = mechvis.load(testing.tiny(family, dtype=torch.float64), preprocess=testing.tiny_preprocess())
    pattern = np.zeros((model.parts.blocks[1].d_mlp, 2))
    pattern[3, 0], pattern[[5, 9], 1] = 1.0, [2.0, -1.0]
    written = writes(model, 1, pattern)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, model.parts.channels, *model.parts.image_size, generator=generator, dtype=model.dtype)
    before = model.run(pixels, capture=["blocks.1.hook_mlp_out"]).cache["blocks.1.hook_mlp_out"]
    for i, column in enumerate(pattern.T):
        more = torch.from_numpy(column)
        edit = mechvis.edits.add("blocks.1.mlp.hook_post", more, tokens=[2])
        after = model.run(pixels, [edit], capture=["blocks.1.hook_mlp_out"]).cache["blocks.1.hook_mlp_out"]
        moved = (after - before).numpy()
        np.testing.assert_allclose(moved[:, 2], np.tile(written[i], (2, 1)), atol=1e-10)
        assert np.abs(np.delete(moved, 2, axis=1)).max() < 1e-10


def test_mlp_concepts_of_scenes(model, tmp_path):
    images = mechvis.data.scenes(60, seed=21)
    found = mlp_concepts(model, images, 2, 8, progress=False)
    table = found.table
    assert (np.count_nonzero(found.arrays["neurons"], axis=0) <= 3).all(), "1 % of 256 neurons"
    assert table["share"].is_sorted(descending=True) and table["share"].sum() == pytest.approx(1)
    assert found.arrays["maps"].shape == (30, 8, 8, 8) and (found.arrays["maps"] >= 0).all()
    np.testing.assert_allclose(found.arrays["writes"], writes(model, 2, found.arrays["neurons"]))
    assert set(table["what"]) <= {"object", "background", "neither"} and (table["what"] == "background").any()
    assert (table["n"] == 15).all(), "the class is chosen on the other half of the measured images"
    again = MLPConcepts.load(found.save(tmp_path / "found"))
    np.testing.assert_array_equal(again.arrays["neurons"], found.arrays["neurons"])
    assert again.report(tmp_path / "report.html").exists()


def test_the_effect_is_that_of_adding_the_write(model):
    from probes.concepts.coding import nonnegative_code

    images = mechvis.data.scenes(12, seed=21)
    found = mlp_concepts(model, images, 1, 3, progress=False)
    order = np.sort(np.random.default_rng(0).permutation(12)[6:])
    pixels = pixels_of(model, images[order])
    run = model.run(pixels, capture=["blocks.1.mlp.hook_post"])
    neurons = run.cache["blocks.1.mlp.hook_post"][:, 1:].double().numpy()
    codes = nonnegative_code(neurons.reshape(-1, 256), found.arrays["neurons"].T).reshape(6, 64, 3)
    row = found.table.row(0, named=True)
    pattern = torch.zeros(6, 65, 256)
    pattern[:, 1:] = torch.from_numpy(codes[..., :1] * found.arrays["neurons"][:, 0]).float()
    after = model.run(pixels, [mechvis.edits.call("blocks.1.mlp.hook_post", lambda x: x + pattern)]).output
    moved = (after - run.output).double()
    moved = moved - moved.mean(1, keepdim=True)
    assert row["effect"] == pytest.approx(float(moved[1::2, class_number(model, row)].mean()), abs=1e-4)


def class_number(model, row):
    return model.parts.class_names.index(row["speaks_for"])


def test_planted_neurons_come_back_through_the_whole_path():
    """A toy whose MLP holds known groups of neurons is F2's business; here the hierarchy: groups of groups."""
    generator = np.random.default_rng(0)
    parents = np.zeros((40, 3))
    for i in range(3):
        parents[10 * i : 10 * i + 6, i] = 1
    member = np.repeat(np.arange(3), 4)
    concepts = parents[:, member] + 0.05 * generator.random((40, 12))
    found = groups(concepts, 3)
    assert matched(found.directions.T, parents.T)[1] > 0.95
    own = found.amounts.argmax(1)
    assert all(len(set(own[member == i])) == 1 for i in range(3)) and len(set(own)) == 3
    with pytest.raises(OutOfRange, match="12 groups of 12"):
        groups(concepts, 12)


def test_mlp_concepts_refuse_what_makes_no_sense(model):
    images = mechvis.data.scenes(8, seed=21)
    with pytest.raises(OutOfRange, match="layer 4"):
        mlp_concepts(model, images, 4, 3)
    with pytest.raises(BadData, match="some are needed to fit"):
        mlp_concepts(model, images[:2], 1, 3)
