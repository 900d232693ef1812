"""Which score is explained: settled once, read in several forms."""

from types import SimpleNamespace

import pytest
import torch

from mechvis.errors import BadData, OutOfRange, ShapeMismatch, UnknownName
from mechvis.models.load import wrap
from mechvis.target import Target, target_of
from mechvis.testing import tiny, tiny_input, tiny_preprocess

LOGITS = torch.tensor([[1.0, 3.0, 2.0], [4.0, 0.0, 1.0]]).double()


@pytest.fixture(scope="module")
def model():
    return wrap(tiny("vit", dtype=torch.float64), preprocess=tiny_preprocess())


@pytest.fixture(scope="module")
def logits(model):
    return model.run(tiny_input("vit", n=4, dtype=torch.float64)).logits


def test_forms_by_hand():
    target = Target(classes=torch.tensor([1, 2]))
    assert target.read(LOGITS).tolist() == [3.0, 1.0]
    share = torch.exp(torch.tensor(3.0)) / sum(torch.exp(torch.tensor(float(x))) for x in (1, 3, 2))
    assert target.reading("prob").read(LOGITS)[0].item() == pytest.approx(share.item(), rel=1e-6)
    assert target.reading("logprob").read(LOGITS)[0].item() == pytest.approx(share.log().item(), rel=1e-6)
    difference = Target(classes=torch.tensor([1, 2]), contrast=torch.tensor([0, 0]), form="logit_diff")
    assert difference.read(LOGITS).tolist() == [2.0, -3.0]


def test_rows_of_an_image_are_read_for_its_class():
    target = Target(classes=torch.tensor([1, 2]))
    rows = LOGITS[[0, 1, 1]]
    assert target.read(rows, torch.tensor([0, 1, 0])).tolist() == [3.0, 1.0, 0.0]


def test_part_of_a_target():
    target = Target(classes=torch.tensor([1, 2]), contrast=torch.tensor([0, 1]), form="logit_diff", rule="given")
    part = target[[1]]
    assert len(part) == 1 and part.classes.tolist() == [2] and part.contrast.tolist() == [1] and part.rule == "given"


def test_another_form_drops_the_contrast():
    target = Target(classes=torch.tensor([1]), contrast=torch.tensor([0]), form="logit_diff")
    assert target.reading("prob").contrast is None
    assert target.reading("logit_diff").contrast.tolist() == [0]


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"form": "logits"}, UnknownName, "Nearest: logit"),
        ({"form": "logit_diff"}, BadData, "contrast class belongs to form='logit_diff'"),
        ({"form": "prob", "contrast": torch.tensor([0])}, BadData, "contrast class belongs"),
    ],
)
def test_forms_that_cannot_be(given, error, words):
    with pytest.raises(error, match=words):
        Target(classes=torch.tensor([1]), **given)


def test_bad_readings():
    target = Target(classes=torch.tensor([1, 5]))
    with pytest.raises(ShapeMismatch, match="1 rows of logits for 2 images"):
        target.read(LOGITS[:1])
    with pytest.raises(OutOfRange, match="class 5 does not exist: the head has 3"):
        target.read(LOGITS)


def test_settled_from_the_clean_run(model, logits):
    predicted = target_of(model, logits)
    assert torch.equal(predicted.classes, logits.argmax(1)) and predicted.form == "logit"
    assert predicted.rule == "predicted" and predicted.contrast is None
    both = target_of(model, logits, contrast="runner_up")
    assert torch.equal(both.contrast, logits.topk(2).indices[:, 1])
    assert both.form == "logit_diff" and both.contrast_rule == "runner_up" and bool((both.read(logits) > 0).all())
    assert torch.equal(target_of(model, logits, form="logit_diff").contrast, both.contrast)


def test_true_labels_and_given_classes(model, logits):
    labels = torch.tensor([0, 1, 2, 3])
    true = target_of(model, logits, labels, "true")
    assert torch.equal(true.classes, labels) and true.rule == "true"
    assert target_of(model, logits, target=3).classes.tolist() == [3] * 4
    assert target_of(model, logits, target=[0, 1, 2, 3]).classes.tolist() == [0, 1, 2, 3]
    # The runner-up of a class that is not the predicted one is the predicted one.
    wrong = target_of(model, logits, target=logits.argmin(1), contrast="runner_up")
    assert torch.equal(wrong.contrast, logits.argmax(1))


def test_names_of_classes(model, logits):
    names = [model.parts.class_names[index] for index in (2, 0, 1, 1)]
    assert target_of(model, logits, target=names).classes.tolist() == [2, 0, 1, 1]
    with pytest.raises(UnknownName):
        target_of(model, logits, target="no such class")


def test_what_cannot_be_explained(model, logits):
    with pytest.raises(BadData, match="needs labels, and these images have none"):
        target_of(model, logits, target="true")
    with pytest.raises(BadData, match="image 0 are the same class: their difference is zero"):
        target_of(model, logits, target=1, contrast=1)
    with pytest.raises(ShapeMismatch, match="3 classes for 4 images"):
        target_of(model, logits, target=[0, 1, 2])
    with pytest.raises(OutOfRange):
        target_of(model, logits, target=99)
    with pytest.raises(ShapeMismatch, match="has the model a head"):
        target_of(SimpleNamespace(), torch.zeros(2, 3, 4))
