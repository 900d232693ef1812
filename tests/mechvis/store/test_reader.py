"""Batches: every row once per epoch, in an order that can be computed by hand, continued from anywhere."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mechvis
from mechvis.errors import BadData, OutOfRange, ResultMismatch, ShapeMismatch, StoreCorrupt, UnknownSite
from mechvis.store.order import BLOCKS, ROWS, permutation
from mechvis.store.reader import Epoch
from mechvis.testing import tiny_input

SITE, WIDE, POOLED = "blocks.0.hook_resid_post", "blocks.1.mlp.hook_post", "hook_pooled"
SMALL = 2 * 7 * 640
"""Memory for two pools of seven images at SITE."""


def drained(reader):
    batches = list(reader)
    names = batches[0].activations
    return (
        {name: torch.cat([batch[name] for batch in batches]) for name in names},
        torch.cat([batch.image for batch in batches]),
        torch.cat([batch.token for batch in batches]),
        [len(batch) for batch in batches],
    )


def plainly(store, site, *, seed, epoch, pool_images, images=None):
    """The twin: read everything, then put it in the same order, one block and one row at a time."""
    rows, per_image = store[site][:], store[site].site.per_image
    images = images or range(store.n_images)
    blocks = []
    for part in store.manifest.parts:
        for start in range(part.start, part.stop, store[site].block):
            block = [i for i in range(start, min(start + store[site].block, part.stop)) if i in images]
            blocks += [block] if block else []
    order, pools = [blocks[i] for i in permutation(len(blocks), seed, BLOCKS, epoch)], [[]]
    for block in order:
        if pools[-1] and sum(map(len, pools[-1])) + len(block) > pool_images:
            pools.append([])
        pools[-1].append(block)
    numbers = []
    for p, pool in enumerate(pools):
        inside = [i * per_image + k for block in sorted(pool) for i in block for k in range(per_image)]
        numbers += [inside[i] for i in permutation(len(inside), seed, ROWS, epoch, p)]
    return rows[numbers], np.array(numbers)


@pytest.fixture(scope="module")
def drawn(model, pixels, tmp_path_factory):
    """A store with tokens that differ from image to image, in bfloat16, with blocks of several images."""
    out = tmp_path_factory.mktemp("drawn") / "acts"
    images = tiny_input("vit", n=300)
    return mechvis.harvest(
        model, images, [SITE, WIDE], out=out, tokens="cls,patches:3", dtype="bfloat16", shard="7KB", progress=False
    )


@pytest.mark.parametrize("buffer", [1, SMALL, "1GB"])
@pytest.mark.parametrize("size", [1, 7, 64, 900, 5000])
def test_every_row_once_and_in_the_order_of_the_twin(whole, size, buffer):
    reader = whole.batches(SITE, size=size, seed=3, epoch=2, buffer=buffer)
    pool_images = reader.state_dict()["pool_images"]
    values, image, token, sizes = drained(reader)
    expected, numbers = plainly(whole, SITE, seed=3, epoch=2, pool_images=pool_images)
    assert sorted(numbers.tolist()) == list(range(900))
    assert torch.equal(values[SITE], expected)
    for at, of in zip((image, token), whole[SITE].where(numbers), strict=True):
        assert np.array_equal(at.numpy(), of)
    assert sizes == [size] * (900 // size) + ([900 % size] if 900 % size else [])
    assert reader.n_rows == 900 and reader.n_batches == len(sizes)


def test_blocks_of_several_images_and_drawn_tokens(drawn):
    assert drawn[SITE].block == 4 and drawn.manifest.images_each % 4 == 0 and drawn[SITE].dtype == torch.bfloat16
    reader = drawn.batches(SITE, size=50, seed=1, buffer="10KB")
    expected, numbers = plainly(drawn, SITE, seed=1, epoch=0, pool_images=reader.state_dict()["pool_images"])
    values, image, token, _ = drained(reader)
    assert torch.equal(values[SITE], expected)
    assert np.array_equal(np.stack([image, token]), np.stack(drawn[SITE].where(numbers)))


def test_read_ahead_or_not(whole):
    fast, slow = (drained(whole.batches(SITE, size=64, buffer=SMALL, prefetch=p, epochs=3)) for p in (True, False))
    assert torch.equal(fast[0][SITE], slow[0][SITE]) and len(fast[1]) == 2700


def test_every_epoch_has_its_own_order(whole):
    three = drained(whole.batches(SITE, size=90, seed=4, buffer=SMALL, epochs=3))[0][SITE].split(900)
    for epoch in range(3):
        alone = drained(whole.batches(SITE, size=90, seed=4, buffer=SMALL, epoch=epoch))[0][SITE]
        assert torch.equal(three[epoch], alone)
    assert not torch.equal(three[0], three[1])
    other = drained(whole.batches(SITE, size=90, seed=5, buffer=SMALL))[0][SITE]
    assert not torch.equal(three[0], other)


@pytest.mark.parametrize("stop", [0, 1, 5, 13, 14, 15, 16, 27, 28])
@pytest.mark.parametrize("prefetch", [True, False])
def test_continued_from_anywhere(whole, stop, prefetch):
    """Also in the middle of a pool, at the end of an epoch, and at the very end; the state survives JSON."""

    def reader():
        return whole.batches(SITE, size=64, seed=2, epochs=2, buffer=SMALL, prefetch=prefetch)

    first = reader()
    batches = list(first)
    assert len(batches) == 30
    stopped = reader()
    for _ in range(stop):
        next(stopped)
    state = json.loads(json.dumps(stopped.state_dict()))
    fresh = reader()
    fresh.load_state_dict(state)
    for later in (fresh, stopped):
        rest = list(later)
        assert len(rest) == 30 - stop
        for batch, expected in zip(rest, batches[stop:], strict=True):
            assert torch.equal(batch.x, expected.x) and torch.equal(batch.image, expected.image)
            assert torch.equal(batch.token, expected.token)
    fresh.load_state_dict(first.state_dict())
    assert list(fresh) == []


def test_a_reader_that_is_used_can_go_back(whole):
    reader = whole.batches(SITE, size=50, buffer=SMALL)
    start, once = reader.state_dict(), list(reader)
    reader.load_state_dict(start)
    assert all(torch.equal(a.x, b.x) for a, b in zip(once, reader, strict=True))


def test_positions_in_something_else(whole, drawn):
    state = whole.batches(SITE, size=50, buffer=SMALL).state_dict()
    for other, what in (
        (whole.batches(SITE, size=51, buffer=SMALL), "size: there 50, now 51"),
        (whole.batches(SITE, size=50, buffer=SMALL, seed=1), "seed"),
        (whole.batches(SITE, size=50, buffer=2 * SMALL), "pool_images"),
        (whole.batches(WIDE, size=50, buffer=2 * SMALL), "sites"),
        (whole.batches(SITE, size=50, buffer=SMALL, images=range(9)), "images"),
        (drawn.batches(SITE, size=50, buffer=SMALL), "store"),
    ):
        with pytest.raises(ResultMismatch, match=f"another reader; it differs in: .*{what}"):
            other.load_state_dict(state)


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_ranks_share_each_batch(whole, ranks):
    alone = list(whole.batches(SITE, size=64, seed=2, buffer=SMALL, epochs=2))
    parts = [list(whole.batches(SITE, size=64, seed=2, buffer=SMALL, epochs=2, part=(r, ranks))) for r in range(ranks)]
    for i, batch in enumerate(alone):
        assert torch.equal(torch.cat([part[i].x for part in parts]), batch.x)
        assert torch.equal(torch.cat([part[i].image for part in parts]), batch.image)
    counts = [len(part[0]) for part in parts]
    assert max(counts) - min(counts) <= 1


def test_continued_by_another_number_of_ranks(whole):
    alone = list(whole.batches(SITE, size=64, seed=2, buffer=SMALL))
    two = whole.batches(SITE, size=64, seed=2, buffer=SMALL, part=(1, 2))
    for _ in range(5):
        next(two)
    three = [whole.batches(SITE, size=64, seed=2, buffer=SMALL, part=(r, 3)) for r in range(3)]
    for reader in three:
        reader.load_state_dict(two.state_dict())
    for batch, parts in zip(alone[5:], zip(*three, strict=True), strict=True):
        assert torch.equal(torch.cat([part.x for part in parts]), batch.x)


def test_sites_side_by_side(whole):
    """One row of each is about the same token of the same image."""
    both = list(whole.batches([SITE, WIDE], size=64, seed=2, buffer=SMALL))
    for batch in both:
        number = (batch.image * 10 + batch.token).numpy()
        assert torch.equal(batch[SITE], whole[SITE][number]) and torch.equal(batch[WIDE], whole[WIDE][number])
    with pytest.raises(BadData, match=r"this batch has 2 sites; say which"):
        both[0].x
    with pytest.raises(ShapeMismatch, match="not about the same tokens: 1 and 10 per image"):
        whole.batches([SITE, POOLED])
    assert len(drained(whole.batches(POOLED, size=64))[1]) == 90


def test_some_images_only(whole):
    """A range that does not end where blocks and files do."""
    train, held = range(0, 67), range(67, 90)
    seen = [drained(whole.batches(SITE, size=64, buffer=SMALL, images=images))[1:3] for images in (train, held)]
    for (image, token), images in zip(seen, (train, held), strict=True):
        pairs = set(zip(image.tolist(), token.tolist(), strict=True))
        assert pairs == {(i, t) for i in images for t in range(10)} and len(image) == len(pairs)
    reader = whole.batches(SITE, size=64, seed=1, buffer=SMALL, images=held)
    expected, _ = plainly(whole, SITE, seed=1, epoch=0, pool_images=7, images=held)
    assert torch.equal(drained(reader)[0][SITE], expected)


def test_part_of_a_block(drawn):
    held = range(37, 111)
    reader = drawn.batches(SITE, size=64, seed=1, buffer="3KB", images=held)
    pool_images = reader.state_dict()["pool_images"]
    expected, _ = plainly(drawn, SITE, seed=1, epoch=0, pool_images=pool_images, images=held)
    assert torch.equal(drained(reader)[0][SITE], expected)


def test_the_last_rows_left_out(whole):
    sizes = drained(whole.batches(SITE, size=64, buffer=SMALL, epochs=2, drop_last=True))[3]
    assert sizes == [64] * 28
    with pytest.raises(BadData, match="the 900 rows fill no batch of 901"):
        whole.batches(SITE, size=901, drop_last=True)


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"size": 0}, BadData),
        ({"epochs": 0}, BadData),
        ({"part": (2, 2)}, BadData),
        ({"images": range(80, 91)}, OutOfRange),
        ({"images": range(0, 10, 2)}, OutOfRange),
        ({"buffer": "much"}, BadData),
    ],
)
def test_refused(whole, more, error):
    with pytest.raises(error):
        whole.batches(SITE, **more)


def test_a_site_that_is_not_there(whole):
    with pytest.raises(UnknownSite, match=r"'blocks\.0\.hook_resid_pre' is not in this store"):
        whole.batches("blocks.0.hook_resid_pre")


def test_batches_are_not_overwritten_by_later_ones(whole):
    reader = whole.batches(SITE, size=32, buffer=SMALL, epochs=3)
    first = next(reader)
    before = first.x.clone(), first.image.clone(), first.token.clone()
    list(reader)
    assert (
        torch.equal(first.x, before[0]) and torch.equal(first.image, before[1]) and torch.equal(first.token, before[2])
    )


def test_a_damaged_file_is_an_error_and_then_goes_on(model, pixels, tmp_path):
    store = mechvis.harvest(model, pixels, SITE, out=tmp_path / "acts", shard=5000, progress=False)
    path = store.paths()[3]
    data = path.read_bytes()
    path.write_bytes(data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
    reader, batches = store.batches(SITE, size=32, buffer=SMALL), []
    with pytest.raises(StoreCorrupt, match=rf"{path.name} is damaged in block 0 \(images 21 to 21\)"):
        while True:
            batches.append(next(reader))
    state = reader.state_dict()
    assert state["row"] == 32 * len(batches), "the position is that of what was handed out"
    assert store.repair(model, pixels) == [path]
    rest = list(reader)
    whole = list(store.batches(SITE, size=32, buffer=SMALL))
    assert all(torch.equal(a.x, b.x) for a, b in zip(batches + rest, whole, strict=True))


# how well it is shuffled


def mixing(image: np.ndarray, size: int) -> tuple[float, float]:
    """Correlation of a row's place with its image's number, and images per batch as a share of what chance gives."""
    correlation = float(np.corrcoef(np.arange(len(image)), image)[0, 1])
    batches = image[: len(image) // size * size].reshape(-1, size)
    there = np.mean([len(np.unique(batch)) for batch in batches])
    n = image.max() + 1
    return correlation, there / (n * (1 - (1 - 1 / n) ** size))


def test_a_pool_of_a_fifth_of_the_store_mixes_well(drawn):
    image = drained(drawn.batches(SITE, size=64, seed=0, buffer=2 * 60 * 128))[1].numpy()
    correlation, images = mixing(image, 64)
    assert abs(correlation) < 4 / len(image) ** 0.5 + 4 / (300 / 4) ** 0.5 / 5
    assert images > 0.7
    neighbours = np.abs(np.diff(image)) <= 1
    assert neighbours.mean() < 0.06, "rows that follow each other come from different places"
    unshuffled = drawn[SITE].where(slice(None))[0]
    assert mixing(unshuffled, 64)[0] > 0.99 and mixing(unshuffled, 64)[1] < 0.3, "what the figures are without it"


def test_every_place_is_as_likely_for_every_image(drawn):
    """Mean place of each image over many epochs: no image comes early or late."""
    blocks = drawn._disk.of([drawn[SITE].site]).blocks
    places = np.zeros(300)
    for epoch in range(200):
        order = Epoch(blocks, 4, 60, 0, epoch)
        image = np.concatenate([order.images(p)[order.rows(p) // 4] for p in range(len(order.pools))])
        places += np.bincount(image, weights=np.arange(1200), minlength=300) / 4
    spread = 1200 / 12**0.5 / 200**0.5  # of a block's mean place
    assert np.abs(places / 200 - 599.5).max() < 5 * spread
    assert abs(np.corrcoef(places, np.arange(300))[0, 1]) < 4 / 75**0.5


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 5), st.integers(1, 50), st.integers(0, 3))
def test_epochs_hold_every_row_once(n, each, per_image, pool, epoch):
    starts = np.arange(0, n, each)
    blocks = np.stack([starts, np.minimum(starts + each, n)], axis=1)
    order = Epoch(blocks, per_image, pool, 5, epoch)
    assert order.n_rows == n * per_image
    images = [order.images(p) for p in range(len(order.pools))]
    assert sorted(np.concatenate(images).tolist()) == list(range(n))
    assert all(len(found) <= max(pool, each) and (np.diff(found) > 0).all() for found in images)
    assert all(sorted(order.rows(p).tolist()) == list(range(len(images[p]) * per_image)) for p in range(len(images)))
