"""Variables: values, right answers, controls; scenes' factors; what does not fit is refused."""

import pytest
import torch

from circuits.subspace import Variable, label_variable, scene_variable, table_variable
from mechvis.data.scenes import SHAPES, sample_factors, scenes
from mechvis.errors import BadData, OutOfRange, ShapeMismatch, UnknownName


def test_label_variable_answers_the_source():
    variable = label_variable(torch.tensor([0, 1, 2, 1]), name="shape")
    base, source = torch.tensor([0, 1, 2]), torch.tensor([3, 2, 0])
    assert variable.answer(base, source).tolist() == [1, 2, 0]
    assert variable.labels.tolist() == [0, 1, 2, 1] and len(variable) == 4


def test_label_variable_of_an_image_set():
    images = scenes(12, seed=1)
    variable = label_variable(images)
    assert variable.value_names == SHAPES and variable.values.tolist() == images.labels.tolist()


def test_table_variable_depends_on_the_base():
    table = torch.tensor([[0, 1], [2, 3], [0, 1]])
    variable = table_variable(torch.tensor([0, 1, 1]), table, name="colour")
    assert variable.labels.tolist() == [0, 3, 1]
    assert variable.answer(torch.tensor([0, 1]), torch.tensor([1, 0])).tolist() == [1, 2]


def test_shuffled_values_stay_inside_their_split_and_labels_stay():
    values = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    variable = label_variable(values)
    groups = [torch.arange(4), torch.arange(4, 8)]
    shuffled = variable.shuffled(groups, seed=1)
    assert sorted(shuffled.values[:4].tolist()) == [0, 0, 1, 1] and sorted(shuffled.values[4:].tolist()) == [2, 2, 3, 3]
    assert shuffled.values.tolist() != values.tolist()
    assert torch.equal(shuffled.labels, variable.labels), "what the model says of an image does not change"
    every = torch.arange(8)
    assert torch.equal(shuffled.answer(every, every), shuffled.values)
    assert shuffled.values.tolist() == variable.shuffled(groups, seed=1).values.tolist()


@pytest.mark.parametrize(
    ("values", "error", "text"),
    [
        (torch.tensor([0.0, 1.0]), ShapeMismatch, "whole numbers"),
        (torch.tensor([[0, 1]]), ShapeMismatch, r"\[image\]"),
        (torch.tensor([1, 1]), BadData, "at least two values"),
        (torch.tensor([-1, 1]), BadData, "0 and up"),
    ],
)
def test_values_that_cannot_be(values, error, text):
    with pytest.raises(error, match=text):
        Variable(name="v", values=values, answer=lambda b, s: b)


def test_names_and_answers_must_fit():
    with pytest.raises(BadData, match="names for 0 to 0 only"):
        label_variable(torch.tensor([0, 1]), value_names=["a"])
    with pytest.raises(ShapeMismatch, match="one class per pair"):
        Variable(name="v", values=torch.tensor([0, 1]), answer=lambda b, s: b[:1])
    with pytest.raises(ShapeMismatch, match="for 2 images"):
        table_variable(torch.tensor([0, 1]), torch.zeros(3, 2, dtype=torch.int64), name="v")
    with pytest.raises(OutOfRange, match="the table 1 columns"):
        table_variable(torch.tensor([0, 1]), torch.zeros(2, 1, dtype=torch.int64), name="v")


def test_scene_factors():
    factors = sample_factors(30, seed=2)
    colour = scene_variable(factors, "colour")
    assert colour.value_names[0] == "red" and colour.values.tolist() == factors.colour.tolist()
    with pytest.raises(UnknownName, match="background"):
        scene_variable(factors, "backdrop")
    with pytest.raises(UnknownName, match="drawn"):
        scene_variable(factors, "shape", answers="rendered")
    with pytest.raises(BadData, match="pass model="):
        scene_variable(factors, "shape", answers="drawn")
