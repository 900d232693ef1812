"""The ledger: pieces cover the work once, survive damage, and belong to one job."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechvis.errors import OutputNotWritable, ResultMismatch, StoreCorrupt
from mechvis.parallel.ledger import Ledger, Piece, cut

PLAN = {"model": "abc", "data": "def", "units": ["L0H0", "L0H1"], "n": 4}
PIECE = Piece(range(0, 4), range(0, 2))
ARRAYS = {"logit": np.arange(8.0).reshape(2, 4), "clean/logit": np.ones(4, dtype=np.float32)}


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 12), st.integers(1, 12))
def test_pieces_cover_everything_once(n_images, n_units, images_each, units_each):
    count = np.zeros((n_images, n_units), int)
    pieces = cut(n_images, n_units, images_each, units_each)
    for piece in pieces:
        assert 0 < len(piece.images) <= images_each and 0 < len(piece.units) <= units_each
        count[piece.images.start : piece.images.stop, piece.units.start : piece.units.stop] += 1
    assert (count == 1).all()
    assert len({piece.name for piece in pieces}) == len(pieces)
    assert [piece.images.start for piece in pieces] == sorted(piece.images.start for piece in pieces)


def test_write_and_read(tmp_path):
    ledger = Ledger(tmp_path, PLAN)
    assert ledger.agree(4, 2) == (4, 2)
    assert ledger.read(PIECE) is None
    ledger.write(PIECE, ARRAYS)
    found = Ledger(tmp_path, PLAN).read(PIECE)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype and np.array_equal(found[name], array)
    other = Piece(range(4, 8), range(0, 2))
    assert list(ledger.finished([PIECE, other])) == [PIECE]


def test_arrays_that_are_not_contiguous(tmp_path):
    ledger = Ledger(tmp_path, PLAN)
    ledger.write(PIECE, {"logit": np.arange(8.0).reshape(4, 2).T})
    assert np.array_equal(ledger.read(PIECE)["logit"], np.arange(8.0).reshape(4, 2).T)


def test_the_first_cut_holds(tmp_path):
    assert Ledger(tmp_path, PLAN).agree(4, 2) == (4, 2)
    assert Ledger(tmp_path, PLAN).agree(9, 1) == (4, 2)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": "other"}, r"differs in: model\. model: there 'abc', now 'other'"),
        ({"data": "other"}, r"differs in: data"),
        ({"units": ["L0H0"]}, r"differs in: units"),
        ({"new": 1}, r"differs in: new\. new: there None, now 1"),
        ({"model": "x", "n": 5}, r"differs in: model, n|differs in: n, model"),
    ],
)
def test_another_job(tmp_path, change, text):
    Ledger(tmp_path, PLAN).agree(4, 2)
    with pytest.raises(ResultMismatch, match=text):
        Ledger(tmp_path, {**PLAN, **change})


def test_a_key_that_is_gone_is_a_difference(tmp_path):
    Ledger(tmp_path, PLAN).agree(4, 2)
    with pytest.raises(ResultMismatch, match="differs in: n"):
        Ledger(tmp_path, {key: value for key, value in PLAN.items() if key != "n"})


def test_equal_plans_in_other_types_are_one_job(tmp_path):
    Ledger(tmp_path, PLAN).agree(4, 2)
    Ledger(tmp_path, {**PLAN, "units": tuple(PLAN["units"]), "n": np.int64(4)})


@pytest.mark.parametrize(
    "damage", ["flipped", "short", "empty", "no check", "check is no json", "check is a list", "gone"]
)
def test_damage_is_seen(tmp_path, damage, caplog):
    ledger = Ledger(tmp_path, PLAN)
    ledger.agree(4, 2)
    ledger.write(PIECE, ARRAYS)
    path, check = tmp_path / f"{PIECE.name}.safetensors", tmp_path / f"{PIECE.name}.json"
    data = path.read_bytes()
    if damage == "flipped":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage in ("short", "empty"):
        path.write_bytes(data[:10] if damage == "short" else b"")
    elif damage == "no check":
        check.unlink()
    elif damage == "gone":
        path.unlink()
    else:
        check.write_text("{" if damage == "check is no json" else "[]")
    assert ledger.read(PIECE) is None
    ledger.write(PIECE, ARRAYS)
    assert ledger.read(PIECE) is not None


def test_a_damaged_plan_is_not_overwritten(tmp_path):
    Ledger(tmp_path, PLAN).agree(4, 2)
    (tmp_path / "plan.json").write_text("{ broken")
    with pytest.raises(StoreCorrupt, match=r"plan\.json"):
        Ledger(tmp_path, PLAN)


@pytest.mark.parametrize("bad", [None, [0, 2], [4], "4x2", [4, -1], ["a", "b"]])
def test_a_cut_that_cannot_be(tmp_path, bad):
    Ledger(tmp_path, PLAN).agree(4, 2)
    kept = json.loads((tmp_path / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps({**kept, "cut": bad}))
    with pytest.raises(StoreCorrupt, match=r"plan\.json"):
        Ledger(tmp_path, PLAN)


def test_a_plan_of_another_format(tmp_path):
    (tmp_path / "plan.json").write_text('["not", "a", "plan"]')
    with pytest.raises(StoreCorrupt, match=r"plan\.json"):
        Ledger(tmp_path, PLAN)


def test_no_temporary_file_is_left(tmp_path):
    ledger = Ledger(tmp_path, PLAN)
    ledger.agree(4, 2)
    ledger.write(PIECE, ARRAYS)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["plan.json", f"{PIECE.name}.json", f"{PIECE.name}.safetensors"]
    )


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputNotWritable):
        Ledger(tmp_path / "file", PLAN)
