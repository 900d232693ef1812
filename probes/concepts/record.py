"""What concept discovery returns: concepts with importance, maps, pictures, and how far to believe them."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mechvis.errors import BadData, OutOfRange
from mechvis.record import Record
from probes.concepts.factors import Factorisation

if TYPE_CHECKING:
    from mechvis.cards.data import CardData
    from mechvis.cards.faithfulness_card import FaithfulnessCard


class Concepts(Record):
    """Concepts of a class; `table` has one row per concept, the most important first, `tables["images"]` one per
    measured image.

    Arrays: `bank` and `centre` (see :meth:`factorisation`), `codes` `[image place concept]` and `importance` `[image
    concept]` of the images that were measured (concepts in the order of the table), `pictures` `[concept rank height
    width channel]` with `picture_maps` `[concept rank down across]`.
    """

    KIND = "concepts"

    def factorisation(self) -> Factorisation:
        """The concepts as a factorisation that codes new rows of the same site.

        The codes in it are those of the measured images.

        Raises:
            BadData: the concepts are those of a given dictionary, whose encoder is not in the record.
        """
        arrays = self.arrays
        if self.facts.get("given_dictionary"):
            raise BadData(
                "these concepts are those of a dictionary that was given, whose encoder is not in the record: use the "
                "dictionary itself, factorise(rows, 'dictionary', dictionary=...)."
            )
        return Factorisation(
            method=self.facts["method"],
            bank=arrays["bank"],
            codes=arrays["codes"].reshape(-1, len(arrays["bank"])),
            centre=arrays["centre"],
            penalty=arrays.get("penalty"),
            price=self.facts["price"],
        )

    def maps(self, concept: str) -> np.ndarray:
        """Maps of one concept on the places' grid, `[image down across]`.

        Raises:
            OutOfRange: no such concept.
        """
        codes = self.arrays["codes"][..., self._index(concept)]
        return codes.reshape(len(codes), *self.facts["grid"])

    def importances(self) -> np.ndarray:
        """Importance `[image concept]`, concepts in the order of the table."""
        return self.arrays["importance"]

    def strategies(self, **options: Any) -> Any:
        """Images clustered by what decides them: :func:`probes.concepts.strategies.strategies` of these importances.

        Args:
            options: for it.
        """
        from probes.concepts.strategies import strategies

        images = self.tables["images"].head(len(self.importances()))
        known = not images["correct"].null_count()
        return strategies(
            self.importances(),
            correct=images["correct"].to_numpy() if known else None,
            names=self.table["concept"].to_list(),
            ids=images["image"].to_list(),
            provenance=self.provenance,
            **{"title": f"Strategies of {self.facts['target']!r} at {self.facts['site']}", **options},
        )

    def card(self, data: "CardData", level: str = "smoke", seed: int = 0) -> "FaithfulnessCard":
        """How far to believe these concepts: see :func:`probes.cards.concepts_card`."""
        from probes.cards.of_concepts import concepts_card

        return concepts_card(self, data, level=level, seed=seed)

    def figures(self) -> list[Any]:
        """Concepts with their best images and maps, and their importance."""
        from mechvis.plots.bars import bars
        from mechvis.plots.concept_panel import concept_panel
        from mechvis.report.blocks import Figure

        table = self.table
        captions = [
            f"{row['concept']}: {row['importance']:.3g}" + (f"\n{row['what']}" if row.get("what") else "")
            for row in table.iter_rows(named=True)
        ]
        found = []
        if len(self.arrays["pictures"]):
            shown = min(len(captions), 8)
            panel = concept_panel(
                list(self.arrays["pictures"][:shown]),
                maps=list(self.arrays["picture_maps"][:shown]),
                captions=captions[:shown],
                title=self.title,
            )
            found.append(Figure(panel, "Images that hold most of each concept, and where.", raster=True))
        columns = {name: table[name].to_numpy() for name in ("importance", "low", "high")}
        label = self.words.get("importance", "importance")
        drawn = bars(
            table["concept"].to_list(), columns["importance"], low=columns["low"], high=columns["high"], label=label
        )
        return [*found, Figure(drawn, "Importance of each concept.")]

    def _index(self, concept: str) -> int:
        names = self.table["concept"].to_list()
        if concept not in names:
            raise OutOfRange(f"no concept {concept!r}; there are {', '.join(names)}.")
        return names.index(concept)
