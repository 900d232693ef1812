"""What TextSpan found: heads with their texts, shares of variance, names and controls; saved, loaded, drawn."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl

from mechvis.errors import unknown
from mechvis.record import Record
from probes.textspan.greedy import Span

if TYPE_CHECKING:
    from mechvis.cards.data import CardData
    from mechvis.cards.faithfulness_card import FaithfulnessCard
    from mechvis.report.blocks import Block

WORDS = {
    "head": "layer and number of the head",
    "label": "the property that its texts are about more than chance would have it, or none",
    "inside": "in the table of heads: the property along which more of its variance lies than chance would have it, or "
    "none; in the table of properties: share of its variance along the property's values",
    "inside_chance": "the same along random directions among those of all properties; inside_p, inside_q: p-values",
    "texts": "its first texts",
    "explained": "share of the head's variance over images that its texts explain",
    "held_out": "the same on one half of the images by texts that were picked on the other half",
    "random": "the same by as many picks from random directions, mean over pools; random_low and random_high: extremes",
    "shuffled": "the same by the texts of other heads, mean over heads",
    "pca": "the same by principal components: no picks can explain more",
    "overlap": "texts that both halves of the images picked, as a share of all that either picked",
    "variance": "variance of the head's writes, in units of the embedding's squared length",
    "picks": "how many texts were picked before the variance was used up",
    "n": "images",
    "score": "share of what the picks explain that belongs to texts about the property",
    "chance": "mean of that score when the properties are dealt out anew over the texts",
    "p": "share of deals that score at least as high",
    "head_p": "p of the head's best property, corrected for the number of properties",
    "q": "head_p corrected for the number of heads (Benjamini-Hochberg); the same for all properties of a head",
    "rank": "1 for the text that was picked first",
    "share": "share of the head's variance that the pick adds",
    "cumulative": "share that the picks up to here explain",
}
CAVEATS = (
    "The texts are a basis, not names: each is conditional on those before it, and a negative projection counts as "
    "much as a positive one.",
    "Only texts of the bank can be found. Another bank, or other images, give other texts: see held_out and overlap.",
    "This is about what heads write directly into the embedding. Whether the model needs a head for a property is "
    "measured by ablating it (probes.textspan.confirm_span).",
)


def image_keys(ids: Iterable[str]) -> np.ndarray:
    """A number per image name, so that a text span can tell its images again without keeping their names."""
    digests = (hashlib.sha256(name.encode()).digest()[:8] for name in ids)
    return np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.uint64)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TextSpan(Record):
    """Texts that span what each head writes, from :func:`probes.textspan.text_span`."""

    KIND = "text_span"

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads, in order."""
        return tuple(self.table["head"])

    def index(self, head: str) -> int:
        """Place of a head.

        Raises:
            UnknownName: no such head.
        """
        if head not in self.heads:
            raise unknown("head", head, self.heads)
        return self.heads.index(head)

    def span(self, head: str) -> Span:
        """The texts of one head as directions.

        Raises:
            UnknownName: no such head.
        """
        place = self.index(head)
        n = int(self.table["picks"][place])
        return Span(
            picks=self.arrays["picks"][place, :n],
            explained=self.arrays["explained"][place, :n],
            basis=self.arrays["basis"][place, :n],
            mean=self.arrays["mean"][place],
            variance=float(self.table["variance"][place]),
        )

    def texts(self, head: str) -> pl.DataFrame:
        """The texts of one head, first picked first.

        Raises:
            UnknownName: no such head.
        """
        self.index(head)
        return self.tables["picks"].filter(pl.col("head") == head)

    def labelled(self, label: str, *, by: Literal["texts", "inside"] = "texts") -> tuple[str, ...]:
        """The heads that are named by a property, or by `none`.

        Args:
            label: the property, or `none`.
            by: by their `texts`, or by how much of them lies `inside` the property.

        Raises:
            UnknownName: no property of the bank, or no such way.
        """
        if by not in ("texts", "inside"):
            raise unknown("kind of label", by, ("texts", "inside"))
        known = [*self.facts["properties"], "none"]
        if label not in known:
            raise unknown("property", label, known)
        return tuple(self.table.filter(pl.col("label" if by == "texts" else "inside") == label)["head"])

    def labels(self, *, by: Literal["texts", "inside"] = "texts") -> dict[str, tuple[str, ...]]:
        """Property -> its heads, for properties that name at least one head; see :meth:`labelled`."""
        found = {name: self.labelled(name, by=by) for name in self.facts["properties"]}
        return {name: heads for name, heads in found.items() if heads}

    def card(self, data: "CardData", level: str = "smoke", seed: int = 0) -> "FaithfulnessCard":
        """How far to believe these texts: see :func:`probes.cards.text_span_card`."""
        from probes.cards.of_text_span import text_span_card

        return text_span_card(self, data, level=level, seed=seed)

    def figures(self) -> "list[Block]":
        """The table of properties and heads as a map."""
        from mechvis.plots.property_heads import property_heads
        from mechvis.report.blocks import Figure

        if "properties" not in self.tables:
            return []
        table = self.tables["properties"]
        names = list(dict.fromkeys(table["property"]))
        shape = (len(self.heads), len(names))
        score, p, q = (np.reshape(table[column].to_numpy(), shape).T for column in ("score", "p", "q"))
        sure = (p < self.facts["alpha"]) & (q < self.facts["fdr"])
        # Of many properties, those that say something about a head.
        shown = np.flatnonzero(sure.any(1)) if len(names) > 12 else np.arange(len(names))
        if not len(shown):
            return []
        maps = [property_heads(score[shown], [names[i] for i in shown], self.heads, significant=sure[shown])]
        captions = ["Share of what a head's texts explain that belongs to texts about a property."]
        if "inside" in table.columns:
            along, p, q = (np.reshape(table[f"inside{s}"].to_numpy(), shape).T for s in ("", "_p", "_q"))
            sure = (p < self.facts["alpha"]) & (q < self.facts["fdr"])
            label = "share of the head's variance"
            maps.append(
                property_heads(
                    along[shown], [names[i] for i in shown], self.heads, significant=sure[shown], label=label
                )
            )
            captions.append("Share of a head's variance along the values of a property.")
        framed = (
            f" Framed: p below {self.facts['alpha']}, and below {self.facts['fdr']} corrected for the number of heads."
        )
        return [Figure(figure, caption + framed) for figure, caption in zip(maps, captions, strict=True)]
