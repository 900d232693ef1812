"""Images of the planted tasks, and pairs that differ in one variable only."""

import pytest
import torch

from mechvis.errors import BadData, OutOfRange, ShapeMismatch, UnknownName
from mechvis.testing.trained import TASKS, family, family_names, task_of
from mechvis.testing.trained.scenes import other_value

BOTH = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))


def pairs_of(name, kind, n=64, seed=3):
    task = task_of(name)
    return family(task, task.placement(0), kind, n, seed=seed)


@BOTH
def test_a_seed_decides_the_images_and_they_are_bytes(task):
    first, again, other = (task.render(task.scenes(16, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.shape == (16, 3, 32, 32) and first.dtype == torch.float32
    levels = (first + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-3 and levels.min() > -1e-3 and levels.max() < 255.001


@BOTH
def test_labels_follow_the_program_and_are_balanced(task):
    scenes = task.scenes(4000, seed=0)
    v, labels = scenes.variables, task.labels(scenes)
    if task.name == "colour-if-shape":
        expected = [c if s == 0 else t for s, c, t in zip(v["shape"], v["colour"], v["texture"], strict=True)]
    else:
        expected = [int(a == b) for a, b in zip(v["left"], v["right"], strict=True)]
    assert labels.tolist() == [int(label) for label in expected]
    shares = labels.bincount(minlength=len(task.classes)) / len(labels)
    assert (shares - 1 / len(task.classes)).abs().max() < 0.03


def test_a_colour_pair_differs_on_the_object_only():
    pairs = pairs_of("colour-if-shape", "colour")
    different = (pairs.clean != pairs.corrupt).any(1)
    assert torch.equal(pairs.masks, pairs.corrupt_masks)
    assert not (different & ~pairs.masks).any() and (different & pairs.masks).sum() > 0.95 * pairs.masks.sum()


def test_a_left_pair_differs_on_the_left_only_and_always_flips():
    pairs = pairs_of("same-different", "left")
    different = (pairs.clean != pairs.corrupt).any(1)
    assert different[:, :, :16].any() and not different[:, :, 16:].any()
    assert pairs.flips.all()


@pytest.mark.parametrize(
    "name, kind", [(name, kind) for name in TASKS for kind in family_names(TASKS[name]) if kind not in ("all",)]
)
def test_a_family_changes_its_variables_and_no_other(name, kind):
    pairs = pairs_of(name, kind)
    changed = {
        key
        for key in pairs.clean_variables
        if not torch.equal(pairs.clean_variables[key], pairs.corrupt_variables[key])
    }
    assert changed == set(task_of(name).changes.get(kind, ())) - {"label"}
    for key in changed:
        assert (pairs.clean_variables[key] != pairs.corrupt_variables[key]).all()
    assert (pairs.clean != pairs.corrupt).flatten(1).any(1).all()
    assert pairs.flips.any() == ("label" in task_of(name).changes.get(kind, ()))
    assert len(pairs) == 64 and len(set(pairs.ids)) == 64


def test_silent_rows_of_colour_are_the_crosses():
    pairs = pairs_of("colour-if-shape", "colour")
    assert torch.equal(pairs.flips, pairs.clean_variables["shape"] == 0)


def test_what_one_node_does_is_known_row_by_row():
    pairs = pairs_of("colour-if-shape", "all", n=500)
    task = task_of("colour-if-shape")
    place = {
        variable: node for node, variable in zip(pairs.noised, ("colour", "shape", "texture", "label"), strict=True)
    }
    clean, corrupt = pairs.clean_variables, pairs.corrupt_variables
    expected = task.program({**clean, "colour": corrupt["colour"]})
    assert torch.equal(pairs.noised[place["colour"]], expected)
    assert torch.equal(pairs.noised[place["label"]], pairs.corrupt_labels)
    assert torch.equal(pairs.denoised[place["label"]], pairs.clean_labels)
    # Noising the colour of a cross changes nothing.
    crosses = clean["shape"] == 1
    assert torch.equal(pairs.noised[place["colour"]][crosses], pairs.clean_labels[crosses])


def test_no_input_of_an_exclusive_or_restores_alone():
    pairs = pairs_of("same-different", "all", n=4000)
    inputs = [node for node in pairs.noised if node != "L1MLP"]
    rows = pairs.flips
    for node in inputs:
        broken = (pairs.noised[node] != pairs.clean_labels)[rows].float().mean()
        restored = (pairs.denoised[node] == pairs.clean_labels)[rows].float().mean()
        assert broken > 0.3 and restored < 0.7
    # Both hops of the chain carry the left colour.
    assert torch.equal(pairs.noised[inputs[0]], pairs.noised[inputs[1]])


def test_another_value_is_another_and_all_others_occur():
    values = torch.arange(3000) % 3
    new = other_value(values, 3, torch.Generator().manual_seed(0))
    assert (new != values).all() and {(int(a), int(b)) for a, b in zip(values, new, strict=True)} == {
        (a, b) for a in range(3) for b in range(3) if a != b
    }


def test_bad_input():
    task = task_of("colour_if_shape")
    scenes = task.scenes(4, seed=0)
    with pytest.raises(UnknownName, match=r"unknown planted task 'colour-if-shap'.*colour-if-shape"):
        task_of("colour-if-shap")
    with pytest.raises(BadData, match="at least one image is needed, got n=0"):
        task.scenes(0, seed=0)
    with pytest.raises(UnknownName, match=r"unknown variable 'color'\. Nearest: colour"):
        scenes.changed(color=torch.zeros(4, dtype=torch.long))
    with pytest.raises(ShapeMismatch, match=r"4 images need 4 values, got \[3\]"):
        scenes.changed(colour=torch.zeros(3, dtype=torch.long))
    with pytest.raises(OutOfRange, match="'colour' has the values 0 to 2"):
        scenes.changed(colour=torch.tensor([0, 1, 2, 3]))
    with pytest.raises(ShapeMismatch, match="4 images cannot take the nuisance of 5"):
        scenes.with_nuisance_of(task.scenes(5, seed=0))
    with pytest.raises(UnknownName, match=r"unknown pair family of colour-if-shape 'color'\. Nearest: colour"):
        family(task, task.placement(0), "color", 4, seed=0)
