"""Numbers and words into a page and back: exact where it says so, within the stated error where it rounds."""

import json

import numpy as np
import pytest

from mechvis.errors import NotFinite, ShapeMismatch
from mechvis.explorer.packing import Chunks, json_block, shares, short, signed, unpacked, values_of, weights_of


def test_chunks_come_back_byte_for_byte():
    generator = np.random.default_rng(0)
    parts = [generator.integers(0, 256, n).astype(np.uint8).tobytes() for n in (0, 1, 5000)] + [b"\0" * 999]
    chunks = Chunks()
    assert [chunks.add(part) for part in parts] == [0, 1, 2, 3]
    assert [chunks.bytes_of(i) for i in range(4)] == parts == [unpacked(line) for line in chunks.lines]
    assert len(chunks.lines[3]) < 60, "what repeats costs little"
    assert chunks.size == len("\n".join(chunks.lines)) + 1


def test_attention_is_off_by_less_than_it_says():
    weights = np.random.default_rng(1).dirichlet(np.full(50, 0.1), (3, 4))
    found, largest = shares(weights)
    assert found.dtype == np.uint8 and largest.dtype == np.uint16 and (found.max(-1) == 255).all()
    bound = weights.max(-1, keepdims=True) / 510 + 1 / 131070 + 1e-12
    assert (np.abs(weights_of(found, largest) - weights) <= bound).all()
    assert np.abs(weights_of(found, largest) - weights).max() > 1e-7, "the bound is not idle"
    assert (weights_of(*shares(np.zeros((2, 3)))) == 0).all()


@pytest.mark.parametrize(("bad", "error", "text"), [
    ([0.5, np.nan], NotFinite, "NaN"), ([0.5, -0.1], ShapeMismatch, "lie in 0 to 1"),
    ([2.0, 0.1], ShapeMismatch, "got 0.1 to 2"),
])  # fmt: skip
def test_what_is_no_attention_is_refused(bad, error, text):
    with pytest.raises(error, match=text):
        shares(np.array(bad))


def test_signed_maps_keep_signs_and_small_values():
    maps = np.random.default_rng(2).normal(size=(5, 64)) * 10.0 ** np.arange(-3, 2)[:, None]
    maps[0, 0] = 1e-9
    found, size = signed(maps)
    again = values_of(found, size)
    assert (np.sign(again) == np.sign(maps)).all()
    assert (np.abs(again - maps) <= size[:, None] / 127 + 1e-12).all()
    assert np.abs(again - maps)[maps != 1e-9].max() <= size.max() / 250
    with pytest.raises(NotFinite, match="maps hold NaN"):
        signed(np.array([np.inf, 0.0]))


def test_json_cannot_leave_its_block():
    value = {
        "</script>": ["<!--", "&lt;", "\u2028", "\u202e", "\ud800", "é"],
        "n": [np.float32(0.1234567), np.nan, np.int8(3), None, True],
    }
    text = json_block(value)
    assert text.isascii() and not set(text) & set("<>&\n")
    found = json.loads(text)
    assert found["</script>"] == [
        "<!--",
        "&lt;",
        "\u2028",
        "\N{REPLACEMENT CHARACTER}",
        "\N{REPLACEMENT CHARACTER}",
        "é",
    ]
    assert found["n"] == [0.12346, None, 3, None, True]
    assert short(np.arange(3.0)) == [0, 1, 2]
