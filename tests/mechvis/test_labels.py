"""Labels and classes are matched by name: a wrong numbering is a silent wrong result."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import mechvis
from mechvis import data, testing
from mechvis.errors import BadData
from mechvis.labels import with_model_classes


def model_of(*classes: str) -> SimpleNamespace:
    return SimpleNamespace(parts=SimpleNamespace(class_names=classes))


def test_labels_are_matched_by_name_not_by_number():
    images = data.scenes(20, seed=9)
    order = tuple(sorted(images.class_names, reverse=True))
    matched = with_model_classes(images, model_of(*order))
    assert matched.class_names == order
    assert [order[i] for i in matched.labels] == [images.class_names[i] for i in images.labels]
    fewer = replace(images, labels=np.zeros(20, dtype=np.int64), class_names=(images.class_names[0], "never used"))
    assert set(with_model_classes(fewer, model_of(*order)).labels) == {order.index(images.class_names[0])}


def test_nothing_is_done_where_names_are_not_known():
    images = data.scenes(20, seed=9)
    assert with_model_classes(images, model_of("LABEL_0", "LABEL_1")) is images
    assert with_model_classes(images, model_of()) is images
    nameless = replace(images, class_names=())
    assert with_model_classes(nameless, model_of("cat", "dog")) is nameless


def test_unknown_classes_are_refused():
    images = data.scenes(20, seed=9)
    with pytest.raises(BadData, match="--labels predicted"):
        with_model_classes(images, model_of("cat", "dog"))
    with pytest.raises(BadData, match="two classes of one name"):
        with_model_classes(images, model_of("circle", "circle"))


def test_a_sweep_is_the_same_for_any_numbering_of_the_labels():
    model, images = testing.shortcut_vit(), testing.shortcut_images(40).image_set()
    turned = replace(images, labels=2 - images.labels, class_names=images.class_names[::-1])
    first, second = (mechvis.sweep(model, part, progress=False) for part in (images, turned))
    assert np.array_equal(first.values["logit_diff"], second.values["logit_diff"])
