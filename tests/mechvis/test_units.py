"""Units: which there are, how they are called, which edit they are."""

import pytest

import mechvis
from mechvis import testing
from mechvis.errors import BadData, OutOfRange, UnknownName
from mechvis.units import KINDS, Unit, head_units, units_of


@pytest.fixture(scope="module")
def model():
    return mechvis.load(testing.tiny("vit"), preprocess=testing.tiny_preprocess())


@pytest.mark.parametrize(
    ("kind", "count"), [("heads", 12), ("result", 12), ("attn_out", 3), ("mlp_out", 3), ("neurons", 96), ("tokens", 30)]
)
def test_all_units_of_a_kind(model, kind, count):
    units = units_of(model, kind)
    assert len(units) == len(set(units)) == count
    assert units == sorted(units)
    assert {unit.site for unit in units} <= set(model.graph.names)


@pytest.mark.parametrize(
    ("unit", "name", "row"),
    [
        (Unit(3, "heads", 1), "L3H1", {"unit": "L3H1", "layer": 3, "head": 1}),
        (Unit(0, "result", 2), "L0H2", {"unit": "L0H2", "layer": 0, "head": 2}),
        (Unit(1, "neurons", 17), "L1 neuron 17", {"unit": "L1 neuron 17", "layer": 1, "neuron": 17}),
        (Unit(2, "tokens", 5), "L2 token 5", {"unit": "L2 token 5", "layer": 2, "token": 5}),
        (Unit(2, "mlp_out"), "L2 mlp_out", {"unit": "L2 mlp_out", "layer": 2}),
    ],
)
def test_names(unit, name, row):
    assert unit.name == name
    assert unit.row() == row


def test_layers(model):
    assert [unit.layer for unit in units_of(model, "attn_out", [2, 0, 2])] == [0, 2]
    assert [unit.layer for unit in units_of(model, "attn_out", [-1])] == [2]
    with pytest.raises(OutOfRange, match="layer 3 does not exist: this model has layers 0 to 2"):
        units_of(model, "heads", [3])


def test_lists_are_sorted_and_checked(model):
    listed = [Unit(2, "heads", 1), Unit(0, "heads", 3), Unit(1, "heads", 0)]
    assert units_of(model, listed) == [listed[1], listed[2], listed[0]]
    assert units_of(model, listed, layers=[0, 1]) == [listed[1], listed[2]]
    assert head_units([(2, 1), (0, 3)]) == [Unit(2, "heads", 1), Unit(0, "heads", 3)]
    mixed = [Unit(1, "mlp_out"), Unit(1, "heads", 2), Unit(0, "tokens", 9)]
    assert [unit.layer for unit in units_of(model, mixed)] == [0, 1, 1]


@pytest.mark.parametrize(
    "unit",
    [
        Unit(3, "heads", 0), Unit(-1, "heads", 0), Unit(0, "heads", 4), Unit(0, "heads", -1), Unit(0, "heads"),
        Unit(0, "neurons", 32), Unit(0, "tokens", 10), Unit(0, "mlp_out", 0),
    ],
)  # fmt: skip
def test_units_that_do_not_exist(model, unit):
    with pytest.raises(OutOfRange, match="does not exist"):
        units_of(model, [unit])


def test_bad_lists(model):
    with pytest.raises(UnknownName, match=r"unknown unit kind 'head'. Nearest: heads"):
        units_of(model, "head")
    with pytest.raises(UnknownName, match="unknown unit kind 'haeds'"):
        units_of(model, [Unit(0, "haeds", 1)])
    with pytest.raises(BadData, match="no units"):
        units_of(model, [])
    with pytest.raises(BadData, match="no units"):
        units_of(model, "heads", [])
    with pytest.raises(BadData, match="no units"):
        units_of(model, [Unit(0, "heads", 1)], layers=[1])
    with pytest.raises(BadData, match="listed twice"):
        units_of(model, [Unit(0, "heads", 1), Unit(0, "heads", 1)])
    with pytest.raises(BadData, match="made of Unit"):
        units_of(model, [(0, 1)])


@pytest.mark.parametrize("kind", KINDS)
def test_the_edit_of_a_unit_hits_the_unit_only(model, kind):
    import torch

    unit = units_of(model, kind, [1])[-1]
    pixels = testing.tiny_input("vit")
    clean = model.run(pixels, capture=[unit.site]).cache[unit.site]
    edited = model.run(pixels, edits=[unit.edit("zero")], capture=[unit.site]).cache[unit.site]
    expected = clean.clone()
    index = {"heads": (..., unit.index, slice(None)), "neurons": (..., unit.index), "tokens": (slice(None), unit.index)}
    expected[{**index, "result": index["heads"]}.get(kind, ...)] = 0
    assert torch.equal(edited, expected)


def test_heads_of_the_pooling(model):
    pooled = mechvis.load(testing.tiny("siglip-vision"), preprocess=testing.tiny_preprocess())
    units = units_of(pooled, "pool_heads")
    assert units == [Unit(3, "pool_heads", i) for i in range(4)]
    assert (units[1].name, units[1].site) == ("pool H1", "pool.attn.hook_z")
    assert units[1].row() == {"unit": "pool H1", "head": 1}
    assert units_of(pooled, [units[2], Unit(1, "heads", 0)]) == [Unit(1, "heads", 0), units[2]]
    with pytest.raises(BadData, match="no attention pooling"):
        units_of(model, "pool_heads")
    with pytest.raises(BadData, match="in no layer"):
        units_of(pooled, "pool_heads", [1])
    for wrong in (Unit(0, "pool_heads", 0), Unit(3, "pool_heads", 4), Unit(3, "pool_heads")):
        with pytest.raises(OutOfRange, match="heads of the pooling have layer 3"):
            units_of(pooled, [wrong])


def test_groups_of_patches(model):
    unit = Unit(1, "patches", 0, "corner", (1, 2))
    assert (unit.name, unit.site) == ("L1 corner", "blocks.1.hook_resid_pre")
    assert unit.row() == {"unit": "L1 corner", "layer": 1, "group": "corner"}
    assert unit.edit("zero").tokens == (1, 2)
    other = Unit(1, "patches", None, "edge", (3,))
    assert units_of(model, [unit, other, Unit(0, "tokens", 9)]) == [Unit(0, "tokens", 9), other, unit]
    with pytest.raises(BadData, match="needs groups="):
        units_of(model, "patches")
    with pytest.raises(BadData, match="leave it out"):
        units_of(model, "heads", groups=(2, 2))
    with pytest.raises(BadData, match="needs a name"):
        units_of(model, [Unit(0, "patches", 0, None, (1,))])
    with pytest.raises(BadData, match="needs its tokens"):
        units_of(model, [Unit(0, "patches", 0, "a")])
    for tokens in ((10,), (-1,), (1, 1)):
        with pytest.raises(OutOfRange, match="0 to 9"):
            units_of(model, [Unit(0, "patches", 0, "a", tokens)])
    with pytest.raises(BadData, match="differ from image to image"):
        Unit(0, "patches", 0, "a").edit("zero")
