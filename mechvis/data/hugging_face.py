"""A Hugging Face `datasets.Dataset`, in memory or written by `save_to_disk`, as an :class:`ImageSet`.

Images are decoded here and not by `datasets`, so that orientation, colour and the errors are those of image folders
(see `mechvis/data/decode.py`). Nothing is downloaded: load from the hub with `datasets.load_dataset` and
pass the result.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mechvis.data.decode import probe, read_image, read_mask
from mechvis.data.images import ImageSet
from mechvis.data.preprocess import Preprocess
from mechvis.data.table import column_array, complete, label_indices, listed
from mechvis.errors import BadData, CorruptImage, unknown
from mechvis.progress import track

if TYPE_CHECKING:
    from datasets import Dataset


def hugging_face(
    dataset_or_path: "Dataset | str | Path",
    *,
    image_column: str = "image",
    label_column: str | None = None,
    mask_column: str | None = None,
    group_column: str | None = None,
    caption_column: str | None = None,
    split: str | None = None,
    preprocess: Preprocess | None = None,
) -> ImageSet:
    """The images of a `datasets.Dataset`, read lazily.

    Args:
        dataset_or_path: the data set, a `DatasetDict`, or a folder written by `save_to_disk`.
        image_column: images: an `Image` feature, or arrays uint8 `[height width]` or `[height width channel]`.
        label_column: class labels (names come from a `ClassLabel` feature), text, or whole numbers; default: the one
            `ClassLabel` column, if there is exactly one.
        mask_column: object masks of the same size as their images; every value but zero is the object. They are
            compared with their images at once, which reads the whole data set.
        group_column: groups, as text or numbers.
        caption_column: captions.
        split: which split of a `DatasetDict`.
        preprocess: makes `images.pixels` work without a model at hand.

    Raises:
        BadData: no such folder, an empty or streamed data set, gaps in a column, a mask of another size.
        UnknownName: a column or split that is not there.

    Example:
        >>> import datasets
        >>> rows = {"image": [np.zeros((8, 8, 3), np.uint8)] * 2, "label": ["cat", "dog"]}
        >>> features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
        >>> hugging_face(datasets.Dataset.from_dict(rows, features=datasets.Features(features))).class_names
        ('cat', 'dog')
    """
    from datasets import ClassLabel, Image, Value

    dataset = _choose(dataset_or_path, split)
    name = _name(dataset_or_path, dataset)
    where = f"data set {name!r}"
    for column in (image_column, label_column, mask_column, group_column, caption_column):
        if column is not None and column not in dataset.column_names:
            raise unknown(f"column of {where}", column, dataset.column_names)
    if len(dataset) == 0:
        raise BadData(f"the {where} has no rows.")

    features = dataset.features
    dataset = dataset.with_format(None)
    for column in (image_column, mask_column):
        if column is not None and isinstance(features[column], Image):
            dataset = dataset.cast_column(column, Image(decode=False))
    ids = tuple(f"{name}/{row:06d}" for row in range(len(dataset)))

    if label_column is None:
        candidates = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
        label_column = candidates[0] if len(candidates) == 1 else None
    others = [c for c, f in features.items() if isinstance(f, Value | ClassLabel)]
    values = dataset.select_columns(others)[:] if others else {}
    for what, column in {"label": label_column, "group": group_column, "caption": caption_column}.items():
        if column is not None and column not in values:
            raise BadData(f"{where}: column {column!r} holds {features[column]}, which cannot be a {what}.")
        if column is not None:
            complete(values[column], ids, what=what, where=where)

    labels, class_names = None, ()
    if label_column is not None:
        feature = features[label_column]
        known = tuple(feature.names) if isinstance(feature, ClassLabel) else None
        labels, class_names = label_indices(values[label_column], class_names=known, where=where)
    taken = (image_column, mask_column, label_column, group_column, caption_column)
    extra = {column: column_array(entries) for column, entries in values.items() if column not in taken}

    images = ImageSet(
        name=name,
        ids=ids,
        read=partial(_read, dataset, image_column, ids),
        rows=np.arange(len(ids)),
        labels=labels,
        class_names=class_names,
        read_mask=None if mask_column is None else partial(_read_mask, dataset, mask_column, ids),
        groups=None if group_column is None else np.array([str(value) for value in values[group_column]]),
        captions=None if caption_column is None else tuple(str(value) for value in values[caption_column]),
        columns={column: array for column, array in extra.items() if array is not None},
        preprocess=preprocess,
    )
    if mask_column is not None:
        _refuse_other_sizes(dataset, image_column, mask_column, ids, where)
    return images


def _choose(dataset_or_path: Any, split: str | None) -> "Dataset":
    import datasets

    given = dataset_or_path
    if isinstance(given, str | Path):
        if not Path(given).is_dir():
            raise BadData(
                f"no folder at {given}. To use a data set of the hub, load it with "
                "datasets.load_dataset(...) and pass the result."
            )
        try:
            given = datasets.load_from_disk(str(given))
        except Exception as error:  # a damaged folder raises anything from FileNotFoundError to ArrowInvalid
            raise BadData(
                f"{dataset_or_path} cannot be loaded as a folder written by Dataset.save_to_disk: {error}\n"
                "For a folder of image files use mechvis.data.folder."
            ) from error
    if isinstance(given, datasets.DatasetDict):
        if split is None:
            raise BadData(f"the data set has the splits {', '.join(given)}: choose one with split=.")
        if split not in given:
            raise unknown("split", split, given)
        return given[split]
    if not isinstance(given, datasets.Dataset):
        raise BadData(
            f"expected a datasets.Dataset or a folder written by save_to_disk, got {type(given).__name__}. "
            "A streamed data set has no length: take some: Dataset.from_list(list(streamed.take(1000)))."
        )
    if split is not None and split != str(given.split):
        raise unknown("split", split, [str(given.split)] if given.split is not None else [])
    return given


def _name(source: Any, dataset: "Dataset") -> str:
    stem = Path(source).resolve().name if isinstance(source, str | Path) else dataset.info.dataset_name or "dataset"
    return stem if dataset.split is None else f"{stem}/{dataset.split}"


def _content(dataset: "Dataset", column: str, row: int, name: str) -> Path | bytes | np.ndarray:
    value = dataset[row][column]
    if value is None:
        raise CorruptImage(f"{name} has no {column!r}: the entry is empty.")
    if isinstance(value, dict) and {"bytes", "path"} <= set(value):
        if value["bytes"] is not None:
            return value["bytes"]
        if value["path"] is None or "://" in value["path"]:
            raise CorruptImage(f"{name}: the data set only names {value['path']!r} instead of holding the image.")
        return Path(value["path"])
    array = np.asarray(value)
    if not np.issubdtype(array.dtype, np.number) and array.dtype != bool:
        raise CorruptImage(f"{name}: column {column!r} holds {type(value).__name__} values, not images.")
    return array


def _read(dataset: "Dataset", column: str, names: tuple[str, ...], row: int) -> np.ndarray:
    content = _content(dataset, column, row, names[row])
    if not isinstance(content, np.ndarray):
        return read_image(content, name=names[row])
    if content.ndim == 2:
        content = np.stack([content] * 3, axis=-1)
    whole = np.issubdtype(content.dtype, np.integer) and content.size and content.min() >= 0 and content.max() <= 255
    if content.ndim != 3 or content.shape[2] != 3 or not whole:
        seen = f"{content.dtype} {content.shape}"
        raise CorruptImage(f"{names[row]}: expected whole numbers 0-255 [height width 3], got {seen}.")
    return content.astype(np.uint8)


def _read_mask(dataset: "Dataset", column: str, names: tuple[str, ...], row: int) -> np.ndarray:
    content = _content(dataset, column, row, names[row])
    if not isinstance(content, np.ndarray):
        return read_mask(content, name=f"mask of {names[row]}")
    if content.ndim != 2:
        raise CorruptImage(f"mask of {names[row]}: expected [height width], got {content.shape}.")
    return content.astype(bool)


def _refuse_other_sizes(dataset: "Dataset", images: str, masks: str, names: tuple[str, ...], where: str) -> None:
    def size(column: str, row: int, name: str) -> tuple[int, ...]:
        content = _content(dataset, column, row, name)
        return content.shape[:2] if isinstance(content, np.ndarray) else probe(content, name=name)

    wrong = []
    with track(len(names), "checking masks", " images", show=len(names) > 2000) as bar:
        for row, name in enumerate(names):
            image, mask = size(images, row, name), size(masks, row, f"mask of {name}")
            if image != mask:
                wrong.append(f"{name} is {image[1]} x {image[0]}, its mask {mask[1]} x {mask[0]}")
            bar.update(1)
    if wrong:
        some = listed(wrong)
        raise BadData(f"{where}: {len(wrong)} mask(s) differ in size from their image (width x height): {some}.")
