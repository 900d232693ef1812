"""Copying scores: against eigenvalues of whole matrices, on heads made to copy, invert and rotate, and by chance."""

import numpy as np
import pytest
import torch

from circuits.weights import copying_scores, ov, read_out
from circuits.weights.copying import eigenvalue_ratio
from mechvis import testing
from mechvis.errors import BadData, NotFinite, OutOfRange, ShapeMismatch
from mechvis.models.load import wrap


def load(bare):
    return wrap(bare, preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="module")
def model():
    return load(testing.rand_vit())


def rows(table, on="stream"):
    return {row["unit"]: row for row in table.table.iter_rows(named=True) if row["on"] == on}


@pytest.mark.parametrize("folded", [False, True])
def test_equal_to_the_eigenvalues_of_whole_matrices(model, folded):
    out = read_out(model)
    found = copying_scores(model, out, folded=folded, draws=1)
    classes = out.directions().numpy()
    classes = classes - classes.mean(0)
    for layer, head in np.ndindex(3, 4):
        dense = ov(model, layer, head, folded=folded).AB.numpy()
        for on, matrix in (("stream", dense), ("class", classes @ dense @ classes.T)):
            values = np.linalg.eigvals(matrix)
            expected = values.sum().real / np.abs(values).sum()
            assert rows(found, on)[f"L{layer}H{head}"]["score"] == pytest.approx(expected, abs=1e-9)


def made_to(model_, layer, head, read, write):
    """The head now reads `read` `[d_model n]` and writes `write` `[n d_model]`, nothing else."""
    attention = model_.bare.vit.layers[layer].attention
    at = slice(4 * head, 4 * head + 4)
    with torch.no_grad():
        attention.v_proj.weight[at] = 0
        attention.o_proj.weight[:, at] = 0
        attention.v_proj.weight[4 * head : 4 * head + read.shape[1]] = read.T
        attention.o_proj.weight[:, 4 * head : 4 * head + len(write)] = write.T


def test_heads_that_copy_invert_rotate_and_pass_on():
    model = load(testing.rand_vit())
    frame = torch.linalg.qr(torch.randn(16, 8, generator=torch.Generator().manual_seed(0)).double())[0]
    four, others = frame[:, :4], frame[:, 4:]
    turn = torch.tensor([[0.0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 0, 1], [0, 0, -1, 0]]).double()
    made_to(model, 1, 0, four, 3 * four.T)
    made_to(model, 1, 1, four, -0.1 * four.T)
    made_to(model, 1, 2, four, turn @ four.T)
    made_to(model, 1, 3, four, others.T)
    made_to(model, 0, 0, four, 0 * others.T)
    found = rows(copying_scores(model, draws=200))
    scores = [found[f"L1H{head}"]["score"] for head in range(4)]
    assert scores == pytest.approx([1, -1, 0, 0], abs=1e-9)
    assert found["L1H0"]["p"] == pytest.approx(1 / 201) and found["L1H1"]["p"] == pytest.approx(1 / 201)
    assert found["L1H2"]["p"] > 0.9 and found["L1H3"]["p"] == 1
    assert found["L1H0"]["high"] < 0.8 and found["L1H0"]["significant"] and not found["L1H3"]["significant"]
    assert found["L0H0"]["score"] is None and found["L0H0"]["p"] is None and not found["L0H0"]["significant"]


def test_a_head_that_copies_classes_only():
    """It reads the class directions and writes them; beside that it inverts a direction that no class reads."""
    model = load(testing.rand_vit())
    out = read_out(model)
    classes = out.directions().numpy()
    frame = torch.from_numpy(np.linalg.svd(classes - classes.mean(0))[2])
    copied, other = frame[:3].T, frame[8:9].T  # eight classes span seven directions at most
    other = torch.nn.functional.normalize(other - other.mean(), dim=0)  # the norm takes the mean off
    gain = model.parts.blocks[2].ln1.weight.detach()
    read = torch.cat([copied, other], 1)
    made_to(model, 2, 1, read / gain[:, None], torch.cat([copied.T, -9 * other.T]))
    found = copying_scores(model, out, folded=True, draws=100)
    assert rows(found, "class")["L2H1"]["score"] == pytest.approx(1, abs=1e-6)
    assert rows(found)["L2H1"]["score"] == pytest.approx((3 - 9) / (3 + 9), abs=1e-6)


def test_random_heads_lie_within_chance(model):
    found = rows(copying_scores(model, draws=400))
    inside = [row["low"] <= row["score"] <= row["high"] for row in found.values()]
    assert sum(inside) >= 10 and not any(row["significant"] for row in found.values())
    assert all(-1 <= row["low"] < 0 < row["high"] <= 1 for row in found.values())


def test_seeds_decide_the_draws(model):
    one, again, other = (copying_scores(model, layers=[1], draws=20, seed=seed).table for seed in (0, 0, 1))
    assert one.equals(again) and not one["low"].equals(other["low"]) and one["score"].equals(other["score"])


def test_eigenvalue_ratio_by_hand():
    assert float(eigenvalue_ratio(np.diag([2.0, -1.0]))) == pytest.approx(1 / 3)
    assert float(eigenvalue_ratio(np.array([[0.0, 1.0], [-1.0, 0.0]]))) == pytest.approx(0)
    assert np.isnan(eigenvalue_ratio(np.array([[0.0, 1.0], [0.0, 0.0]])))
    assert np.isnan(eigenvalue_ratio(np.diag([1e-9, 1e-9]), size=1.0)), "rounding"
    with pytest.raises(ShapeMismatch, match=r"square matrix, got \[2, 3\]"):
        eigenvalue_ratio(np.zeros((2, 3)))


def test_bad_settings(model):
    with pytest.raises(OutOfRange, match="draws must be at least 1, got 0"):
        copying_scores(model, draws=0)
    with pytest.raises(OutOfRange, match="layers 0 to 2"):
        copying_scores(model, layers=[7])
    wide = read_out(load(testing.tiny("vit", hidden_size=32)))
    with pytest.raises(ShapeMismatch, match="directions of 32 entries for a stream of 16"):
        copying_scores(model, wide)
    with pytest.raises(BadData, match="copying on one class has no meaning"):
        copying_scores(model, read_out(load(testing.tiny("vit", num_labels=1))))
    bare = testing.rand_vit()
    broken = load(bare)
    with torch.no_grad():
        bare.vit.layers[2].attention.o_proj.weight[3, 3] = float("inf")
    with pytest.raises(NotFinite, match="value or output weights of layer 2"):
        copying_scores(broken)
