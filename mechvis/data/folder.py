"""An ordinary folder of image files as an :class:`ImageSet`.

What is understood, in this order:

1. A table `metadata.csv`, `metadata.jsonl` or `metadata.parquet` in the folder (or given), one row per image, in the
   convention of Hugging Face's ImageFolder: `file_name` is the path inside the folder. Recognised besides: `label`
   (class name or index), `group`, `caption`, `mask_file_name`. All other columns of numbers or text are kept in
   `ImageSet.columns`. The order of the rows is the order of the images.
2. Without a table: every image file, in natural order (`2.png` before `10.png`).
3. Labels without a label column: the name of the class sub-folder. An optional `classes.txt`, one name per line, fixes
   which index a class has; without it the names are sorted.
4. Masks: the table's `mask_file_name`, else a mask folder with the same relative paths (any lossless ending). It is
   found by itself if it is called `masks` and lies beside `images`, beside bare image files, or holds the same class
   folders as its parent.

This is what :func:`mechvis.data.export` writes; its documentation shows a tree.

Everything that can be wrong is looked for before the first image is used: every file's header and checksum is read
once, a few thousand per second. Nothing outside the folder is ever read: links and table entries that lead out of it
are not followed.
"""

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

import numpy as np

from mechvis.data.decode import IMAGE_TYPES, MASK_TYPES, probe, read_image, read_mask
from mechvis.data.images import ImageSet
from mechvis.data.preprocess import Preprocess
from mechvis.data.table import column_array, column_of, complete, label_indices, listed, read_table
from mechvis.errors import BadData, CorruptImage, unknown
from mechvis.progress import track

log = logging.getLogger(__name__)

METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
CLASSES_FILE = "classes.txt"


def folder(
    path: str | Path,
    *,
    metadata: str | Path | None = None,
    masks: str | Path | None = None,
    label_column: str = "label",
    group_column: str | None = None,
    caption_column: str | None = None,
    id_column: str = "file_name",
    on_corrupt: Literal["error", "skip"] = "error",
    preprocess: Preprocess | None = None,
) -> ImageSet:
    """The images of a folder, checked, read lazily.

    Args:
        path: the folder.
        metadata: the table; default: the metadata file in the folder, if there is one. Its file names are relative to
            `path`, wherever the table itself lies.
        masks: the mask folder; default: see the module's text. A relative path is tried from the working directory,
            then from `path`.
        label_column: the table's column of labels. Without such a column the class sub-folders are the labels.
        group_column: the table's column of groups; default: `group`, if it exists.
        caption_column: the table's column of captions; default: `caption`, if it exists.
        id_column: the table's column of image paths.
        on_corrupt: what to do with files that cannot be decoded. "skip" decodes every image once to find them, leaves
            them out, logs them, and lists them in `ImageSet.skipped`.
        preprocess: makes `images.pixels` work without a model at hand.

    Raises:
        BadData: the folder is missing or empty, or images, masks and table contradict each other.
        CorruptImage: files cannot be decoded; names the first of them.
        UnknownName: a column that the table does not have.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> root = Path(tempfile.mkdtemp()) / "pets"
        >>> for name in ("cat", "dog"):
        ...     (root / name).mkdir(parents=True)
        ...     Image.new("RGB", (8, 8)).save(root / name / "1.png")
        >>> folder(root)
        ImageSet('pets', 2 images, 2 classes)
    """
    if on_corrupt not in ("error", "skip"):
        raise unknown("value of on_corrupt", on_corrupt, ("error", "skip"))
    root = Path(path).expanduser().resolve()
    if not root.is_dir():
        raise BadData(f"no folder at {path}.")
    table_file = _table_file(root, metadata)
    table = None if table_file is None else read_table(table_file)
    where = str(path) if table_file is None else table_file.name
    mask_column = None if table is None or masks is not None else _mask_column(table)
    mask_root = _mask_root(root, masks, named=mask_column is not None)
    tree = _scan(root, IMAGE_TYPES, leave_out=mask_root)

    if table is None:
        base = _image_base(root, tree)
        names = [name for name in tree.files if name.startswith(base)]
        if not names:
            raise BadData(f"no image in {path}: {tree}. Images end in {', '.join(sorted(IMAGE_TYPES))}.")
    else:
        names = [_inside(root, name, where=where) for name in column_of(table, id_column, where=where)]
        base = "images/" if all(name.startswith("images/") for name in names) else ""
        _refuse_repeated_or_lost(root, names, tree, where)
    mask_files = _mask_files(root, table, mask_column, mask_root, names, base, tree, where)
    unused = set(tree.files).difference(
        names, (file.relative_to(root).as_posix() for file in mask_files or () if file.is_relative_to(root))
    )
    if unused:
        log.warning("%s: %d image files are not named by %s and are left out.", path, len(unused), where)
    if tree.others or tree.links:
        log.info("%s: %s.", path, tree)

    labels, class_names = _labels(root, table, label_column, names, base, where)
    groups = _text_column(table, group_column, "group", names, where)
    captions = _text_column(table, caption_column, "caption", names, where)
    taken = {id_column, mask_column, "mask_file_name", label_column}
    taken |= {group_column or "group", caption_column or "caption"}
    columns = {name: column_array(values) for name, values in (table or {}).items() if name not in taken}

    good, skipped = _check_files(root, names, mask_files, on_corrupt)
    images = ImageSet(
        name=root.name,
        ids=tuple(names),
        read=partial(_read, root, tuple(names)),
        rows=np.arange(len(names)),
        labels=labels,
        class_names=class_names,
        read_mask=None if mask_files is None else partial(_read_mask, tuple(mask_files)),
        groups=None if groups is None else np.array(groups),
        captions=None if captions is None else tuple(captions),
        columns={name: column for name, column in columns.items() if column is not None},
        preprocess=preprocess,
        skipped=skipped,
    )
    return images if len(good) == len(names) else images[good]


@dataclass
class _Tree:
    """The files of a folder: those of the wanted types, and a count of what else was seen."""

    files: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    links: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{len(self.files)} image files, {self.others.total()} other files"
        text += f" ({', '.join(f'{ending} {n}' for ending, n in self.others.most_common(4))})" if self.others else ""
        return text + (f", {len(self.links)} links not followed ({listed(self.links)})" if self.links else "")


def _scan(root: Path, types: frozenset[str], *, leave_out: Path | None = None) -> _Tree:
    """All files below `root` of these types, as relative paths in natural order. Hidden files do not count."""
    tree = _Tree()
    for where, folders, files in os.walk(root, followlinks=False):
        here = Path(where)
        folders[:] = [n for n in folders if not n.startswith(".") and n != "__MACOSX" and here / n != leave_out]
        tree.links += [(here / name).relative_to(root).as_posix() for name in folders if (here / name).is_symlink()]
        for name in files:
            file = here / name
            relative = file.relative_to(root).as_posix()
            if name.startswith(".") or (here == root and name in (*METADATA_FILES, CLASSES_FILE)):
                continue
            if file.suffix.lower() not in types:
                tree.others[file.suffix.lower() or "no ending"] += 1
            elif file.is_symlink() and not file.resolve().is_relative_to(root):
                tree.links.append(relative)
            else:
                tree.files.append(relative)
    tree.files.sort(key=_natural)
    return tree


def _natural(name: str) -> tuple:
    return tuple((int(p), "") if p.isdecimal() else (-1, p) for p in re.split(r"(\d+)", name.replace("/", "\0"))), name


def _table_file(root: Path, metadata: str | Path | None) -> Path | None:
    if metadata is not None:
        return Path(metadata).expanduser()
    found = [root / name for name in METADATA_FILES if _own_file(root, name)]
    if len(found) > 1:
        raise BadData(f"{root} has {len(found)} tables ({listed(f.name for f in found)}): choose one with metadata=.")
    return found[0] if found else None


def _own_file(root: Path, name: str) -> bool:
    return (root / name).is_file() and (root / name).resolve().is_relative_to(root)


def _inside(root: Path, name: object, *, where: str) -> str:
    """A path from a table, normalised; refused if it leads out of the folder."""
    if not isinstance(name, str) or not name.strip():
        raise BadData(f"{where}: a file name is empty or not text ({name!r}).")
    windows = PureWindowsPath(name)
    if PurePosixPath(name).is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise BadData(f"{where}: {name!r} leads out of the folder. Paths must be relative to {root} and without '..'.")
    if not (root / name).resolve().is_relative_to(root):
        raise BadData(f"{where}: {name!r} is a link out of the folder {root}, which is not followed. Copy the file.")
    return PurePosixPath(name).as_posix()


def _refuse_repeated_or_lost(root: Path, names: list[str], tree: _Tree, where: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise BadData(f"{where} names {len(twice)} image(s) more than once: {listed(twice)}.")
    there = set(tree.files)
    lost = [name for name in names if name not in there and not (root / name).is_file()]
    if lost:
        raise BadData(f"{where} names {len(lost)} image(s) that do not exist in {root}: {listed(lost)}.")


def _image_base(root: Path, tree: _Tree) -> str:
    """`images/` if that folder holds the class folders, else nothing."""
    tops = {name.split("/")[0] if "/" in name else "" for name in tree.files}
    return "images/" if tops == {"images"} and not (root / "images").is_symlink() else ""


def _mask_column(table: dict[str, list]) -> str | None:
    if "mask_file_name" in table:
        return "mask_file_name"
    values = [value for value in table.get("mask", ()) if value is not None]
    paths = values and all(isinstance(v, str) and Path(v).suffix.lower() in MASK_TYPES for v in values)
    return "mask" if paths else None


def _mask_root(root: Path, masks: str | Path | None, *, named: bool) -> Path | None:
    if masks is not None:
        places = [Path(masks).expanduser(), root / masks]
        for place in places:
            if place.is_dir():
                return place.resolve()
        raise BadData(f"no mask folder at {masks} (looked for {listed(places)}).")
    place = root / "masks"
    if not place.is_dir() or place.is_symlink():
        return None
    children = [child for child in root.iterdir() if not child.name.startswith(".")]
    bare = any(child.is_file() and child.suffix.lower() in IMAGE_TYPES for child in children)
    mirrored = {c.name for c in place.iterdir() if c.is_dir()} & {c.name for c in children if c.is_dir()}
    return place if named or bare or mirrored or (root / "images").is_dir() else None


def _mask_files(
    root: Path,
    table: dict[str, list] | None,
    mask_column: str | None,
    mask_root: Path | None,
    names: list[str],
    base: str,
    tree: _Tree,
    where: str,
) -> list[Path] | None:
    """The mask file of each image: as the table says, else by its path in the mask folder, else None."""
    files = None
    if table is not None and mask_column is not None:
        complete(table[mask_column], names, what="mask", where=where)
        files = [root / _inside(root, name, where=where) for name in table[mask_column]]
        lost = [file.relative_to(root).as_posix() for file in files if not file.is_file()]
        if lost:
            raise BadData(f"{where} names {len(lost)} mask(s) that do not exist: {listed(lost)}.")
    if mask_root is None:
        return files
    by_key = _masks_by_key(mask_root)
    _refuse_orphans(mask_root, by_key, tree.files, base, used=files or ())
    return files if files is not None else _masks_of(names, base, by_key, mask_root)


def _masks_by_key(mask_root: Path) -> dict[str, Path]:
    tree = _scan(mask_root, MASK_TYPES)
    if not tree.files:
        raise BadData(f"no mask in {mask_root}: {tree}. Masks end in {', '.join(sorted(MASK_TYPES))} (without loss).")
    by_key: dict[str, Path] = {}
    for name in tree.files:
        other = by_key.setdefault(_key(name), mask_root / name)
        if other != mask_root / name:
            raise BadData(f"two masks for one image in {mask_root}: {other.name} and {name}.")
    return by_key


def _key(name: str) -> str:
    return PurePosixPath(name).with_suffix("").as_posix()


def _keys(name: str, base: str) -> tuple[str, str]:
    """Under which a mask may be found: its path below `images`, or the whole path."""
    return _key(name.removeprefix(base)), _key(name)


def _masks_of(names: Sequence[str], base: str, by_key: dict[str, Path], mask_root: Path) -> list[Path]:
    found = [next((by_key[key] for key in _keys(name, base) if key in by_key), None) for name in names]
    lost = [name for name, file in zip(names, found, strict=True) if file is None]
    if lost:
        raise BadData(
            f"{len(lost)} of {len(names)} images have no mask in {mask_root}: {listed(lost)}. "
            f"Expected e.g. {_key(lost[0].removeprefix(base))}.png."
        )
    return [file for file in found if file is not None]


def _refuse_orphans(
    mask_root: Path, by_key: dict[str, Path], images: Sequence[str], base: str, used: Sequence[Path]
) -> None:
    keys, used = {key for name in images for key in _keys(name, base)}, set(used)
    orphans = [file for key, file in by_key.items() if key not in keys and file not in used]
    if orphans:
        some = listed(file.relative_to(mask_root).as_posix() for file in orphans)
        raise BadData(f"{len(orphans)} mask(s) in {mask_root} have no image: {some}. A mask has the path of its image.")


def _labels(
    root: Path, table: dict[str, list] | None, column: str, names: list[str], base: str, where: str
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    known = None
    if _own_file(root, CLASSES_FILE):
        lines = (root / CLASSES_FILE).read_text(encoding="utf-8-sig").splitlines()
        known = tuple(line for line in lines if line.strip())
    if table is not None and (column in table or column != "label"):
        values = column_of(table, column, where=where)
        complete(values, names, what="label", where=where)
        return label_indices(values, class_names=known, where=where)
    parts = [PurePosixPath(name.removeprefix(base)).parts for name in names]
    bare = [name for name, part in zip(names, parts, strict=True) if len(part) == 1]
    if len(bare) == len(names):
        return None, ()
    if bare:
        raise BadData(
            f"{len(bare)} of {len(names)} images lie beside the class folders: {listed(bare)}. Move them "
            "into a class folder, or give a metadata table."
        )
    folders = [part[0] for part in parts]
    known = known if known is not None else tuple(sorted(set(folders)))
    return label_indices(folders, class_names=known, where=f"folder {root.name}")


def _text_column(
    table: dict[str, list] | None, asked: str | None, usual: str, names: list[str], where: str
) -> list[str] | None:
    if table is None:
        if asked is not None:
            tables = ", ".join(METADATA_FILES)
            raise BadData(f"{usual}_column={asked!r} needs a metadata table: none of {tables} in {where}.")
        return None
    if asked is None and usual not in table:
        return None
    values = column_of(table, asked or usual, where=where)
    complete(values, names, what=usual, where=where)
    return [str(value) for value in values]


def _check_files(
    root: Path, names: list[str], masks: list[Path] | None, on_corrupt: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Which images can be used, and which are left out.

    Raises:
        CorruptImage: some cannot be decoded, and they should not be skipped or none is left.
        BadData: a mask has another size than its image.
    """
    thorough = on_corrupt == "skip"
    seen = _probe_all([root / name for name in names], names, thorough)
    bad = {i: found for i, found in enumerate(seen) if isinstance(found, CorruptImage)}
    if masks is not None:
        titles = [f"mask {file.name} of {name}" for file, name in zip(masks, names, strict=True)]
        shapes = _probe_all(masks, titles, thorough)
        bad |= {i: found for i, found in enumerate(shapes) if isinstance(found, CorruptImage) and i not in bad}
        wrong = []
        for i in (i for i in range(len(names)) if i not in bad and seen[i] != shapes[i]):
            # an orientation at the end of a PNG shows only when it is decoded
            image, mask = _read(root, names, i).shape[:2], _read_mask(masks, i).shape
            wrong += [f"{names[i]} is {_size(image)}, its mask {_size(mask)}"] if image != mask else []
        if wrong:
            raise BadData(
                f"{len(wrong)} mask(s) differ in size from their image (width x height): {listed(wrong)}. "
                "Masks are compared with the image after its EXIF orientation."
            )
    if not bad:
        return np.arange(len(names)), ()
    reasons = "\n  ".join(str(error) for error in list(bad.values())[:5])
    text = f"{len(bad)} of {len(names)} images in {root} cannot be used:\n  {reasons}"
    text += "\n  ..." if len(bad) > 5 else ""
    if on_corrupt == "error":
        raise CorruptImage(f"{text}\nRepair or remove them, or leave them out with on_corrupt='skip'.")
    if len(bad) == len(names):
        raise CorruptImage(f"{text}\nNo image is left.")
    log.warning("%s\nThey are skipped.", text)
    good = np.array([i for i in range(len(names)) if i not in bad], dtype=np.int64)
    return good, tuple(names[i] for i in bad)


def _probe_all(files: Sequence[Path], names: Sequence[str], thorough: bool) -> list[tuple[int, int] | CorruptImage]:
    import warnings

    from PIL import Image

    def look(index: int) -> tuple[int, int] | CorruptImage:
        try:
            return probe(files[index], name=names[index], thorough=thorough)
        except CorruptImage as error:
            return error

    block = 1024
    seen: list[tuple[int, int] | CorruptImage] = []
    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool,
        track(len(files), "checking files", " files", show=len(files) > 2000) as bar,
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the cap is checked anyway
        for start in range(0, len(files), block):
            found = list(pool.map(look, range(start, min(start + block, len(files)))))
            bar.update(len(found))
            seen += found
    return seen


def _read(root: Path, names: Sequence[str], row: int) -> np.ndarray:
    return read_image(root / names[row], name=names[row])


def _read_mask(files: Sequence[Path], row: int) -> np.ndarray:
    return read_mask(files[row], name=str(files[row]))


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]} x {shape[0]}"
