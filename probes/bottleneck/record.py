"""A fitted concept bottleneck: features to concept scores to class logits, saved as tables and arrays.

    c = standardise( norm(z) T^T )        concept scores, [image concept]
    y = W relu(a * c + b) + b0            logits; `a`, `b` one per concept: the layer that cannot be merged with T

Everything the head needs is in the record's arrays, so a saved one works again after loading.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import polars as pl
from jaxtyping import Float

from mechvis.errors import OutOfRange, ShapeMismatch, unknown
from mechvis.record import Record
from probes.bottleneck.concepts import Concepts

if TYPE_CHECKING:
    from mechvis.report.blocks import Block


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Bottleneck(Record):
    """A concept-bottleneck head with what was measured of it; made by `probes.bottleneck.bottleneck`."""

    KIND: ClassVar[str] = "bottleneck"

    @property
    def concepts(self) -> Concepts:
        """The named directions."""
        return Concepts(
            names=tuple(self.facts["concepts"]),
            directions=self.arrays["directions"],
            normalise=bool(self.facts["normalise"]),
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        """Name of each logit."""
        return tuple(self.facts["classes"])

    def scores(self, features: Float[np.ndarray, "image d"]) -> Float[np.ndarray, "image concept"]:
        """Standardised concept scores of features.

        Raises:
            ShapeMismatch, NotFinite: features that do not fit.
        """
        return (self.concepts.scores(features) - self.arrays["mean"]) / self.arrays["scale"]

    def active(self, scores: Float[np.ndarray, "image concept"]) -> Float[np.ndarray, "image concept"]:
        """Scores after the elementwise layer."""
        scores = np.asarray(scores, dtype=np.float64)
        if scores.ndim != 2 or scores.shape[1] != len(self.facts["concepts"]):
            raise ShapeMismatch(f"concept scores are [image {len(self.facts['concepts'])}], got {list(scores.shape)}.")
        if self.facts["layer"] == "linear":
            return scores
        return np.maximum(self.arrays["a"] * scores + self.arrays["b"], 0.0)

    def logits_of(self, scores: Float[np.ndarray, "image concept"]) -> Float[np.ndarray, "image class"]:
        """Logits of standardised concept scores (perhaps changed by hand)."""
        return self.active(scores) @ self.arrays["weight"].T + self.arrays["bias"]

    def logits(self, features: Float[np.ndarray, "image d"]) -> Float[np.ndarray, "image class"]:
        """Logits of features."""
        return self.logits_of(self.scores(features))

    def contributions(
        self, features: Float[np.ndarray, "image d"], of: str | int
    ) -> Float[np.ndarray, "image concept"]:
        """What each concept adds to a class logit; the sum over concepts plus the bias is the logit, exactly.

        Args:
            features: rows.
            of: class name or index.

        Raises:
            UnknownName, OutOfRange.
        """
        if isinstance(of, str):
            if of not in self.class_names:
                raise unknown("class", of, self.class_names)
            of = self.class_names.index(of)
        if not 0 <= of < len(self.class_names):
            raise OutOfRange(f"class {of} does not exist: there are {len(self.class_names)}.")
        return self.active(self.scores(features)) * self.arrays["weight"][of]

    def weights(self, classes: Sequence[str] | None = None) -> pl.DataFrame:
        """The concepts that each class reads, largest weight first."""
        table = self.tables["weights"]
        return table if classes is None else table.filter(pl.col("class").is_in(list(classes)))

    def figures(self) -> "list[Block]":
        """Accuracy of the head beside its references."""
        from mechvis.plots import bars
        from mechvis.report.blocks import Figure

        shown = self.table
        figure = bars(
            shown["what"].to_list(),
            shown["accuracy"].to_numpy(),
            low=shown["low"].to_numpy(),
            high=shown["high"].to_numpy(),
            title="Accuracy on test images",
            label="accuracy",
        )
        return [Figure(figure, "Accuracy of the bottleneck beside its references, with 95 % intervals over images.")]
