"""Where a program is planted: which component carries which variable, what is free, and what must be silent.

The heads are drawn per seed, so that no method can know them. Everything that is neither planted nor free and could
reach the output belongs to the *outside*, in groups that training exchanges at random and the certificate exchanges in
every combination. Paths are members too: the read-out must not read past the last MLP, and a planted head must not read
tokens that the program does not let it read.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from mechvis.errors import BadData
from mechvis.testing.trained.places import node_of


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One program in one model."""

    task: str
    """Name of the task."""
    seed: int
    """Seed that drew the heads."""
    planted: Mapping[str, str]
    """Place -> the variable that it carries; `label` is the program's answer."""
    flows: tuple[tuple[str, str], ...]
    """Edges of the circuit between planted nodes, and to `out`."""
    free: tuple[str, ...]
    """Places that compute features below the first planted node, without constraint."""
    feature_readers: tuple[str, ...]
    """Planted nodes that read the free features at the patches."""
    outside: Mapping[str, tuple[str, ...]]
    """Name of a group -> the places that it holds."""
    decoys: tuple[str, ...] = ()
    """Outside heads that training makes informative, half of them louder than every planted head, half quieter."""
    quiet: tuple[str, ...] = ()
    """The decoys that are quieter."""
    constant: tuple[tuple[str, str], ...] = ()
    """Edges that carry only what is the same in every image (learned tokens), into a planted node or the read-out."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """Planted places that carry a variable of the input, in order."""
        return tuple(place for place, variable in self.planted.items() if variable != "label")

    @property
    def carrier(self) -> dict[str, str]:
        """Variable -> the planted node that the output is read from: the last of a chain."""
        return {variable: node_of(place) for place, variable in self.planted.items()}

    @property
    def outside_places(self) -> tuple[str, ...]:
        """All places of all outside groups."""
        return tuple(place for places in self.outside.values() for place in places)

    @property
    def outside_heads(self) -> tuple[str, ...]:
        """Heads that are outside at every token: what a method must not name."""
        return tuple(
            node_of(place) for place in self.outside_places if place.startswith("L") and place.endswith("@all")
        )

    @property
    def free_nodes(self) -> tuple[str, ...]:
        """Nodes that are free at some tokens."""
        return tuple(dict.fromkeys(node_of(place) for place in self.free))

    @property
    def planted_nodes(self) -> tuple[str, ...]:
        """Nodes of the circuit, in order."""
        return tuple(dict.fromkeys(node_of(place) for place in self.planted))

    def to_json(self) -> dict[str, Any]:
        """Plain lists and dicts, as they are stored beside the weights."""
        return asdict(self)

    @classmethod
    def of_json(cls, stored: dict[str, Any]) -> "Placement":
        """The placement that :meth:`to_json` wrote.

        Raises:
            BadData: fields are missing or unknown.
        """
        if set(stored) != {field.name for field in fields(cls)}:
            raise BadData(
                f"not a placement: it needs the fields {', '.join(field.name for field in fields(cls))}, found "
                f"{', '.join(map(str, stored))}."
            )
        frozen = {name: _tuples(value) if isinstance(value, list) else value for name, value in stored.items()}
        frozen["outside"] = {name: tuple(places) for name, places in stored["outside"].items()}
        return cls(**frozen)


def _tuples(values: list) -> tuple:
    return tuple(_tuples(value) if isinstance(value, list) else value for value in values)
