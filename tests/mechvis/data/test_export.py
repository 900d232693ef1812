"""Export writes a folder that gives back the same set, and that other tools read."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from mechvis.data import ImageSet, export, folder
from mechvis.errors import BadData, OutputNotWritable


def _pixels(row: int) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, (5 + row, 8, 3), dtype=np.uint8)


def _mask(row: int) -> np.ndarray:
    return _pixels(row)[..., 0] > 128


@pytest.fixture
def images() -> ImageSet:
    return ImageSet(
        name="birds",
        ids=("scenes/7/12", "scenes/7/3", "a b/ü.jpg", "scenes-7-12"),
        read=_pixels,
        rows=np.array([2, 0, 3, 1]),
        labels=np.array([1, 0, 1, 1]),
        class_names=("land bird", "sea/bird", "no bird"),
        read_mask=_mask,
        groups=np.array(["x", "y", "x", "z, z"]),
        captions=("plain", 'with "quotes", comma', "two\nlines", "ünïcode – 鳥"),
        columns={
            "size": np.array([1.5, 0.1, -2e-30, 3.0]),
            "count": np.array([1, 2, 3, 4]),
            "alone": np.array([True, False, True, True]),
            "place": np.array(["here", "there", "01", "-"]),
            "tones": np.arange(8).reshape(4, 2),
        },
    )


def _assert_same(first: ImageSet, second: ImageSet):
    assert second.labels.tolist() == first.labels.tolist() and second.class_names == first.class_names
    assert second.groups.tolist() == first.groups.tolist() and second.captions == first.captions
    for one, other in zip(first.rows, second.rows, strict=True):
        assert np.array_equal(first.read(int(one)), second.read(int(other)))
        assert np.array_equal(first.read_mask(int(one)), second.read_mask(int(other)))


def test_round_trip(images, tmp_path):
    place = export(images, tmp_path / "deep" / "birds")
    assert place == tmp_path / "deep" / "birds"
    again = folder(place)
    _assert_same(images, again)
    for name in ("size", "count", "alone", "place"):
        assert np.array_equal(again.columns[name], images.columns[name]), name
        assert again.columns[name].dtype.kind == images.columns[name].dtype.kind, name
    assert again.columns["tones_1"].tolist() == [1, 3, 5, 7]
    assert again.name == "birds" and len(set(again.ids)) == 4
    assert again.ids[0] == "images/sea-bird/scenes-7-12.png" and again.ids[3] == "images/sea-bird/scenes-7-12-2.png"

    third = folder(export(again, tmp_path / "third"))
    _assert_same(again, third)
    assert third.ids == again.ids, "exporting an export keeps the names"
    assert third.fingerprint == again.fingerprint


def test_round_trip_of_a_subset_keeps_the_class_indices(images, tmp_path):
    _assert_same(images[[2, 0]], folder(export(images[[2, 0]], tmp_path / "part")))


def test_round_trip_of_bare_images(images, tmp_path):
    bare = ImageSet(name="bare", ids=images.ids, read=_pixels, rows=images.rows)
    again = folder(export(bare, tmp_path / "bare"))
    assert again.labels is None and again.read_mask is None and again.captions is None and again.columns == {}
    assert all(np.array_equal(a, b) for a, b in zip(again.raw(), bare.raw(), strict=True))
    assert not (tmp_path / "bare" / "masks").exists()


def test_round_trip_of_unnamed_labels(images, tmp_path):
    unnamed = replace(images, class_names=())
    again = folder(export(unnamed, tmp_path / "x"))
    assert again.labels.tolist() == [1, 0, 1, 1] and again.class_names == ("0", "1")


def test_class_names_that_are_numbers(images, tmp_path):
    digits = replace(images, class_names=("2", "0", "1"))
    again = folder(export(digits, tmp_path / "x"))
    assert again.class_names == ("2", "0", "1") and again.labels.tolist() == [1, 0, 1, 1]


def test_the_table_may_go_and_labels_and_masks_remain(images, tmp_path):
    place = export(images, tmp_path / "birds")
    (place / "metadata.csv").unlink()
    (place / "classes.txt").unlink()
    again = folder(place)
    assert again.class_names == ("land-bird", "sea-bird") and again.read_mask is not None
    assert sorted(again.labels.tolist()) == [0, 1, 1, 1]


def test_other_tools_read_it(images, tmp_path):
    import datasets

    datasets.disable_progress_bars()
    try:
        place = export(images, tmp_path / "birds")
        loaded = datasets.load_dataset(
            "imagefolder", data_dir=str(place), split="train", cache_dir=str(tmp_path / "cache")
        )
    finally:
        datasets.enable_progress_bars()
    assert len(loaded) == 4 and loaded["label"][0] == "sea/bird" and loaded["caption"][2] == "two\nlines"
    assert np.array_equal(np.array(loaded[1]["image"]), _pixels(0))
    assert np.array_equal(np.array(loaded[1]["mask"]) > 0, _mask(0))
    classes = sorted(child.name for child in (place / "images").iterdir())
    assert classes == ["land-bird", "sea-bird"], "torchvision's ImageFolder takes every folder for a class"


def test_masks_are_pictures_one_can_look_at(images, tmp_path):
    place = export(images, tmp_path / "birds")
    with Image.open(place / "masks" / "land-bird" / "scenes-7-3.png") as mask:
        assert mask.mode == "L" and set(np.unique(np.array(mask))) == {0, 255}


def test_overwrite(images, tmp_path):
    place = export(images, tmp_path / "birds")
    with pytest.raises(
        OutputNotWritable, match="holds an earlier export: choose another folder, or pass overwrite=True"
    ):
        export(images, place)
    again = folder(place)[[1, 2]]
    export(again, place, overwrite=True)
    assert len(folder(place)) == 2, "a set may replace the folder that it is read from"
    assert [child.name for child in tmp_path.iterdir()] == ["birds"]
    (tmp_path / "empty").mkdir()
    export(images, tmp_path / "empty")


def test_never_replaces_what_is_no_export(images, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("x")
    with pytest.raises(OutputNotWritable, match=r"holds files that are not of an export \(thesis\.tex\)"):
        export(images, tmp_path / "home", overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputNotWritable, match="exists and is not a folder"):
        export(images, tmp_path / "file", overwrite=True)
    with pytest.raises(OutputNotWritable, match=r"cannot write .*birds: (Not a directory|File exists)"):
        export(images, tmp_path / "file" / "birds")


def test_failure_leaves_the_old_export_and_nothing_else(images, tmp_path):
    place = export(images, tmp_path / "birds")

    def broken(row: int) -> np.ndarray:
        if row == 3:
            raise KeyboardInterrupt
        return _pixels(row)

    with pytest.raises(KeyboardInterrupt):
        export(replace(images, read=broken), place, overwrite=True)
    assert [child.name for child in tmp_path.iterdir()] == ["birds"]
    _assert_same(images, folder(place))


def test_what_the_format_cannot_hold(images, tmp_path):
    with pytest.raises(BadData, match="rename the column 'label'"):
        export(replace(images, columns={"label": np.arange(4)}), tmp_path / "x")
    with pytest.raises(BadData, match=r"class name 'a\\nb' is empty or has more than one line"):
        export(replace(images, class_names=("a\nb", "c", "d")), tmp_path / "x")
    with pytest.raises(BadData, match="negative label -1"):
        export(replace(images, class_names=(), labels=np.array([0, 1, -1, 0])), tmp_path / "x")
    with pytest.raises(BadData, match=r"scenes/7/12: its mask is \(2, 2\), the image \(7, 8\)"):
        export(replace(images, read_mask=lambda row: np.ones((2, 2), bool)), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_names_that_file_systems_dislike(images, tmp_path):
    names = replace(images, ids=("../../up", ".hidden", "A", "a"), labels=None, class_names=())
    again = folder(export(names, tmp_path / "x"))
    assert again.ids == ("images/up.png", "images/hidden.png", "images/A.png", "images/a-2.png")
