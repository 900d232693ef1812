"""Erasers: LEACE's guarantee and its optimality, INLP to chance, projections, and their edits."""

import numpy as np
import pytest
import torch

from mechvis import edits
from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.testing import rotated_pair, shortcut_images, shortcut_vit
from probes.linear import ClassProbe, inlp, leace, project_out
from probes.linear.erasers import largest_components, random_subspace, row_space_eraser

N, D = 800, 10


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, N)
    mix = rng.normal(size=(D, D))
    return (rng.normal(size=(N, D)) + 2 * rng.normal(size=(3, D))[y]) @ mix + 5, y


def covariance(x, y):
    z = (y[:, None] == np.unique(y)).astype(float)
    return np.abs((x - x.mean(0)).T @ (z - z.mean(0)) / len(x)).max()


def test_leace_leaves_nothing_linear(data):
    x, y = data
    eraser = leace(x, y)
    assert eraser.rank == 2 and covariance(eraser(x), y) < 1e-12 < 0.5 < covariance(x, y)
    assert ClassProbe().fit(x, y).score(x, y) > 0.9
    majority = np.bincount(y).max() / N
    after = eraser(x)
    assert ClassProbe(weight_decay=1e-6).fit(after, y).score(after, y) == pytest.approx(majority, abs=0.01)
    np.testing.assert_allclose(after.mean(0), x.mean(0), atol=1e-9)


def test_leace_changes_least_of_all_that_leave_nothing(data):
    """The orthogonal projection that also zeroes the covariance moves the rows further; so does INLP."""
    x, y = data
    z = (y[:, None] == np.unique(y)).astype(float)
    cross = (x - x.mean(0)).T @ (z - z.mean(0))
    others = [project_out(cross.T, x.mean(0)), inlp(x, y, rounds=5)[0]]

    def moved(eraser):
        return ((eraser(x) - x) ** 2).sum(1).mean()

    assert covariance(others[0](x), y) < 1e-10
    assert all(moved(leace(x, y)) < moved(other) - 1e-6 for other in others)
    # The same in the norm of the inverse covariance, in which LEACE is the orthogonal projection.
    twice = leace(x, y)(leace(x, y)(x))
    np.testing.assert_allclose(twice, leace(x, y)(x), atol=1e-9)


def test_projection_leaves_what_other_probes_could_read(data):
    x, y = data
    probe = ClassProbe().fit(x, y)
    once = row_space_eraser(probe, x)
    assert once.rank == 2
    np.testing.assert_allclose((once(x) - x.mean(0)) @ probe.row_space().T, 0, atol=1e-9)
    again = ClassProbe().fit(once(x), y).score(once(x), y)
    eraser, accuracies = inlp(x, y, rounds=5)
    assert again > 0.4 and accuracies[0] > 0.9 > accuracies[-1], "one projection is not enough, several are"
    assert ClassProbe().fit(eraser(x), y).score(eraser(x), y) < 0.5
    assert eraser.rank <= 10 and eraser.name.startswith("INLP")


def test_read_direction_copy_and_dead_direction():
    """F9: the probe reads `a` and its copy alike; only `a` is used."""
    pair = rotated_pair()
    images = pair.images(400)
    h, a = images.h.numpy(), images.a.numpy()
    assert ClassProbe().fit(h, a).score(h, a) == 1.0

    def accuracy(eraser):
        return float((pair(torch.from_numpy(eraser(h))).argmax(1) == images.labels).double().mean())

    def without(*names):
        return project_out(torch.stack([pair.direction(name) for name in names]).numpy(), h.mean(0))

    assert accuracy(without("copy")) == 1.0 and accuracy(without("dead")) == 1.0
    assert accuracy(without("a")) < 0.7
    assert ClassProbe().fit(without("a")(h), a).score(without("a")(h), a) == 1.0, "the copy is still there"
    assert accuracy(leace(h, a)) < 0.7 and leace(h, a).rank == 1


def test_leace_of_numbers_and_labels(data):
    x = data[0]
    size = x[:, 0] + x[:, 1]
    assert abs(np.corrcoef(leace(x, size)(x).T, size)[:D, D]).max() < 1e-6
    labels = np.stack([data[1] == 0, data[1] == 1], 1).astype(int)
    np.testing.assert_allclose(leace(x, labels)(x), leace(x, data[1])(x), atol=1e-8)


def test_controls(data):
    x, _ = data
    drawn = random_subspace(x.mean(0), 3, seed=0)
    assert drawn.rank == 3 and np.linalg.matrix_rank(drawn.remove) == 3
    loud = largest_components(x, 2)
    left = loud(x) - x.mean(0)
    assert np.linalg.eigvalsh(left.T @ left)[-1] < np.linalg.eigvalsh((x - x.mean(0)).T @ (x - x.mean(0)))[-2]


def test_the_edit_does_what_the_eraser_does():
    model, drawn = shortcut_vit(), shortcut_images(8)
    site = "blocks.0.hook_resid_post"
    stream = model.run(drawn.pixels, capture=[site]).cache[site]
    rows = stream.flatten(0, 1).numpy()
    eraser = leace(rows, np.arange(len(rows)) % 2)
    edited = model.run(drawn.pixels, edits=[eraser.edit(site)], capture=[site]).cache[site]
    np.testing.assert_allclose(edited.flatten(0, 1).numpy(), eraser(rows), atol=1e-12)
    directions = np.random.default_rng(0).normal(size=(2, rows.shape[1]))
    ours = project_out(directions, np.zeros(rows.shape[1])).edit(site, tokens="patches")
    theirs = edits.project(site, torch.from_numpy(directions), tokens="patches")
    first, second = (model.run(drawn.pixels, edits=[edit]).logits for edit in (ours, theirs))
    torch.testing.assert_close(first, second)


def test_heads_are_laid_side_by_side():
    model, drawn = shortcut_vit(), shortcut_images(4)
    site = "blocks.1.attn.hook_z"
    z = model.run(drawn.pixels, capture=[site]).cache[site]
    rows = z[:, 0].flatten(1).numpy()
    eraser = project_out(np.eye(rows.shape[1])[:3], rows.mean(0))
    edited = model.run(drawn.pixels, edits=[eraser.edit(site, tokens=[0])], capture=[site]).cache[site]
    np.testing.assert_allclose(edited[:, 0].flatten(1).numpy(), eraser(rows), atol=1e-12)
    assert torch.equal(edited[:, 1:], z[:, 1:])


def test_bad_input(data):
    x, y = data
    with pytest.raises(BadData, match="nothing to remove"):
        project_out(np.zeros((1, 3)), np.zeros(3))
    with pytest.raises(ShapeMismatch, match="of one width"):
        project_out(np.ones((1, 4)), np.zeros(3))
    with pytest.raises(ShapeMismatch, match="rows of 10 numbers"):
        leace(x, y)(x[:, :3])
    with pytest.raises(BadData, match="does not vary"):
        leace(x, np.zeros(N, int))
    with pytest.raises(ShapeMismatch, match="as many"):
        leace(x, y[:5])
    with pytest.raises(OutOfRange, match="at least one round"):
        inlp(x, y, rounds=0)
