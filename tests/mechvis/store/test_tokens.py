"""Which tokens become rows: the grammar, and that types come from the model's own map."""

import numpy as np
import pytest

import mechvis
from mechvis.errors import BadData, OutOfRange, UnknownName
from mechvis.store.tokens import WHOLE_IMAGE, canonical, select, type_names
from mechvis.testing import tiny, tiny_input, tiny_preprocess

REGISTERS = ("cls", "register0", "register1")


def tokens(words, prefix=("cls",), n=10, **more):
    return select(words, prefix=prefix, n_tokens=n, **more)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("all", range(10)),
        ("patches", range(3, 10)),
        ("cls", [0]),
        ("registers", [1, 2]),
        ("prefix", [0, 1, 2]),
        ("register1", [2]),
        ("registers,cls", [0, 1, 2]),
        ("cls, patches", [0, *range(3, 10)]),
        ("patches:7", range(3, 10)),
    ],
)
def test_types(words, expected):
    chosen = tokens(words, REGISTERS)
    assert chosen.fixed.tolist() == list(expected) and chosen.per_image == len(expected)
    assert chosen.of(np.array([4, 2])).tolist() == [list(expected)] * 2


def test_drawn_tokens():
    chosen = tokens("cls,patches:4", REGISTERS, seed=3)
    assert chosen.fixed is None and chosen.per_image == 5
    drawn = chosen.of(np.arange(400))
    assert (drawn[:, 0] == 0).all() and drawn[:, 1:].min() == 3 and drawn.max() == 9
    assert (np.diff(drawn, axis=1) > 0).all(), "ascending, none twice"
    assert np.array_equal(drawn[[7, 3]], chosen.of(np.array([7, 3])))
    both = tokens("prefix:2,patches:2", REGISTERS).of(np.arange(300))
    assert set(both[:, :2].ravel()) == {0, 1, 2} and both[:, 2:].min() == 3


@pytest.mark.parametrize(("given", "same"), [(16, "all:16"), ("16", "all:16"), (" cls , patches:4 ", "cls,patches:4")])
def test_one_spelling(given, same):
    assert canonical(given) == same


@pytest.mark.parametrize(
    ("words", "error", "text"),
    [
        ("patch", UnknownName, "unknown type of token 'patch'. Nearest: patches"),
        ("cls,all", BadData, "names token 0 twice"),
        ("patches:10", OutOfRange, "10 of patches, and an image has 9"),
        ("patches:0", BadData, "is no selection of tokens"),
        ("patches:", BadData, "is no selection of tokens"),
        ("", BadData, "is no selection of tokens"),
        (-3, UnknownName, "unknown type of token '-3'"),
        (True, BadData, "is no selection of tokens"),
        ("registers", BadData, r"this model has no such token; its prefix is \['cls'\]"),
    ],
)
def test_refused(words, error, text):
    with pytest.raises(error, match=text):
        tokens(words)


def test_no_index_is_cut_to_16_bits():
    with pytest.raises(OutOfRange, match="at most 32768"):
        tokens("all", n=40_000)


def test_names_of_types():
    assert type_names(np.array([0, 1, 2, 3, 9, -1]), REGISTERS).tolist() == [*REGISTERS, "patch", "patch", "image"]
    assert WHOLE_IMAGE.of(np.arange(3)).tolist() == [[-1]] * 3


def test_registers_are_where_the_family_says(tmp_path):
    """Published dictionaries were trained on the wrong tokens because somebody remembered another layout."""
    model = mechvis.load(tiny("dinov2-registers"), preprocess=tiny_preprocess())
    pixels = tiny_input("dinov2-registers", n=2)
    site = "blocks.1.hook_resid_post"
    store = mechvis.harvest(model, pixels, site, out=tmp_path / "acts", tokens="registers", progress=False)
    prefix = model.parts.prefix
    expected = [i for i, name in enumerate(prefix) if name.startswith("register")]
    assert len(expected) > 1 and expected[0] == 1
    assert store[site].of_images([0, 1]).equal(model.run(pixels, capture=site).cache[site][:, expected])
    image, token = store[site].where(slice(None))
    assert store.types(token).tolist() == [prefix[i] for i in expected] * 2 and image.tolist()[:: len(expected)] == [
        0,
        1,
    ]
