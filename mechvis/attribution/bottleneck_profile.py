"""In which layer does how much have to come through, and on which tokens: bits of the bottleneck, layer by layer.

:class:`mechvis.attribution.methods.iba.Iba` is asked at every layer; what is reported is the total of bits, how much of
it lies on prefix tokens (CLS, registers), and how far patches share it. Layers are comparable in how bits are spread
over tokens, and in their totals only at one `beta`, which sets the scale: so the probability of the class under that
noise is beside them.

Source: methods2.md 18.3 (port of the use for text models [A]).
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import torch

from mechvis import stats
from mechvis.attribution.attribute import attribute
from mechvis.attribution.methods.iba import Iba
from mechvis.errors import BadData
from mechvis.provenance import provenance
from mechvis.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class BottleneckProfile(Record):
    """Bits that have to come through before each block.

    Made by :func:`bottleneck_profile`.
    """

    KIND = "bottleneck_profile"

    def plot(self) -> "Figure":
        """Bits per layer, patches and prefix."""
        from mechvis.plots.curve import Line, curve

        table = self.table
        layers, bits, prefix, low, high = (
            table[name].to_numpy() for name in ("layer", "bits", "prefix_bits", "low", "high")
        )
        lines = [Line(name="all tokens", x=layers, y=bits, low=low, high=high), Line(name="prefix", x=layers, y=prefix)]
        return curve(lines, title=self.title, x_label="block", y_label="bits", n=int(table["n"][0]))


def bottleneck_profile(
    model: Any, images: Any, method: Iba, *, target: Any = "predicted", seed: int = 0, progress: bool = True
) -> BottleneckProfile:
    """Bits before every block.

    Args:
        model: a wrapped vision model.
        images: as for :func:`mechvis.attribute`.
        method: settings of the bottleneck; its layer is replaced. It needs a `reference` (or `loss="similarity"`):
            without one the prefix tokens are open, and from the second block on they carry the image past the noise.
        target: as for :func:`mechvis.attribute`.
        seed: of the noise.
        progress: show bars.

    Returns:
        A row per layer: mean bits over images with a 95 % interval, bits on prefix tokens and their share, how many
        patches share the bits (`2^entropy`); arrays `maps` `[layer image down across]`.

    Raises:
        BadData: no reference; otherwise as :func:`mechvis.attribute`.

    Example:
        >>> found = bottleneck_profile(model, images, Iba(reference=others))    # doctest: +SKIP
        >>> found.table["prefix_share"]                                         # doctest: +SKIP
    """
    if method.reference is None and method.loss == "class":
        raise BadData(
            "a profile needs the spread of every token, prefix tokens too: Iba(reference=pixels of other images)."
        )
    rows, maps = [], []
    for layer in range(len(model.parts.blocks)):
        found = attribute(model, images, replace(method, layer=layer), target=target, seed=seed, progress=progress)
        bits, prefix = found.arrays["bits"], _prefix(found, len(found.maps))
        total, on = stats.bootstrap(bits, seed=seed), stats.bootstrap(prefix, seed=seed)
        share, low, high = stats.interval_of(
            lambda some, all_bits: some.sum() / max(all_bits.sum(), 1e-12), prefix, bits, seed=seed
        )
        rows.append(
            {
                "layer": layer,
                "bits": float(total.effect[0]),
                "low": float(total.low[0]),
                "high": float(total.high[0]),
                "prefix_bits": float(on.effect[0]),
                "prefix_share": share,
                "share_low": low,
                "share_high": high,
                "patches": float(np.mean(_effective(found.maps))),
                "n": int(total.n[0]),
            }
        )
        maps.append(found.maps)
    caveats = (
        "Bits are upper bounds, and beta sets their scale: totals compare at one beta, or set total_bits.",
        "Bits on prefix tokens have no place in the maps.",
    )
    return BottleneckProfile(
        title=f"bits that must come through, {len(rows)} layers, {len(maps[0])} images",
        tables={"layers": pl.DataFrame(rows)},
        arrays={"maps": np.stack(maps)},
        facts={"settings": method.settings() | {"layer": None}, "seed": seed},
        words={
            "layer": "the stream before this block",
            "bits": "mean bits over images, all tokens; low, high: 95 % interval",
            "prefix_bits": "of them on CLS and registers",
            "prefix_share": "share of all bits on prefix tokens; share_low, share_high: 95 % interval",
            "patches": "how many patches share the bits: 2 to the entropy of their shares, mean over images",
            "n": "images",
        },
        caveats=caveats,
        provenance=provenance(model, None, seed),
    )


def _prefix(found: Any, n_images: int) -> np.ndarray:
    return found.table["prefix"].to_numpy() if "prefix" in found.table.columns else np.zeros(n_images)


def _effective(maps: np.ndarray) -> np.ndarray:
    """`2^entropy` of each map's shares; 0 where a map is empty."""
    flat = torch.as_tensor(maps).flatten(1).double().clamp(min=0)
    total = flat.sum(1, keepdim=True)
    shares = flat / total.clamp(min=1e-30)
    found = torch.special.entr(shares).sum(1).exp()
    return torch.where(total[:, 0] > 0, found, 0.0).numpy()
