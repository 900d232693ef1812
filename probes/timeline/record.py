"""What a decision timeline found, as a record that draws itself."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import polars as pl

from mechvis.errors import unknown
from mechvis.record import Record
from probes.linear.record import short

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mechvis.report.blocks import Block

WORDS = {
    "group": "of images; `all` is everybody",
    "mean": "of l*, the first anchor whose prediction stays the same for k more; the fallback counts as the last",
    "mean_stable": "of l*, without the fallback",
    "mean_settle": "of settle, the first anchor from which the prediction equals the final one",
    "settle_conf": "of settle with the probability of the final class at least settle_p; without those never sure",
    "never_sure": "share whose final class does not reach settle_p at the last anchor",
    "early": "share with l* below 0.3 of the depth; early, middle, late and fallback add up to 1",
    "late": "share with l* at 0.7 of the depth or more, the fallback apart",
    "fallback": "share that is stable nowhere",
    "stable_wrong": "share of all images that are stable on a wrong class at l*",
    "wrong_if_stable": "the same as a share of the stable ones",
    "stable_then_changes": "share that is stable on a class which is not the final one",
    "dip": "Hartigan's dip of l*; dip_p: against uniform anchors: small means more than one peak",
    "accuracy": "of the running prediction at an anchor (of the exit rule, in the table of exits)",
    "decided": "share whose l* is this anchor (fallback apart); cumulative: up to it",
    "settled": "share whose settle is this anchor; cumulative_settled: up to it",
    "cost": "mean compute as a share of full depth, probes included; an exit at l* has computed anchor l* + k",
    "loss": "accuracy at full depth - accuracy of the rule, paired over images",
    "decision_shift": "mean change of l* under the corruption, image by image; positive: later",
    "share": "of images whose running prediction is the class that is followed",
}
CAVEATS = (
    "Depths are those of linear probes: a stronger or weaker probe, other tokens or other anchors give other depths.",
    "l* asks whether neighbouring probes agree, not whether the model has its answer: see settle, stable_then_changes.",
    "A running prediction shows what can be read, not what later blocks use.",
    "The last anchors cannot be l* of a window of k: only the fallback is counted there.",
)


class Timeline(Record):
    """When the running prediction settles; `table` has one row per group of images, `all` first.

    Tables besides: `anchors` (per group and anchor), `k_sweep`, `between` (groups compared), `following`, `exit`,
    `corruption`, `images`. Arrays: `predictions` `[image anchor]`, `confidence`, `probability` `[image anchor class]`,
    `cost` `[anchor]`, `test`.
    """

    KIND: ClassVar[str] = "timeline"

    @property
    def predictions(self) -> np.ndarray:
        """Class at each anchor, `[image anchor]`."""
        return self.arrays["predictions"]

    def group(self, name: str = "all") -> dict[str, Any]:
        """The line of a group of images."""
        return self.pick(group=name)

    def share_following(self, what: str, group: str = "all") -> np.ndarray:
        """Share of images whose running prediction is what is followed, `[anchor]`."""
        rows = self.tables["following"].filter((pl.col("follow") == what) & (pl.col("group") == group))
        return rows.sort("anchor")["share"].to_numpy()

    def figure(self, by: Literal["decided", "settled"] = "decided") -> "Figure":
        """Where images are decided, and what the running prediction is, by group.

        Args:
            by: `decided` for `l*`, with the fallback apart; `settled` for `settle`, which every image does.

        Raises:
            UnknownName: neither of them.
        """
        if by not in ("decided", "settled"):
            raise unknown("measure of depth", by, ("decided", "settled"))
        from mechvis.plots.curve import Line
        from mechvis.plots.timeline_map import timeline_map

        anchors = self.tables["anchors"]
        groups = [name for name in dict.fromkeys(anchors["group"]) if name != "all"] or ["all"]
        decided, never, lines = {}, {}, []
        for name in groups:
            rows = anchors.filter(pl.col("group") == name).sort("anchor")
            decided[name], never[name] = rows[by].to_numpy(), self.group(name)["fallback"] if by == "decided" else 0.0
            ends = [rows[f"accuracy{end}"].to_numpy() for end in ("", "_low", "_high")]
            x = np.arange(len(rows), dtype=float)
            lines.append(Line(name=f"{name}: {self.facts['target']}", x=x, y=ends[0], low=ends[1], high=ends[2]))
            if "following" in self.tables:
                for (what,), part in (
                    self.tables["following"].filter(pl.col("group") == name).group_by(["follow"], maintain_order=True)
                ):
                    part = part.sort("anchor")
                    low, high = part["share_low"].to_numpy(), part["share_high"].to_numpy()
                    lines.append(Line(name=f"{name}: {what}", x=x, y=part["share"].to_numpy(), low=low, high=high))
        words = f"decided (stable for {self.facts['k']} more)" if by == "decided" else "settled on the final class"
        places = [short(site) for site in self.facts["anchors"]]
        return timeline_map(places, decided, never, lines, title=self.title, y_label=words)

    def exit_figure(self) -> "Figure":
        """Accuracy against compute of the exit rules."""
        from mechvis.plots.curve import Line, curve

        rows = self.tables["exit"].sort("cost")
        names = ("accuracy", "accuracy_low", "accuracy_high")
        y, low, high = (rows[name].to_numpy() for name in names)
        line = Line(name="leave when stable", x=rows["cost"].to_numpy(), y=y, low=low, high=high)
        return curve(
            [line], x_label=f"compute as a share of full depth ({self.facts['cost']})", y_label="accuracy", percent=True
        )

    def figures(self) -> "list[Block]":
        """The timeline, and the exit curve."""
        from mechvis.report.blocks import Figure

        caption = (
            "Held-out images. Above: anchor of the decision, the fallback apart. Below: what the running prediction is."
        )
        found = [Figure(self.figure(), caption), Figure(self.figure("settled"), "The same by settle.")]
        if "exit" in self.tables:
            found.append(Figure(self.exit_figure(), "From stability alone (left) to full depth (right)."))
        return found
