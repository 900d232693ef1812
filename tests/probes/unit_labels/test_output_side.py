"""Input side and output side of a planted latent that detects one thing and does another."""

import numpy as np
import pytest
import torch

import mechvis
from mechvis import testing
from mechvis.data import scenes
from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.models.load import wrap
from mechvis.testing.shortcut import PROMOTED, RAW
from probes.unit_labels import describe_latent, label_change, output_score, read_out
from probes.unit_labels.output_side import natural_activation, written

SITE = "blocks.0.hook_resid_post"
NAMES = ["a", "b", "c"]


class Latents:
    """Latent `reads` sees one class' evidence at a token and writes the promoted evidence of class `writes`."""

    n_latents = 1

    def __init__(self, reads, writes):
        self.reads, self.writes = reads, writes

    def encode(self, x):
        return (x[:, [RAW.start + self.reads]] - 0.5).relu()

    def decode(self, code):
        found = torch.zeros(len(code), 14, dtype=torch.float64)
        found[:, PROMOTED.start + self.writes] = code[:, 0]
        return found


@pytest.fixture(scope="module")
def model():
    return testing.shortcut_vit()


@pytest.fixture(scope="module")
def images():
    return testing.shortcut_images(60)


@pytest.fixture(scope="module")
def presence(images):
    return images.pixels[:, 2:].amax((2, 3)).numpy()


def test_a_detector_that_does_something_else(model, images, presence):
    found = describe_latent(model, images.image_set(), SITE, Latents(0, 2), 0, presence, NAMES)
    assert found.inputs[0] == "a" and found.input_auc[0] == 1.0
    assert found.raises == ("c",)
    assert found.agreement < 0.1


def test_a_detector_that_does_what_it_detects(model, images, presence):
    found = describe_latent(model, images.image_set(), SITE, Latents(1, 1), 0, presence, NAMES)
    assert found.inputs[0] == "b" and found.raises == ("b",) and found.agreement > 0.8


class Reads:
    """A latent of scenes-vit: reads what tells one class from the others in the class token, writes another class."""

    n_latents = 1

    def __init__(self, direction, limit, write):
        self.direction, self.limit, self.write = direction, limit, write

    def encode(self, x):
        return (x @ self.direction - self.limit).relu()[:, None]

    def decode(self, code):
        return code[:, :1] * self.write


def test_both_sides_on_a_trained_model():
    model, images = mechvis.load("scenes-vit"), scenes(64, seed=51)
    site, names = "blocks.3.hook_resid_post", list(images.class_names)
    stream = model.run(images, capture=site).cache[site]
    circle = images.labels == names.index("circle")
    direction = stream[circle, 0].mean(0) - stream[~circle, 0].mean(0)
    high = (stream[:, 0] @ direction).sort().values[-int(circle.sum())]
    write = model.tokens_to_residual_directions("heart").detach()
    presence, few = np.eye(8)[images.labels], {"factors": (1.0,), "random": 12}
    found = describe_latent(model, images, site, Reads(direction, high, write), 0, presence, names, **few)
    assert found.inputs[0] == "circle" and found.raises[0] == "heart"
    assert found.agreement < 0.1
    same = Reads(direction, high, model.tokens_to_residual_directions("circle").detach())
    assert describe_latent(model, images, site, same, 0, presence, names, **few).agreement > found.agreement + 0.2


def test_a_direction_that_nobody_reads_has_no_labels(model, images):
    dead = np.zeros(14)
    dead[12] = 1.0  # a place slot, which block 1 does not read
    found = label_change(model, images.pixels, SITE, dead, random=16)
    assert found.labels(NAMES) == ([], []) and np.abs(found.change).max() < 1e-9


def test_label_change_by_hand(model, images):
    """One patch token of one image more: the change of the logits is that of the model on the edited stream."""
    direction = np.zeros(14)
    direction[PROMOTED.start] = 1.0
    fires = np.zeros((60, 17), bool)
    fires[:, 3] = True
    found = label_change(model, images.pixels, SITE, direction, natural=2.0, fires=fires, factors=(1.5,), random=2)
    run = model.run(images.pixels, capture=SITE)
    stream = run.cache[SITE].clone()
    stream[:, 3] += 1.5 * 2.0 * torch.from_numpy(direction)
    moved = model.run(stream, start_at_layer=1).logits - run.logits
    expected = (moved - moved.mean(1, keepdim=True)).mean(0)
    np.testing.assert_allclose(found.change[0], expected, atol=1e-12)
    halves = label_change(
        model, images.pixels, SITE, direction, natural=2.0, fires=fires, factors=(1.5,), random=2, batch_size=7
    )
    np.testing.assert_allclose(halves.z, found.z, rtol=1e-6)


@pytest.mark.parametrize("family", ["vit", "dinov3"])
def test_a_late_site_restarts_and_an_early_one_does_not(family):
    """Both give what a plain forward pass with the edit gives; patches alone are steered."""
    from mechvis import edits

    model = wrap(testing.tiny(family, dtype=torch.float64), preprocess=testing.tiny_preprocess())
    pixels = testing.tiny_input(family, dtype=torch.float64)
    prefix = len(model.parts.prefix)
    for site in ("blocks.0.hook_resid_post", "blocks.2.hook_resid_pre", "blocks.1.mlp.hook_post", "hook_embed"):
        width = model.run(pixels, capture=site).cache[site].shape[-1]
        direction = np.random.default_rng(0).standard_normal(width)
        found = label_change(model, pixels, site, direction, factors=(1.0,), random=2)
        write = torch.zeros(model.parts.n_tokens, width, dtype=torch.float64)
        write[prefix:] = torch.from_numpy(direction)
        moved = model.run(pixels, edits=[edits.add(site, write)]).output - model.run(pixels).output
        np.testing.assert_allclose(found.change[0], (moved - moved.mean(1, keepdim=True)).mean(0), atol=1e-10)


def test_read_out_of_directions(model):
    """The classifier reads the logit slots."""
    directions = np.eye(14)[9:12]
    np.testing.assert_allclose(read_out(model, directions), np.eye(3) - 1 / 3, atol=1e-12)
    assert np.abs(read_out(model, np.eye(14)[:9])).max() == 0
    clip = wrap(testing.tiny("clip-vision", dtype=torch.float64), preprocess=testing.tiny_preprocess())
    generator = np.random.default_rng(0)
    texts, rows = generator.standard_normal((5, 8)) + 3, generator.standard_normal((2, 16))
    weight = clip.parts.ln_final.weight.detach().numpy()
    projected = ((rows - rows.mean(1, keepdims=True)) * weight) @ clip.bare.visual_projection.weight.detach().numpy().T
    pool = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    pool -= pool.mean(0)
    expected = projected @ pool.T / np.linalg.norm(projected, axis=1)[:, None] / np.linalg.norm(pool, axis=1)
    np.testing.assert_allclose(read_out(clip, rows, texts=texts), expected, atol=1e-10)
    with pytest.raises(ShapeMismatch, match=r"\[unit 14\]"):
        read_out(model, np.eye(3))
    with pytest.raises(ShapeMismatch, match="of='embedding'"):
        read_out(clip, rows, texts=np.ones((3, 5)))


def test_output_score_against_chance():
    generator = np.random.default_rng(0)
    changes = generator.standard_normal((300, 10))
    described = [[i % 10] for i in range(300)]
    for unit, labels in enumerate(described):
        changes[unit, labels] += 4
    assert output_score(changes, described).mean() > 0.8
    shuffled = [described[i] for i in generator.permutation(300)]
    noise = generator.standard_normal((300, 10))
    assert output_score(noise, shuffled).mean() == pytest.approx(1 / 3, abs=0.1)
    assert not output_score(changes, [[]] * 300).any()
    with pytest.raises(OutOfRange, match="candidates=4 of 3"):
        output_score(changes[:3], described[:3], candidates=4)
    with pytest.raises(ShapeMismatch, match="3 units and 300"):
        output_score(changes[:3], described)


def test_the_output_side_refuses_what_does_not_fit(model, images, presence):
    with pytest.raises(ShapeMismatch, match=r"a direction \[14\]"):
        label_change(model, images.pixels, SITE, np.ones(3))
    with pytest.raises(BadData, match="the direction is zero"):
        label_change(model, images.pixels, SITE, np.zeros(14))
    with pytest.raises(ShapeMismatch, match="fires is"):
        label_change(model, images.pixels, SITE, np.ones(14), fires=np.ones((3, 17), bool))
    with pytest.raises(OutOfRange, match="random=1"):
        label_change(model, images.pixels, SITE, np.ones(14), random=1)
    with pytest.raises(ShapeMismatch, match="presence is"):
        describe_latent(model, images.pixels, SITE, Latents(0, 1), 0, presence[:5], NAMES)
    with pytest.raises(OutOfRange, match="latents 0 to 0"):
        describe_latent(model, images.pixels, SITE, Latents(0, 1), 1, presence, NAMES)
    with pytest.raises(BadData, match="active nowhere"):
        natural_activation(np.zeros((3, 4)))
    with pytest.raises(BadData, match="pass decoder="):
        written(object(), 0)
    np.testing.assert_array_equal(written(Latents(0, 2), 0), np.eye(14)[PROMOTED.start + 2])
