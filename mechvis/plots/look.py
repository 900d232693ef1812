"""What all figures share: colours, plain text, bare axes."""

import numpy as np

from mechvis.errors import NotFinite, ShapeMismatch

INK = "#1f2933"
GREY = "#8a94a0"
PALE = "#e6e9ed"
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b5b5b")
"""Okabe and Ito's colours, the ones that stay apart for colour-blind readers; the order also separates them in grey."""

SUPPORTS, OPPOSES = "#b2182b", "#2166ac"
"""Ends of the diverging map: a positive effect (ablating the unit lowers the metric), a negative one."""

DIVERGING = "RdBu_r"


def plain(text: object) -> str:
    """`text` for matplotlib without mathematics: a `$` in a class name is a dollar sign.

    A leading underscore would hide the text from a legend, so it gets a space before it.

    Example:
        >>> plain("_5$")
        ' _5\\\\$'
    """
    text = str(text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def bare(axes) -> None:
    """Keep the left and lower spine only, in grey."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=8, length=3, color=GREY)


def numbers(
    name: str, values: object, *, ndim: int = 1, like: tuple[int, ...] | None = None, nan: bool = True
) -> np.ndarray:
    """`values` as float64 of the expected number of axes and shape.

    Raises:
        ShapeMismatch: other axes or shape; names the argument.
        NotFinite: Inf, or NaN where it is not allowed.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim or 0 in array.shape:
        raise ShapeMismatch(f"{name} needs {ndim} non-empty axes, got the shape {list(array.shape)}.")
    if like is not None and array.shape != like:
        raise ShapeMismatch(f"{name} has the shape {list(array.shape)}, it should be {list(like)}.")
    if np.isinf(array).any() or (not nan and np.isnan(array).any()):
        raise NotFinite(f"{name} holds {'Inf' if np.isinf(array).any() else 'NaN'}.")
    return array
