"""Numbers and words on their way into a page: few bytes, no way out of their block, and back again.

* Words: JSON in ASCII with `<`, `>` and `&` as escapes, so that nothing in it can end the block or begin an element.
  Characters that cannot be printed, or make a text read as another one, are replaced as in reports.
* Numbers: maps in one byte per place with one scale per map, deflated, in base64: one line of text per chunk. The page
  decodes a chunk when it is shown, and only then.

Every way in has its way back here (`unpacked_*`), written from the format and not from the writer, so that tests can
hold the page's content against what went in.
"""

import base64
import json
import math
import zlib
from typing import Any

import numpy as np
from jaxtyping import Float, Int8, UInt8, UInt16

from mechvis.errors import NotFinite, ShapeMismatch
from mechvis.report.build import printable

DIGITS = 5
"""Significant digits of numbers in JSON."""
_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})


def json_block(value: Any) -> str:
    """JSON for a `script` block that is no script, on one line; NaN and Inf become null.

    Args:
        value: dicts, lists, tuples, numpy arrays and numbers, text, None.

    Example:
        >>> json_block(["</script>", 0.1234567])
        '["\\\\u003c/script\\\\u003e",0.12346]'
    """
    text = json.dumps(short(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.translate(_ESCAPES)


def short(value: Any) -> Any:
    """The same value as JSON can hold it, with printable text and numbers of :data:`DIGITS` digits."""
    if isinstance(value, dict):
        return {printable(str(key)): short(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return short(value.tolist())
    if isinstance(value, list | tuple):
        return [short(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        rounded = float(f"{value:.{DIGITS}g}")
        return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded
    if value is None or isinstance(value, bool | int):
        return value
    # Whatever else there is (dates, paths), the page shows its text.
    return printable(str(value))


class Chunks:
    """Lines of deflated bytes, each with its number.

    Example:
        >>> chunks = Chunks()
        >>> chunks.add(b"aaaa"), chunks.add(b"bb"), chunks.bytes_of(1)
        (0, 1, b'bb')
    """

    def __init__(self) -> None:
        self.lines: list[str] = []
        """Base64 of each chunk."""

    def add(self, data: bytes) -> int:
        """The number of the line that holds these bytes."""
        self.lines.append(base64.b64encode(zlib.compress(data, 9)).decode())
        return len(self.lines) - 1

    def bytes_of(self, line: int) -> bytes:
        """What was added."""
        return unpacked(self.lines[line])

    @property
    def size(self) -> int:
        """Bytes of all lines."""
        return sum(map(len, self.lines)) + len(self.lines)


def unpacked(line: str) -> bytes:
    """The bytes of one line."""
    return zlib.decompress(base64.b64decode(line, validate=True))


def shares(
    weights: Float[np.ndarray, "*maps key"],
) -> tuple[UInt8[np.ndarray, "*maps key"], UInt16[np.ndarray, "*maps"]]:
    """Weights from 0 to 1 (attention) as bytes: each map as shares of its largest weight, and that weight of 65535.

    A weight is off by at most `largest / 510 + largest of all / 131070`.

    Raises:
        NotFinite: NaN or Inf.
        ShapeMismatch: weights below 0 or above 1.

    Example:
        >>> shares(np.array([0.5, 0.25]))[0].tolist()
        [255, 128]
    """
    weights = np.asarray(weights)
    if not np.isfinite(weights).all():
        raise NotFinite("attention weights hold NaN or Inf.")
    if weights.min() < 0 or weights.max() > 1 + 1e-4:
        raise ShapeMismatch(f"attention weights lie in 0 to 1, got {weights.min():.4g} to {weights.max():.4g}.")
    largest = weights.max(-1)
    safe = np.where(largest > 0, largest, 1)[..., None]
    found = np.rint(255 * weights / safe).astype(np.uint8)
    return found, np.rint(65535 * np.minimum(largest, 1)).astype(np.uint16)


def weights_of(
    found: UInt8[np.ndarray, "*maps key"], largest: UInt16[np.ndarray, "*maps"]
) -> Float[np.ndarray, "*maps key"]:
    """The weights again, as the page computes them."""
    return found / 255 * (largest / 65535)[..., None]


def signed(
    maps: Float[np.ndarray, "*maps place"],
) -> tuple[Int8[np.ndarray, "*maps place"], Float[np.ndarray, "*maps"]]:
    """Maps with either sign as bytes from -127 to 127 of each map's largest size, and that size as float32.

    A value is off by at most `size / 254`; what is not zero never becomes zero.

    Raises:
        NotFinite: NaN or Inf.

    Example:
        >>> signed(np.array([-2.0, 0.0, 1.0]))[0].tolist()
        [-127, 0, 64]
    """
    maps = np.asarray(maps, dtype=np.float64)
    if not np.isfinite(maps).all():
        raise NotFinite("maps hold NaN or Inf.")
    size = np.abs(maps).max(-1).astype(np.float32)
    safe = np.where(size > 0, size.astype(np.float64), 1)[..., None]
    found = np.clip(np.rint(127 * maps / safe), -127, 127)
    found = np.where((found == 0) & (maps != 0), np.sign(maps), found)
    return found.astype(np.int8), size


def values_of(found: Int8[np.ndarray, "*maps place"], size: Float[np.ndarray, "*maps"]) -> np.ndarray:
    """The maps again, as the page computes them."""
    return found / 127 * np.asarray(size, np.float64)[..., None]
