"""Everything that was measured on one circuit: printed as a table, saved, reloaded, drawn, reported.

On disk it is a folder: `evaluation.json`, the tables as Parquet, and the metric per image as safetensors, so that every
number can be made again; `curve` and `minimality` are folders of their own in it.
"""

from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuits.evaluation import store
from circuits.evaluation.completeness import Completeness
from circuits.evaluation.curve import Curve
from circuits.evaluation.random_control import RandomControl
from mechvis.errors import BadData, unknown
from mechvis.results import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT, VERSION = "mechvis.circuit_evaluation", 1


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CircuitEvaluation:
    """How faithful, necessary, complete and minimal a circuit is, beside what chance gives."""

    title: str
    """The circuit."""
    level: str
    """`quick` or `full`."""
    facts: dict[str, Any]
    """`edges`, `n_edges`, `components`, `n_components`, `pruned` (dangling edges dropped first), `full` and `empty`
    (mean metric), `rows` (passes of one image through one circuit), `seconds`."""
    measures: Any
    """polars, one row per number: `measure`, `value`, `low`, `high` (95 % interval over images), `n` (images or draws),
    `excluded`, `better` (higher, lower, or empty), `about` (what it is)."""
    images: Any
    """polars, one row per image: `id`, `full`, `empty`, `circuit`, `without circuit` (the metric of each)."""
    curve: Curve | None = None
    """Faithfulness over size; None without scores."""
    controls: tuple[RandomControl, ...] = ()
    """Among random circuits."""
    completeness: Completeness | None = None
    """The widest gap found."""
    minimality: Result | None = None
    """What each edge adds."""
    sensitivity: Any = None
    """polars: other ablations and metrics; see :func:`circuits.evaluation.sensitivity`."""
    flags: tuple[str, ...] = ()
    """What speaks against the numbers; read these first."""
    not_run: dict[str, str] = field(default_factory=dict)
    """Blocks that are missing, and why."""
    provenance: dict = field(default_factory=dict)
    """Task, circuit, settings, versions."""

    def table(self) -> Any:
        """One row per number: :attr:`measures`."""
        return self.measures

    def measure(self, name: str) -> dict[str, Any]:
        """One row of the table, e.g. `evaluation.measure("faithfulness")["value"]`.

        Raises:
            UnknownName: no such measure.
        """
        import polars as pl

        rows = self.measures.filter(pl.col("measure") == name)
        if not rows.height:
            raise unknown("measure", name, self.measures["measure"].to_list())
        return rows.row(0, named=True)

    def control(self, how: str = "edges") -> RandomControl:
        """The random control that was drawn by `edges` or by `heads`.

        Raises:
            BadData: it was not run; says why.
        """
        for control in self.controls:
            if control.how == how:
                return control
        raise BadData(f"no random control by {how!r}: {self.not_run.get(f'random {how}', 'not asked for')}.")

    def plot(self, what: str | None = None) -> "Figure":
        """A figure.

        Args:
            what: `curve`, `edges` or `heads` (random control); default: the curve if there is one.

        Raises:
            UnknownName: no such figure.
            BadData: that block was not run.
        """
        what = ("curve" if self.curve is not None else "edges") if what is None else what
        if what == "curve":
            if self.curve is None:
                raise BadData(f"there is no curve: {self.not_run.get('curve', 'not asked for')}.")
            return self.curve.plot()
        if what not in ("edges", "heads"):
            raise unknown("figure", what, ("curve", "edges", "heads"))
        return self.control(what).plot()

    def save(self, folder: str | Path) -> Path:
        """Write the evaluation into a folder.

        Raises:
            OutputNotWritable: says what and why.
        """
        folder = Path(folder)
        complete = self.completeness
        arrays = {f"random {control.how}": control.values for control in self.controls}
        store.save(
            folder,
            FORMAT,
            VERSION,
            tables={
                "measures": self.measures,
                "images": self.images,
                "sensitivity": self.sensitivity,
                "completeness": None if complete is None else complete.table,
            },
            arrays=arrays,
            facts={
                "title": self.title,
                "level": self.level,
                "facts": self.facts,
                "flags": self.flags,
                "not_run": self.not_run,
                "provenance": self.provenance,
                "controls": [
                    {"how": c.how, "observed": c.observed, "n_edges": c.n_edges, "every": c.every}
                    for c in self.controls
                ],
                "completeness": None if complete is None else _without_table(complete),
                "curve": self.curve is not None,
                "minimality": self.minimality is not None,
            },
        )
        if self.curve is not None:
            self.curve.save(folder / "curve")
        if self.minimality is not None:
            self.minimality.save(folder / "minimality")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "CircuitEvaluation":
        """Read an evaluation that :meth:`save` wrote; files are verified first.

        Raises:
            StoreCorrupt: a file is missing, truncated or changed; names it.
            ResultMismatch: not an evaluation, or one of a later version.
        """
        folder = Path(folder)
        tables, arrays, facts = store.load(folder, FORMAT, VERSION, "an evaluation of a circuit")
        with store.reading(folder):
            complete = facts["completeness"]
            if complete is not None:
                complete = Completeness(**{**complete, "worst": tuple(complete["worst"])}, table=tables["completeness"])
            return cls(
                title=facts["title"],
                level=facts["level"],
                facts=facts["facts"],
                measures=tables["measures"],
                images=tables["images"],
                sensitivity=tables.get("sensitivity"),
                curve=Curve.load(folder / "curve") if facts["curve"] else None,
                controls=tuple(RandomControl(**c, values=arrays[f"random {c['how']}"]) for c in facts["controls"]),
                completeness=complete,
                minimality=Result.load(folder / "minimality") if facts["minimality"] else None,
                flags=tuple(facts["flags"]),
                not_run=facts["not_run"],
                provenance=facts["provenance"],
            )

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML file.

        Raises:
            OutputNotWritable: says what and why, before anything is drawn.
        """
        from circuits.evaluation.report import report_evaluation

        return report_evaluation(self, path)

    def __repr__(self) -> str:
        from circuits.evaluation.words import summary

        return summary(self)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>"


def _without_table(found: Completeness) -> dict[str, Any]:
    names = ("over", "gap", "low", "high", "worst", "at_nothing")
    return {name: getattr(found, name) for name in names}
