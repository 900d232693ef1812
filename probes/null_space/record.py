"""A reading of a null space as a record: what the columns mean, and the questions that people ask of it."""

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from mechvis.errors import BadData, OutOfRange
from mechvis.record import Record
from mechvis.stats import bootstrap

if TYPE_CHECKING:
    from mechvis.report.blocks import Block

WORDS = {
    "IS": "angle in degrees between the translated feature with and without its null part",
    "AS": "angle to the text with the null part minus without; positive: closer to the text without it",
    "AS_control": "the same for random vectors of the null space of the same length",
    "AS_size": "mean over texts of the absolute AS, in degrees",
    "delta": "cosine with the text with the null part minus without; positive: the null part points to the text",
    "p_adjusted": "p-value that AS is zero, adjusted for the number of texts (Benjamini-Hochberg)",
    "share": "length of what was taken away over the length of the feature",
    "IS_per_dim": "IS over the number of null dimensions",
    "IS_per_share": "IS over share, image by image",
    "null_dim": "dimensions that the head does not read",
    "logits": "largest change of a logit (of a centred logit if centered)",
    "removed": "what was taken away; controls are as long as the null part",
    "size": "length of the directed edit over the length of the feature",
    "angle": "how much closer the edit came to its text, in degrees",
}


class NullReading(Record):
    """What a head cannot see; see :func:`probes.null_space.sing`."""

    KIND = "null_space"

    def strongest(self, n: int = 5) -> pl.DataFrame:
        """The texts that the null part moves most.

        Raises:
            OutOfRange: fewer than one text.
        """
        if n < 1:
            raise OutOfRange(f"n={n}: at least one text.")
        return self.table.head(n)

    def among(self, images: np.ndarray, *, seed: int = 0) -> pl.DataFrame:
        """The dictionary over some of the images: those of which a text is true, or false.

        A mean over all images hides what the null part says of each: "a striped background" is true of few.

        Args:
            images: bool `[image]`, or positions.
            seed: of the bootstrap.

        Returns:
            `text AS low high delta n`, the most negative AS first: the texts to which the null part points.

        Raises:
            BadData: no image is chosen.

        Example:
            >>> reading.among(images.columns["background"] == "striped").head(1)                   # doctest: +SKIP
        """
        turned, cosines = self.arrays["AS"][images], self.arrays["delta"][images]
        if not len(turned):
            raise BadData("no image is chosen: there is nothing to average.")
        one = bootstrap(turned.T, seed=seed)
        table = pl.DataFrame(
            {"text": self.facts["texts"], "AS": one.effect, "low": one.low, "high": one.high}
            | {"delta": cosines.mean(0), "n": one.n}
        )
        return table.sort("AS")

    def model_row(self) -> dict[str, Any]:
        """IS, AS, their normalised forms, and the translator's quality for the whole model."""
        return self.tables["model"].row(0, named=True)

    def figures(self) -> "list[Block]":
        """IS against |AS| per class."""
        from mechvis.plots.null_space import null_space_plane
        from mechvis.report.blocks import Figure

        classes = self.tables["classes"]
        figure = null_space_plane(classes["class"].to_list(), classes, title="per class")
        return [Figure(figure, "Right: the null part changes the meaning. Up: it changes the angle to the texts.")]
