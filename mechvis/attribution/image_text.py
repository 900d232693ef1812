"""Which patch and which word make an image and a text alike: second-order attribution for CLIP.

A similarity of two towers is no sum over patches plus a sum over words: what counts is which patch meets which word.

1. A reference for each tower: a black image, an empty text of the same length.
2. In each tower the path from the reference's stream to the own one, at the input of a block; the Jacobian of the
   embedding is averaged over the path (midpoints), and each token's part of the way goes through it:
   `F[i, :] = mean_k dF/dx_i at r + a_k (x - r), times (x_i - r_i)`: a vector in the joint space per token.
3. `A[i, j] = F_image[i] . F_text[j]`: patch by word.

All entries add up to `f(x)g(y) - f(r)g(y) - f(x)g(r) + f(r)g(r)`, of embeddings before they are normalised; that gap is
measured and kept. Only then everything is divided by `|f(x)| |g(y)|`, which makes the sum comparable with the cosine
(it is not the cosine: those of the references are not normalised by their own lengths).

Cost: per step one forward pass of each tower; as many backward passes of the text tower as the joint space has
dimensions, and of the image tower one per word: it is only asked along the vectors of the words. Tokens
of a later block have been mixed already: what a word's token holds there is not that word alone.

Source: Moeller et al. 2023, 2024; methods.md 10 "Second-order CLIP attributions" [C]; the two-sided formula [P].
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from mechvis import edits
from mechvis.data.images import ImageSet
from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.record import Record, finite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mechvis.report.blocks import Block


class ImageTextAttribution(Record):
    """Patches against words, for pairs of an image and a text.

    `pairs` is `[pair token patch]`, in units of cosine; tokens beyond the end of a text are zero. The first table has
    a row per pair, the table `tokens` says which word each token is.
    """

    KIND = "image_text_attribution"

    @property
    def pairs(self) -> Float[np.ndarray, "pair token patch"]:
        """Attribution of each pair of word and patch."""
        return self.arrays["pairs"]

    def words_of(self, pair: int) -> list[str]:
        """The tokens of a text.

        Raises:
            OutOfRange: no such pair.
        """
        if not 0 <= pair < len(self.pairs):
            raise OutOfRange(f"pair {pair}: there are {len(self.pairs)} (0 to {len(self.pairs) - 1}).")
        return self.tables["tokens"].filter(pl.col("pair") == pair).sort("token")["word"].to_list()

    def word_map(self, pair: int, word: str) -> Float[np.ndarray, "down across"]:
        """The map of one word (of all its tokens together).

        Raises:
            BadData: the text has no such word.
        """
        words = self.words_of(pair)
        places = [place for place, one in enumerate(words) if one == word]
        if not places:
            raise BadData(f"the text of pair {pair} has no token {word!r}; it has {', '.join(words)}.")
        return self.pairs[pair, places].sum(0).reshape(self.facts["grid"])

    def plot(self, pair: int = 0, image: Any = None) -> "Figure":
        """Words and their maps of one pair: see :func:`mechvis.plots.image_text_pairs.image_text_pairs`."""
        from mechvis.plots.image_text_pairs import image_text_pairs

        words = self.words_of(pair)
        maps = self.pairs[pair, : len(words)].reshape(len(words), *self.facts["grid"])
        return image_text_pairs(maps, words, image=image, title=self.table["text"][pair])

    def figures(self) -> "list[Block]":
        """The first pair."""
        from mechvis.report.blocks import Figure

        return [Figure(self.plot(), "Words of the first text, and which patches each meets.")]


def image_text_attribution(
    clip: Any,
    images: Any,
    texts: Sequence[str],
    *,
    image_layer: int = -1,
    text_layer: int = -1,
    steps: int = 10,
    reference: str | Tensor = "black",
    batch_size: int = 8,
    progress: bool = True,
) -> ImageTextAttribution:
    """Attribution of each image's similarity with its text to pairs of patch and word.

    Args:
        clip: a `HookedCLIP`.
        images: an `ImageSet` or pixels; image i belongs to text i.
        texts: one per image.
        image_layer: block of the image tower whose input is looked at; negative: from the end.
        text_layer: likewise of the text tower.
        steps: points on each path.
        reference: of images: `black`, `zero` (what preprocessing calls the mean colour), or pixels that fit one image.
        batch_size: pairs that go through together.
        progress: show a bar.

    Raises:
        BadData: not a CLIP model, an empty text, or a reference of another name.
        ShapeMismatch: not one text per image.
        OutOfRange: layers, steps, batch_size.

    Example:
        >>> found = image_text_attribution(clip, images, images.captions)                     # doctest: +SKIP
        >>> found.word_map(0, "star").shape                                                  # doctest: +SKIP
        (8, 8)
    """
    if not hasattr(clip, "vision") or not hasattr(clip, "text"):
        raise BadData(f"image_text_attribution needs a CLIP model with both towers, got {type(clip).__name__}.")
    if isinstance(texts, str) or len(texts) != len(images):
        raise ShapeMismatch(f"{len(images)} images need as many texts, image i belongs to text i; got {texts!r:.80}.")
    if blank := [place for place, text in enumerate(texts) if not isinstance(text, str) or not text.strip()]:
        raise BadData(f"text {blank[0]} is empty: it has no word to attribute to.")
    if steps < 1 or batch_size < 1:
        raise OutOfRange(f"steps={steps}, batch_size={batch_size}: give at least 1.")
    layers = (_layer(clip.vision, image_layer, "image_layer"), _layer(clip.text, text_layer, "text_layer"))
    pixels = clip.vision.inputs(images)
    parts = clip.vision._for_size(tuple(pixels.shape[2:]))[0]
    ids = clip.tokenize(list(texts))
    empty = _empty(clip, ids)
    own = _reference(clip, pixels, reference)
    blocks, rows = [], []
    with track(len(pixels), "pairs of patches and words", " pairs", show=progress) as bar:
        for start in range(0, len(pixels), batch_size):
            part = slice(start, start + batch_size)
            other, g, g_start = contributions(clip.text, ids[part], empty[part], layers[1], steps)
            there = own.expand_as(pixels[part])
            one, f, f_start = contributions(clip.vision, pixels[part], there, layers[0], steps, along=other)
            product = rearrange(one, "pair token word -> pair word token")
            blocks.append(product[..., len(parts.prefix) :] / (f.norm(dim=1) * g.norm(dim=1))[:, None, None])
            rows.append(_rows(product, len(parts.prefix), f, f_start, g, g_start))
            bar.update(len(f))
    table = pl.concat(rows).with_columns(pair=pl.int_range(pl.len()), text=pl.Series(list(texts), dtype=pl.String))
    words = [_words(clip, row) for row in ids]
    worst = float(table["gap"].max())
    return ImageTextAttribution(
        title=f"Patches and words of {len(texts)} pairs of image and text",
        tables={"pairs": table.select("pair", "text", pl.exclude("pair", "text")), "tokens": _tokens(words)},
        arrays={"pairs": finite("pairs", _cut(torch.cat(blocks), words).double().cpu().numpy())},
        facts={
            "grid": list(parts.grid),
            "image_layer": layers[0],
            "text_layer": layers[1],
            "steps": steps,
            "reference": reference if isinstance(reference, str) else "given pixels",
            "source": "Moeller et al. 2023, 2024; methods.md 10 [C]",
        },
        words=_WORDS,
        caveats=(
            f"Entries add up to a difference of four products before normalising; the largest gap is {worst:.1%} of "
            "it.",
            "Tokens at a block's input have been mixed by the blocks before: a word's token holds other words too.",
        ),
        provenance=provenance(clip.vision, images if isinstance(images, ImageSet) else None, None),
    )


def contributions(
    tower: Any,
    inputs: Tensor,
    reference: Tensor,
    layer: int,
    steps: int,
    along: Float[Tensor, "row direction d_embed"] | None = None,
) -> tuple[Float[Tensor, "row token direction"], Float[Tensor, "row d_embed"], Float[Tensor, "row d_embed"]]:
    """What each token adds to a tower's embedding on the way from a reference, and both ends' embeddings.

    Args:
        tower: a wrapped tower without a head.
        inputs: pixels or token ids.
        reference: likewise; its stream at the block is where the path starts (for texts, what is read at the end
            stays at the place of the own text's end).
        layer: block whose input is looked at.
        steps: points on the path.
        along: directions of the joint space that are asked for, of each row; None: its axes.
    """
    site = f"blocks.{layer}.hook_resid_pre"
    run = tower.run(inputs, capture=[site])
    own, start = run.cache[site], tower.run(reference, capture=[site]).cache[site]
    found = None
    for step in range(steps):
        place = (step + 0.5) / steps
        moved = [edits.scale(site, place), edits.add(site, start, 1 - place)]
        point = tower.run(inputs, moved, capture=[site], grad=True)
        at, output = point.cache[site], point.output
        rows = []
        directions = torch.eye(output.shape[1]).to(output)[None] if along is None else along
        with torch.enable_grad():
            for direction in directions.unbind(1):
                (gradient,) = torch.autograd.grad((output * direction).sum(), at, retain_graph=True)
                rows.append(((own - start) * gradient).sum(-1))
        total = torch.stack(rows, -1) / steps
        found = total if found is None else found + total
    at_start = tower.run(inputs, [edits.scale(site, 0.0), edits.add(site, start)]).output
    return found.detach(), run.output.detach(), at_start.detach()


def _layer(tower: Any, given: int, name: str) -> int:
    n = len(tower.parts.blocks)
    if not -n <= given < n:
        raise OutOfRange(f"{name}={given}: this tower has layers 0 to {n - 1}.")
    return given % n


def _reference(clip: Any, pixels: Tensor, given: str | Tensor) -> Tensor:
    if isinstance(given, Tensor):
        if given.shape not in (pixels.shape[1:], (1, *pixels.shape[1:])):
            raise ShapeMismatch(f"the reference is {list(given.shape)}, an image is {list(pixels.shape[1:])}.")
        return given.to(pixels).reshape(1, *pixels.shape[1:])
    if given == "zero":
        return torch.zeros_like(pixels[:1])
    if given != "black":
        raise BadData(f"reference={given!r}: say 'black', 'zero', or give pixels.")
    process = clip.preprocess
    if process is None:
        raise BadData("a black image needs the model's preprocessing, and it has none; give reference='zero'.")
    black = [-mean / std for mean, std in zip(process.mean, process.std, strict=True)]
    return torch.tensor(black).to(pixels)[None, :, None, None].expand_as(pixels[:1])


def _empty(clip: Any, ids: Int[Tensor, "row token"]) -> Int[Tensor, "row token"]:
    """Texts of the same length that say nothing: every id between beginning and end is padding."""
    together = clip.tokenize([_LONG, ""])
    empty = together[1]
    pad, first = empty[-1], empty[0]
    reads = clip.text.parts.reads
    if not callable(reads):
        return empty[: ids.shape[1]].expand_as(ids) if len(empty) >= ids.shape[1] else torch.full_like(ids, int(pad))
    place = torch.arange(ids.shape[1], device=ids.device)
    said = place[None] < reads(ids)[:, None]
    said &= ~((place[None] == 0) & (ids == first))  # the beginning of a text, where a tokenizer marks it
    return torch.where(said, pad, ids)


_LONG = "a b"
"""A text that is longer than the empty one, so that the empty one is padded."""


def _rows(product: Tensor, n_prefix: int, f: Tensor, f_start: Tensor, g: Tensor, g_start: Tensor) -> pl.DataFrame:
    total = ((f - f_start) * (g - g_start)).sum(1)
    found = product.sum((1, 2))
    norm = f.norm(dim=1) * g.norm(dim=1)
    return pl.DataFrame(
        {
            "cosine": ((f * g).sum(1) / norm).double().tolist(),
            "total": total.double().tolist(),
            "sum": found.double().tolist(),
            "gap": ((found - total).abs() / total.abs().clamp(min=1e-12)).double().tolist(),
            "norm": norm.double().tolist(),
            "patches": (product[..., n_prefix:].sum((1, 2)) / norm).double().tolist(),
            "prefix": (product[..., :n_prefix].sum((1, 2)) / norm).double().tolist(),
        }
    )


_WORDS = {
    "pair": "place of image and text in the set",
    "text": "the text",
    "cosine": "similarity of image and text",
    "total": "f(x)g(y) - f(r)g(y) - f(x)g(r) + f(r)g(r), before normalising",
    "sum": "what all pairs of tokens add up to, before normalising",
    "gap": "|sum - total| / |total|",
    "norm": "length of the image embedding times that of the text embedding",
    "patches": "sum over patches and words, after normalising",
    "prefix": "sum over prefix tokens (CLS) and words, after normalising",
    "token": "place of the token in the text",
    "word": "the token as text, or its number",
}


def _words(clip: Any, row: Int[Tensor, " token"]) -> list[str]:
    """The tokens of a text up to its end, as text where the tokenizer can say it."""
    reads, ids = clip.text.parts.reads, row.tolist()
    if callable(reads):
        ids = ids[: int(reads(row[None])[0]) + 1]
    to_words = getattr(clip.tokenizer, "convert_ids_to_tokens", None)
    return [str(one) for one in (to_words(ids) if to_words is not None else ids)]


def _tokens(words: list[list[str]]) -> pl.DataFrame:
    rows = [(pair, token, word) for pair, own in enumerate(words) for token, word in enumerate(own)]
    return pl.DataFrame(rows, schema={"pair": pl.Int64, "token": pl.Int64, "word": pl.String}, orient="row")


def _cut(pairs: Tensor, words: list[list[str]]) -> Tensor:
    longest = max(map(len, words))
    for pair, own in enumerate(words):
        pairs[pair, len(own) :] = 0
    return pairs[:, :longest]
