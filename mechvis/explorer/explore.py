"""One file to look at a whole study: what was found, how far to believe it, and the images themselves.

1. Things are turned into panels (`gather.py`): results, records, circuits, evaluations, cards, pages of latents, maps.
2. With a model and images, the images are looked at once more (`look.py`): pictures, predictions, attention.
3. Everything is packed into one HTML file (`page.py`), which needs nothing but itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mechvis.errors import BadData
from mechvis.explorer.gather import gather
from mechvis.explorer.look import FULL_BYTES, look
from mechvis.explorer.page import SIZE_LIMIT, Explorer, write_page
from mechvis.explorer.saved import load_things
from mechvis.report.build import ensure_report_path


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """What belongs together: things that were found, and the model and images that they are about."""

    found: Sequence[Any] = ()
    """Results, records, circuits, evaluations, cards, panels; or folders that hold them."""
    model: Any = None
    """A `HookedViT` (a CLIP model's `vision` tower or `classifier`); None: no attention, no predictions."""
    images: Any = None
    """An `ImageSet`; with the model, or not at all."""
    title: str = "Study"
    """Heading."""
    subtitle: str = ""
    """Below it; default: the names of model and images."""

    def __post_init__(self):
        if (self.model is None) != (self.images is None):
            raise BadData(
                "a study has both a model and images, or neither: attention and predictions need the two together."
            )


def explore(
    path: str | Path,
    *found: Any,
    model: Any = None,
    images: Any = None,
    title: str = "Study",
    subtitle: str = "",
    n: int | None = None,
    layers: Sequence[int] | None = None,
    full_bytes: int = FULL_BYTES,
    thumbnail: int = 64,
    batch_size: int = 32,
    limit: int | None = SIZE_LIMIT,
    progress: bool = True,
) -> Explorer:
    """Write results, circuits, latents, maps and cards as one self-contained HTML file to look around in.

    Args:
        path: the file.
        found: results, records (pages of latents and attribution maps are shown on images), circuits, evaluations,
            cards, anything with `report(path)` or `explorer_panels()`; or folders in which these were saved.
        model: a `HookedViT`, for attention and predictions.
        images: an `ImageSet`, with the model.
        title: heading.
        subtitle: below it; default: the names of model and images.
        n: images that are looked at, from the first on; None: all.
        layers: whose attention; None: all.
        full_bytes: what full attention patterns may cost in the file, in bytes: the first images get theirs, the others
            keep what the tokens that are read attend to.
        thumbnail: longest side of a picture, in pixels.
        batch_size: images per forward.
        limit: largest file, in bytes; None: any.
        progress: show a progress bar.

    Returns:
        Explorer: the path, what is in it, and what makes the file as large as it is.

    Raises:
        BadData: nothing to show, a thing of which nothing can be shown, or a model without images.
        ShapeMismatch: the file would be too large; says what is large, and what to do.
        OutputNotWritable: says what and why, before anything is computed.
        UnsupportedModel, OutOfRange: see :func:`mechvis.explorer.look`.

    Example:
        >>> explore("study.html", result, circuit, model=model, images=images)                     # doctest: +SKIP
        study.html: 200 images, 132 with full attention, 1 circuits, 1 reports; 8.9 MB (...)
    """
    study = Study(found=found, model=model, images=images, title=title, subtitle=subtitle)
    return write(
        path, study, n=n, layers=layers, full_bytes=full_bytes, thumbnail=thumbnail, batch_size=batch_size, limit=limit,
        progress=progress,
    )  # fmt: skip


def write(
    path: str | Path,
    study: Study,
    *,
    n: int | None = None,
    layers: Sequence[int] | None = None,
    full_bytes: int = FULL_BYTES,
    thumbnail: int = 64,
    batch_size: int = 32,
    limit: int | None = SIZE_LIMIT,
    progress: bool = True,
) -> Explorer:
    """Write a study as one HTML file; see :func:`explore`.

    Raises:
        BadData, ShapeMismatch, OutputNotWritable, UnsupportedModel, OutOfRange: see :func:`explore`.
    """
    path = ensure_report_path(path)
    things: list[Any] = []
    for thing in study.found:
        things += load_things(thing) if isinstance(thing, str | Path) else [thing]
    if study.model is not None:
        things = [
            *look(
                study.model, study.images, n=n, layers=layers, full_bytes=full_bytes, thumbnail=thumbnail,
                batch_size=batch_size, progress=progress,
            ),
            *things,
        ]  # fmt: skip
    gathered = gather(things, study.images)
    names = (getattr(study.model, "name", ""), getattr(study.images, "name", ""))
    subtitle = study.subtitle or " \N{MIDDLE DOT} ".join(name for name in names if name)
    return write_page(path, gathered, title=study.title, subtitle=subtitle, limit=limit)
