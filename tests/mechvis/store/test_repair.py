"""Damage is found wherever it is, named, and made good alone, bit by bit."""

import random
import shutil

import numpy as np
import pytest
import torch

import mechvis
from mechvis.errors import ResultMismatch, StoreCorrupt
from mechvis.store.shard import checksums, tokens_of
from mechvis.testing import assert_untouched, tiny, tiny_preprocess

SITE, WIDE = "blocks.0.hook_resid_post", "blocks.1.mlp.hook_post"


@pytest.fixture
def store(whole, tmp_path):
    shutil.copytree(whole.folder, tmp_path / "acts")
    return mechvis.store.open(tmp_path / "acts")


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << random.randrange(8)
    path.write_bytes(data)


def state(store):
    return {path: (path.read_bytes(), path.stat().st_ino) for path in store.paths()}


def test_a_whole_store_is_whole(store):
    store.verify()
    assert store.damaged() == {} and store.absent() == []


@pytest.mark.parametrize("seed", range(12))
def test_a_flipped_bit_anywhere(store, model, pixels, seed):
    """In the header, the rows, the tokens or the checksums: found, and only that file is written."""
    random.seed(seed)
    before = state(store)
    path = random.choice(store.paths())
    flip(path, random.randrange(path.stat().st_size))
    (found,) = store.damaged()
    assert found == path
    with pytest.raises(StoreCorrupt, match=rf"1 file\(s\) of .*:\n  {path}: .*\n.*repair"):
        store.verify()
    with assert_untouched(model):
        assert store.repair(model, pixels) == [path]
    store.verify()
    after = state(store)
    assert {p for p in before if before[p][1] != after[p][1]} == {path}, "other files were not touched"
    assert {p: data for p, (data, _) in before.items()} == {p: data for p, (data, _) in after.items()}


def test_every_byte_of_the_rows_is_checked_when_it_is_read(store):
    """Reading alone finds it, names it, and gives no number of that block."""
    path = store.paths()[1]
    shard = next(s for s in store._disk.shards() if s.path == path)
    rows = store[shard.site.name]
    flip(path, shard.start + shard.bytes_per_row * (3 * shard.site.per_image + 2) + 5)
    assert rows.of_images(range(shard.images.start, shard.images.start + 3)).isfinite().all()
    with pytest.raises(
        StoreCorrupt, match=rf"{path} is damaged in block 3 \(images 3 to 3\): its checksum does not fit"
    ):
        rows.of_images([shard.images.start + 3])
    with pytest.raises(StoreCorrupt, match="damaged in block 3"):
        list(store.batches(shard.site.name))


def test_what_is_wrong_is_told(store):
    paths = store.paths()
    shards = {shard.path: shard for shard in store._disk.shards()}
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:-7])
    flip(paths[2], 20)
    flip(paths[5], shards[paths[5]].start + 3)
    flip(paths[6], shards[paths[6]].n_bytes - 1)
    shutil.copy(paths[8], paths[12])  # a good file in the wrong place
    told = store.damaged()
    assert list(told) == sorted(told, key=list(told).index) and len(told) == 6
    assert told[paths[0]] == "missing"
    assert told[paths[1]].startswith("has ") and "where" in told[paths[1]]
    assert "has another header" in told[paths[2]] and "has another header" in told[paths[12]]
    assert told[paths[5]] == "damaged in 1 of 8 blocks (images 8 to 8)"
    assert "damaged in 1 of 8 blocks" in told[paths[6]] or "behind the activations" in told[paths[6]]
    assert [path.name for path in store.absent()] == [paths[0].name, paths[1].name]


def test_several_sites_of_one_piece_and_a_whole_folder(store, model, pixels):
    before = state(store)
    shutil.rmtree(store.folder / "shards" / WIDE)
    flip(store.paths()[0], 600)
    done = store.repair(model, pixels)
    assert len(done) == 13 and all(WIDE in str(path) for path in done[1:])
    assert {p: d for p, (d, _) in state(store).items()} == {p: d for p, (d, _) in before.items()}


def test_nothing_is_computed_behind_the_damaged_site(store, model, pixels):
    flip(store.paths()[0], 600)
    called = []
    layers = model.bare.vit.layers
    handles = [layer.register_forward_hook(lambda *_, i=i: called.append(i)) for i, layer in enumerate(layers)]
    norms = [
        layer.layernorm_before.register_forward_hook(lambda *_, i=i: called.append(i)) for i, layer in enumerate(layers)
    ]
    try:
        store.repair(model, pixels)
    finally:
        for handle in (*handles, *norms):
            handle.remove()
    # One image to see what rows are (all sites), then the 8 images of the file, up to block 0.
    assert called.count(0) == 2 and called.count(1) == 1 and called.count(2) == 1


def test_the_table_of_images(store, model, pixels):
    table = store.folder / "images.parquet"
    whole = table.read_bytes()
    flip(table, 100)
    with pytest.raises(StoreCorrupt, match=r"images\.parquet is damaged"):
        store.images
    assert store.repair(model, pixels) == [table] and table.read_bytes() == whole
    assert store.images.height == 90


@pytest.mark.parametrize("what", ["model", "images"])
def test_another_model_or_other_images(store, model, pixels, what):
    path = store.paths()[0]
    flip(path, 600)
    bad = path.read_bytes()
    other = mechvis.load(tiny("vit", seed=9), preprocess=tiny_preprocess()) if what == "model" else model
    with pytest.raises(ResultMismatch, match=rf"was made from something else; it differs in: {what}\. {what}: there '"):
        store.repair(other, pixels + (what == "images"))
    assert path.read_bytes() == bad


def test_numbers_that_round_differently(store, model, pixels, monkeypatch):
    """Refused, and the damaged file is left; accepted on request, and the checksums follow."""
    path = store.paths()[0]
    flip(path, 600)
    bad, before = path.read_bytes(), store.fingerprint
    from mechvis.store.forward import Forward

    inner = Forward.rows
    monkeypatch.setattr(
        Forward, "rows", lambda *a, **k: {n: torch.nextafter(x, x + 1) for n, x in inner(*a, **k).items()}
    )
    with pytest.raises(ResultMismatch, match=r"rounds differently\. The old file was left.*exact=False"):
        store.repair(model, pixels)
    assert path.read_bytes() == bad and not list(store.folder.rglob("*.tmp"))
    assert store.repair(model, pixels, exact=False) == [path]
    store.verify()
    again = mechvis.store.open(store.folder)
    again.verify()
    assert again.fingerprint == store.fingerprint != before
    monkeypatch.undo()
    # The harvest, called again, neither computes nor brings the old checksums back.
    sites = list(store)
    same = mechvis.harvest(model, pixels, sites, out=store.folder, shard=8 * 10 * 32 * 4, progress=False)
    assert same.fingerprint == again.fingerprint
    same.verify()


def test_a_repaired_store_without_its_ledger(store, model, pixels):
    """The pieces are only needed while a harvest runs."""
    shutil.rmtree(store.folder / "pieces")
    flip(store.paths()[4], 700)
    assert len(store.repair(model, pixels)) == 1
    mechvis.store.open(store.folder).verify()


def test_checksums_are_those_of_the_blocks(whole):
    import zlib

    for shard in whole._disk.shards():
        data = shard.path.read_bytes()[shard.start :]
        step = shard.site.images_per_block * shard.site.per_image * shard.bytes_per_row
        rows = data[: shard.n_rows * shard.bytes_per_row]
        assert checksums(shard).tolist() == [zlib.crc32(rows[i : i + step]) for i in range(0, len(rows), step)]
        assert data[len(rows) : len(rows) + 2 * shard.n_rows] == tokens_of(shard).tobytes()
        assert np.frombuffer(data[len(rows) + 2 * shard.n_rows :], "<u4").tolist() == checksums(shard).tolist()
