"""Maps over patches in a notebook: the first of them as small pictures, on one scale that is written below.

Signed maps are red where a patch speaks for the score, blue where against it, white at zero; maps of amounts go from
light to dark. One value is one pixel, which the browser enlarges.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mechvis.errors import ShapeMismatch
from mechvis.plots.image_overlay import limits
from mechvis.plots.look import AMOUNTS, DIVERGING
from mechvis.show.html import Html, bold, join, line, page, text
from mechvis.show.images import thumbnails

_SHOWN = 12
_WIDE = 96


def maps(values: Any, *, titles: Sequence[str] = (), title: str = "", signed: bool | None = None) -> str:
    """The display of attribution maps.

    Args:
        values: on the patch grid, `[image down across]`; NaN patches are grey.
        titles: one per map (class names); or none.
        title: above all.
        signed: is zero the middle of the scale? Default: if a value is negative.

    Raises:
        ShapeMismatch: other axes, or not one title per map.
        NotFinite: no value at all.

    Example:
        >>> maps(np.ones((2, 4, 4)), titles=["star", "ring"]).count("<img")
        2
    """
    from matplotlib import colormaps

    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 3 or 0 in array.shape:
        raise ShapeMismatch(f"maps are [image down across], got {list(array.shape)}.")
    if len(titles) and len(titles) != len(array):
        raise ShapeMismatch(f"titles need one entry per map: {len(array)} maps, {len(titles)} titles.")
    shown = array[:_SHOWN]
    signed = bool((shown < 0).any()) if signed is None else signed
    low, high = limits(list(shown), signed)
    colours = colormaps[DIVERGING if signed else AMOUNTS]
    pictures = []
    for one in shown:
        rgb = (colours(np.nan_to_num((one - low) / (high - low)))[..., :3] * 255).round().astype(np.uint8)
        rgb[~np.isfinite(one)] = 127
        pictures.append(rgb)
    words = [f"{place}" for place in range(len(shown))] if not len(titles) else list(titles)
    figures = [_figure(picture, word) for picture, word in zip(thumbnails(pictures), words, strict=False)]
    scale = f"one scale: {'blue ' if signed else 'light '}{low:.3g} to {'red ' if signed else 'dark '}{high:.3g}"
    grid = f"{array.shape[1]} x {array.shape[2]} patches"
    more = f"first {len(shown)} of {len(array)}" if len(array) > len(shown) else f"{len(array)} maps"
    return page(line(bold(title or "Maps"), grid, more), Html(f"<div>{join(figures)}</div>"), line(scale))


def _figure(picture: str | None, word: str) -> Html:
    shown = f'<img width="{_WIDE}" alt="" src="data:image/png;base64,{picture}">'
    return Html(f"<figure>{shown}<figcaption>{text(word, 24)}</figcaption></figure>")
