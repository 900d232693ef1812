"""Images of one class by what decides them, and the concepts by how common and how reliable they are."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mechvis.errors import ShapeMismatch
from mechvis.plots.look import GREY, INK, LINES, MARKERS, PALE, bare, headline, numbers, plain, sample, short

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def strategy_graph(
    places: np.ndarray,
    strategy: np.ndarray,
    *,
    prevalence: np.ndarray,
    reliability: np.ndarray,
    names: Sequence[str],
    right: np.ndarray | None = None,
    common: float | None = None,
    reliable: float | None = None,
    title: str = "",
) -> "Figure":
    """Two panels: images in a plane with one colour and marker per strategy (hollow where the model is wrong), and
    concepts by prevalence and reliability, with marks that cut four quadrants.

    Args:
        places: of the images, `[image 2]`.
        strategy: cluster of each image, whole numbers.
        prevalence: per concept, 0 to 1.
        reliability: per concept, 0 to 1; NaN or None where it is not known (then on the lower edge, grey).
        names: of the concepts.
        right: is the model right on the image?
        common: prevalence from which a concept is common.
        reliable: reliability from which it is reliable.
        title: above the figure.

    Raises:
        ShapeMismatch: arrays that do not fit together.
        NotFinite: NaN or Inf in the places.

    Example:
        >>> figure = strategy_graph(
        ...     np.eye(2), np.array([0, 1]), prevalence=[0.5, 0.5], reliability=[1.0, 0.0], names=["c0", "c1"]
        ... )
        >>> figure.axes[1].get_xlabel()
        'prevalence (mean share of the support)'
    """
    from matplotlib.figure import Figure

    places = numbers("places", places, ndim=2, nan=False)
    strategy = np.asarray(strategy)
    if places.shape[1] != 2 or strategy.shape != (len(places),):
        raise ShapeMismatch(
            f"places [image 2] and one strategy per image: {list(places.shape)}, {list(strategy.shape)}."
        )
    if right is not None and np.shape(right) != strategy.shape:
        raise ShapeMismatch(f"right needs one entry per image: {len(places)} images, {len(right)} entries.")
    prevalence = numbers("prevalence", prevalence)
    values = [np.nan if value is None else value for value in np.asarray(reliability, dtype=object)]
    reliability = numbers("reliability", np.array(values, np.float64), like=prevalence.shape)
    if len(names) != len(prevalence):
        raise ShapeMismatch(f"names need one entry per concept: {len(prevalence)} concepts, {len(names)} names.")
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    left, other = figure.subplots(1, 2)
    bare(left)
    shown = np.ones(len(places), bool) if right is None else np.asarray(right, bool)
    for number, cluster in enumerate(np.unique(strategy)):
        colour, own = LINES[number % len(LINES)], strategy == cluster
        style = {"marker": MARKERS[number % len(MARKERS)], "s": 22, "linewidths": 1, "edgecolors": colour}
        for which, face in ((own & shown, colour), (own & ~shown, "none")):
            label = plain(f"strategy {cluster} ({int(own.sum())})") if face != "none" else None
            left.scatter(*places[which].T, c=face, label=label, alpha=0.85, **style)
    left.set_xticks([])
    left.set_yticks([])
    left.set_title("images, by what decides them", loc="left", size=8, color=INK)
    if not shown.all():
        left.set_xlabel("hollow: the model is wrong", size=8, color=GREY)
    left.legend(frameon=False, fontsize=7, labelcolor=INK)
    bare(other)
    for mark, draw in ((common, other.axvline), (reliable, other.axhline)):
        if mark is not None:
            draw(mark, color=PALE, linewidth=1.2, zorder=0)
    known = np.isfinite(reliability)
    height = np.where(known, reliability, -0.06)
    other.scatter(prevalence, height, c=[LINES[0] if is_known else GREY for is_known in known], s=24)
    for name, x, y in zip(names, prevalence, height, strict=True):
        other.annotate(short(name, 24), (x, y), xytext=(4, 3), textcoords="offset points", size=7, color=INK)
    other.set_ylim(-0.12, 1.08)
    other.set_xlabel("prevalence (mean share of the support)", size=8, color=INK)
    other.set_ylabel("reliability (right where it decides)", size=8, color=INK)
    headline(figure, title, sample(len(places), first=True))
    return figure
