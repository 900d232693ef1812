"""What happens to other heads when some are gone: the tables, and what their numbers say."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from mechvis import files
from mechvis.results import Result

ONLY_THEN = 0.25
"""A head whose single effect is at most this share of its effect once the other is gone counts as a backup: its effect
appears only then."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SelfRepair:
    """Effects of heads removed alone and together; made by :func:`self_repair` and :func:`after_removal`."""

    singles: Result
    """Single effects of all heads, and of what was removed first."""
    pairs: Result
    """One row per (removed, head) and number: `joint`, `conditional` (the head's effect once the other is gone),
    `single` (its effect before), `synergy`; columns `removed`, `head name`, `role`."""

    @property
    def backups(self) -> pl.DataFrame:
        """Pairs whose head takes over: `removed`, `head`, `role` (`backup` or `compensates`), `single`, `conditional`,
        `synergy`, with the interval of the synergy; the largest first."""
        wide = self.table()
        found = wide.filter(pl.col("role").is_in(["backup", "compensates"]))
        return found.sort("synergy", descending=True, maintain_order=True)

    def table(self) -> pl.DataFrame:
        """One row per pair: `removed`, `head`, `role`, `joint`, `single`, `conditional`, `synergy`, `low`, `high`,
        `significant` (of the synergy)."""
        parts = []
        for name in ("synergy", "joint", "single", "conditional"):
            rows = self.pairs.rows(name)
            if name == "synergy":
                parts.append(
                    rows.select(
                        "unit",
                        "removed",
                        pl.col("head name").alias("head"),
                        "role",
                        pl.col("effect").alias(name),
                        "low",
                        "high",
                        "significant",
                        "n",
                    )
                )
            else:
                parts.append(rows.select(pl.col("effect").alias(name)))
        return pl.concat(parts, how="horizontal")

    def save(self, folder: str | Path) -> Path:
        """Write both results into a folder.

        Raises:
            OutputNotWritable: says what and why.
        """
        folder = files.ensure_writable(folder)
        self.singles.save(folder / "singles")
        self.pairs.save(folder / "pairs")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "SelfRepair":
        """Read what :meth:`save` wrote; every file is verified first.

        Raises:
            StoreCorrupt, ResultMismatch.
        """
        folder = Path(folder)
        return cls(singles=Result.load(folder / "singles"), pairs=Result.load(folder / "pairs"))

    def __repr__(self) -> str:
        table, found = self.table(), self.backups
        lines = [f"SelfRepair({self.pairs.title}: {table.height} pairs, {found.height} of them take over)"]
        for row in found.head(8).iter_rows(named=True):
            does = "is a backup of" if row["role"] == "backup" else "compensates for"
            lines.append(
                f"  {row['head']} {does} {row['removed']}: effect {row['single']:+.4g} before, "
                f"{row['conditional']:+.4g} once it is gone; synergy {row['synergy']:+.4g} "
                f"[{row['low']:+.4g}, {row['high']:+.4g}] n={row['n']}"
            )
        return "\n".join(lines)


def with_roles(pairs: Result) -> pl.DataFrame:
    """What the numbers of each pair say; `backup` and `compensates` need a reliable synergy and conditional effect."""
    synergy, conditional, single = (pairs.rows(name) for name in ("synergy", "conditional", "single"))
    roles = []
    for s, c, e in zip(*(part.iter_rows(named=True) for part in (synergy, conditional, single)), strict=True):
        role = ""
        if s["significant"] and s["effect"] > 0 and c["significant"] and c["effect"] > 0:
            role = "backup" if abs(e["effect"]) <= ONLY_THEN * c["effect"] else "compensates"
        elif s["significant"] and s["effect"] < 0:
            role = "one path"
        roles.append(role)
    return pairs.table.with_columns(pl.Series("role", roles * len(pairs.metrics), dtype=pl.String))
