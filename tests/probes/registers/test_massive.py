"""Massive activations: planted as a bias, as an accident, and as a signal; the mean tells them apart from zero."""

import numpy as np
import pytest
import torch

import mechvis
from mechvis.errors import BadData, OutOfRange, SplitOverlap
from mechvis.testing.planted.wired import WiredViT, wrapped
from probes.registers import MassiveActivations, massive_activations, massive_test

D, BIAS, SIGNAL, RARE = 12, 6, 7, 8


@pytest.fixture(scope="module")
def model():
    """CLS carries 500 in slot BIAS, which the classifier reads as a constant of 5; a patch has 400 in slot RARE where
    channel 1 says so. Slots in use otherwise are below 1."""
    vit = WiredViT(channels=2, d_model=D, n_layers=2, n_heads=1, d_head=1, d_mlp=2, n_classes=2, grid=(2, 2), cls=True,
                   activation=torch.nn.ReLU)  # fmt: skip
    with torch.no_grad():
        vit.places[:] = 0.05 * torch.rand(5, D, generator=torch.Generator().manual_seed(0)).double() + 0.05
        vit.places[0, BIAS] = 500.0
        vit.embedding[0, 0], vit.embedding[1, RARE] = 1.0, 400.0
        head = vit.head(0, 0)
        head.v[0, 0], head.o[0, 1] = 5.0, 2.0  # five tokens share the attention
        vit.readout[BIAS, 0], vit.readout[1, 1] = 0.01, 1.0
    return wrapped(vit, "planted bias")


def pixels(n, seed, rare=0.1):
    generator = torch.Generator().manual_seed(seed)
    found = torch.rand(n, 2, 2, 2, generator=generator).double()
    found[:, 1] = 0
    found[: int(rare * n), 1, 0, 0] = 1.0
    return found


def test_the_fixed_dimension_is_found_and_the_rare_one_is_not_fixed(model, tmp_path):
    found = massive_activations(model, pixels(50, 0), progress=False)
    rows = {(row["layer"], row["token"], row["dimension"]): row for row in found.table.iter_rows(named=True)}
    assert set(rows) == {(layer, *rest) for layer in (0, 1) for rest in (("cls", BIAS), ("patch", RARE))}
    bias = rows[1, "cls", BIAS]
    assert bias["fixed"] and bias["share"] == 1 and bias["value"] == pytest.approx(500, abs=1) and bias["spread"] < 1e-6
    assert bias["over_median"] > 1000 and bias["n"] == 50
    rare = rows[1, "patch", RARE]
    assert not rare["fixed"] and rare["share"] == pytest.approx(0.1) and rare["n"] == 5
    assert found.dimensions(1) == [BIAS] and found.layers() == [0, 1]
    found.save(tmp_path / "massive")
    assert MassiveActivations.load(tmp_path / "massive").dimensions(0) == [BIAS]


def test_a_bias_survives_its_mean_and_not_zero(model):
    found = massive_activations(model, pixels(50, 0), progress=False)
    tested = massive_test(model, pixels(60, 1), pixels(60, 2), found, layer=1)
    rows = {row["set_to"]: row for row in tested.table.iter_rows(named=True)}
    assert rows["mean"]["changed"] < 1e-9 and rows["mean"]["kl"] < 1e-9
    assert rows["zero"]["changed_low"] > 0.2
    assert rows["zero, random dimensions"]["changed"] < 0.05
    assert rows["zero"]["kl"] > 100 * max(rows["zero, random dimensions"]["kl"], 1e-12)


def test_a_massive_signal_does_not_survive_its_mean(model):
    """The same size, but its value says the class: then the mean is as bad as zero, and this is no bias."""
    vit = WiredViT(channels=1, d_model=D, n_layers=1, n_heads=1, d_head=1, n_classes=2, grid=(1, 1))
    with torch.no_grad():
        vit.places[:] = 0.01
        vit.embedding[0, SIGNAL] = 1000.0
        vit.readout[SIGNAL, 0] = 0.01
    signal = wrapped(vit, "planted signal")
    images = torch.cat([torch.full((30, 1, 1, 1), 0.5), torch.full((30, 1, 1, 1), -0.5)]).double()
    found = massive_activations(signal, images, progress=False)
    assert found.table["spread"][0] > 10
    tested = massive_test(signal, images, images.clone(), found, layer=0)
    rows = {row["set_to"]: row for row in tested.table.iter_rows(named=True)}
    assert rows["mean"]["changed"] > 0.4 and rows["zero"]["changed"] > 0.4


def test_bounds_of_the_detector(model):
    assert massive_activations(model, pixels(20, 0), least=600.0, progress=False).table.is_empty()
    strict = massive_activations(model, pixels(20, 0), ratio=1e6, progress=False)
    assert strict.table.is_empty() and "No value is massive" in strict.caveats[0]
    loose = massive_activations(model, pixels(20, 0), least=300.0, fixed=0.05, progress=False)
    assert RARE in loose.dimensions(0)
    with pytest.raises(OutOfRange, match=r"layers=\[5\]"):
        massive_activations(model, pixels(4, 0), layers=[5], progress=False)
    with pytest.raises(OutOfRange, match=r"fixed=2\.0"):
        massive_activations(model, pixels(4, 0), fixed=2.0, progress=False)


def test_scenes_vit_has_none_and_says_so():
    vit = mechvis.load("scenes-vit")
    images = mechvis.data.scenes(n=16, seed=1)
    found = massive_activations(vit, images, progress=False)
    assert found.table.is_empty() and found.layers() == []
    with pytest.raises(BadData, match="no fixed massive dimension after layer 2; there are some after none"):
        massive_test(vit, images, mechvis.data.scenes(n=16, seed=2), found, layer=2)


def test_bad_input(model):
    found = massive_activations(model, pixels(20, 0), progress=False)
    with pytest.raises(BadData, match="not massive in any reference image"):
        massive_test(model, pixels(10, 1), pixels(10, 2) * 0, _moved(found), layer=1)
    with pytest.raises(BadData, match="no head"):
        massive_test(mechvis.load("scenes-clip").vision, pixels(4, 1), pixels(4, 2), found, layer=1)
    vit, images = mechvis.load("scenes-vit"), mechvis.data.scenes(n=8, seed=1)
    forced = massive_activations(vit, images, least=1.0, ratio=3.0, progress=False)
    assert forced.dimensions(3), "any stream has dimensions above three medians"
    with pytest.raises(SplitOverlap, match="images that make the means"):
        massive_test(vit, images, images, forced, layer=3)
    rows = massive_test(vit, images, mechvis.data.scenes(n=8, seed=2), forced, layer=3).table
    assert set(rows["set_to"]) == {"zero", "mean", "zero, random dimensions"} and "accuracy_drop" in rows.columns


def _moved(found):
    import polars as pl

    table = found.table.with_columns(dimension=pl.lit(2, dtype=pl.Int64))
    return MassiveActivations(title="moved", tables={"activations": table}, facts=found.facts)


def test_values_by_hand(model):
    images = pixels(9, 4)
    stream = model.run(images, capture=["blocks.0.hook_resid_post"]).cache["blocks.0.hook_resid_post"].numpy()
    expected = stream[:, 0, BIAS]
    found = massive_activations(model, images, layers=[0], progress=False, batch_size=4)
    row = found.pick(layer=0, token="cls", dimension=BIAS)
    assert row["value"] == pytest.approx(expected.mean())
    medians = np.median(np.abs(stream).reshape(9, -1), axis=1)
    assert row["over_median"] == pytest.approx((np.abs(expected) / medians).mean(), rel=0.02)
