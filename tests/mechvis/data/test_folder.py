"""Image folders: what is understood, and every way a folder can be wrong."""

import json
import logging
import re

import numpy as np
import pytest
from PIL import Image

from mechvis.data import folder
from mechvis.errors import BadData, CorruptImage, UnknownName


def _pixels(seed: int, height: int = 6, width: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _save(file, array, **options) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(file, **options)


@pytest.fixture
def pets(tmp_path):
    """Two classes, three images: cat/1.png, cat/10.png, dog/2.png with pixels of seeds 0, 1, 2."""
    root = tmp_path / "pets"
    for seed, name in enumerate(("cat/1.png", "cat/10.png", "dog/2.png")):
        _save(root / name, _pixels(seed))
    return root


def _add_masks(root, names=("cat/1.png", "cat/10.png", "dog/2.png"), value: int = 7):
    for seed, name in enumerate(names):
        _save(root / "masks" / name, (_pixels(seed)[..., 0] > 128).astype(np.uint8) * value)


def test_class_folders_give_labels(pets):
    images = folder(pets)
    assert images.ids == ("cat/1.png", "cat/10.png", "dog/2.png")
    assert images.class_names == ("cat", "dog") and images.labels.tolist() == [0, 0, 1]
    assert images.groups is None and images.captions is None and images.read_mask is None and images.skipped == ()
    for seed, image in enumerate(images.raw()):
        assert np.array_equal(image, _pixels(seed))


def test_order_is_natural(tmp_path):
    for name in ("img10.png", "img9.png", "img1.png", "IMG2.PNG"):
        _save(tmp_path / name, _pixels(0))
    assert folder(tmp_path).ids == ("IMG2.PNG", "img1.png", "img9.png", "img10.png")
    assert folder(tmp_path).labels is None


def test_numeric_class_folders_are_names_not_indices(tmp_path):
    for name in ("7/a.png", "3/a.png"):
        _save(tmp_path / name, _pixels(0))
    images = folder(tmp_path)
    assert images.class_names == ("3", "7") and images.labels.tolist() == [0, 1]


def test_classes_file_fixes_the_order(pets):
    (pets / "classes.txt").write_text("dog\ncat\nbird\n")
    images = folder(pets)
    assert images.class_names == ("dog", "cat", "bird") and images.labels.tolist() == [1, 1, 0]
    (pets / "classes.txt").write_text("dog\ncow\n")
    with pytest.raises(UnknownName, match="unknown class in folder pets: 'cat'"):
        folder(pets)


def test_reading_is_lazy_and_picklable(pets):
    import pickle

    images = pickle.loads(pickle.dumps(folder(pets)))
    assert np.array_equal(images.read(2), _pixels(2))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_table_gives_order_labels_groups_captions_and_columns(pets, ending):
    import polars

    table = polars.DataFrame(
        {
            "file_name": ["dog/2.png", "cat/1.png"],
            "label": ["hound", "tabby"],
            "group": ["indoor", "outdoor"],
            "caption": ['a "good" dog, sitting', "eine Katze\nim Garten – ü"],
            "age": [3, None],
            "weight": [1.5, 2.25],
            "tame": [True, False],
            "code": ["007", "012"],
        }
    )
    write = {"csv": table.write_csv, "jsonl": table.write_ndjson, "parquet": table.write_parquet}[ending]
    write(pets / f"metadata.{ending}")
    images = folder(pets)
    assert images.ids == ("dog/2.png", "cat/1.png")
    assert images.class_names == ("hound", "tabby") and images.labels.tolist() == [0, 1]
    assert images.groups.tolist() == ["indoor", "outdoor"]
    assert images.captions == ('a "good" dog, sitting', "eine Katze\nim Garten – ü")
    assert set(images.columns) == {"age", "weight", "tame", "code"}
    assert images.columns["weight"].tolist() == [1.5, 2.25] and images.columns["tame"].tolist() == [True, False]
    assert images.columns["code"].tolist() == ["007", "012"]
    assert images.columns["age"][0] == 3 and np.isnan(images.columns["age"][1])


def test_unnamed_files_are_counted_in_the_log(pets, caplog):
    (pets / "metadata.csv").write_text("file_name\ncat/1.png\n")
    (pets / "notes.txt").write_text("x")
    with caplog.at_level(logging.INFO, logger="mechvis.data.folder"):
        assert len(folder(pets)) == 1
    assert "2 image files are not named by metadata.csv" in caplog.text
    assert "1 other files (.txt 1)" in caplog.text


def test_table_elsewhere_and_columns_by_other_names(pets, tmp_path):
    (tmp_path / "waterbirds.csv").write_text("img,y,place\ncat/1.png,1,sea\ndog/2.png,0,land\n")
    images = folder(pets, metadata=tmp_path / "waterbirds.csv", id_column="img", label_column="y", group_column="place")
    assert images.labels.tolist() == [1, 0] and images.class_names == ("0", "1")
    assert images.groups.tolist() == ["sea", "land"] and images.columns == {}


def test_table_without_labels_uses_the_folders(pets):
    (pets / "metadata.csv").write_text("file_name,caption\ndog/2.png,x\ncat/1.png,y\n")
    assert folder(pets).labels.tolist() == [1, 0]


@pytest.mark.parametrize("explicit", [False, True])
def test_masks_beside_class_folders(pets, explicit):
    _add_masks(pets)
    images = folder(pets, masks="masks" if explicit else None)
    assert images.class_names == ("cat", "dog"), "the mask folder is no class"
    for seed in range(3):
        assert np.array_equal(images.read_mask(seed), _pixels(seed)[..., 0] > 128)


def test_a_class_may_be_called_masks(tmp_path):
    for name in ("masks/1.png", "hats/1.png"):
        _save(tmp_path / name, _pixels(0))
    images = folder(tmp_path)
    assert images.class_names == ("hats", "masks") and images.read_mask is None


def test_masks_outside_with_another_ending(pets, tmp_path):
    for name in ("cat/1", "cat/10", "dog/2"):
        _save(tmp_path / "segmentation" / f"{name}.bmp", np.eye(6, 9, dtype=np.uint8))
    images = folder(pets, masks=tmp_path / "segmentation")
    assert images.read_mask(1).dtype == bool and images.read_mask(1).sum() == 6


def test_mask_modes(tmp_path):
    truth = np.eye(4, dtype=bool)
    grey = truth.astype(np.uint8)
    palette = Image.fromarray(grey).convert("P")
    palette.putdata(grey.flatten().tolist())
    colour = np.zeros((4, 4, 4), np.uint8)
    colour[..., 2], colour[..., 3] = grey * 3, 255
    forms = {
        "grey": Image.fromarray(grey),
        "bits": Image.fromarray(truth),
        "palette": palette,
        "deep": Image.fromarray(grey.astype(np.uint16)),
        "transparent": Image.fromarray(colour),
    }
    for name, form in forms.items():
        _save(tmp_path / f"{name}.png", _pixels(0, 4, 4))
        (tmp_path / "masks").mkdir(exist_ok=True)
        form.save(tmp_path / "masks" / f"{name}.png")
    images = folder(tmp_path)
    for row, name in enumerate(images.ids):
        assert np.array_equal(images.read_mask(row), truth), name


def test_orientation_and_colour(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    array = np.zeros((16, 32, 3), np.uint8)
    array[:, :16] = 255
    _save(tmp_path / "turned.jpg", array, exif=exif, quality=95)
    _save(tmp_path / "turned_late.png", array, exif=exif)
    _save(tmp_path / "grey.png", array[..., 0])
    _save(tmp_path / "deep.png", np.full((16, 32), 0x12FF, np.uint16))
    Image.fromarray(np.dstack([array, array[..., 0]])).save(tmp_path / "alpha.png")
    Image.fromarray(array).convert("P").save(tmp_path / "palette.png", transparency=b"\x00\x80")
    for name in ("turned", "turned_late"):
        _save(tmp_path / "m" / f"{name}.png", np.ones((32, 16), np.uint8))
    for name in ("grey", "deep", "alpha", "palette"):
        _save(tmp_path / "m" / f"{name}.png", np.ones((16, 32), np.uint8))
    images = folder(tmp_path, masks="m")
    shapes = {name: image.shape for name, image in zip(images.ids, images.raw(), strict=True)}
    assert shapes["turned.jpg"] == shapes["turned_late.png"] == (32, 16, 3)
    turned = images.raw()[images.ids.index("turned.jpg")]
    assert turned[:12].min() > 240 and turned[20:].max() < 15, "orientation 6: the left half becomes the upper half"
    assert images.raw()[images.ids.index("deep.png")].max() == 0x12
    assert np.array_equal(images.raw()[images.ids.index("alpha.png")], array)
    assert np.array_equal(images.raw()[images.ids.index("palette.png")], array)


def test_empty_and_missing_folder(tmp_path):
    (tmp_path / "a.mat").write_text("x")
    (tmp_path / ".hidden.png").write_text("x")
    with pytest.raises(
        BadData, match=r"no image in .*: 0 image files, 1 other files \(\.mat 1\)\. Images end in \.bmp"
    ):
        folder(tmp_path)
    with pytest.raises(BadData, match=r"no folder at .*nowhere"):
        folder(tmp_path / "nowhere")


def test_unknown_option(pets):
    with pytest.raises(UnknownName, match="unknown value of on_corrupt 'ignore'"):
        folder(pets, on_corrupt="ignore")


def _break(file, how: str) -> None:
    content = file.read_bytes()
    file.write_bytes({"text": b"not an image", "truncated": content[: len(content) // 2], "empty": b""}[how])


@pytest.mark.parametrize("how", ["text", "truncated", "empty"])
def test_corrupt_images_are_named_counted_and_skipped_on_request(pets, how, caplog):
    _add_masks(pets)
    _break(pets / "cat" / "10.png", how)
    with pytest.raises(CorruptImage, match=r"1 of 3 images in .*cannot be used:\n  cat/10\.png cannot be decoded"):
        folder(pets)
    with pytest.raises(CorruptImage, match="on_corrupt='skip'"):
        folder(pets)
    images = folder(pets, on_corrupt="skip")
    assert images.ids == ("cat/1.png", "dog/2.png") and images.skipped == ("cat/10.png",)
    assert np.array_equal(images.raw()[1], _pixels(2)) and images.labels.tolist() == [0, 1]
    assert "1 of 3 images" in caplog.text and "skipped" in caplog.text and "1 skipped" in repr(images)


def test_truncated_jpeg_is_found_when_read_or_when_skipping(tmp_path):
    for name in ("a.jpg", "b.jpg"):
        _save(tmp_path / name, _pixels(0, 64, 64))
    _break(tmp_path / "b.jpg", "truncated")
    with pytest.raises(CorruptImage, match=r"b\.jpg cannot be decoded: .*truncated"):
        folder(tmp_path).raw()
    assert folder(tmp_path, on_corrupt="skip").skipped == ("b.jpg",)


def test_all_corrupt(tmp_path):
    (tmp_path / "a.png").write_text("x")
    with pytest.raises(CorruptImage, match=r"1 of 1 images.*\n.*\nNo image is left"):
        folder(tmp_path, on_corrupt="skip")


def test_corrupt_mask_names_mask_and_image(pets):
    _add_masks(pets)
    _break(pets / "masks" / "dog" / "2.png", "text")
    with pytest.raises(CorruptImage, match=r"mask 2\.png of dog/2\.png cannot be decoded: not an image file"):
        folder(pets)


def test_image_removed_after_loading(pets):
    images = folder(pets)
    (pets / "dog" / "2.png").unlink()
    with pytest.raises(CorruptImage, match=r"dog/2\.png does not exist \(any more\)"):
        images.raw()


@pytest.mark.parametrize("cap", [50, 20])  # PIL itself warns above the cap and raises above twice the cap
def test_decompression_bomb(pets, monkeypatch, cap):
    images = folder(pets)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", cap)
    with pytest.raises(CorruptImage, match=rf"3 of 3 .*\n  cat/1\.png has .* more than the cap of {cap}"):
        folder(pets)
    with pytest.raises(CorruptImage, match=r"cat/1\.png has .*set PIL\.Image\.MAX_IMAGE_PIXELS"):
        images.raw()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert len(folder(pets).raw()) == 3


def test_values_without_range(tmp_path):
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(CorruptImage, match=r"a\.tif holds 32-bit values without a fixed range"):
        folder(tmp_path).raw()


def test_image_without_mask(pets):
    _add_masks(pets, ("cat/1.png",))
    with pytest.raises(
        BadData, match=r"2 of 3 images have no mask in .*: cat/10\.png, dog/2\.png\. Expected e\.g\. cat/10\.png"
    ):
        folder(pets)


def test_mask_without_image(pets):
    _add_masks(pets, ("cat/1.png", "cat/10.png", "dog/2.png", "dog/3.png"))
    with pytest.raises(BadData, match=r"1 mask\(s\) in .* have no image: dog/3\.png"):
        folder(pets)


def test_masks_of_images_left_out_by_the_table_are_no_error(pets):
    _add_masks(pets)
    (pets / "metadata.csv").write_text("file_name\ncat/1.png\n")
    assert folder(pets).read_mask is not None


def test_two_masks_for_one_image(pets):
    _add_masks(pets)
    _save(pets / "masks" / "cat" / "1.bmp", np.ones((6, 9), np.uint8))
    with pytest.raises(BadData, match="two masks for one image"):
        folder(pets)


def test_no_mask_in_mask_folder(pets, tmp_path):
    _save(tmp_path / "lossy" / "cat" / "1.jpg", np.ones((6, 9), np.uint8))
    with pytest.raises(BadData, match=r"no mask in .*1 other files \(\.jpg 1\).*without loss"):
        folder(pets, masks=tmp_path / "lossy")
    with pytest.raises(BadData, match=r"no mask folder at nowhere \(looked for"):
        folder(pets, masks="nowhere")


def test_mask_of_another_size(pets):
    _add_masks(pets)
    _save(pets / "masks" / "dog" / "2.png", np.ones((9, 6), np.uint8))
    with pytest.raises(BadData, match=r"1 mask\(s\) differ in size.*: dog/2\.png is 9 x 6, its mask 6 x 9"):
        folder(pets)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["cat/99.png", "cat/1.png"], r"metadata\.csv names 1 image\(s\) that do not exist in .*: cat/99\.png"),
        (["cat/1.png", "cat/1.png"], r"metadata\.csv names 1 image\(s\) more than once: cat/1\.png"),
        (["../secret.png"], r"'\.\./secret\.png' leads out of the folder"),
        (["cat/../../secret.png"], "leads out of the folder"),
        (["/etc/secret.png"], r"'/etc/secret\.png' leads out of the folder"),
        (["C:\\secret.png"], "leads out of the folder"),
        (["cat\\..\\..\\secret.png"], "leads out of the folder"),
        (["link.png"], r"'link\.png' is a link out of the folder"),
        (["", "cat/1.png"], "a file name is empty"),
    ],
)
def test_bad_file_names_in_the_table(pets, tmp_path, rows, message):
    _save(tmp_path / "secret.png", _pixels(9))
    (pets / "link.png").symlink_to(tmp_path / "secret.png")
    (pets / "metadata.csv").write_text("file_name,other\n" + "".join(f"{row},x\n" for row in rows))
    with pytest.raises(BadData, match=message):
        folder(pets)


def test_bad_mask_names_in_the_table(pets, tmp_path):
    _save(tmp_path / "secret.png", np.ones((6, 9), np.uint8))
    table = pets / "metadata.csv"
    table.write_text("file_name,mask_file_name\ncat/1.png,../secret.png\n")
    with pytest.raises(BadData, match="leads out of the folder"):
        folder(pets)
    table.write_text("file_name,mask_file_name\ncat/1.png,m/1.png\n")
    with pytest.raises(BadData, match=r"names 1 mask\(s\) that do not exist: m/1\.png"):
        folder(pets)
    table.write_text("file_name,mask_file_name\ncat/1.png,\n")
    with pytest.raises(BadData, match=r"1 of 1 images have no mask: cat/1\.png"):
        folder(pets)
    _save(pets / "m" / "1.png", np.ones((6, 9), np.uint8))
    table.write_text("file_name,mask\ncat/1.png,m/1.png\n")
    assert folder(pets).read_mask(0).all(), "a column `mask` of image paths is understood too"


def test_links_out_of_the_folder_are_not_followed(pets, tmp_path):
    _save(tmp_path / "elsewhere" / "secret.png", _pixels(9))
    (pets / "horse").symlink_to(tmp_path / "elsewhere")
    (pets / "dog" / "5.png").symlink_to(tmp_path / "elsewhere" / "secret.png")
    (pets / "dog" / "6.png").symlink_to(pets / "cat" / "1.png")
    assert folder(pets).ids == ("cat/1.png", "cat/10.png", "dog/2.png", "dog/6.png")
    only_links = tmp_path / "only_links"
    only_links.mkdir()
    (only_links / "1.png").symlink_to(tmp_path / "elsewhere" / "secret.png")
    with pytest.raises(BadData, match=r"1 links not followed \(1\.png\)"):
        folder(only_links)


def test_images_beside_class_folders(pets):
    _save(pets / "stray.png", _pixels(0))
    with pytest.raises(BadData, match=r"1 of 4 images lie beside the class folders: stray\.png\. Move them"):
        folder(pets)


def test_columns_that_are_missing_or_incomplete(pets):
    table = pets / "metadata.csv"
    table.write_text("file_name,label,group\ncat/1.png,a,x\ncat/10.png,,y\ndog/2.png,b,\n")
    with pytest.raises(BadData, match=r"1 of 3 images have no label: cat/10\.png"):
        folder(pets)
    table.write_text("file_name,label,group\ncat/1.png,a,x\ndog/2.png,b,\n")
    with pytest.raises(UnknownName, match=r"unknown column of metadata\.csv 'gruop'. Nearest: group"):
        folder(pets, group_column="gruop")
    with pytest.raises(UnknownName, match="'path'"):
        folder(pets, id_column="path")
    with pytest.raises(UnknownName, match=r"'lable'\. Nearest: label"):
        folder(pets, label_column="lable")
    with pytest.raises(BadData, match=r"1 of 2 images have no group: dog/2\.png"):
        folder(pets)


def test_columns_without_a_table(pets):
    with pytest.raises(BadData, match=r"group_column='place' needs a metadata table: none of metadata\.csv"):
        folder(pets, group_column="place")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, -1], "label -1 is not the index of a class"),
        ([0, 10**6], "label 1000000 is not the index"),
        ([0.5, 1.0], r"labels must be class names or whole numbers, got 0\.5, 1\.0"),
        ([[1], [2]], "labels must be class names"),
        ([True, False], "labels must be class names"),
    ],
)
def test_labels_that_are_none(pets, labels, message):
    rows = [{"file_name": n, "label": v} for n, v in zip(("cat/1.png", "dog/2.png"), labels, strict=True)]
    (pets / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(BadData, match=message):
        folder(pets)


def test_unreadable_tables(pets, tmp_path):
    (pets / "metadata.jsonl").write_text("{]")
    with pytest.raises(BadData, match=r"metadata file .*metadata\.jsonl cannot be read"):
        folder(pets)
    (pets / "metadata.csv").write_text("file_name\n")
    with pytest.raises(BadData, match=r"has 2 tables \(metadata\.csv, metadata\.jsonl\): choose one"):
        folder(pets)
    with pytest.raises(BadData, match=r"metadata\.csv has no rows"):
        folder(pets, metadata=pets / "metadata.csv")
    with pytest.raises(BadData, match="no metadata file at"):
        folder(pets, metadata=tmp_path / "x.csv")
    with pytest.raises(BadData, match=r"x\.xls is none of \.csv"):
        folder(pets, metadata=tmp_path / "x.xls")


def test_message_lists_few_and_counts_all(tmp_path):
    for i in range(20):
        (tmp_path / f"{i}.png").write_text("x")
    with pytest.raises(CorruptImage) as error:
        folder(tmp_path)
    assert "20 of 20" in str(error.value) and len(re.findall("cannot be decoded", str(error.value))) == 5
