"""Sharing: for any number of ranks every image has one owner, and any mixture of ranks ends with the whole table."""

import os
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechvis.errors import ResultMismatch
from mechvis.parallel import World, share
from mechvis.parallel.claims import Claims
from mechvis.parallel.ledger import Ledger, Piece, cut
from mechvis.parallel.share import Share, one_saves, shared, turns

PLAN = {"model": "abc", "n": 12}
PIECES = cut(12, 4, 2, 2)


@pytest.fixture
def rank(monkeypatch):
    """Gives every thread a rank."""
    here = threading.local()
    monkeypatch.setattr(share, "world", lambda: getattr(here, "world", World()))
    return lambda number, size: setattr(here, "world", World(rank=number, size=size, local_size=size))


def arrays(piece: Piece) -> dict[str, np.ndarray]:
    return {"logit": np.add.outer(1000.0 * np.array(piece.units), np.array(piece.images))}


def work(folder, *, wait=0.0, stop=None, pieces=PIECES) -> tuple[dict, list]:
    """What a rank does: the table by piece, and which it computed."""
    ledger, found, mine = Ledger(folder, PLAN), {}, []
    ledger.agree(2, 2)
    with Claims(folder) as claims:
        rest = Share(ledger, pieces, claims, lambda piece, values: found.setdefault(piece, values))
        while (piece := rest.take()) is not None:
            if stop is not None and len(mine) == stop:
                raise KeyboardInterrupt
            mine.append(piece)
            time.sleep(wait)
            rest.done(piece, arrays(piece), wait)
            found[piece] = arrays(piece)
    return found, mine


def whole(found) -> bool:
    same = all(np.array_equal(values["logit"], arrays(piece)["logit"]) for piece, values in found.items())
    return same and set(found) == set(PIECES)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 5), st.integers(1, 6), st.integers(1, 9))
def test_every_image_has_one_owner(n_images, n_units, images_each, units_each, size):
    pieces = cut(n_images, n_units, images_each, units_each)
    owners, orders = {}, []
    for number in range(size):
        order = turns(pieces, World(rank=number, size=size, local_size=size))
        assert sorted(order, key=pieces.index) == pieces, "everybody can do everything"
        first = [p for p in order if p.images.start // images_each % size == number]
        assert order[: len(first)] == first == [p for p in pieces if p in first], "its own first, in order"
        for image in {image for piece in first for image in piece.images}:
            assert owners.setdefault(image, number) == number
        orders.append(order)
    assert set(owners) == set(range(n_images))
    counts = [list(owners.values()).count(number) for number in range(size)]
    assert max(counts) - min(counts) <= images_each


def test_one_process_keeps_the_order(tmp_path):
    found, mine = work(tmp_path)
    assert mine == PIECES and whole(found)
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".claim" or ".clock" in path.name]


@pytest.mark.parametrize("size", [2, 3, 7, 20])
def test_ranks_beside_each_other(tmp_path, rank, size):
    results, errors = [], []

    def one(number):
        rank(number, size)
        try:
            results.append(work(tmp_path, wait=0.002))
        except BaseException as error:  # shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors and len(results) == size
    assert all(whole(found) for found, _ in results)
    done = [piece for _, mine in results for piece in mine]
    assert sorted(done, key=PIECES.index) == PIECES, "each piece once"
    assert not list(tmp_path.glob("*.claim"))


def test_a_rank_whose_fellows_never_come(tmp_path, rank):
    rank(2, 5)
    found, mine = work(tmp_path)
    assert whole(found) and len(mine) == len(PIECES)


def test_stopped_and_continued_with_another_number(tmp_path, rank):
    rank(1, 3)
    with pytest.raises(KeyboardInterrupt):
        work(tmp_path, stop=5)
    rank(0, 2)
    found, mine = work(tmp_path)
    assert whole(found) and len(mine) == len(PIECES) - 5


def test_a_piece_that_never_ends_is_taken(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(share, "PATIENCE", 0.3)
    ledger = Ledger(tmp_path, PLAN)
    ledger.agree(2, 2)
    with Claims(tmp_path) as stuck:
        stuck.take(PIECES[3].name)
        found, mine = work(tmp_path)
    assert whole(found) and mine[-1] == PIECES[3]
    assert "is too slow" in caplog.text


def test_a_finished_piece_whose_claim_was_left(tmp_path):
    ledger = Ledger(tmp_path, PLAN)
    ledger.agree(2, 2)
    ledger.write(PIECES[0], arrays(PIECES[0]))
    (tmp_path / f"{PIECES[0].name}.claim").write_text("")
    found, mine = work(tmp_path)
    assert whole(found) and PIECES[0] not in mine
    assert not list(tmp_path.glob("*.claim"))


def test_first_writers_in_the_same_instant_agree(tmp_path, monkeypatch):
    """All have opened an empty folder; one cut wins, whoever asks."""
    ledgers = [Ledger(tmp_path, PLAN) for _ in range(8)]
    other = Ledger(tmp_path, {**PLAN, "model": "other"})
    start, cuts = threading.Barrier(8), []

    def propose(i):
        start.wait()
        cuts.append(ledgers[i].agree(i + 1, 8 - i))

    threads = [threading.Thread(target=propose, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cuts) == 8 and len(set(cuts)) == 1
    assert Ledger(tmp_path, PLAN).agree(99, 99) == cuts[0]
    with pytest.raises(ResultMismatch, match="differs in: model"):
        other.agree(1, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def refuse(*paths):
        raise PermissionError(1, "not here")

    monkeypatch.setattr(os, "link", refuse)
    first, second = Ledger(tmp_path, PLAN), Ledger(tmp_path, PLAN)
    assert first.agree(2, 2) == second.agree(3, 3) == (2, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_shared_work_is_kept_whoever_did_it(tmp_path, rank):
    computed, kept = [], [[] for _ in range(3)]

    def one(number):
        rank(number, 3)
        ledger = Ledger(tmp_path, PLAN)
        ledger.agree(2, 2)

        def compute(piece):
            computed.append(piece)
            time.sleep(0.002)
            return arrays(piece)

        def keep(piece, found):
            assert np.array_equal(found["logit"], arrays(piece)["logit"])
            kept[number].append(piece)

        shared(ledger, PIECES, compute, keep)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(computed, key=PIECES.index) == PIECES, "each once"
    assert all(sorted(mine, key=PIECES.index) == PIECES for mine in kept), "everybody has all"


@pytest.mark.parametrize("where", ["pieces", "rounds/03", "pieces/00000007"])
def test_one_saves(tmp_path, rank, where):
    (tmp_path / where).mkdir(parents=True)
    (tmp_path / where / f"{PIECES[0].name}.json").write_text("{}")
    saved, busy = [], []

    def save():
        assert not busy
        busy.append(1)
        time.sleep(0.02)
        (tmp_path / "result.json").write_text("{}")
        saved.append(1)
        busy.clear()

    def one(number):
        rank(number, 4)
        one_saves(tmp_path, save)
        assert (tmp_path / "result.json").exists()

    threads = [threading.Thread(target=one, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(saved) == 1
    os.utime(tmp_path / "result.json", (1, 1))  # of an earlier run: a piece is newer
    one(3)
    assert len(saved) == 2
    rank(0, 1)
    one_saves(tmp_path, save)
    assert len(saved) == 3, "alone it is always written"
    assert not list(tmp_path.rglob("*.claim"))


def test_one_saves_looks_for_the_manifest_it_is_told(tmp_path, rank):
    rank(0, 2)
    (tmp_path / "scores").mkdir()
    (tmp_path / "result.json").write_text("{}")
    saved = []
    one_saves(tmp_path, lambda: saved.append((tmp_path / "study.json").write_text("{}")), "study.json")
    one_saves(tmp_path, lambda: saved.append(None), "study.json")
    assert len(saved) == 1
