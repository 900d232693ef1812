"""The faithfulness card of an explanation: what was asked of it, what came out, and how far to believe it.

A card is one JSON document (canonical, hashed) and a table of per-example values. It is never changed after it was
made. Views: JSON, Markdown, one self-contained HTML file. `compare` sets two cards side by side, pairing examples;
`verify` computes hashes, gates and aggregates again from what is stored.

Rules (faithfulness.md 3.2): no overall score; a block that is missing shows as *not run*; a failed gate never hides a
number and is printed first; a card is void once weights, data or definitions have changed.
"""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from mechvis import files
from mechvis.cards.parts import Gate, Measure
from mechvis.errors import ResultMismatch, StoreCorrupt

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mechvis.record import Record
    from mechvis.report.blocks import Section

CARD_VERSION = 1
FORMAT = "mechvis.card"
MANIFEST = "card.json"
EXAMPLES = "examples.parquet"
VOLATILE = ("cost", "created", "environment")
"""Fields that differ between two runs of the same thing; the hash leaves them out."""


@dataclass(frozen=True, eq=False, repr=False)
class FaithfulnessCard:
    """A card. Made by `explanation.card(data)`; immutable.

    Example:
        >>> card = found.card(CardData(model=model, images=images))       # doctest: +SKIP
        >>> card.failed                                                   # doctest: +SKIP
        >>> card.report("card.html")                                      # doctest: +SKIP
    """

    content: Mapping[str, Any]
    """The document, JSON."""
    examples: pl.DataFrame
    """Per-example values, one column per measure."""

    def __post_init__(self):
        object.__setattr__(self, "content", files.plain_json(self.content, "card"))

    # parts

    @property
    def kind(self) -> str:
        """Kind of the explanation."""
        return self.content["object_kind"]

    @property
    def gates(self) -> tuple[Gate, ...]:
        """All gates, in order."""
        return tuple(Gate(**gate) for gate in self.content["gates"])

    @property
    def failed(self) -> tuple[Gate, ...]:
        """Gates that were failed."""
        return tuple(gate for gate in self.gates if gate.status == "fail")

    @property
    def measures(self) -> tuple[Measure, ...]:
        """All measures, those of controls too."""
        return tuple(Measure(**measure) for measure in self.content["measures"])

    def measure(self, id: str, operator: str | None = None, control: str = "") -> Measure:
        """One measure.

        Raises:
            UnknownName: no such measure (or several: name the operator).
        """
        from mechvis.errors import unknown

        found = [m for m in self.measures if m.id == id and m.control == control and operator in (None, m.operator)]
        if len(found) != 1:
            raise unknown("measure", "/".join(filter(None, (id, operator, control))), [m.key for m in self.measures])
        return found[0]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know first."""
        return tuple(self.content["warnings"])

    @property
    def scope(self) -> str:
        """What was tested, and what the card says nothing about."""
        return self.content["scope"]

    def table(self, name: str) -> pl.DataFrame:
        """One of the card's tables (`planted`, `sensitivity`, `stability`, ...).

        Raises:
            UnknownName: not in this card.
        """
        from mechvis.errors import unknown

        if name not in self.content["tables"]:
            raise unknown("table of the card", name, sorted(self.content["tables"]))
        kept = self.content["tables"][name]
        columns = {column: kept["values"][column] for column in kept["columns"]}
        return pl.DataFrame(columns, infer_schema_length=None, strict=False)

    # views

    @property
    def sha256(self) -> str:
        """Hash of the canonical JSON without what differs from run to run (cost, time, environment)."""
        return hashlib.sha256(self.json(volatile=False).encode()).hexdigest()

    def json(self, *, volatile: bool = True) -> str:
        """Canonical JSON: sorted keys, no spaces; two runs of the same thing give the same bytes.

        Args:
            volatile: with cost, time and environment, which differ from run to run.
        """
        skipped = () if volatile else VOLATILE
        return files.canonical_json({name: value for name, value in self.content.items() if name not in skipped})

    def markdown(self) -> str:
        """The card as Markdown."""
        from mechvis.cards.markdown import markdown

        return markdown(self)

    def sections(self) -> "list[Section]":
        """The card as sections of a report."""
        from mechvis.cards.page import sections

        return sections(self)

    def report(self, path: str | Path) -> Path:
        """The card as one self-contained HTML file.

        Raises:
            OutputNotWritable: says what and why.
        """
        from mechvis.cards.page import write_page

        return write_page(self, path)

    def plot(self) -> "Figure":
        """Measures with their intervals, controls as dots beside them.

        Raises:
            BadData: the card has no measure.
        """
        from mechvis.cards.page import figure
        from mechvis.errors import BadData

        found = figure(self)
        if found is None:
            raise BadData("the card has no measure to draw.")
        return found

    def compare(self, other: "FaithfulnessCard") -> "Record":
        """This card beside another one, example by example: see :func:`mechvis.cards.compare`."""
        from mechvis.cards.compare import compare

        return compare(self, other)

    def verify(self, model: Any = None, images: Any = None) -> "FaithfulnessCard":
        """Compute everything again that follows from what is stored: see :func:`mechvis.cards.verify`."""
        from mechvis.cards.verify import verify

        return verify(self, model, images)

    def saliency_card(self) -> dict[str, str]:
        """The fields of the older *saliency card* template, as far as they follow from this card."""
        from mechvis.cards.saliency import saliency_fields

        return saliency_fields(self)

    # files

    def save(self, folder: str | Path) -> Path:
        """Write the card into a folder: `card.json` (with checksums) and `examples.parquet`.

        Raises:
            OutputNotWritable: says what and why.
        """
        manifest = {"format": FORMAT, "version": CARD_VERSION, "sha256": self.sha256, "card": self.content}
        files.write_together(Path(folder), {EXAMPLES: files.parquet_bytes(self.examples)}, MANIFEST, manifest)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "FaithfulnessCard":
        """Read what :meth:`save` wrote, verified.

        Raises:
            StoreCorrupt: a file is missing, truncated or changed.
            ResultMismatch: another format or a later version.
        """
        folder = Path(folder)
        check = files.only_format(folder / MANIFEST, FORMAT, CARD_VERSION, "a card")
        manifest = files.read_manifest(folder, MANIFEST, check=check)
        try:
            examples = pl.read_parquet(io.BytesIO(files.read_together(folder, manifest, EXAMPLES)))
            card = cls(content=manifest["card"], examples=examples)
            stated, found = manifest["sha256"], card.sha256
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException, KeyError, TypeError, ValueError) as error:
            raise StoreCorrupt(f"{folder} does not hold a card: {error}") from error
        if stated != found:
            raise StoreCorrupt(f"{folder}: the card's hash is {found[:12]}, it says {str(stated)[:12]}: changed.")
        if card.content["examples"] != hash_examples(examples):
            raise StoreCorrupt(f"{folder}: the per-example values are not those that the card was made from.")
        return card

    def __repr__(self) -> str:
        from mechvis.cards.markdown import plain_text

        return plain_text(self)

    def _repr_html_(self) -> str:
        from mechvis.cards.page import fragment

        return fragment(self)


def hash_examples(examples: pl.DataFrame) -> str:
    """Hash of per-example values, whatever the file format does with them."""
    digest = hashlib.sha256()
    for name in examples.columns:
        digest.update(name.encode() + b"\0")
        digest.update(np.ascontiguousarray(examples[name].cast(pl.Float64).fill_null(np.nan).to_numpy()).tobytes())
    return digest.hexdigest()


def same_thing(first: FaithfulnessCard, second: FaithfulnessCard) -> None:
    """Refuse to compare cards of different kinds, models or data.

    Raises:
        ResultMismatch: says which.
    """
    for word, of in (
        ("kind", lambda card: card.kind),
        ("model", lambda card: card.content["subject"].get("fingerprint")),
        ("data", lambda card: card.content["data"].get("fingerprint")),
        ("card version", lambda card: card.content["card_version"]),
        ("level", lambda card: card.content["level"]),
    ):
        if of(first) != of(second):
            raise ResultMismatch(f"the cards differ in their {word}: {of(first)!r} and {of(second)!r}.")
