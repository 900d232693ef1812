"""What the page's script reads: JSON that cannot leave its block, heat maps in few bytes, numbers in few digits.

Strings come from anywhere (class names, file names, texts), so JSON is written in ASCII, with `<`, `>` and `&` as
escapes: nothing in it can end the block or begin an element. Characters that cannot be printed, or make a text read as
another one, are replaced as in reports.
"""

import base64
import json
import math
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mechvis.report.build import printable

_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})
DIGITS = 4
"""Significant digits of numbers."""


def block(value: Any) -> str:
    """JSON for a `script` block that is no script, on one line.

    Example:
        >>> block(["</script>", 0.123456])
        '["\\\\u003c/script\\\\u003e",0.1235]'
    """
    return json.dumps(short(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False).translate(_ESCAPES)


def short(value: Any) -> Any:
    """The same value with printable text and short numbers; NaN and Inf become null."""
    if isinstance(value, dict):
        return {printable(str(key)): short(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [short(entry) for entry in value]
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        rounded = float(f"{value:.{DIGITS}g}")
        return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded
    return value


def packed(heat: UInt8[np.ndarray, " patch"]) -> str:
    """A heat map as text: `s` and pairs (zeros skipped, value), where most patches are silent; else `d` and all bytes.

    A skip of 255 has no value after it. Nothing at all for a map without a value.

    Example:
        >>> packed(np.array([0, 0, 7], np.uint8)), unpacked(packed(np.array([0, 0, 7], np.uint8)), 3).tolist()
        ('sAgc=', [0, 0, 7])
    """
    on = np.flatnonzero(heat)
    if not len(on):
        return ""
    skips = np.diff(on, prepend=-1) - 1
    pairs = bytearray()
    for skip, value in zip(skips.tolist(), heat[on].tolist(), strict=True):
        pairs += b"\xff" * (skip // 255) + bytes((skip % 255, value))
    sparse = len(pairs) < len(heat)
    return ("s" if sparse else "d") + base64.b64encode(bytes(pairs) if sparse else heat.tobytes()).decode()


def unpacked(text: str, n: int) -> UInt8[np.ndarray, " patch"]:
    """The map that :func:`packed` wrote, as the page's script reads it."""
    found = np.zeros(n, np.uint8)
    if not text:
        return found
    data = base64.b64decode(text[1:])
    if text[0] == "d":
        return np.frombuffer(data, np.uint8)
    at, i = 0, 0
    while i < len(data):
        at, i = at + data[i], i + 1
        if data[i - 1] == 255:
            continue
        found[at], at, i = data[i], at + 1, i + 1
    return found
