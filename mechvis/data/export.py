"""Write an :class:`ImageSet` as an ordinary image folder. This is also the format for your own data::

    pets/
      images/cat/0001.png       one folder per class; without labels the files lie directly in images/
      images/dog/0002.png
      masks/cat/0001.png        optional: same path as the image, 0 = background, 255 = object
      masks/dog/0002.png
      metadata.csv              one row per image, in the order of the set
      classes.txt               with labels: the name of class 0, of class 1, ..., one per line

Columns of `metadata.csv` (UTF-8, commas, a header line):

==================  ================================================================================================
`file_name`         path of the image inside the folder, with forward slashes
`label`             class name
`group`             group name, e.g. for worst-group accuracy
`caption`           one sentence
`mask_file_name`    path of the mask inside the folder
any other           numbers or text that are known per image (an array per image becomes `name_0`, `name_1`, ...)
==================  ================================================================================================

Every column but `file_name` is optional, and so are the table and `classes.txt` as a whole. `mechvis.data.folder` gives
back the same pixels, labels, class names, masks, groups, captions and columns, in the same order.

Other tools read the same tree. Masks lie beside `images`, not inside, because most tools take every folder for a class:
`torchvision.datasets.ImageFolder("pets/images")` sees the classes only, and
`datasets.load_dataset("imagefolder", data_dir="pets")` finds the table; it turns `file_name` and `mask_file_name` into
the image columns `image` and `mask` (that is why the column has this name).
"""

import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mechvis.data.images import ImageSet
from mechvis.errors import BadData, MechvisError, OutputNotWritable
from mechvis.progress import track

_PARTS = {"images", "masks", "metadata.csv", "classes.txt"}
_RESERVED = ("file_name", "label", "group", "caption", "mask_file_name")
_IMAGE_ENDING = re.compile(r"\.(png|jpe?g|webp|bmp|gif|tiff?|p[pgbn]m)$", re.IGNORECASE)


def export(images: ImageSet, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write images, masks and everything known about them; the folder appears when all of it is written.

    Args:
        images: what to write.
        folder: where to; its parents are made.
        overwrite: replace an earlier export of this place. A folder that holds anything else is never replaced.

    Returns:
        The folder.

    Raises:
        OutputNotWritable: the place is taken or cannot be written.
        BadData: a mask of another size than its image, or names that this format cannot hold.

    Example:
        >>> import tempfile
        >>> images = ImageSet(name="x", ids=("a",), read=lambda row: np.zeros((4, 4, 3), np.uint8), rows=np.arange(1))
        >>> sorted(file.name for file in export(images, Path(tempfile.mkdtemp()) / "grey").iterdir())
        ['images', 'metadata.csv']
    """
    folder = Path(folder).expanduser().absolute()
    _refuse_taken(folder, overwrite)
    columns = _columns(images)
    with _not_writable(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
        part.mkdir()
    try:
        with _not_writable(folder):
            _write(images, part, columns)
            _replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _refuse_taken(folder: Path, overwrite: bool) -> None:
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not folder.is_dir():
        raise OutputNotWritable(f"{folder} exists and is not a folder: choose another place.")
    held = {child.name for child in folder.iterdir()}
    if held - _PARTS:
        some = ", ".join(sorted(held - _PARTS)[:3])
        raise OutputNotWritable(f"{folder} holds files that are not of an export ({some}): choose a new folder.")
    if held and not overwrite:
        raise OutputNotWritable(f"{folder} holds an earlier export: choose another folder, or pass overwrite=True.")


def _columns(images: ImageSet) -> dict[str, list]:
    """The table without the label and the file names, checked before anything is written."""
    broken = [name for name in images.class_names if not name.strip() or len(name.splitlines()) > 1]
    if broken:
        raise BadData(f"class name {broken[0]!r} is empty or has more than one line.")
    clash = [name for name in images.columns if name in _RESERVED]
    if clash:
        raise BadData(f"rename the column {clash[0]!r}: {', '.join(_RESERVED)} have a meaning of their own.")
    if images.labels is not None and int(images.labels.min()) < 0:
        raise BadData(f"{images.name!r} has the negative label {int(images.labels.min())}: leave these images out.")
    columns: dict[str, list] = {}
    if images.groups is not None:
        columns["group"] = [str(group) for group in images.groups]
    if images.captions is not None:
        columns["caption"] = list(images.captions)
    for name, values in images.columns.items():
        values = np.asarray(values)
        if values.ndim == 1:
            columns[name] = values.tolist()
        else:
            flat = values.reshape(len(values), -1)
            columns |= {f"{name}_{i}": flat[:, i].tolist() for i in range(flat.shape[1])}
    return columns


def _write(images: ImageSet, part: Path, columns: dict[str, list]) -> None:
    import polars
    from PIL import Image

    names = _file_names(images)
    with track(len(images), "writing images", " images", show=len(images) > 2000) as bar:
        for at in range(len(images)):
            row, place = int(images.rows[at]), part / "images" / names[at]
            image = images.read(row)
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place)
            if images.read_mask is not None:
                mask, place = images.read_mask(row), part / "masks" / names[at]
                if mask.shape != image.shape[:2]:
                    raise BadData(
                        f"{images.ids[at]}: its mask is {mask.shape}, the image {image.shape[:2]} (height, width)."
                    )
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask.astype(np.uint8) * 255).save(place)
            bar.update(1)

    table: dict[str, list] = {"file_name": [f"images/{name}" for name in names]}
    if images.labels is not None:
        table["label"] = [_class_name(images, int(label)) for label in images.labels]
    table |= columns
    if images.read_mask is not None:
        table["mask_file_name"] = [f"masks/{name}" for name in names]
    polars.DataFrame(table, strict=False).write_csv(part / "metadata.csv")
    if images.labels is not None and images.class_names:
        (part / "classes.txt").write_text("\n".join(images.class_names) + "\n", encoding="utf-8")


def _class_name(images: ImageSet, label: int) -> str:
    return images.class_names[label] if images.class_names else str(label)


def _file_names(images: ImageSet) -> list[str]:
    """`<class>/<id>.png` with signs that every file system takes, different also where case does not count."""
    count = len(images.class_names) or (0 if images.labels is None else int(images.labels.max()) + 1)
    folders = _distinct([_plain(_class_name(images, label)) for label in range(count)])
    names = []
    for at, name in enumerate(images.ids):
        stem = _IMAGE_ENDING.sub("", name).removeprefix("images/")
        if images.labels is None:
            names.append(_plain(stem))
        else:
            place = folders[int(images.labels[at])]
            names.append(f"{place}/{_plain(stem.removeprefix(f'{place}/'))}")
    return [f"{name}.png" for name in _distinct(names)]


def _plain(name: str) -> str:
    # a leading dot would hide the file, a trailing one is dropped by some systems
    return re.sub(r"[^\w.+=-]+", "-", name).strip(".-")[:150] or "unnamed"


def _distinct(names: list[str]) -> list[str]:
    taken: set[str] = set()
    done = []
    for name in names:
        choice, number = name, 1
        while choice.casefold() in taken:
            number += 1
            choice = f"{name}-{number}"
        taken.add(choice.casefold())
        done.append(choice)
    return done


def _replace(part: Path, folder: Path) -> None:
    old = folder.with_name(f"{part.name}.old")
    there = folder.exists()
    if there:
        folder.replace(old)
    try:
        part.replace(folder)
    except OSError:
        if there:
            old.replace(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _not_writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except MechvisError:
        raise
    except OSError as error:
        raise OutputNotWritable(f"cannot write {folder}: {error.strerror or error}.") from error
