"""The card of an edit: what it changes, for whom, beside what chance would change, and whether it may be believed.

Status, as the exit code of a command would say it: 0 the edit does what it is for; 3 it does, but a group or class
loses more than allowed; 4 not to be trusted: the gain may be nothing, or random edits of the same size do as well.
"""

import io
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from mechvis import files
from mechvis.errors import StoreCorrupt, unknown

FORMAT = "mechvis.edit_card"
FORMAT_VERSION = 1
MANIFEST = "card.json"
FINE, HARM, NOT_TRUSTED = 0, 3, 4
_FRAMES = ("table", "controls", "images")
_PLAIN = ("title", "edit", "gain", "harmed", "status", "reasons", "settings", "provenance")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EditCard:
    """Before and after an edit, on images that did not choose it."""

    title: str
    """What was done."""
    edit: dict[str, Any]
    """Fingerprints before and after, whether it is in the weights, what was left out of them and why."""
    table: Any
    """polars, one row per measure: `measure`, `kind` (all, group, class), `better`, `before`, `after`, `change`, `low`,
    `high` (95 % interval of the change, paired over images), `n`, `p` (sign-flip test), `p_holm` (over all groups and
    classes)."""
    controls: Any
    """polars, one row per random edit of the same size: `control`, `value`, `change` of the gain's measure; empty where
    there is none."""
    images: Any
    """polars, one row per image: `id`, label, group, and what either model makes of it."""
    gain: dict[str, Any]
    """The measure that the edit is for: its row of the table, `controls` (how many), `control_95` (95th percentile of
    the controls' improvement), `p_control`."""
    harmed: tuple[str, ...]
    """Groups and classes that lose more accuracy than allowed."""
    status: int
    """0, 3 or 4; see the top of this module."""
    reasons: tuple[str, ...]
    """Why the status is not 0."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Parameters."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Model, images, versions, command, time."""

    def row(self, measure: str) -> dict[str, Any]:
        """One row of the table.

        Raises:
            UnknownName: no such measure; names the nearest.
        """
        import polars as pl

        found = self.table.filter(pl.col("measure") == measure)
        if not found.height:
            raise unknown("measure", measure, self.table["measure"].to_list())
        return found.row(0, named=True)

    def save(self, folder: str | Path) -> Path:
        """Write the card into a folder, and beside it `edit_card.md` for people.

        Raises:
            OutputNotWritable: says what and why.
        """
        folder = files.ensure_writable(folder)
        content = {f"{name}.parquet": files.parquet_bytes(getattr(self, name)) for name in _FRAMES}
        manifest = {"format": FORMAT, "version": FORMAT_VERSION, **{name: getattr(self, name) for name in _PLAIN}}
        files.write_together(folder, content, MANIFEST, files.plain_json(manifest, "edit card"))
        files.write_text(folder / "edit_card.md", self.to_markdown())
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "EditCard":
        """Read a card that :meth:`save` wrote; every file is verified first.

        Raises:
            StoreCorrupt: a file is missing, truncated or changed; names it.
            ResultMismatch: not a card, or one of a later version.
        """
        import polars as pl

        folder = Path(folder)
        check = files.only_format(folder / MANIFEST, FORMAT, FORMAT_VERSION, "an edit card")
        manifest = files.read_manifest(folder, MANIFEST, check=check)
        content = {name: files.read_together(folder, manifest, name) for name in manifest["files"]}
        try:
            frames = {name: pl.read_parquet(io.BytesIO(content[f"{name}.parquet"])) for name in _FRAMES}
            plain = {name: manifest[name] for name in _PLAIN}
            plain |= {name: tuple(plain[name]) for name in ("harmed", "reasons")}
            return cls(**frames, **plain)
        except (pl.exceptions.PolarsError, KeyError, TypeError, ValueError) as error:
            raise StoreCorrupt(f"{folder / MANIFEST} does not hold what an edit card needs: {error}") from error

    def to_markdown(self) -> str:
        """The card as a page of text."""
        shown = self.table.rows(named=True)
        where = "in the weights" if self.edit["folded"] else "at run time"
        lines = [f"# {self.title}", "", f"Model {self.edit['before']} -> {self.edit['after']}, {where}."]
        lines += [f"Not in the weights: {self.edit['note']}"] if self.edit["note"] else []
        lines += ["", f"Status {self.status}: {'; '.join(self.reasons) or 'the edit does what it is for'}.", ""]
        lines += [
            "| measure | n | before | after | change | 95 % interval | p | p (Holm) |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        for row in shown:
            lines.append(
                f"| {row['measure']} | {row['n']} | {row['before']:.4g} | {row['after']:.4g} | {row['change']:+.4g} | "
                f"{_ends(row)} | {_number(row['p'])} | {_number(row['p_holm'])} |"
            )
        return "\n".join([*lines, "", self._control_line(), ""])

    def _control_line(self) -> str:
        gain = self.gain
        if not gain["controls"]:
            return f"No random control: {self.settings.get('no_control', 'none was asked for')}."
        return (
            f"{gain['controls']} random edits of the same size: the improvement of {gain['measure']} is "
            f"{gain['control_95']:+.4g} at their 95th percentile; this edit {gain['improvement']:+.4g}, "
            f"p = {gain['p_control']:.3g}."
        )

    def __str__(self) -> str:
        lines = [
            f"EditCard({self.title}; status {self.status}{': ' + '; '.join(self.reasons) if self.reasons else ''})"
        ]
        width = max(len(name) for name in self.table["measure"])
        for row in self.table.rows(named=True):
            p = f"  p = {row['p']:.3g}" if row["p"] is not None else ""
            p += f", Holm {row['p_holm']:.3g}" if row["p_holm"] is not None else ""
            lines.append(
                f"  {row['measure']:{width}}  {row['before']:.4g} -> {row['after']:.4g}  {row['change']:+.4g} "
                f"{_ends(row)} n={row['n']}{p}"
            )
        return "\n".join([*lines, f"  {self._control_line()}"])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def _ends(row: dict[str, Any]) -> str:
    return "no interval" if row["low"] is None or row["high"] is None else f"[{row['low']:+.4g}, {row['high']:+.4g}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
