"""Extremal perturbation: which share `a` of the patches, kept by itself, has the highest score?

1. Before block `layer`, a mask mixes each patch's activation h with what stands for nothing, h0: `m h + (1 - m) h0`.
2. For each area a, maximise the score by Adam under the area penalty `lam * mean (sort(m) - r_a)^2`, where `r_a` is 0
   for the lowest share 1 - a and 1 above; lam grows from next to nothing, so that the score chooses first, and of masks
   that are equally large those are the larger that the score wants more.
3. Two starts: everything kept, and the patches that the score's gradient names when nothing is kept. Patches that only
   count together are found from the first, patches that work alone in small areas from the second; the better set wins.
4. The result of an area is a set: the `round(a * p)` patches with the largest masks, after swaps of a member for
   another
   patch that its gradient proposes, as long as the score gains; and the score of the set (`curve`).

The map is the mean mask over areas. Sets of different areas need not be nested: `overlap` says what share of the
smaller set is in the larger. `smallest` is the least area whose set reaches 90 % of the way from nothing to the whole
image.

For layers after the first, other tokens have read the patches already: `mask_keys` lets nobody read a masked patch from
then on (each weight of attention is multiplied by the mask), but what CLS and registers read before stays. Take layer 0
for a statement about pixels.

Source: Fong, Patrick and Vedaldi 2019 [C]; methods2.md 18.6, port [X]. Where we differ: masks over patches; the score
is scaled by `|f(all) - f(none)|`, so that lam means the same for all models; the second start; the swaps; 100 steps.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis import edits
from mechvis.attribution.adam import adam
from mechvis.attribution.method import Claims, Maps, Method
from mechvis.attribution.question import Question
from mechvis.attribution.tail import stream_at, tail
from mechvis.errors import BadData, EffectlessEdit, OutOfRange, unknown

Variant = Literal["preserve", "delete", "dual"]
Score = Callable[[Float[Tensor, "image row patch"]], Float[Tensor, "image row"]]
"""The score of masks, through which gradients flow."""

_WEIGHTS = (0.1, 300.0)
"""lam at the first and the last step; it grows by the same factor each step."""

_SWAPS = 8
"""Swaps that are tried at the end, at most."""

_TIE = 1e-3
"""Masks closer than this count as equal; of equal ones those that the score wants more are the larger. Without it,
masks that lie together at 1 would be chosen by their place in the image."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Extremes:
    """The best sets of each area."""

    masks: Float[Tensor, "image area patch"]
    """Fitted masks."""
    sets: Bool[Tensor, "image area patch"]
    """The patches with the largest masks: exactly the area's number of them."""
    curve: Float[Tensor, "image area"]
    """Score of each set: of nothing but the set (`preserve`, `dual`), or of all but the set (`delete`)."""
    full: Float[Tensor, " image"]
    """Score with every patch kept."""
    empty: Float[Tensor, " image"]
    """Score with none."""


def extremal(
    score: Score,
    areas: tuple[float, ...],
    n_images: int,
    grid: tuple[int, int],
    *,
    variant: Variant = "preserve",
    steps: int = 100,
    rate: float = 0.1,
    sigma: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> Extremes:
    """The sets of given areas with the highest score.

    Args:
        score: differentiable score of masks.
        areas: shares of the patches.
        n_images: images of the score.
        grid: patches (down, across).
        variant: `preserve` keeps the set, `delete` takes it away (lowest score), `dual` does both at once.
        steps: of Adam.
        rate: of Adam.
        sigma: of a Gaussian that smooths masks over the grid, in patches; 0: none.
        dtype: of the masks.

    Raises:
        OutOfRange: areas outside (0, 1) or too small for one patch, steps or rate that are not positive.
        UnknownName: another variant.

    Example:
        >>> from mechvis.testing.patch_game import PatchGame
        >>> found = extremal(PatchGame().scores, (1 / 9, 2 / 9, 3 / 9), 1, (3, 3))
        >>> [row.nonzero().flatten().tolist() for row in found.sets[0]][::2], found.curve[0].tolist()
        ([[0], [0, 2, 3]], [2.0, 3.0, 5.0])
    """
    n_patches = grid[0] * grid[1]
    counts = [round(area * n_patches) for area in areas]
    if not areas or not all(0 < area < 1 for area in areas) or not all(0 < count < n_patches for count in counts):
        raise OutOfRange(f"areas={areas}: shares between 0 and 1, of at least one of {n_patches} patches and not all.")
    if variant not in get_args(Variant):
        raise unknown("variant", variant, get_args(Variant))
    if steps < 1 or not rate > 0 or not sigma >= 0:
        raise OutOfRange(f"steps={steps}, rate={rate}, sigma={sigma}: a negative (or no) step cannot be taken.")
    smooth = _smoother(grid, sigma, dtype)
    full, empty, pull = _ends(score, n_images, n_patches, variant, dtype)
    scale = (full - empty).abs()
    scale = torch.where(scale > 0, scale, 1.0)[:, None]
    masks = torch.cat(
        [torch.ones(n_images, len(counts), n_patches, dtype=dtype), _named(pull.expand(-1, len(counts), -1), counts)], 1
    )
    moments = (torch.zeros_like(masks), torch.zeros_like(masks))
    for step in range(steps):
        lam = _WEIGHTS[0] * (_WEIGHTS[1] / _WEIGHTS[0]) ** (step / max(steps - 1, 1))
        masks.requires_grad_(True)
        with torch.enable_grad():
            seen = smooth(masks)
            (rise,) = torch.autograd.grad((_gain(score, seen, variant) / scale).sum(), seen, retain_graph=True)
            wanted = _named(
                seen.detach() + _TIE * rise / rise.abs().amax(-1, keepdim=True).clamp(min=1e-30), 2 * counts
            )
            fall = 2 * lam / n_patches * (seen.detach() - wanted) - rise
            (gradient,) = torch.autograd.grad(seen, masks, fall)
        masks = adam(masks, gradient, moments, step + 1, rate).clamp(0, 1)
    return _best(score, smooth(masks), counts, variant, full, empty)


def _gain(score: Score, masks: Tensor, variant: Variant) -> Float[Tensor, "image row"]:
    """What is maximised."""
    if variant == "preserve":
        return score(masks)
    if variant == "delete":
        return -score(1 - masks)
    kept, gone = score(torch.cat([masks, 1 - masks], 1)).chunk(2, 1)
    return kept - gone


def _ends(score: Score, n_images: int, n_patches: int, variant: Variant, dtype: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Scores with all and with no patch, and the gain's gradient where the set is empty."""
    with torch.no_grad():
        ends = score(repeat(torch.tensor([1.0, 0.0], dtype=dtype), "e -> i e p", i=n_images, p=n_patches))
    start = torch.zeros(n_images, 1, n_patches, dtype=dtype, requires_grad=True)
    with torch.enable_grad():
        (pull,) = torch.autograd.grad(_gain(score, start, variant).sum(), start, allow_unused=True)
    pull = torch.zeros_like(start) if pull is None else pull
    return ends[:, 0], ends[:, 1], pull


def _named(masks: Float[Tensor, "image row patch"], counts: list[int]) -> Float[Tensor, "image row patch"]:
    """The patches with the largest values as 1, so many for each row; of equals the first."""
    place = masks.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return (place < torch.tensor(counts, device=masks.device)[:, None]).to(masks)


def _best(score: Score, masks: Tensor, counts: list[int], variant: Variant, full: Tensor, empty: Tensor) -> Extremes:
    """Of both starts the better set."""
    sets, gains = _swapped(score, _named(masks, 2 * counts), variant)
    with torch.no_grad():
        shown = score(1 - sets if variant == "delete" else sets)
    better = rearrange(gains, "i (s a) -> i s a", s=2).argmax(1, keepdim=True)

    def chosen(values: Tensor) -> Tensor:
        split = rearrange(values, "i (s a) ... -> i s a ...", s=2)
        index = better.reshape(better.shape + (1,) * (split.ndim - 3)).expand(-1, 1, *split.shape[2:])
        return split.gather(1, index)[:, 0]

    return Extremes(masks=chosen(masks), sets=chosen(sets).bool(), curve=chosen(shown), full=full, empty=empty)


def _swapped(score: Score, sets: Tensor, variant: Variant) -> tuple[Tensor, Tensor]:
    """Sets after swaps that raise the gain, and their gains: out goes the member with the smallest gradient, in comes
    the other patch with the largest, as long as that helps."""

    def slopes(some: Tensor) -> tuple[Tensor, Tensor]:
        some = some.detach().requires_grad_(True)
        with torch.enable_grad():
            gains = _gain(score, some, variant)
            return gains.detach(), torch.autograd.grad(gains.sum(), some)[0]

    gains, slope = slopes(sets)
    for _ in range(_SWAPS):
        out = torch.where(sets > 0, slope, torch.inf).argmin(-1, keepdim=True)
        into = torch.where(sets > 0, -torch.inf, slope).argmax(-1, keepdim=True)
        tried = sets.scatter(-1, out, 0.0).scatter(-1, into, 1.0)
        found, its_slope = slopes(tried)
        better = found > gains
        if not bool(better.any()):
            break
        sets, slope = (torch.where(better[..., None], new, old) for new, old in ((tried, sets), (its_slope, slope)))
        gains = torch.where(better, found, gains)
    return sets, gains


def _smoother(grid: tuple[int, int], sigma: float, dtype: Any) -> Callable[[Tensor], Tensor]:
    """A Gaussian over the grid whose weights add up to one at every place, edges too."""
    if not sigma:
        return lambda masks: masks
    lines = []
    for side in grid:
        away = torch.arange(side, dtype=dtype)
        line = torch.exp(-0.5 * ((away[:, None] - away) / sigma) ** 2)
        lines.append(line / line.sum(1, keepdim=True))

    def smooth(masks: Tensor) -> Tensor:
        flat = rearrange(masks, "... (d a) -> ... d a", d=grid[0])
        down, across = (line.to(masks) for line in lines)
        return (down @ flat @ across.T).flatten(-2)

    return smooth


@dataclass(frozen=True, kw_only=True)
class ExtremalPerturbation(Method):
    """The sets of patches that by themselves have the highest score, for several areas.

    Example:
        >>> found = mechvis.attribute(model, images, ExtremalPerturbation())   # doctest: +SKIP
        >>> found.arrays["smallest"].mean()                                    # doctest: +SKIP
    """

    NAME = "extremal"
    CLAIMS = Claims(class_specific=True, signed=False, reads="gradient")
    SOURCE = "Fong et al. 2019; methods2.md 18.6"
    layer: int = 0
    """The stream before this block is masked; negative: from the end."""
    areas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)
    """Shares of the patches; an area of less than one patch means one."""
    variant: Variant = "preserve"
    """Keep the set, delete it, or both at once (`dual`)."""
    steps: int = 100
    """Of Adam."""
    rate: float = 0.1
    """Of Adam."""
    sigma: float = 0.5
    """Smoothing of masks, in patches."""
    mask_keys: bool = True
    """After layer 0: nobody reads a masked patch from there on."""
    reference: Any = None
    """Pixels `[image channel height width]` whose mean activation at each position stands for nothing; None: the
    activation of an image of the mean colour."""

    def __post_init__(self):
        if isinstance(self.reference, int):
            raise BadData(f"a saved result says only that the reference had {self.reference} images: pass its pixels.")

    def settings(self) -> dict[str, Any]:
        """As JSON; a reference becomes the number of its images."""
        plain = super(ExtremalPerturbation, replace(self, reference=None)).settings()
        return plain if self.reference is None else plain | {"reference": len(self.reference)}

    def maps(self, ask: Question) -> Maps:
        """Maps of one batch."""
        layer = ask.layer(self.layer)
        areas = tuple(max(area, 1 / ask.n_patches) for area in self.areas)
        rows = 2 * len(areas) * (2 if self.variant == "dual" else 1)
        found = []
        for index in torch.arange(len(ask.pixels)).split(max(1, ask.batch_size // rows)):
            some = replace(ask, pixels=ask.pixels[index], target=ask.target[index], ids=ask.ids[index])
            found.append(
                extremal(
                    self._score(some, layer),
                    areas,
                    len(index),
                    ask.grid,
                    variant=self.variant,
                    steps=self.steps,
                    rate=self.rate,
                    sigma=self.sigma,
                    dtype=ask.pixels.dtype,
                )
            )
        sets, curve, full, empty, masks = (
            torch.cat([getattr(one, name) for one in found]) for name in ("sets", "curve", "full", "empty", "masks")
        )
        extra = {"curve": curve, "sets": sets.float(), "overlap": overlaps(sets)}
        extra["smallest"] = smallest(curve, full, empty, areas, self.variant)
        return Maps(values=masks.mean(1), extra=extra)

    def _score(self, ask: Question, layer: int) -> Score:
        stream, nothing = stream_at(ask, layer), self._nothing(ask, layer)
        size = tuple(ask.pixels.shape[2:])

        def score(masks: Tensor) -> Tensor:
            n_rows = masks.shape[1]
            rows = repeat(torch.arange(len(masks), device=masks.device), "i -> (i r)", r=n_rows)
            flat = F.pad(rearrange(masks, "i r p -> (i r) p").to(stream), (ask.n_prefix, 0), value=1.0)
            mixed = torch.lerp(nothing[rows], stream[rows], flat[..., None])
            ask.cost.forwards += len(rows)
            ask.cost.backwards += len(rows) if masks.requires_grad else 0
            if layer and self.mask_keys:
                logits = _unread(ask.model, mixed, flat, layer, size, ask.n_layers, masks.requires_grad)
            else:
                logits = tail(ask.model, mixed, layer, size)
            return rearrange(ask.target.read(logits, rows), "(i r) -> i r", r=n_rows)

        return score

    def _nothing(self, ask: Question, layer: int) -> Float[Tensor, "image token d_model"]:
        if self.reference is None:
            blank = ask.pixels.mean((2, 3), keepdim=True).expand_as(ask.pixels).contiguous()
            return stream_at(replace(ask, pixels=blank), layer)
        pixels = ask.model.inputs(self.reference)
        site = f"blocks.{layer}.hook_resid_pre"
        known = torch.cat([ask.model.run(part, capture=[site]).cache[site] for part in pixels.split(ask.batch_size)])
        if known.shape[1] != ask.n_prefix + ask.n_patches:
            raise BadData(f"the reference has {known.shape[1]} tokens, these images {ask.n_prefix + ask.n_patches}.")
        return known.mean(0, keepdim=True).expand(len(ask.pixels), -1, -1)


def _unread(model: Any, stream: Tensor, masks: Tensor, layer: int, size: Any, n_layers: int, grad: bool) -> Tensor:
    """The output when each weight of attention to a token is multiplied by its mask, from block `layer` on."""
    weights = masks.clamp(min=1e-6).log()[:, None, None]
    asked = [edits.call(f"blocks.{at}.attn.hook_attn_scores", lambda x: x + weights) for at in range(layer, n_layers)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EffectlessEdit)  # nothing is masked
        return model.run(stream, asked, grad=grad, start_at_layer=layer, size=size).output


def overlaps(sets: Bool[Tensor, "image area patch"]) -> Float[Tensor, "image step"]:
    """Share of each area's set that is in the next area's; 1 everywhere: nested.

    Example:
        >>> overlaps(torch.tensor([[[True, False, False], [False, True, True]]])).tolist()
        [[0.0]]
    """
    both = (sets[:, :-1] & sets[:, 1:]).sum(-1)
    return both / sets[:, :-1].sum(-1).clamp(min=1)


def smallest(
    curve: Float[Tensor, "image area"],
    full: Float[Tensor, " image"],
    empty: Float[Tensor, " image"],
    areas: tuple[float, ...],
    variant: Variant = "preserve",
    share: float = 0.9,
) -> Float[Tensor, " image"]:
    """The least area whose set goes `share` of the way from nothing to the whole image; 1 where none does.

    For `delete`: the least area without which the score falls that far.

    Example:
        >>> smallest(torch.tensor([[0.5, 0.95]]), torch.ones(1), torch.zeros(1), (0.1, 0.2)).tolist()
        [0.20000000298023224]
    """
    way = (curve - empty[:, None]) / torch.where(full == empty, 1.0, full - empty)[:, None]
    reached = way <= 1 - share if variant == "delete" else way >= share
    shares = torch.tensor(areas, dtype=curve.dtype, device=curve.device)
    return torch.where(reached, shares, 1.0).amin(1)
