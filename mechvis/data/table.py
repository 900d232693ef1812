"""What a table says about images: columns of text or numbers to labels, groups and typed arrays.

Metadata files and Hugging Face data sets share these rules, so that one table means the same in both.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from mechvis.errors import BadData, unknown


def listed(names: Iterable[object], most: int = 3) -> str:
    """The first few names, and how many there are if that is more.

    Example:
        >>> listed(["a", "b", "c", "d"], most=2)
        'a, b ... (4 in all)'
    """
    names = [str(name) for name in names]
    return ", ".join(names[:most]) + (f" ... ({len(names)} in all)" if len(names) > most else "")


def read_table(path: Path) -> dict[str, list]:
    """Columns of a `.csv`, `.jsonl` or `.parquet` file. Values of a CSV file are text, empty fields are None.

    Raises:
        BadData: the file cannot be read, has another ending or no rows.
    """
    import polars

    readers = {
        ".csv": lambda: polars.read_csv(path, infer_schema=False),
        ".jsonl": lambda: polars.read_ndjson(path, infer_schema_length=None),
        ".parquet": lambda: polars.read_parquet(path, glob=False),
    }
    if path.suffix.lower() not in readers:
        raise BadData(f"the metadata file {path.name} is none of {', '.join(sorted(readers))}.")
    if not path.is_file():
        raise BadData(f"no metadata file at {path}.")
    try:
        table = readers[path.suffix.lower()]()
    except (polars.exceptions.PolarsError, OSError, ValueError) as error:
        raise BadData(f"the metadata file {path} cannot be read: {error}") from error
    if table.height == 0:
        raise BadData(f"the metadata file {path} has no rows.")
    return {column.name: column.to_list() for column in table.get_columns()}


def column_of(table: dict[str, list], name: str, *, where: str) -> list:
    """A column that must exist.

    Raises:
        UnknownName: it does not; the message gives the nearest names.
    """
    if name not in table:
        raise unknown(f"column of {where}", name, table)
    return table[name]


def complete(values: Sequence, names: Sequence[str], *, what: str, where: str) -> None:
    """Refuse a column with gaps.

    Raises:
        BadData: names the images without a value.
    """
    missing = [name for name, value in zip(names, values, strict=True) if value is None]
    if missing:
        raise BadData(
            f"{where}: {len(missing)} of {len(names)} images have no {what}: {listed(missing)}. "
            f"Fill the column, or leave these images out of the table."
        )


def label_indices(
    values: Sequence, *, class_names: Sequence[str] | None = None, where: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as indices, with the name of each index.

    Text is looked up in `class_names`; without them the classes are the sorted different texts. Whole numbers, also
    when they come as text, are indices already, unless the text is itself a class name.

    Args:
        values: one label per image, none missing.
        class_names: the name of each index, if known.
        where: what the error calls the source.

    Returns:
        int64 `[image]` and the class names. Unnamed indices are called by their number.

    Raises:
        BadData: a label that is neither text nor a whole number, or an index outside the class names.
        UnknownName: a text that is not a class name.

    Example:
        >>> label_indices(["dog", "cat", "dog"], where="x")[1]
        ('cat', 'dog')
    """
    odd = [value for value in values if isinstance(value, bool) or not isinstance(value, str | int | np.integer)]
    if odd:
        raise BadData(f"{where}: labels must be class names or whole numbers, got {listed(map(repr, odd))}.")
    text = isinstance(values[0], str)
    if any(isinstance(value, str) != text for value in values):
        raise BadData(f"{where}: labels must be all class names or all whole numbers, not both.")
    known = None if class_names is None else {name: index for index, name in enumerate(class_names)}
    if known is not None and len(known) != len(class_names):
        raise BadData(f"{where}: class names repeat: {listed(sorted(n for n in known if class_names.count(n) > 1))}.")

    as_numbers = all(_is_index(value) for value in values) if text else True
    if text and (known is None or not all(value in known for value in values)) and as_numbers:
        values, text = [int(value) for value in values], False
    if text:
        names = tuple(sorted(set(values))) if known is None else tuple(class_names)
        index = {name: i for i, name in enumerate(names)} if known is None else known
        strange = sorted({value for value in values if value not in index})
        if strange:
            raise unknown(f"class in {where}:", strange[0], names)
        return np.array([index[value] for value in values], dtype=np.int64), names

    indices = np.array(values, dtype=np.int64)
    most = 100_000  # a larger number is a key, not the index of a class
    names = tuple(class_names or (str(index) for index in range(min(indices.max() + 1, most))))
    if indices.min() < 0 or indices.max() >= len(names):
        wrong = int(indices.min()) if indices.min() < 0 else int(indices.max())
        raise BadData(
            f"{where}: label {wrong} is not the index of a class, valid are 0 to {len(names) - 1}. "
            "Images without a label have to be left out."
        )
    return indices, names


def column_array(values: Sequence) -> np.ndarray | None:
    """A column as a typed array: bool, int64, float64 (gaps become NaN) or text (gaps become ""); None if it is none.

    Text that is a number in every row becomes one, except with leading zeros, which mark a name.

    Example:
        >>> column_array(["1", "2"]).dtype.kind, column_array(["01", "02"]).dtype.kind
        ('i', 'U')
    """
    present = [value for value in values if value is not None]
    if any(not isinstance(value, str | bool | int | float | np.generic) for value in present):
        return None
    gaps = len(present) < len(values)
    if present and all(isinstance(value, str) for value in present):
        present = _typed(present)
    kinds = np.array(present).dtype.kind if present else "U"
    if kinds not in "biuf" or (kinds == "b" and gaps):
        return np.array(["" if value is None else str(value) for value in values])
    if not gaps:
        return np.array(present)
    filled = np.full(len(values), np.nan)
    filled[[i for i, value in enumerate(values) if value is not None]] = present
    return filled


def _is_index(text: str) -> bool:
    # 18 digits fit int64; more is a key, not an index
    return bool(re.fullmatch(r"0|-?[1-9][0-9]{0,17}", text))


def _is_real(text: str) -> bool:
    return bool(re.fullmatch(r"-?[0-9]+(\.[0-9]*([eE][+-]?[0-9]+)?|[eE][+-]?[0-9]+)|-?inf|nan", text, re.IGNORECASE))


def _typed(texts: list[str]) -> list:
    if all(_is_index(text) for text in texts):
        return [int(text) for text in texts]
    if all(text.lower() in ("true", "false") for text in texts):
        return [text.lower() == "true" for text in texts]
    if all(_is_index(text) or _is_real(text) for text in texts):
        return [float(text) for text in texts]
    return texts
