"""What an attribution method found: a map over the patches of each image, with everything needed to ask again."""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from mechvis.errors import ShapeMismatch
from mechvis.record import Record

if TYPE_CHECKING:
    import matplotlib.figure

    from mechvis.attribution.method import Method
    from mechvis.cards.data import CardData
    from mechvis.cards.faithfulness_card import FaithfulnessCard
    from mechvis.report.blocks import Block


class Attribution(Record):
    """Maps over patches, one per image.

    Made by :func:`mechvis.attribute`. The first table has a row per image (which class was explained, its score, what
    the map adds up to); `maps` are the numbers.
    """

    KIND = "attribution"

    @property
    def maps(self) -> Float[np.ndarray, "image down across"]:
        """Attribution of each patch, in the unit that the method has (see `words`)."""
        return self.arrays["maps"]

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (down, across)."""
        return self.maps.shape[1:]

    @property
    def method(self) -> "Method":
        """The method that made it, to be asked again.

        Raises:
            BadData: its settings hold an object that cannot be written down (a pool of pixels).
            UnknownName: a method of the user's own, which is not in `mechvis.attribution.METHODS`.
        """
        from mechvis.attribution.names import method

        return method(self.facts["method"]).of(self.facts["settings"])

    def plot(self, images: Any = None, *, n: int = 8) -> "matplotlib.figure.Figure":
        """The first `n` maps over their images.

        Args:
            images: pictures `[image height width 3]` (uint8) or an `ImageSet`; None: maps alone.
            n: how many.

        Raises:
            ShapeMismatch: fewer pictures than maps.
        """
        from mechvis.plots.image_overlay import image_overlay

        n = min(n, len(self.maps))
        pictures = None
        if images is not None:
            raw = images[list(range(min(n, len(images))))].raw() if hasattr(images, "raw") else list(images[:n])
            if len(raw) < n:
                raise ShapeMismatch(f"{len(raw)} pictures for {n} maps.")
            pictures = [np.asarray(one) for one in raw]
        titles = [str(name) for name in self.table["target"].to_list()[:n]]
        signed = self.facts["claims"]["signed"]
        return image_overlay(self.maps[:n], pictures, titles=titles, signed=signed, title=self.title, n=len(self.maps))

    def _repr_html_(self) -> str:
        from mechvis.show import attribution, safely

        return safely(attribution, self)

    def figures(self) -> "list[Block]":
        """Maps of the first images."""
        from mechvis.report.blocks import Figure

        return [Figure(self.plot(), f"Maps of the first images by {self.facts['method']}; common scale.")]

    def card(self, data: "CardData", level: str = "smoke", seed: int = 0) -> "FaithfulnessCard":
        """How far to believe these maps: see :func:`mechvis.cards.attribution_card`."""
        from mechvis.cards.of_attribution import attribution_card

        return attribution_card(self, data, level=level, seed=seed)
