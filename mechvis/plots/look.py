"""What all figures share: colours that stay apart, text that is only text, bare axes.

The colours are measured, not only chosen (`tests/mechvis/plots/test_look.py`):

* the seven series colours differ by at least 16 in CIE-Lab for normal sight and for the three kinds of full colour
  blindness (simulated after Machado, Oliveira and Fernandes 2009), by at least 7 in lightness alone (grey print), and
  by at least 3:1 in contrast from white paper;
* seven series cannot all be told apart at a glance in grey, so lines differ in dash and marker as well;
* sequential maps rise in lightness throughout, the diverging map is as light at +x as at -x;
* every text colour has a contrast of at least 4.5:1 with what it stands on.

Text in figures is never markup: a `$` is a dollar sign, and what the font cannot draw is written as its code.
"""

import textwrap
from functools import lru_cache

import numpy as np

from mechvis.errors import NotFinite, OutOfRange, ShapeMismatch

INK = "#1f2933"
"""Text and marks."""
GREY = "#636d78"
"""Second text, axes, reference lines."""
PALE = "#e6e9ed"
"""Grid lines and fields under other marks; never text."""
LINES = ("#05428d", "#c56934", "#046736", "#b88f03", "#4a205d", "#0972b9", "#202226")
"""Series: blue, rust, green, ochre, plum, sky, black. Neighbours in this order differ most in grey."""
DASHES = ("-", "--", "-.", ":")
"""Dash of series `i` is `DASHES[i % 4]`."""
MARKERS = "osD^vPX"
"""Marker of series `i` is `MARKERS[i % 7]`: with the dash, 28 lines differ without any colour."""

SUPPORTS, OPPOSES = "#b2182b", "#2166ac"
"""Ends of the diverging map: a positive effect (ablating the unit lowers the metric), a negative one."""

DIVERGING = "RdBu_r"
"""For signed values, middle at zero."""
SEQUENTIAL = "viridis"
"""For amounts from zero up."""
AMOUNTS = "YlGnBu"
"""For amounts from zero up laid over an image in light grey: zero is light, so the image stays visible."""
HEAT = "magma"
"""For amounts laid over an image: zero is dark."""

_LETTER = 0.53
"""Width of a usual letter, as a share of its size: what a number of letters stands for."""


def plain(text: object) -> str:
    """`text` for matplotlib without mathematics: a `$` in a class name is a dollar sign.

    A leading underscore would hide the text from a legend, so it gets a space before it. Characters that the font of
    the figures does not have (emoji, most scripts of Asia, marks that turn the writing direction) are written as their
    code, such as `U+1F98A`; choose another font with `matplotlib.rcParams["font.family"]` to see them.

    Example:
        >>> plain("_5$")
        ' _5\\\\$'
        >>> plain("a " + chr(0x1F98A))
        'a U+1F98A'
    """
    return _escaped(_drawable(str(text)))


def _drawable(text: str) -> str:
    """Every letter that the font does not have, as its code."""
    text = text.replace("\t", " ")
    if text.isascii() and text.isprintable():
        return text
    return "".join(letter if letter == "\n" or _drawn(letter) else f"U+{ord(letter):04X}" for letter in text)


def _escaped(text: str) -> str:
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def short(text: object, most: int = 32) -> str:
    """:func:`plain` text of at most `most` characters; the middle is left out, since names often differ in their
    beginning or end.

    Raises:
        OutOfRange: fewer than 3 characters.

    Example:
        >>> short("the left wing of a small bird", 15)
        'the lef…ll bird'
    """
    if most < 3:
        raise OutOfRange(f"a short text needs at least 3 characters, got {most}.")
    words = str(text).split()
    text = _drawable(" ".join(words) if len(words) < most else f"{' '.join(words[:most])} {' '.join(words[-most:])}")
    most = _letters(text, most)
    if len(text) > most:
        text = text[: most - most // 2 - 1] + "…" + text[-(most // 2) :]
    return _escaped(text) or " "  # a legend leaves out what has no name


def fitted(text: object, inches: float, *, size: float = 10, lines: int = 3) -> str:
    """:func:`plain` text, wrapped to a width and cut after some lines, so that nothing runs out of the figure.

    Args:
        text: what to write.
        inches: how wide it may be.
        size: of the letters, in points.
        lines: more than these are cut, with an ellipsis.

    Example:
        >>> fitted("one two three", 0.6, lines=2).splitlines()
        ['one two', 'three']
    """
    return wrapped(text, max(8, int(inches * 72 / (size * _LETTER))), lines)


def wrapped(text: object, letters: int, lines: int = 2) -> str:
    """:func:`plain` text in lines of so many letters, cut after some lines: a caption under a small picture.

    Line breaks of the text stay.

    Example:
        >>> wrapped("a red star on grass", 8).splitlines()
        ['a red', 'star on…']
    """
    # Much more than can be shown is not even looked at.
    text = _drawable(str(text)[: 4 * letters * lines])
    letters, parts = _letters(text, letters), text.split("\n")
    found = [line for part in parts for line in textwrap.wrap(" ".join(part.split()), letters) or [""]]
    if len(found) > lines:
        found = [*found[: lines - 1], found[lines - 1][: letters - 1] + "…"]
    return "\n".join(map(_escaped, found))


def _letters(text: str, usual: int) -> int:
    """How many letters of this text are as wide as so many usual ones; never more than these."""
    some = text[:80].replace("\n", "")
    # A line may hold wider letters than the mean of the text.
    mean = 1.05 * sum(map(_width, some)) / len(some) if some else _LETTER
    return max(3, int(usual * min(1.0, _LETTER / mean)))


@lru_cache(maxsize=4096)
def _width(letter: str) -> float:
    """Width of a letter in the default font, as a share of its size."""
    from matplotlib.font_manager import FontProperties, findfont, get_font
    from matplotlib.ft2font import LoadFlags

    font = get_font(findfont(FontProperties()))
    return font.load_char(ord(letter), LoadFlags.NO_SCALE).horiAdvance / font.units_per_EM


@lru_cache(maxsize=4096)
def _in_fonts(letter: str, families: tuple[str, ...], sans: tuple[str, ...]) -> bool:
    """Has any of the fonts in use this letter? (`sans` is what the family `sans-serif` stands for.)"""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    if not letter.isprintable():
        return False
    for family in families:
        try:
            path = findfont(FontProperties(family=[family]), fallback_to_default=family == families[-1])
        except ValueError:
            continue
        if get_font(path).get_char_index(ord(letter)):
            return True
    return False


def _drawn(letter: str) -> bool:
    from matplotlib import rcParams

    if "\ud800" <= letter <= "\udfff":
        return False
    return _in_fonts(letter, tuple(rcParams["font.family"]), tuple(rcParams["font.sans-serif"]))


def on(colour: object) -> str:
    """Black or white, whichever reads better on a colour: always a contrast of at least 4.5:1.

    Example:
        >>> on("#ffffff"), on("#05428d")
        ('#000000', '#ffffff')
    """
    from matplotlib.colors import to_rgb

    # Relative luminance of WCAG 2; the two contrasts are equal at 0.179.
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return "#000000" if linear @ (0.2126, 0.7152, 0.0722) > 0.179 else "#ffffff"


def bare(axes) -> None:
    """Keep the left and lower spine only, in grey."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=INK, labelsize=8, length=3, color=GREY)


def framed(axes, x: float, y: float, width: float, height: float, *, line: float = 1.4) -> None:
    """A frame around a cell: dark on a white edge, so that it shows on light cells and on dark ones."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    edge = [withStroke(linewidth=line + 1.2, foreground="#ffffff")]
    axes.add_patch(
        Rectangle((x, y), width, height, fill=False, edgecolor=INK, linewidth=line, zorder=3, path_effects=edge)
    )


def blank(axes) -> None:
    """No ticks and no spines: axes that hold a picture."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def headline(figure, title: str, note: str = "") -> None:
    """A title over the whole figure, and a second line in grey: what is shown, n, what marks mean.

    The layout of the figure makes room for both; texts are wrapped to its width.
    """
    wide = figure.get_figwidth() - 0.2
    head = fitted(title, wide) if title else ""
    said = fitted(note, wide, size=7.5) if note else ""
    if not head and not said:
        return
    rows = (13.5 * (head.count("\n") + 1) if head else 0) + (10.5 * (said.count("\n") + 1) if said else 0)
    tall = rows / 72 + 0.07
    high = figure.get_figheight() + tall
    figure.set_figheight(high)
    # Figures of this package are laid out by the constrained layout: it leaves this strip free.
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - tall / high))
    below = 1 - 0.05 / high
    left = 0.1 / figure.get_figwidth()
    if head:  # it stays in the layout (which does not move it): Jupyter's `bbox_inches="tight"` cuts off what is not
        figure.suptitle(head, x=left, y=below, size=10, color=INK, ha="left", va="top", linespacing=1.15)
        below -= 13.5 * (head.count("\n") + 1) / 72 / high
    if said:
        figure.text(left, below, said, size=7.5, color=GREY, ha="left", va="top", linespacing=1.15)


def colour_bar(figure, drawn, axes, label: str, **more) -> None:
    """A thin colour bar, with its label in words and unit wrapped to the height of the figure."""
    bar = figure.colorbar(drawn, ax=axes, **{"fraction": 0.04, "pad": 0.02, **more})
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, colors=INK, length=2)
    high = figure.bbox.height / figure.get_figure(root=True).dpi
    bar.set_label(fitted(label, 0.72 * high, size=8, lines=2), size=8, color=INK)


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


def sample(n: int | str | None, what: str = "images", *, first: bool = False) -> str:
    """How many were measured, as the end of a note (or all of it); nothing where it is not known.

    Example:
        >>> sample(128), sample(None)
        ('; n = 128 images', '')
    """
    return "" if n is None else f"{'' if first else '; '}n = {n if isinstance(n, str) else f'{n:,}'} {what}"
