"""A set of images in a notebook: the first of them as small pictures with what is known about each.

Only the shown images are read. Pictures are PNG in the page itself, made smaller until all fit into a fixed size, so
that a set of photographs does not fill a notebook.
"""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from mechvis.show.html import Html, bold, join, line, page, text

_SHOWN = 12
_SIDES = (96, 72, 56, 44, 32)
"""Longest side of a thumbnail, tried in this order until the pictures fit."""
_MOST = 120_000
"""Characters that all pictures together may take."""
_WIDE = 96
"""How wide a picture is shown, in CSS pixels."""


def images(some: Any) -> str:
    """The display of an `ImageSet`.

    Example:
        >>> images(mechvis.data.scenes(n=64, seed=7))                                             # doctest: +SKIP
    """
    known = [f"{len(some)} images"]
    known += [f"{len(some.class_names)} classes"] if some.labels is not None and some.class_names else []
    known += ["no labels"] if some.labels is None else []
    known += ["masks"] if some.read_mask is not None else []
    known += ["captions"] if some.captions is not None else []
    known += [f"{len(some.skipped)} skipped"] if some.skipped else []
    parts = [line(bold(some.name), *known), *_counts(some)]
    count = min(_SHOWN, len(some))
    pictures = thumbnails([_read(some, place) for place in range(count)])
    figures = [_figure(pictures[place], _words(some, place)) for place in range(count)]
    more = line(f"the first {count} of {len(some)}") if len(some) > count else Html("")
    return page(*parts, Html(f"<div>{join(figures)}</div>"), more)


def _read(some: Any, place: int) -> np.ndarray | None:
    # One file that cannot be read must not hide the others.
    try:
        return some.read(int(some.rows[place]))
    except Exception:
        return None


def _words(some: Any, place: int) -> list[str]:
    words = []
    if some.labels is not None:
        label = int(some.labels[place])
        words.append(some.class_names[label] if some.class_names else f"label {label}")
    if some.groups is not None:
        words.append(str(some.groups[place]))
    return words or [str(some.ids[place])]


def _counts(some: Any) -> list[Html]:
    """Images per class and group, the commonest first."""
    found = []
    if some.labels is not None and some.class_names:
        counts = np.bincount(np.asarray(some.labels), minlength=len(some.class_names))
        found.append(_listed("classes", {str(some.class_names[i]): int(counts[i]) for i in np.argsort(-counts)}))
    if some.groups is not None:
        names, counts = np.unique(np.asarray(some.groups).astype(str), return_counts=True)
        order = np.argsort(-counts, kind="stable")
        found.append(_listed("groups", {str(names[i]): int(counts[i]) for i in order}))
    if some.columns:
        found.append(line(f"columns: {', '.join(str(name)[:40] for name in list(some.columns)[:20])}"))
    return found


def _listed(what: str, counts: dict[str, int]) -> Html:
    some = [f"{name[:40]} {count}" for name, count in list(counts.items())[:10]]
    more = f" and {len(counts) - 10} more" if len(counts) > 10 else ""
    return line(f"{what}: {', '.join(some)}{more}")


def _figure(picture: str | None, words: Sequence[str]) -> Html:
    shown = (
        Html(f'<img width="{_WIDE}" alt="" src="data:image/png;base64,{picture}">')
        if picture is not None
        else line("cannot be read")
    )
    said = join([text(word, 24) for word in words], "<br>")
    return Html(f"<figure>{shown}<figcaption>{said}</figcaption></figure>")


def thumbnails(pictures: Sequence[np.ndarray | None], most: int = _MOST) -> list[str | None]:
    """Pictures as PNG in base64, all of one longest side that lets them fit into `most` characters.

    Args:
        pictures: uint8 `[height width channel]` or `[height width]`; None stays None.
        most: characters in all.

    Example:
        >>> len(thumbnails([np.zeros((200, 100, 3), np.uint8), None]))
        2
    """
    found: list[str | None] = []
    for side in _SIDES:
        found = [None if picture is None else _png(picture, side) for picture in pictures]
        if sum(len(one) for one in found if one is not None) <= most:
            break
    return found


def _png(picture: np.ndarray, side: int) -> str:
    from PIL import Image

    array = np.asarray(picture)
    if array.ndim == 3 and array.shape[2] not in (3, 4):
        array = array[..., 0]
    image = Image.fromarray(array)
    if max(image.size) > side:
        image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
