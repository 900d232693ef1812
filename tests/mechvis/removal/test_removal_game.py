"""What the model says of images with patches removed: every operator against a plain computation, in any batch."""

import pytest
import torch

from mechvis.errors import BadData, NotFinite, OutOfRange, RefusedMethod, ShapeMismatch, UnknownName
from mechvis.models.load import wrap
from mechvis.removal import Blur, Game, Mean, MeanToken, NoisyLinear, OtherImage, TokenDrop, Zero, operator
from mechvis.removal.game import Cost, order_masks
from mechvis.target import Target, target_of
from mechvis.testing import assert_untouched, tiny, tiny_input, tiny_preprocess

N, P, GRID = 4, 9, (3, 3)  # of 4 x 4 pixels


@pytest.fixture(scope="module")
def model():
    return wrap(tiny("vit", dtype=torch.float64), preprocess=tiny_preprocess())


@pytest.fixture(scope="module")
def pixels():
    return tiny_input("vit", n=N, dtype=torch.float64)


@pytest.fixture(scope="module")
def other():
    return tiny_input("vit", n=5, seed=9, dtype=torch.float64)


@pytest.fixture(scope="module")
def target(model, pixels):
    return target_of(model, model.run(pixels).logits, contrast="runner_up")


def every(other):
    return [
        Zero(),
        Mean(),
        Blur(),
        OtherImage(pool=other),
        NoisyLinear(),
        MeanToken(reference=other),
        TokenDrop(),
    ]


def random_masks(n=N, rows=6, seed=0):
    return (torch.rand(n, rows, P, generator=torch.Generator().manual_seed(seed)) < 0.6).double()


@pytest.fixture(scope="module")
def grid(model):
    return model.parts.grid


def test_tiny_grid(grid):
    assert grid == GRID


@pytest.mark.parametrize("place", range(7))
def test_keeping_everything_is_the_clean_run(model, pixels, other, target, place):
    game = Game(model=model, pixels=pixels, target=target, operator=every(other)[place])
    torch.testing.assert_close(game.full(), target.read(model.run(pixels).logits), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("place", range(7))
def test_same_scores_in_any_batch(model, pixels, other, target, place):
    kind = every(other)[place]
    masks = random_masks()
    whole = Game(model=model, pixels=pixels, target=target, operator=kind).scores(masks)
    small = Game(model=model, pixels=pixels, target=target, operator=kind, batch_size=3).scores(masks)
    torch.testing.assert_close(small, whole, rtol=1e-9, atol=1e-9)
    chosen = torch.tensor([2, 0])
    part = Game(model=model, pixels=pixels[chosen], target=target[chosen], operator=kind, ids=chosen)
    torch.testing.assert_close(part.scores(masks[chosen]), whole[chosen], rtol=1e-9, atol=1e-9)
    assert whole.std() > 0.01, "the masks make no difference: nothing was tested"


@pytest.mark.parametrize("kind", [Zero(), Mean()])
def test_pixels_are_replaced_patch_by_patch(model, pixels, target, kind):
    masks = random_masks(rows=2)
    changed = pixels.clone()
    for image in range(N):
        for patch in range(P):
            if not masks[image, 1, patch]:
                down, across = 4 * (patch // 3), 4 * (patch % 3)
                fill = 0.0 if isinstance(kind, Zero) else pixels[image].mean((1, 2))[:, None, None]
                changed[image, :, down : down + 4, across : across + 4] = fill
    found = Game(model=model, pixels=pixels, target=target, operator=kind).scores(masks)[:, 1]
    torch.testing.assert_close(found, target.read(model.run(changed).logits), rtol=1e-9, atol=1e-9)


def test_soft_masks_are_between(model, pixels, target):
    game = Game(model=model, pixels=pixels, target=target, operator="zero")
    found = game.scores(torch.full((N, 1, P), 0.25))[:, 0]
    torch.testing.assert_close(found, target.read(model.run(pixels * 0.25).logits), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [NoisyLinear(), TokenDrop()])
def test_soft_masks_that_an_operator_does_not_know(model, pixels, target, kind):
    with pytest.raises(RefusedMethod, match=f"{kind.NAME} takes a patch away or keeps it"):
        Game(model=model, pixels=pixels, target=target, operator=kind).scores(torch.full((N, 1, P), 0.5))


def test_mean_token_by_hand(model, pixels, other, target):
    masks = random_masks(rows=1)
    stream, mean = model.parts.embed(pixels), model.parts.embed(other).mean(0)
    for image in range(N):
        for patch in range(P):
            if not masks[image, 0, patch]:
                stream[image, 1 + patch] = mean[1 + patch]
    found = Game(model=model, pixels=pixels, target=target, operator=MeanToken(reference=other)).scores(masks)[:, 0]
    expected = target.read(_rest(model, stream))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def _rest(model, stream):
    """The rest of the model, through the hooks."""
    from mechvis import edits

    return model.run(
        torch.zeros(len(stream), 3, 12, 12).double(), [edits.call("hook_embed", lambda own: stream)]
    ).output


def test_dropped_tokens_are_read_by_nobody(model, pixels, target):
    """A dropped patch's pixels change nothing; a kept one's do."""
    masks = torch.ones(N, 1, P)
    masks[:, 0, 4] = 0
    game = Game(model=model, pixels=pixels, target=target, operator="token_drop").scores(masks)
    changed = pixels.clone()
    changed[:, :, 4:8, 4:8] += 3  # patch 4
    again = Game(model=model, pixels=changed, target=target, operator="token_drop").scores(masks)
    torch.testing.assert_close(again, game, rtol=1e-12, atol=1e-12)
    changed[:, :, 0:3, 0:3] += 3
    assert (
        Game(model=model, pixels=changed, target=target, operator="token_drop").scores(masks) - game
    ).abs().min() > 0


def test_another_reading_from_the_same_game(model, pixels, target):
    game = Game(model=model, pixels=pixels, target=target, operator="mean")
    masks = random_masks(rows=3)
    prob = game.scores(masks, target.reading("prob"))
    logits = game.outputs(masks)
    assert logits.shape == (N, 3, 8)
    own = logits.softmax(-1).gather(2, target.classes[:, None, None].expand(-1, 3, 1))[..., 0]
    torch.testing.assert_close(prob, own)


def test_forward_passes_are_counted(model, pixels, target):
    cost = Cost()
    game = Game(model=model, pixels=pixels, target=target, operator="mean", cost=cost)
    game.scores(random_masks(rows=3))
    game.full()
    assert cost.forwards == 3 * N + N and cost.backwards == 0


def test_pixels_masks_and_model_stay_as_they_are(model, pixels, other, target):
    masks, before, kept = random_masks(), pixels.clone(), random_masks()
    with assert_untouched(model):
        for kind in every(other):
            Game(model=model, pixels=pixels, target=target, operator=kind).scores(masks)
    assert torch.equal(pixels, before) and torch.equal(masks, kept)


def test_noise_belongs_to_the_example_and_the_seed(model, pixels, target):
    masks = random_masks(rows=1)
    one, again, seed, ids = (
        Game(model=model, pixels=pixels, target=target, operator="noisy_linear", **more).scores(masks)
        for more in ({}, {}, {"seed": 1}, {"ids": torch.arange(N) + 7})
    )
    assert torch.equal(one, again)
    assert (one - seed).abs().max() > 1e-9 and (one - ids).abs().max() > 1e-9


def test_order_masks():
    masks = order_masks(torch.tensor([[2, 0, 1], [0, 1, 2]]), [0, 1, 3])
    assert masks.int().tolist() == [[[1, 1, 1], [1, 1, 0], [0, 0, 0]], [[1, 1, 1], [0, 1, 1], [0, 0, 0]]]


def test_grid_that_is_not_square_and_one_channel():
    model = _narrow()
    pixels = torch.randn(2, 1, 6, 9, generator=torch.Generator().manual_seed(0)).double()
    target = target_of(model, model.run(pixels).output)
    game = Game(model=model, pixels=pixels, target=target, operator="zero")
    assert game.grid == (2, 3)
    masks = torch.ones(2, 1, 6)
    masks[:, 0, 4] = 0  # second row, second column
    changed = pixels.clone()
    changed[:, :, 3:6, 3:6] = 0
    torch.testing.assert_close(game.scores(masks)[:, 0], target.read(model.run(changed).output))


def _narrow():
    import warnings

    from mechvis.errors import DefaultPreprocessing

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DefaultPreprocessing)
        return wrap(tiny("vit", num_channels=1, image_size=(6, 9), patch_size=3, dtype=torch.float64))


def test_bad_games(model, pixels, target):
    with pytest.raises(UnknownName, match="Nearest: mean"):
        Game(model=model, pixels=pixels, target=target, operator="meen")
    with pytest.raises(ShapeMismatch, match="4 images, 3 targets, 4 ids"):
        Game(model=model, pixels=pixels, target=target[:3], operator="mean")
    with pytest.raises(OutOfRange, match="batch_size=0"):
        Game(model=model, pixels=pixels, target=target, operator="mean", batch_size=0)
    with pytest.raises(BadData, match="OtherImage needs pixels"):
        Game(model=model, pixels=pixels, target=target, operator="other").empty()
    with pytest.raises(BadData, match="MeanToken needs images"):
        Game(model=model, pixels=pixels, target=target, operator="mean_token").empty()


def test_bad_masks(model, pixels, target):
    game = Game(model=model, pixels=pixels, target=target, operator="mean")
    for masks, error, words in (
        (torch.ones(N, P), ShapeMismatch, "masks are"),
        (torch.ones(N, 1, P + 1), ShapeMismatch, r"\[4 row 9\]"),
        (torch.ones(N - 1, 1, P), ShapeMismatch, r"\[4 row 9\]"),
        (torch.ones(N, 0, P), ShapeMismatch, "the row axis is empty"),
        (torch.full((N, 1, P), 1.5), OutOfRange, "between 0"),
        (torch.full((N, 1, P), torch.nan), OutOfRange, "NaN"),
    ):
        with pytest.raises(error, match=words):
            game.scores(masks)


def test_a_model_that_gives_nan_is_named(model, pixels):
    target = Target(classes=torch.zeros(N, dtype=torch.long))
    broken = pixels.clone()
    broken[0, 0, 0, 0] = torch.nan
    with pytest.raises(NotFinite, match="patches removed by zero"):
        Game(model=model, pixels=broken, target=target, operator="zero").full()


def test_names_and_titles(other):
    assert operator("blur").title == "blur(sigma=0.15)" and operator(Zero()).title == "zero"
    assert OtherImage(pool=other).title == "other(pool=5)"
    assert MeanToken(reference=other).title == "mean_token(reference=5)"
