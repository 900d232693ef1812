"""Pages of latents: what they fire on, how often, on which classes, near which texts and which other latents.

1. First look: images stream by in batches. Of every latent sums are kept, its strongest images, and a sample of all
   images on which it fires (`best.py`, `counts.py`).
2. Latents that get a page are chosen; of each the top images, and from the sample some from quantile to quantile.
3. Second look, at example images only: heat maps and small pictures (`again.py`).
4. Neighbours (`neighbours.py`), texts (`nearest_texts.py`), tables (`tables.py`).

A latent fires on an image if its code is above zero on some row; its value there is the largest. `plain.py` does the
same with all codes in memory; the tests compare the two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Int

from mechvis.data.images import ImageSet
from mechvis.errors import BadData, OutOfRange
from mechvis.progress import track
from mechvis.provenance import provenance
from sae.dashboards import nearest_texts, tables
from sae.dashboards.again import look_again
from sae.dashboards.best import Best, drawn
from sae.dashboards.codes import Reading, Rows, batches, reading_of
from sae.dashboards.counts import Counts
from sae.dashboards.known import Known, known_of
from sae.dashboards.neighbours import Together, neighbours
from sae.dashboards.pages import WORDS, LatentPages

SAMPLE = 64
"""Images per latent from which quantile examples are taken, at least."""


def latent_pages(
    model: Any,
    images: Any,
    dictionary: Any,
    site: str | Mapping[str, str] | None = None,
    *,
    latents: Sequence[int] | int | None = None,
    n_top: int = 16,
    n_quantile: int = 8,
    groups: str | None = None,
    texts: Any = None,
    clip: Any = None,
    n_neighbours: int = 8,
    n_texts: int = 8,
    tokens: str | Sequence[int] = "all",
    thumbnail: int = 64,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> LatentPages:
    """Look at what latents fire on.

    Args:
        model: a wrapped image model; of CLIP the vision tower is read.
        images: an `ImageSet`, or pixels `[image channel height width]`.
        dictionary: an autoencoder, or a transcoder or crosscoder over sites of one model.
        site: where the dictionary reads, if the model's name differs from the dictionary's; of several, a mapping.
        latents: which get a page: a list, a number (the most frequent ones), or None: all that fire.
        n_top: strongest images per latent.
        n_quantile: images from its whole range, besides.
        groups: a column of the images (`background`, ...) in place of their groups.
        texts: with CLIP: a list, a `TextBank`, or the name of one, for nearest texts.
        clip: a CLIP model for the texts, where `model` is none; by decoder direction, texts are found only with the
            whole CLIP model as `model`.
        n_neighbours: neighbours of each kind.
        n_texts: texts of each kind.
        tokens: which tokens the dictionary is about: all, cls, registers, prefix, patches, or positions.
        thumbnail: longest side of the small pictures, in pixels.
        batch_size: images per forward.
        seed: of everything that is drawn.
        progress: show progress bars.

    Returns:
        LatentPages: one row per latent; save it, report it, or `sae.dashboard(pages, "pages.html")`.

    Raises:
        BadData: no latent fires, none is asked for, one twice; texts without CLIP.
        OutOfRange: a latent that does not exist, or a number below its least value.
        RefusedMethod, UnknownSite, UnknownName, ShapeMismatch, NotFinite: see :func:`sae.dashboards.codes.reading_of`.

    Example:
        >>> pages = latent_pages(model, images, dictionary, latents=500)                          # doctest: +SKIP
        >>> pages.of(17)["examples"], pages.heat(17).shape                                        # doctest: +SKIP
    """
    for name, value, least in (
        ("n_top", n_top, 1), ("n_quantile", n_quantile, 0), ("n_neighbours", n_neighbours, 0), ("n_texts", n_texts, 1),
        ("thumbnail", thumbnail, 8), ("batch_size", batch_size, 1),
    ):  # fmt: skip
        if value < least:
            raise OutOfRange(f"{name}={value}: it is at least {least}.")
    reading = reading_of(model, dictionary, site, tokens=tokens)
    asked = _asked(latents, dictionary.n_codes)
    known = known_of(images, groups, reading.model)
    words = nearest_texts.texts_of(model, reading.model, texts, clip)
    first = _first_look(reading, known, asked, n_top, n_quantile, words, batch_size, seed, progress)
    number = np.arange(dictionary.n_codes) if asked is None else asked
    keep = _chosen(first.counts, number, latents)
    counts, number = first.counts.only(keep), number[keep]
    top, sample = first.top.only(keep), first.sample.only(keep)
    examples = tables.examples(number, top, sample, n_quantile, first.rows)
    place = _places(number, examples)
    seen = look_again(
        reading, known.pixels_of, number, examples["image"].to_numpy(), place,
        n_patches=first.rows.grid[0] * first.rows.grid[1], batch_size=batch_size, thumbnail=thumbnail,
        embed=words.embed if words else None, to_the_end=bool(words and words.same_tower),
        progress=progress,
    )  # fmt: skip
    examples = examples.with_columns(pl.Series("peak", seen.peaks)).select(tables.EXAMPLES)
    made = {
        "latents": tables.latents(number, counts, known, examples, seen.maps, first.rows.grid),
        "examples": examples,
        **tables.breakdowns(number, counts, known),
        "neighbours": neighbours(
            dictionary.directions[torch.as_tensor(number)], first.together.matrix(keep, len(first.counts["total"])),
            number, n_neighbours,
        ),
        "images": tables.images(known, seen.images),
    }  # fmt: skip
    told = list(_caveats(first, dictionary, counts, latents))
    facts = {"sites": list(dictionary.ends.reads), "n_images": known.n, "rows_per_image": first.counts.rows // known.n,
             "n_latents": dictionary.n_codes, "pages": len(number), "silent": first.silent, "n_top": n_top,
             "grid": list(first.rows.grid), "prefix": list(reading.model.parts.prefix), "n_quantile": n_quantile,
             "rows_together": first.together.count}  # fmt: skip
    if words:
        # Examples lie in the order of the latents.
        is_top = (examples["kind"] == "top").to_numpy()
        shown = np.searchsorted(seen.images, examples["image"].to_numpy()[is_top])
        top_images = np.split(shown, np.searchsorted(place[is_top], np.arange(1, len(number))))
        reference = known.pixels_of(np.arange(min(known.n, nearest_texts.REFERENCE)))
        made["texts"], chance, notes = nearest_texts.nearest(
            words, reading, number, reference, seen.embeddings, first.mean, top_images, n_texts, seed
        )
        facts |= chance
        told += notes
    histogram, edges = counts.used_bins()
    return LatentPages(
        title=f"What {len(number)} latents of {', '.join(dictionary.ends.reads)} fire on, in {known.n} images",
        tables=made,
        arrays={
            "maps": seen.maps,
            "histogram": histogram,
            "histogram_edges": edges,
            "pictures": np.frombuffer(b"".join(seen.pictures), np.uint8),
            "picture_offsets": np.cumsum([0, *map(len, seen.pictures)]),
        },
        facts=facts,
        words=WORDS,
        caveats=tuple(told),
        provenance=provenance(
            model=reading.model, images=images if isinstance(images, ImageSet) else None, seed=seed,
            dictionary={"fingerprint": dictionary.fingerprint, "is": dictionary.extra_repr()},
        ),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class First:
    """What the first look found."""

    counts: Counts
    """Sums."""
    top: Best
    """Strongest images."""
    sample: Best
    """Sampled images."""
    together: Together
    """Who fires on some rows."""
    rows: Rows
    """What rows are about."""
    mean: np.ndarray | None
    """Mean embedding of all images."""

    @property
    def silent(self) -> int:
        """Latents that fire nowhere."""
        return int((self.counts["fired_images"] == 0).sum())


def _first_look(
    reading: Reading,
    known: Known,
    asked: Int[np.ndarray, " latent"] | None,
    n_top: int,
    n_quantile: int,
    words: nearest_texts.Texts | None,
    batch_size: int,
    seed: int,
    progress: bool,
) -> First:
    n = reading.dictionary.n_codes if asked is None else len(asked)
    counts = Counts(n, len(known.classes), len(known.group_names))
    top, sample = Best(n, n_top), Best(n, max(SAMPLE, 2 * (n_top + n_quantile)))
    together, mean, rows = Together(known.n, seed=seed), None, Rows.unknown()
    number = np.arange(n) if asked is None else asked
    with track(known.n, "looking at latents", " images", show=progress) as bar:
        for some in batches(known.n, batch_size):
            pixels = known.pixels_of(np.arange(some.start, some.stop))
            found, rows = reading.entries(pixels, some, asked, to_the_end=bool(words and words.same_tower))
            per_image = image, latent, value, row, _, _ = found.per_image()
            counts.add(found, per_image, rows, known.labels, known.groups)
            top.add(latent, value, image=image, value=value, row=row)
            sample.add(latent, drawn(image, number[latent], seed), image=image, value=value, row=row)
            together.add(found)
            if words:
                total = words.embed(pixels, found.output).sum(0).cpu().numpy()
                mean = total if mean is None else mean + total
            bar.update(len(some))
    return First(
        counts=counts, top=top, sample=sample, together=together, rows=rows,
        mean=None if mean is None else mean / known.n,
    )  # fmt: skip


def _asked(latents: Sequence[int] | int | None, n: int) -> Int[np.ndarray, " latent"] | None:
    """The latents of a list, checked; None where all have to be looked at first."""
    if latents is None:
        return None
    if isinstance(latents, int | np.integer):
        if latents < 1:
            raise OutOfRange(f"latents={latents}: at least one; or a list of which, or None for all that fire.")
        return None
    chosen = [int(latent) for latent in latents]
    if not chosen or len(set(chosen)) < len(chosen):
        raise BadData(f"latents={chosen[:6]}: at least one, each once.")
    if bad := [latent for latent in chosen if not 0 <= latent < n]:
        raise OutOfRange(f"latent {bad[0]} does not exist: this dictionary has {n} (0 to {n - 1}).")
    return np.array(chosen)


def _chosen(
    counts: Counts, number: Int[np.ndarray, " latent"], latents: Sequence[int] | int | None
) -> Int[np.ndarray, " page"]:
    """Which get a page, as positions: those of a list in its order, others from the most frequent on."""
    if latents is not None and not isinstance(latents, int | np.integer):
        return np.arange(len(number))
    order = np.lexsort((number, -counts["fired_rows"], -counts["fired_images"]))
    order = order[counts["fired_images"][order] > 0]
    if not len(order):
        raise BadData(
            f"none of {len(number)} latents fires on any of {counts.images} images: nothing can be shown. Is this the "
            "site (and the model) that the dictionary was trained on?"
        )
    return order if latents is None else order[:latents]


def _places(number: Int[np.ndarray, " latent"], examples: pl.DataFrame) -> Int[np.ndarray, " example"]:
    """Position of each example's latent."""
    order = np.argsort(number)
    return order[np.searchsorted(number[order], examples["latent"].to_numpy())]


def _caveats(first: First, dictionary: Any, counts: Counts, latents: Any) -> list[str]:
    found = [
        "Pages show what latents fire on in these images, not what they do: ablate or steer them for that.",
        "The commonest class is the largest of several, so its share is too high where a latent fires on few images; "
        "compare class_base.",
        "Rows of an image are not independent, so intervals of firing together are too narrow.",
    ]
    if first.silent and (latents is None or isinstance(latents, int)):
        found.append(f"{first.silent} of {dictionary.n_codes} latents fire on none of these images and have no page.")
    if first.counts.negative:
        found.append(f"{first.counts.negative:,} codes are below zero; they count as not firing.")
    sampled = int((counts["fired_images"] > first.sample.size).sum())
    if sampled:
        found.append(
            f"For {sampled} latents, quantile examples come from a sample of {first.sample.size} of the images on "
            "which they fire."
        )
    return found
