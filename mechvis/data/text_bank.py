"""Text banks: many short descriptions, each with the property that it is about, for reading a model in words.

Which descriptions a method can find is decided by the bank, so a bank has to be there before anybody looks at a model,
and has to cover more than one hopes to find. Three come from here:

* `general`: more than 3,000 descriptions, made by filling templates with words of a structured vocabulary
  (`text_vocabulary.json`: colour, texture, shape, count, place, animal, ...). Always the same, in the same order.
* `scenes`: what `scenes-clip` can read: its words for shape, colour and background in its one-factor prompts.
* one's own: :func:`load_bank` reads `.txt`, `.json` and `.csv`.

Nothing is taken from published banks. (methods.md 2.2: "ship a small own pool and a loader", **C**/**X**.)
"""

import csv
import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from mechvis.errors import BadData, unknown

BANKS = ("general", "scenes")
_VOCABULARY = Path(__file__).with_name("text_vocabulary.json")
_SLOT = re.compile(r"{(\w+)}")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TextBank:
    """Descriptions with the property and the word that each is about.

    Raises:
        BadData: no text, an empty or repeated one, or columns of another length.
    """

    name: str
    """What to call it in tables."""
    texts: tuple[str, ...]
    """The descriptions, all different."""
    properties: tuple[str, ...]
    """What each is about (`colour`, `shape`, ...); an empty text where that is not known."""
    words: tuple[str, ...]
    """Which value of the property each names (`red`); the text itself where that is not known."""

    def __post_init__(self):
        if not self.texts:
            raise BadData(f"the text bank {self.name!r} holds no text.")
        for what, column in (("properties", self.properties), ("words", self.words)):
            if len(column) != len(self.texts):
                raise BadData(f"the text bank {self.name!r} has {len(self.texts)} texts but {len(column)} {what}.")
        for place, text in enumerate(self.texts):
            if not isinstance(text, str) or not text.strip():
                raise BadData(f"text {place + 1} of the text bank {self.name!r} is empty or no text: {text!r}.")
        if twice := [text for text, count in Counter(self.texts).items() if count > 1]:
            raise BadData(
                f"{len(twice)} texts of the text bank {self.name!r} occur more than once ({_some(twice)}). A repeated "
                "text could never be picked twice; take the copies out."
            )

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, chosen: Sequence[int] | np.ndarray) -> "TextBank":
        """The texts at some positions (or under a bool mask), in that order."""
        places = np.arange(len(self))[np.asarray(chosen)]
        return TextBank(
            name=self.name,
            texts=tuple(self.texts[i] for i in places),
            properties=tuple(self.properties[i] for i in places),
            words=tuple(self.words[i] for i in places),
        )

    @property
    def property_names(self) -> tuple[str, ...]:
        """The properties that occur, in the order of the bank."""
        return tuple(dict.fromkeys(name for name in self.properties if name))

    def about(self, *properties: str) -> Bool[np.ndarray, " text"]:
        """Which texts are about one of these properties.

        Raises:
            UnknownName: no text is about it.
        """
        for name in properties:
            if name not in self.property_names:
                raise unknown("property", name, self.property_names)
        return np.isin(np.array(self.properties), properties)

    def values(self, name: str) -> dict[str, list[int]]:
        """Value of a property -> positions of the texts that name it, e.g. `red` -> the texts that say red.

        Raises:
            UnknownName: no text is about the property.
        """
        found: dict[str, list[int]] = {}
        for place in self.about(name).nonzero()[0]:
            found.setdefault(self.words[place], []).append(int(place))
        return found

    @property
    def fingerprint(self) -> str:
        """Hash of texts, properties and words."""
        return hashlib.sha256(repr((self.texts, self.properties, self.words)).encode()).hexdigest()[:16]

    def __repr__(self) -> str:
        counts = Counter(name or "no property" for name in self.properties)
        return f"TextBank({self.name!r}, {len(self)} texts: {', '.join(f'{k} {n}' for k, n in counts.items())})"


def text_bank(source: str | Path | TextBank = "general") -> TextBank:
    """A bank by name (`general`, `scenes`) or file (see :func:`load_bank`).

    Raises:
        BadData: neither a name nor a file.

    Example:
        >>> bank = text_bank("scenes")
        >>> len(bank), bank.property_names
        (88, ('shape', 'colour', 'background'))
    """
    if isinstance(source, TextBank):
        return source
    if source == "general":
        return _general()
    if source == "scenes":
        return _scenes()
    if not Path(source).expanduser().is_file():
        raise BadData(f"no text bank {str(source)!r}: give one of {', '.join(BANKS)}, or a .txt, .json or .csv file.")
    return load_bank(source)


def load_bank(
    path: str | Path, *, text_column: str = "text", property_column: str = "property", word_column: str = "word"
) -> TextBank:
    """A bank from a file.

    * `.txt`: one description a line; no properties.
    * `.json`: a list of texts; or property -> list of texts; or a list of objects with the columns as keys.
    * `.csv`: a header, then one description a row.

    Args:
        path: the file, UTF-8.
        text_column: name of the column of descriptions.
        property_column: name of the column of properties; it may be missing.
        word_column: name of the column of words; it may be missing.

    Returns:
        The bank, in the order of the file.

    Raises:
        BadData: no such file, another kind of file, one that cannot be read, no text, an empty or repeated text.

    Example:
        >>> import tempfile
        >>> place = Path(tempfile.mkdtemp()) / "mine.json"
        >>> _ = place.write_text('{"colour": ["a red thing", "a blue thing"]}')
        >>> load_bank(place)
        TextBank('mine', 2 texts: colour 2)
    """
    path = Path(path).expanduser()
    if path.suffix not in (".txt", ".json", ".csv"):
        raise BadData(f"a text bank is a .txt, .json or .csv file, not {path.name!r}.")
    try:
        content = path.read_text("utf-8-sig")
        rows = list(_rows(path.suffix, content, (text_column, property_column, word_column)))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise BadData(f"the text bank {path} cannot be read: {error}") from error
    texts, properties, words = zip(*rows, strict=True) if rows else ((), (), ())
    return TextBank(name=path.stem, texts=texts, properties=properties, words=words)


def _rows(suffix: str, content: str, columns: tuple[str, str, str]) -> Iterable[tuple[str, str, str]]:
    """(text, property, word) of each description in a file."""
    if suffix == ".txt":
        for line in content.splitlines():
            yield line.strip(), "", line.strip()
        return
    if suffix == ".csv":
        reader = csv.DictReader(content.splitlines())
        known = reader.fieldnames or []
        if columns[0] not in known:
            raise BadData(f"the text bank has no column {columns[0]!r}; its columns are {', '.join(known) or 'none'}.")
        found = list(reader)
    else:
        found = json.loads(content)
        if isinstance(found, dict):
            found = [
                {columns[0]: text, columns[1]: name}
                for name, texts in found.items()
                for text in (texts if isinstance(texts, list) else [None])
            ]
    if not isinstance(found, list):
        raise BadData("a JSON text bank is a list of texts, a list of objects, or an object property -> list of texts.")
    for row in found:
        row = row if isinstance(row, dict) else {columns[0]: row}
        text, name, word = (row.get(column) for column in columns)
        yield text.strip() if isinstance(text, str) else text, (name or "").strip(), (word or "").strip() or text


@once
def _general() -> TextBank:
    """Every template filled with every combination of its words; a text that two properties share goes to the first."""
    rows: dict[str, tuple[str, str]] = {}
    for name, groups in json.loads(_VOCABULARY.read_text("utf-8")).items():
        for group in groups:
            for template in group["templates"]:
                slots = _SLOT.findall(template)
                for words in itertools.product(*(group[slot] for slot in slots)):
                    text = _articles(template.format(**dict(zip(slots, words, strict=True))))
                    rows.setdefault(text, (name, " ".join(words)))
    properties, words = zip(*rows.values(), strict=True)
    return TextBank(name="general", texts=tuple(rows), properties=properties, words=words)


@once
def _scenes() -> TextBank:
    """The bundled CLIP's words in the prompts that name one factor only; the words first, template by template."""
    from mechvis.data.scene_factors import BACKGROUNDS, COLOURS, SHAPES

    values = {"shape": SHAPES, "colour": COLOURS, "background": BACKGROUNDS}
    rows = [
        (template.format(word), name, word)
        for name, templates in SCENE_PROMPTS.items()
        for template in templates
        for word in values[name]
    ]
    texts, properties, words = zip(*rows, strict=True)
    return TextBank(name="scenes", texts=texts, properties=properties, words=words)


SCENE_PROMPTS = {
    "shape": ("a photo of a {}", "a picture of a {}", "a {} on a background", "a {}"),
    "colour": ("a photo of a {} shape", "a picture of a {} shape", "a {} shape on a background", "a {} shape"),
    "background": (
        "a photo of a shape on a {} background",
        "a picture of a shape in front of a {} background",
        "a {} background with a shape",
        "a shape on a {} background",
    ),
}
"""Prompts of the bundled CLIP that name one factor of a scene; `mechvis.models.training.clip` trains with the same."""


def _articles(text: str) -> str:
    """`a` before a vowel becomes `an`."""
    return re.sub(r"\b([Aa]) (?=[aeio]|u(?!ni))(?!one |Euro)", r"\1n ", text)


def _some(texts: Sequence[str]) -> str:
    return ", ".join(map(repr, texts[:3])) + (" ..." if len(texts) > 3 else "")
