"""A stream hands out what a store would, and goes on from where it was."""

import json

import numpy as np
import pytest
import torch

import mechvis
from mechvis.errors import BadData, BadImages, NotFinite, OutOfMemory, ResultMismatch, ShapeMismatch
from mechvis.store.order import BLOCKS, ROWS, permutation
from mechvis.testing import assert_untouched, tiny, tiny_preprocess

SITE, WIDE, POOLED = "blocks.0.hook_resid_post", "blocks.1.mlp.hook_post", "hook_pooled"
SMALL = 2 * 7 * 640


def stream(model, images, sites=SITE, **more):
    return mechvis.store.stream(model, images, sites, **{"size": 64, "seed": 3, "buffer": SMALL, **more})


def equal(one, other):
    return all(
        torch.equal(a.image, b.image)
        and torch.equal(a.token, b.token)
        and all(torch.equal(a[site], b[site]) for site in a.activations)
        for a, b in zip(one, other, strict=True)
    )


def test_the_twin_runs_everything_and_shuffles_it_the_same_way(model, pixels):
    order = permutation(90, 3, BLOCKS, 0)
    expected = []
    for p, start in enumerate(range(0, 90, 7)):
        images = np.sort(order[start : start + 7])
        value = torch.cat(
            [
                model.run(pixels[part], capture=SITE).cache[SITE]
                for part in np.split(images, [4])[: 1 + (len(images) > 4)]
            ]
        )
        rows = permutation(10 * len(images), 3, ROWS, 0, p)
        expected.append((value.flatten(0, 1)[rows], images[rows // 10], rows % 10))
    batches = list(stream(model, pixels, batch=4))
    assert torch.equal(torch.cat([batch.x for batch in batches]), torch.cat([x for x, _, _ in expected]))
    assert np.array_equal(torch.cat([b.image for b in batches]), np.concatenate([i for _, i, _ in expected]))
    assert np.array_equal(torch.cat([b.token for b in batches]), np.concatenate([t for _, _, t in expected]))


@pytest.mark.parametrize(("tokens", "dtype"), [("all", None), ("cls,patches:3", "bfloat16")])
def test_the_rows_of_a_store_in_its_order(model, pixels, tmp_path, tokens, dtype):
    more = {"tokens": tokens, "dtype": dtype}
    store = mechvis.harvest(model, pixels, [SITE, WIDE], out=tmp_path / "acts", seed=3, progress=False, **more)
    read = store.batches([SITE, WIDE], size=64, seed=3, buffer=SMALL, epochs=2)
    live = stream(model, pixels, [SITE, WIDE], block=store[WIDE].block, epochs=2, **more)
    for a, b in zip(read, live, strict=True):
        assert torch.equal(a.image, b.image) and torch.equal(a.token, b.token)
        for site in (SITE, WIDE):
            far = (a[site].float() - b[site].float()).abs().max()
            assert a[site].dtype == b[site].dtype and far <= (1e-5 if dtype is None else 0.05)


def test_computed_ahead_or_not(model, pixels):
    assert equal(stream(model, pixels, epochs=2), stream(model, pixels, epochs=2, prefetch=False))


@pytest.mark.parametrize("stop", [0, 1, 7, 14, 15, 22, 30])
def test_continued_from_anywhere(model, pixels, stop):
    batches = list(stream(model, pixels, epochs=2))
    stopped = stream(model, pixels, epochs=2)
    for _ in range(stop):
        next(stopped)
    state = json.loads(json.dumps(stopped.state_dict()))
    fresh = stream(model, pixels, epochs=2)
    fresh.load_state_dict(state)
    assert equal(list(fresh), batches[stop:]) and equal(list(stopped), batches[stop:])


def test_continuing_computes_one_pool_again(model, pixels):
    stopped = stream(model, pixels, prefetch=False)
    for _ in range(10):
        next(stopped)
    fresh, seen = stream(model, pixels, prefetch=False), []
    fresh.load_state_dict(stopped.state_dict())
    inner = fresh._source.forward.read
    object.__setattr__(fresh._source.forward, "read", lambda part: seen.extend(part) or inner(part))
    next(fresh)
    assert len(seen) <= 2 * 7


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"seed": 4}, "seed"), ({"batch": 2}, "batch: there 64, now 2"), ({"block": 2}, "block"),
        ({"tokens": "cls"}, "tokens"), ({"dtype": "float16"}, "dtype"), ({"sites": WIDE}, "sites"),
    ],
)  # fmt: skip
def test_positions_in_something_else(model, pixels, more, what):
    state = stream(model, pixels, batch=64).state_dict()
    with pytest.raises(ResultMismatch, match=f"differs in: .*{what}"):
        stream(model, pixels, **{"batch": 64, **more}).load_state_dict(state)


def test_positions_with_another_model_or_other_images(model, pixels):
    state = stream(model, pixels).state_dict()
    other = mechvis.load(tiny("vit", seed=9), preprocess=tiny_preprocess())
    with pytest.raises(ResultMismatch, match="differs in: model"):
        stream(other, pixels).load_state_dict(state)
    with pytest.raises(ResultMismatch, match="differs in: images_named"):
        stream(model, pixels + 1).load_state_dict(state)


def test_an_image_set_is_known_by_its_names(model):
    """Its contents are read once, when they go through the model."""
    images = mechvis.data.scenes(n=12, seed=3)
    read = []
    counted = type(images)(**{**images.__dict__, "recipe": "", "read": lambda i: read.append(i) or images.read(i)})
    reader = stream(model, counted, prefetch=False)
    reader.state_dict()
    assert read == [0], "one image, to see what rows are"
    assert len(list(reader)) == 2 and sorted(read[1:]) == list(range(12))
    with pytest.raises(ResultMismatch, match="images_named"):
        stream(model, images[:11]).load_state_dict(reader.state_dict())


def test_ranks_share_each_batch(model, pixels):
    parts = [list(stream(model, pixels, part=(rank, 2))) for rank in range(2)]
    for i, batch in enumerate(stream(model, pixels)):
        assert torch.equal(torch.cat([part[i].x for part in parts]), batch.x)


def test_the_model_is_left_as_it_was(model, pixels):
    with assert_untouched(model):
        for _ in zip(range(3), stream(model, pixels), strict=False):
            pass


def test_nan_is_told_where_it_is(pixels):
    model = mechvis.load(tiny("vit"), preprocess=tiny_preprocess())
    bad = pixels.clone()
    bad[41, 0, 0, 0] = float("inf")
    with pytest.raises(BadImages, match=r"image\(s\) \[\d+\]\. \(Counted in the batch of images \d.*\b41\b"):
        list(stream(model, bad))
    bad[41] = 1e30
    model.__dict__["preprocess"] = None  # which knows that no image looks like this
    with pytest.raises(NotFinite, match=r"blocks\.0\.hook_resid_post: NaN or Inf at image 41"):
        list(stream(model, bad))


def test_refused(model, pixels):
    with pytest.raises(ShapeMismatch, match="not about the same tokens: 1 and 10 per image"):
        stream(model, pixels, [SITE, POOLED])
    with pytest.raises(BadData, match="block=0"):
        stream(model, pixels, block=0)
    with pytest.raises(OutOfMemory, match="Raise budget="):
        stream(model, pixels, budget=100)
