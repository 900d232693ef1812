"""Where in the image, and in which layer, the difference between clean and corrupt is carried: shares over pictures."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from circuits.pairs.halves import preprocess_of
from circuits.pairs.pairs import Pairs
from mechvis.errors import OutOfRange, ResultMismatch
from mechvis.patches import patch_maps
from mechvis.results import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def map_figure(
    model: Any,
    pairs: Pairs,
    result: Result,
    *,
    metric: str | None = None,
    shown: Sequence[int] = (0, 1, 2, 3),
    layers: Sequence[int] | None = None,
) -> "Figure":
    """Some clean images, and the share of each token or group of patches over them, one picture per layer.

    Args:
        model: the model that was patched; its preprocessing turns pixels back into colours.
        pairs: the pairs that were patched.
        result: of patching with `units="tokens"` or `units="patches"`.
        metric: default: the first of the result, e.g. `logit_diff[noise]`.
        shown: which pairs.
        layers: which layers; default: those that were patched, at most eight.

    Raises:
        ResultMismatch: the result is of other pairs, or of units without a place in the image.
        OutOfRange: a pair that does not exist.

    Example:
        >>> found = circuits.patch(model, pairs, units="tokens")                                   # doctest: +SKIP
        >>> map_figure(model, pairs, found, metric="logit_diff[denoise]").savefig("maps.png")      # doctest: +SKIP
    """
    from mechvis import plots

    if result.images is None or tuple(result.images["id"]) != pairs.ids:
        raise ResultMismatch(f"the result {result.title!r} is not of these {len(pairs)} pairs ({pairs.name}).")
    if not len(shown) or not all(0 <= i < len(pairs) for i in shown):
        raise OutOfRange(f"shown={list(shown)}: the pairs are 0 to {len(pairs) - 1}.")
    metric = result.metrics[0] if metric is None else metric
    maps = patch_maps(result, metric)[list(shown)]
    colours = preprocess_of(model).unnormalise(pairs.clean[list(shown)])
    pictures = (colours * 255).round().byte().movedim(1, -1).cpu().numpy()
    rows = [result.images.row(i, named=True) for i in shown]
    return plots.patch_map(
        list(pictures),
        maps,
        layers=layers,
        captions=[f"{row['clean_class']} / {row['corrupt_class']}" for row in rows],
        title=result.title,
        label=f"share of the mean difference, {metric}",
    )
