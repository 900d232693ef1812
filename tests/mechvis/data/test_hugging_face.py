"""Hugging Face data sets, in memory and from disk."""

import io

import datasets
import numpy as np
import pytest
from PIL import Image

import mechvis
from mechvis.data import hugging_face
from mechvis.errors import BadData, CorruptImage, UnknownName


@pytest.fixture(autouse=True)
def _quiet():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def _pixels(seed: int, height: int = 6, width: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _mask(seed: int) -> np.ndarray:
    return _pixels(seed)[..., 0] > 128


@pytest.fixture
def pets():
    features = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["dog", "cat"]),
        "mask": datasets.Image(),
        "place": datasets.Value("string"),
        "text": datasets.Value("string"),
        "age": datasets.Value("int32"),
        "boxes": datasets.List(datasets.Value("float32")),
    }
    rows = {
        "image": [Image.fromarray(_pixels(i)) for i in range(4)],
        "label": [1, 0, 0, 1],
        "mask": [Image.fromarray(_mask(i).astype(np.uint8)) for i in range(4)],
        "place": ["sea", "land", "sea", "land"],
        "text": ["a", "b", "c", "d"],
        "age": [1, 2, 3, 4],
        "boxes": [[0.0, 1.0]] * 4,
    }
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


def _same(images):
    assert len(images) == 4 and images.class_names == ("dog", "cat") and images.labels.tolist() == [1, 0, 0, 1]
    assert images.groups.tolist() == ["sea", "land", "sea", "land"] and images.captions == ("a", "b", "c", "d")
    assert set(images.columns) == {"age"} and images.columns["age"].tolist() == [1, 2, 3, 4]
    for row in range(4):
        assert np.array_equal(images.read(row), _pixels(row)) and np.array_equal(images.read_mask(row), _mask(row))


def test_in_memory_and_from_disk(pets, tmp_path):
    columns = {"mask_column": "mask", "group_column": "place", "caption_column": "text"}
    _same(hugging_face(pets, **columns))
    pets.save_to_disk(tmp_path / "pets")
    images = hugging_face(tmp_path / "pets", **columns)
    _same(images)
    assert images.name == "pets" and images.ids[0] == "pets/000000"
    assert images.fingerprint == hugging_face(str(tmp_path / "pets"), **columns).fingerprint


def test_splits(pets, tmp_path):
    both = datasets.DatasetDict({"train": pets, "test": pets.select([3])})
    both.save_to_disk(tmp_path / "pets")
    for source in (both, tmp_path / "pets"):
        with pytest.raises(BadData, match="has the splits train, test: choose one with split="):
            hugging_face(source)
        with pytest.raises(UnknownName, match=r"unknown split 'tset'\. Nearest: test"):
            hugging_face(source, split="tset")
        images = hugging_face(source, split="test")
        assert images.labels.tolist() == [1] and np.array_equal(images.read(0), _pixels(3))


def test_rows_follow_a_selection_and_the_users_data_set_stays(pets):
    chosen = pets.select([2, 0]).with_format("torch")
    images = hugging_face(chosen)
    assert images.labels.tolist() == [0, 1] and np.array_equal(images.read(0), _pixels(2))
    assert chosen.format["type"] == "torch" and chosen.features["image"].decode


def test_text_labels_and_array_images():
    dataset = datasets.Dataset.from_dict({"pixels": [_pixels(0).tolist(), _pixels(1).tolist()], "kind": ["b", "a"]})
    images = hugging_face(dataset, image_column="pixels", label_column="kind")
    assert images.class_names == ("a", "b") and images.labels.tolist() == [1, 0]
    assert images.read(1).dtype == np.uint8 and np.array_equal(images.read(1), _pixels(1))
    dataset = datasets.Dataset.from_dict({"image": [_pixels(0)[..., 0].tolist()]})
    assert hugging_face(dataset).read(0).shape == (6, 9, 3) and hugging_face(dataset).labels is None


def test_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    memory = io.BytesIO()
    Image.fromarray(_pixels(0)).save(memory, "JPEG", exif=exif)
    rows = {"image": [{"bytes": memory.getvalue(), "path": None}]}
    dataset = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()}))
    assert hugging_face(dataset).read(0).shape == (9, 6, 3)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"image_column": "img"}, "unknown column of data set 'dataset' 'img'. Nearest: image"),
        ({"label_column": "lable"}, "'lable'. Nearest: label"),
        ({"mask_column": "maks"}, "'maks'. Nearest: mask"),
        ({"group_column": "plaice"}, "'plaice'. Nearest: place"),
    ],
)
def test_wrong_columns(pets, argument, message):
    with pytest.raises(UnknownName, match=message):
        hugging_face(pets, **argument)


def test_columns_that_cannot_be_what_they_should(pets):
    with pytest.raises(BadData, match=r"column 'boxes' holds .* cannot be a label"):
        hugging_face(pets, label_column="boxes")
    with pytest.raises(CorruptImage, match="dataset/000000: column 'text' holds str values, not images"):
        hugging_face(pets, image_column="text").read(0)
    with pytest.raises(CorruptImage, match=r"dataset/000000: expected whole numbers 0-255 \[height width 3\]"):
        hugging_face(pets, image_column="boxes").read(0)


def test_images_without_label(pets):
    hidden = pets.remove_columns("label").add_column("label", [0, -1, 1, 0])
    hidden = hidden.cast_column("label", datasets.ClassLabel(names=["dog", "cat"]))
    with pytest.raises(BadData, match="label -1 is not the index of a class, valid are 0 to 1"):
        hugging_face(hidden)
    gaps = pets.remove_columns("place").add_column("place", ["sea", None, None, "sea"])
    with pytest.raises(BadData, match="2 of 4 images have no group: dataset/000001, dataset/000002"):
        hugging_face(gaps, group_column="place")


def test_mask_of_another_size_and_missing_mask(pets):
    encode = datasets.Image().encode_example
    small = [encode(_mask(0).astype(np.uint8))] * 3 + [encode(np.ones((2, 3), np.uint8))]
    wrong = pets.remove_columns("mask").add_column("mask", small, feature=datasets.Image())
    with pytest.raises(BadData, match=r"1 mask\(s\) differ in size.*: dataset/000003 is 9 x 6, its mask 3 x 2"):
        hugging_face(wrong, mask_column="mask")
    missing = pets.remove_columns("mask").add_column("mask", [*small[:3], None], feature=datasets.Image())
    with pytest.raises(CorruptImage, match="mask of dataset/000003 has no 'mask'"):
        hugging_face(missing, mask_column="mask")


def test_corrupt_image_is_named():
    rows = {"image": [{"bytes": b"not an image", "path": None}, {"bytes": None, "path": "zip://a.png::b.zip"}]}
    dataset = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()}))
    with pytest.raises(CorruptImage, match="dataset/000000 cannot be decoded: not an image file"):
        hugging_face(dataset).read(0)
    with pytest.raises(CorruptImage, match="dataset/000001: the data set only names 'zip:"):
        hugging_face(dataset).read(1)


def test_sources_that_are_none(pets, tmp_path):
    with pytest.raises(BadData, match=r"no folder at cifar10\. To use a data set of the hub"):
        hugging_face("cifar10")
    with pytest.raises(BadData, match=r"cannot be loaded.*(\n.*)*use mechvis\.data\.folder"):
        hugging_face(tmp_path)
    with pytest.raises(BadData, match=r"got IterableDataset\. A streamed data set has no length"):
        hugging_face(pets.to_iterable_dataset())
    with pytest.raises(BadData, match="has no rows"):
        hugging_face(pets.select([]))
    with pytest.raises(UnknownName, match="unknown split 'train'"):
        hugging_face(pets, split="train")


def test_reachable_from_the_package(pets):
    assert len(mechvis.data.hugging_face(pets)) == 4
