"""Counterfactuals in pairs: which patches of another image, put into this one, make the model say what it says there?

For each pair (query, other image) whose predicted classes differ:

1. Tokens are exchanged before block `layer`, and the model runs on from there. Before block 0 it is content that moves
   and not position: a patch of the other image is embedded where it goes. Later, tokens move as they are, and what CLS
   and registers have read of the query stays.
2. The search is greedy with first-order screening (`swap_search.greedy`), exact, or relaxed; swapped cells should look
   alike (`likeness`): wheel for wheel, not wheel for sky.
3. Beside it: the same with random swaps, and the full swap of all patches in their places. Where even that does not
   give the other class, the pair is not valid at this layer: prefix tokens hold the decision already.

Source: methods2.md 19.1 [C]. Where we differ [X]: cells look alike by this model's own middle block, unless another
vision model is given; in the release they do by a self-supervised one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import polars as pl
import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from mechvis import stats
from mechvis.attribution.swap_search import Swaps, Task, greedy, random_swaps, relaxed, similarity
from mechvis.attribution.tail import tail
from mechvis.data.images import ImageSet
from mechvis.errors import BadData, OutOfRange, ShapeMismatch, unknown
from mechvis.keyed import generator_of
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Search = Literal["screened", "exact", "relaxed"]


class PatchSwaps(Record):
    """Swaps of patches that turn decisions.

    Made by :func:`patch_swaps`. The table `pairs` has a row per pair of images, `swaps` one per swap.
    """

    KIND = "patch_swaps"

    def of(self, image: int) -> list[tuple[int, int]]:
        """Swaps of one pair: (patch of the query, patch of the other image).

        Raises:
            OutOfRange: no swap was searched for it.
        """
        if image not in self.table["image"]:
            raise OutOfRange(f"no pair {image}: searched were {self.table['image'].to_list()[:10]}.")
        rows = self.tables["swaps"].filter(pl.col("image") == image)
        return list(zip(rows["query_patch"].to_list(), rows["other_patch"].to_list(), strict=True))

    def plot(self, query: np.ndarray, other: np.ndarray, image: int) -> "Figure":
        """Both images of a pair with the swapped patches joined.

        Args:
            query: uint8 `[height width channel]`, as the model sees it.
            other: likewise.
            image: which pair.
        """
        from mechvis.plots.patch_swaps import patch_swaps as draw

        row = self.table.filter(pl.col("image") == image)
        pairs = self.of(image)
        title = f"{row['query_class'][0]} to {row['other_class'][0]}: {len(pairs)} swaps"
        return draw(query, other, pairs, grid=tuple(self.facts["grid"]), title=title)


def patch_swaps(
    model: Any,
    images: Any,
    others: Any,
    *,
    layer: int | None = None,
    search: Search = "screened",
    likeness: Any = "own",
    weight: float = 0.4,
    tau: float = 0.1,
    similar: float = 0.2,
    verify: int = 64,
    most: int | None = None,
    randoms: int = 5,
    seed: int = 0,
    batch_size: int = 256,
    progress: bool = True,
) -> PatchSwaps:
    """Which few patches of another image turn the decision.

    Args:
        model: a wrapped vision model with a head of two classes or more.
        images: queries: an `ImageSet`, or pixels `[image channel height width]`.
        others: as many other images; pair k is image k of both.
        layer: tokens are swapped before this block; default: the middle one; 0: content of patches, in their new place.
        search: `screened` (first order, the best verified), `exact` (all pairs at every step), or `relaxed`.
        likeness: `"own"`: cells look alike by this model's middle block; another wrapped vision model with the same
            grid; None: any pair may be swapped, whatever it looks like.
        weight: of the log-similarity against log p.
        tau: temperature of the similarity.
        similar: share of all pairs of cells, the most similar ones, that may be swapped.
        verify: pairs that are run at each step of `screened`.
        most: swaps at most; default: all patches.
        randoms: draws of random swaps, to compare with; a draw that never turns the class counts as all patches.
        seed: of random swaps and intervals.
        batch_size: rows that go through the model together.
        progress: show a bar.

    Returns:
        A row per pair of different predictions; means with 95 % intervals over pairs in `facts`.

    Raises:
        ShapeMismatch: not as many others as images, or a likeness model with another grid.
        BadData: no pair with different predictions, or a head of one class.
        UnknownName, OutOfRange: settings.

    Example:
        >>> found = patch_swaps(model, images, others)                          # doctest: +SKIP
        >>> found.table["swaps"].mean(), found.table["random_swaps"].mean()     # doctest: +SKIP
    """
    if search not in get_args(Search):
        raise unknown("search", search, get_args(Search))
    if randoms < 1 or batch_size < 1:
        raise OutOfRange(f"randoms={randoms}, batch_size={batch_size}: give at least 1.")
    if len(images) != len(others) or not len(images):
        raise ShapeMismatch(f"{len(images)} images and {len(others)} others: pair k is image k of both.")
    at = len(model.parts.blocks) // 2 if layer is None else model._layer(layer, "layer")
    pixels, put = model.inputs(images), model.inputs(others)
    with torch.no_grad():
        first, second = (torch.cat([model(part) for part in some.split(batch_size)]) for some in (pixels, put))
    if first.shape[1] < 2:
        raise BadData("this head has a single class: no decision can turn.")
    classes = first.argmax(1), second.argmax(1)
    chosen = (classes[0] != classes[1]).nonzero().flatten().tolist()
    if not chosen:
        raise BadData("the model says the same of both images in every pair; choose others of another class.")
    site = _Place(model, at, tuple(pixels.shape[2:]), batch_size)
    rows, swaps = [], []
    with track(len(chosen), "patch swaps", " pairs", show=progress) as bar:
        for number in chosen:
            wanted = int(classes[1][number])
            alike = _likeness(model, likeness, pixels[number], put[number], tau)
            task = site.task(pixels[number], put[number], wanted)
            found = _searched(task, search, dict(likeness=alike, weight=weight, similar=similar, most=most), verify)
            others_found = [
                random_swaps(task, generator_of(seed, number, f"random swaps {draw}")) for draw in range(randoms)
            ]
            rows.append(_row(model, number, classes, found, others_found, site.whole(pixels[number], put[number])))
            swaps += [
                {"image": number, "step": step, "query_patch": i, "other_patch": j, "logprob": found.scores[step + 1]}
                for step, (i, j) in enumerate(found.pairs)
            ]
            bar.update(1)
    return _record(model, images, rows, swaps, at, search, seed, site.grid, len(images))


@dataclass(frozen=True, kw_only=True)
class _Full:
    """What the model says when all patches are swapped in their places."""

    predicted: int
    logprobs: Tensor


class _Place:
    """Where tokens are exchanged."""

    def __init__(self, model: Any, layer: int, size: tuple[int, int], batch_size: int):
        self.model, self.layer, self.size, self.batch_size = model, layer, size, batch_size
        self.parts = model._for_size(size)[0]
        if self.parts.grid is None:
            raise BadData("patches are swapped between images; this tower reads text.")
        if layer >= len(self.parts.blocks):
            raise OutOfRange(f"layer={layer}: blocks are 0 to {len(self.parts.blocks) - 1}.")
        self.grid, self.n_prefix = self.parts.grid, len(self.parts.prefix)

    def stream(self, pixels: Float[Tensor, "image channel height width"]) -> Float[Tensor, "image token d_model"]:
        with torch.no_grad():
            return torch.cat([self.model(part, stop_at_layer=self.layer) for part in pixels.split(self.batch_size)])

    def task(self, query: Tensor, other: Tensor, wanted: int) -> Task:
        stream = self.stream(query[None])[0]
        prefix = stream[: self.n_prefix]

        def logits(tokens: Float[Tensor, "row patch d_model"]) -> Float[Tensor, "row class"]:
            whole = torch.cat([repeat(prefix, "t d -> row t d", row=len(tokens)), tokens], 1)
            return tail(self.model, whole, self.layer, self.size)

        return Task(
            logits=logits,
            query=stream[self.n_prefix :],
            other=self.cells(other),
            wanted=wanted,
            batch_size=self.batch_size,
        )

    def cells(self, other: Float[Tensor, "channel height width"]) -> Tensor:
        """Tokens that can be put in; before block 0, each patch embedded at each place."""
        if self.layer:
            return self.stream(other[None])[0, self.n_prefix :]
        (down, across), (high, wide) = self.grid, self.parts.patch_size
        patches = rearrange(other[:, : down * high, : across * wide], "c (d h) (a w) -> (d a) c h w", d=down, a=across)
        tiled = repeat(patches, "cell c h w -> cell c (d h) (a w)", d=down, a=across)
        if tiled.shape[2:] != other.shape[1:]:  # pixels beyond the last whole patch: no patch reads them
            margin = other.shape[1] - tiled.shape[2], other.shape[2] - tiled.shape[3]
            tiled = torch.nn.functional.pad(tiled, (0, margin[1], 0, margin[0]))
        return rearrange(self.stream(tiled)[:, self.n_prefix :], "cell patch d -> patch cell d")

    def whole(self, query: Tensor, other: Tensor) -> _Full:
        """All patches swapped in their places."""
        streams = self.stream(torch.stack([query, other]))
        mixed = torch.cat([streams[:1, : self.n_prefix], streams[1:, self.n_prefix :]], 1)
        with torch.no_grad():
            found = tail(self.model, mixed, self.layer, self.size)[0].log_softmax(-1)
        return _Full(predicted=int(found.argmax()), logprobs=found)


def _searched(task: Task, search: Search, settings: dict[str, Any], verify: int) -> Swaps:
    if search == "relaxed":
        return relaxed(task).swaps
    return greedy(task, verify=verify if search == "screened" else None, **settings)


def _likeness(model: Any, likeness: Any, query: Tensor, other: Tensor, tau: float) -> Tensor | None:
    if likeness is None:
        return None
    if isinstance(likeness, str):
        if likeness != "own":
            raise unknown("likeness", likeness, ["own"])
        likeness = model
    both = likeness.inputs(torch.stack([query, other]))
    parts = likeness._for_size(tuple(both.shape[2:]))[0]
    grid = model._for_size(tuple(query.shape[1:]))[0].grid
    if parts.grid != grid:
        raise ShapeMismatch(f"the model that says what looks alike has {parts.grid} patches, this one {grid}.")
    with torch.no_grad():
        tokens = likeness(both, stop_at_layer=max(1, len(parts.blocks) // 2))[:, len(parts.prefix) :]
    return similarity(tokens[0], tokens[1], tau)


def _row(
    model: Any, number: int, classes: tuple[Tensor, Tensor], found: Swaps, others: Sequence[Swaps], full: _Full
) -> dict[str, Any]:
    query, wanted = int(classes[0][number]), int(classes[1][number])
    names = model.parts.class_names
    n_patches = max(len(one.pairs) for one in others)
    lengths = [len(one.pairs) for one in others]
    return {
        "image": number,
        "query_class": names[query] if names else str(query),
        "other_class": names[wanted] if names else str(wanted),
        "swaps": len(found.pairs),
        "flipped": found.flipped,
        "p_before": float(np.exp(found.scores[0])),
        "p_after": float(np.exp(found.scores[-1])),
        "random_swaps": float(np.mean(lengths)) if n_patches else 0.0,
        "random_flipped": float(np.mean([one.flipped for one in others])),
        "p_full_swap": float(full.logprobs[wanted].exp()),
        "valid": full.predicted == wanted,
        "forwards": found.forwards,
        "backwards": found.backwards,
    }


_WORDS = {
    "image": "place of the pair",
    "query_class": "what the model says of the query",
    "other_class": "what it says of the other image: the class to be reached",
    "swaps": "swaps until the class turned, or all that were done",
    "flipped": "the other class won in the end",
    "p_before": "probability of the other class before any swap",
    "p_after": "and after the last one",
    "random_swaps": "mean number of random swaps until the class turned, or all patches",
    "random_flipped": "share of random draws in which it turned",
    "p_full_swap": "probability of the other class with all patches swapped in their places",
    "valid": "the full swap gives the other class",
    "query_patch": "patch that is replaced, row by row",
    "other_patch": "patch of the other image that takes its place",
    "logprob": "log-probability of the other class after the swap",
}


def _record(
    model: Any,
    images: Any,
    rows: list[dict[str, Any]],
    swaps: list[dict[str, Any]],
    layer: int,
    search: str,
    seed: int,
    grid: tuple[int, int],
    n_images: int,
) -> PatchSwaps:
    pairs = pl.DataFrame(rows)
    kinds = {"image": pl.Int64, "step": pl.Int64, "query_patch": pl.Int64, "other_patch": pl.Int64}
    done = pl.DataFrame(swaps, schema=kinds | {"logprob": pl.Float64})
    columns = {
        "swaps": pairs["swaps"].to_numpy().astype(float),
        "flipped": pairs["flipped"].to_numpy().astype(float),
        "random_swaps": pairs["random_swaps"].to_numpy(),
    }
    columns["fewer_than_random"] = columns["random_swaps"] - columns["swaps"]
    facts: dict[str, Any] = {
        "layer": layer,
        "search": search,
        "grid": list(grid),
        "pairs": len(pairs),
        "same_prediction": n_images - len(pairs),
        "valid_pairs": int(pairs["valid"].sum()),
    }
    for name, values in columns.items():
        found = stats.bootstrap(values, seed=seed)
        for part in ("effect", "low", "high"):
            value = float(getattr(found, part)[0])
            facts[name if part == "effect" else f"{name}_{part}"] = None if np.isnan(value) else value
    invalid = len(pairs) - facts["valid_pairs"]
    caveats = [
        "Few swaps turn a decision near the boundary whatever they show: compare with the random swaps.",
    ]
    if invalid:
        caveats.append(
            f"In {invalid} of {len(pairs)} pairs even all patches together do not give the other class: prefix tokens "
            "hold the decision at this layer. Take an earlier one."
        )
    return PatchSwaps(
        title=f"swaps of patches that turn the decision, {len(pairs)} pairs, before block {layer}",
        tables={"pairs": pairs, "swaps": done},
        facts=facts,
        words=_WORDS,
        caveats=tuple(caveats),
        provenance=provenance(model, images if isinstance(images, ImageSet) else None, seed),
    )
