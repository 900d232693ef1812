"""One hand-made pattern per role: its own score is one, its control what it should be, no other role comes first."""

import numpy as np
import pytest
import torch
from einops import repeat

from circuits.weights.role_scores import ROLES, mean_distance, object_scores, other_masks, places, role_scores
from mechvis import testing
from mechvis.models.load import wrap

PREFIX, DOWN, ACROSS = 3, 4, 5  # CLS and two registers, 4 x 5 patches
PATCHES, TOKENS = DOWN * ACROSS, PREFIX + DOWN * ACROSS


@pytest.fixture(scope="module")
def at():
    bare = testing.tiny("dinov2-registers")
    model = wrap(bare, preprocess=testing.tiny_preprocess())
    return places(model.parts.at_size((DOWN * 4, ACROSS * 4)))


def uniform():
    return torch.full((TOKENS, TOKENS), 1 / TOKENS, dtype=torch.float64)


def attend(target):
    """A pattern in which every patch query attends to one token; prefix queries attend uniformly."""
    pattern = uniform()
    for patch in range(PATCHES):
        row, column = divmod(patch, ACROSS)
        pattern[PREFIX + patch] = 0
        pattern[PREFIX + patch, target(row, column)] = 1
    return pattern


def patch(row, column):
    return PREFIX + min(max(row, 0), DOWN - 1) * ACROSS + min(max(column, 0), ACROSS - 1)


MADE = {
    "cls": attend(lambda row, column: 0),
    "register": attend(lambda row, column: 1 + (row + column) % 2),
    "self": attend(patch),
    "patch above": attend(lambda row, column: patch(row - 1, column)),
    "patch below": attend(lambda row, column: patch(row + 1, column)),
    "patch left": attend(lambda row, column: patch(row, column - 1)),
    "patch right": attend(lambda row, column: patch(row, column + 1)),
    "local": attend(
        lambda row, column: patch(row + 1 if row < 2 else row - 1, column + 1 if column < 3 else column - 1)
    ),
    "diffuse": uniform(),
}


def scores_of(pattern, at):
    found = role_scores(pattern[None, None], at)
    return {name: (float(score), float(control)) for name, (score, control) in found.items()}


def excess(found):
    return {name: (score - control) / (1 - control) for name, (score, control) in found.items()}


@pytest.mark.parametrize("role", MADE)
def test_each_pattern_is_named_by_its_role(role, at):
    found = scores_of(MADE[role], at)
    assert found[role][0] == pytest.approx(1, abs=1e-12)
    assert max(excess(found), key=lambda name: round(excess(found)[name], 9)) == role
    assert list(found) == [name for name in ROLES if name not in ("object", "background")]


def test_controls_by_hand(at):
    found = scores_of(MADE["self"], at)
    assert found["cls"] == (0, pytest.approx(1 / TOKENS))
    assert found["register"] == (0, pytest.approx(2 / TOKENS))
    # Every patch is equally popular (one query each), so the control is a share of the patches.
    assert found["self"][1] == pytest.approx(1 / PATCHES)
    neighbours = [
        sum((r, c) != (x, y) for r in range(x - 1, x + 2) for c in range(y - 1, y + 2) if 0 <= r < 4 and 0 <= c < 5)
        for x in range(4)
        for y in range(5)
    ]
    assert found["local"] == (0, pytest.approx(np.mean(neighbours) / PATCHES))
    assert found["patch left"] == (0, pytest.approx(1 / PATCHES))
    assert found["diffuse"] == (pytest.approx(1 / TOKENS), 0.5)


def test_scores_add_up_over_keys(at):
    generator = torch.Generator().manual_seed(0)
    pattern = torch.rand(2, 3, TOKENS, TOKENS, generator=generator).double().softmax(-1)
    found = role_scores(pattern, at)
    rows = pattern[:, :, PREFIX:]
    assert torch.allclose(found["cls"][0], rows[..., 0].mean(-1))
    assert torch.allclose(found["register"][0], rows[..., 1:3].sum(-1).mean(-1))
    plain = np.zeros((2, 3))
    for q in range(PATCHES):
        for k in range(PATCHES):
            (a, b), (c, d) = divmod(q, ACROSS), divmod(k, ACROSS)
            if max(abs(a - c), abs(b - d)) == 1:
                plain += rows[:, :, q, PREFIX + k].numpy() / PATCHES
    np.testing.assert_allclose(found["local"][0], plain, atol=1e-12)


def test_one_popular_key_makes_no_head_local(at):
    """A head that looks at the middle of the image, whoever asks: near for many, and no nearer than its control."""
    found = scores_of(attend(lambda row, column: patch(1, 2)), at)
    for role in ("self", "local", "patch above", "patch right"):
        score, control = found[role]
        assert score == pytest.approx(control, abs=1e-12), role
    assert found["local"][0] == pytest.approx(8 / 20) and found["local"][0] > np.mean(8 / 20) - 1e-9
    shared = scores_of(MADE["self"], at)["local"][1]
    assert found["local"][0] > 1.2 * shared, "uniform attention would not have told: the middle has more neighbours"


def test_mean_distance_by_hand(at):
    left, control = mean_distance(MADE["patch left"][None, None], at)
    # Four of five columns look one patch to the left, the first column at itself.
    assert float(left) == pytest.approx(0.8)
    assert float(control) > 1.5
    middle, control = mean_distance(attend(lambda row, column: patch(1, 2))[None, None], at)
    assert float(middle) == pytest.approx(float(control))
    nothing, _ = mean_distance(MADE["cls"][None, None], at)
    assert torch.isnan(nothing).all(), "no attention among patches: no distance"


def test_a_tower_without_registers_or_cls_has_no_such_role():
    model = wrap(testing.tiny("siglip-vision"), preprocess=testing.tiny_preprocess())
    at = places(model.parts)
    found = role_scores(torch.full((1, 1, 9, 9), 1 / 9), at)
    assert "cls" not in found and "register" not in found and "self" in found
    assert at.read == tuple(range(9)), "a read-out of all tokens reads the patches"


# objects


def masks(n, patches=PATCHES, seed=0):
    found = torch.from_numpy(np.random.default_rng(seed).random((n, patches)) < 0.3)
    found[:, 0], found[:, 1] = True, False  # none is all object, or has none
    return found


def test_means_of_other_masks():
    own = masks(5)
    found = other_masks(own)
    for image in range(5):
        rest = [other for other in range(5) if other != image]
        np.testing.assert_allclose(found[image], own[rest].double().mean(0), atol=1e-12)


def test_images_without_object_do_not_count():
    own = masks(5)
    own[1], own[3] = False, True
    found = other_masks(own)
    assert torch.isnan(found[[1, 3]]).all()
    np.testing.assert_allclose(found[0], own[[2, 4]].double().mean(0), atol=1e-12)
    assert torch.isnan(other_masks(own[[0, 1]])).all(), "one image has no other"


def test_attention_on_the_object_is_above_other_masks_and_background_is_its_opposite():
    own = masks(40)
    pattern = uniform().expand(40, 1, -1, -1).clone()
    pattern[:, 0, 0] = 0
    pattern[:, 0, 0, PREFIX:] = own.double() / own.sum(-1, keepdim=True)
    found = object_scores(pattern, [0], own, other_masks(own), PREFIX)
    score, control = found["object"]
    assert torch.allclose(score, torch.ones(40, 1).double())
    # Patch 0 is object in all images, every other one in three of ten.
    first = 1 / own.sum(-1)
    assert float(control.mean()) == pytest.approx(float((first + (1 - first) * 0.3).mean()), abs=0.03)
    assert torch.allclose(found["background"][0] - found["background"][1], -(score - control))


def test_uniform_attention_is_exactly_at_its_control():
    own = masks(6)
    found = object_scores(uniform().expand(6, 2, -1, -1), [0, 4, 7], own, other_masks(own), PREFIX)
    score, control = found["object"]
    assert torch.allclose(score, control, atol=1e-14)
    assert torch.allclose(score, repeat(own.double().sum(-1) / TOKENS, "image -> image head", head=2))


def test_a_centre_prior_is_above_its_area_and_not_above_its_control():
    """Objects and attention lie in the middle: the share of the area says object, the control does not."""
    generator = np.random.default_rng(1)
    own = torch.zeros(300, PATCHES, dtype=torch.bool)
    for image in range(300):
        row, column = 1 + generator.integers(2), 1 + generator.integers(3)
        for _ in range(3):
            own[image, row * ACROSS + column] = True
            row, column = (
                np.clip(row + generator.integers(-1, 2), 0, 3),
                np.clip(column + generator.integers(-1, 2), 0, 4),
            )
    pattern = uniform()
    pattern[0] = 0
    pattern[0, [patch(1, 2), patch(2, 2)]] = 0.5
    found = object_scores(pattern.expand(300, 1, -1, -1), [0], own, other_masks(own), PREFIX)
    score, control = (value.numpy() for value in found["object"])
    area = own.double().mean(-1).numpy()
    assert (score[:, 0] - area).mean() > 0.15, "far above the share of the area"
    error = (score - control).std() / 300**0.5
    assert abs((score - control).mean()) < 3 * error


def test_one_mask_for_all_images_tells_nothing():
    own = masks(1).expand(4, -1)
    pattern = uniform().expand(4, 1, -1, -1).clone()
    pattern[:, 0, 0] = 0
    pattern[:, 0, 0, PREFIX:] = own.double() / own.sum(-1, keepdim=True)
    score, control = object_scores(pattern, [0], own, other_masks(own), PREFIX)["object"]
    assert torch.allclose(score, control), "object and place cannot be told apart"
