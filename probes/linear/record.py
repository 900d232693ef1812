"""What probing layers gave: scores with controls and baselines, as a record that draws itself."""

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import polars as pl

from mechvis.errors import unknown
from mechvis.record import Record
from probes.linear.base import LinearProbe
from probes.linear.estimators import probe_for

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mechvis.cards.data import CardData
    from mechvis.cards.faithfulness_card import FaithfulnessCard
    from mechvis.report.blocks import Block


class LinearProbes(Record):
    """Probes of many layers and token choices; `table` has one row per set of features.

    Tables besides: `capacity` (every weight decay and rank, with control), `baselines`, `groups` where the images have
    them, `code` (blocks of the online code). Arrays: `weights/<name>` and `bias/<name>` in the features' coordinates,
    `scores` of the test images `[features image]`, `test` (their positions).
    """

    KIND: ClassVar[str] = "linear_probes"

    def probe(self, name: str) -> LinearProbe:
        """The fitted probe of a set of features, ready to predict.

        Raises:
            UnknownName: no such features.

        Example:
            >>> record.probe("blocks.3.hook_resid_post:cls").predict(rows)                         # doctest: +SKIP
        """
        names = self.table["features"].to_list()
        if name not in names:
            raise unknown("features", name, names)
        probe = probe_for(self.facts["kind"], weight_decay=self.pick(features=name)["weight_decay"])
        probe.coef_, probe.intercept_ = self.arrays[f"weights/{name}"], self.arrays[f"bias/{name}"]
        probe.mean_, probe._centred = np.zeros(probe.coef_.shape[1]), probe.intercept_
        probe.n_features_in_ = probe.coef_.shape[1]
        if self.facts["kind"] == "classes":
            probe.classes_ = np.array(self.facts["classes"])
        probe.flat_ = bool(self.facts.get("flat", False))
        return probe

    def best(self, by: str = "score") -> dict[str, Any]:
        """The row with the largest value of a column.

        Raises:
            UnknownName: no such column of numbers.
        """
        numeric = [name for name, kind in self.table.schema.items() if kind.is_numeric()]
        if by not in numeric:
            raise unknown("column of numbers", by, numeric)
        return self.table.sort(by, descending=True, nulls_last=True).row(0, named=True)

    def figure(self) -> "Figure":
        """Score by layer: one line per token choice, its control and a model with random weights beside it."""
        from mechvis.plots.curve import Line
        from mechvis.plots.layer_curve import layer_curve

        places = list(dict.fromkeys(self.table["site"]))
        lines = []
        for choice in dict.fromkeys(self.table["tokens"]):
            rows = self.table.filter(pl.col("tokens") == choice)
            x = np.array([places.index(site) for site in rows["site"]], float)
            word = choice or "whole image"
            for name, column in (("task", "score"), ("control", "control"), ("random model", "random_model")):
                if column in rows.columns:
                    y, low, high = (
                        rows[at].cast(pl.Float64).fill_null(np.nan).to_numpy()
                        for at in (column, f"{column}_low", f"{column}_high")
                    )
                    lines.append(Line(name=f"{word}: {name}", x=x, y=y, low=low, high=high))
        flat = self.tables["baselines"]
        levels = {row["baseline"]: row["score"] for row in flat.iter_rows(named=True) if row["features"] is None}
        return layer_curve(
            [short(site) for site in places],
            lines,
            levels=levels,
            title=self.title,
            y_label=self.facts["measure"],
            percent=self.facts["kind"] != "numbers",
        )

    def card(self, data: "CardData", level: str = "smoke", seed: int = 0) -> "FaithfulnessCard":
        """How far to believe these probes: see :func:`probes.cards.probe_card`."""
        from probes.cards.of_probe import probe_card

        return probe_card(self, data, level=level, seed=seed)

    def figures(self) -> "list[Block]":
        """Score by layer."""
        from mechvis.report.blocks import Figure

        return [Figure(self.figure(), "Held-out images; bands are 95 % bootstrap intervals over images.")]


def short(site: str) -> str:
    """A site's name as it stands at an axis.

    Example:
        >>> short("blocks.3.hook_resid_post"), short("hook_embed")
        ('L3 resid_post', 'embed')
    """
    head, _, rest = site.partition(".")
    if head == "blocks":
        layer, _, rest = rest.partition(".")
        return f"L{layer} {rest.replace('hook_', '')}"
    return site.replace("hook_", "")
