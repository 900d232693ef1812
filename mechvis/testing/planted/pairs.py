"""Clean and corrupt pixels for a planted model, with what is true about them: labels and the edges that matter.

The truth of a planted circuit depends on the pairs: an edge that carries a variable which the pairs do not change has
no effect on them, and a method that says so is right. So every family of pairs has its own list of *active* edges.
"""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from mechvis.axes import Labels, Logits, Pixels
from mechvis.errors import BadData, ShapeMismatch


@dataclass(frozen=True, kw_only=True, eq=False)
class PlantedPairs:
    """Pairs of images, aligned token by token, and the truth about them.

    Edges are named as everywhere: writer `->` reader, e.g. `embed->L0H1.q`, `L0H1->L0MLP`, `L1MLP->out`.

    Raises:
        ShapeMismatch: halves, labels or contrast classes of different lengths or shapes.
        BadData: an edge that is active but not in the circuit.
    """

    name: str
    """What differs between the halves."""
    clean: Pixels = field(repr=False)
    """The run whose behaviour is explained."""
    corrupt: Pixels = field(repr=False)
    """The run that values are taken from."""
    clean_labels: Labels = field(repr=False)
    """Right class of each clean image."""
    corrupt_labels: Labels = field(repr=False)
    """Right class of each corrupt image."""
    contrast: Labels = field(repr=False)
    """The other class of :meth:`metric`: the corrupt label where it differs from the clean one."""
    circuit: frozenset[str]
    """Every planted edge of the model."""
    active: frozenset[str]
    """Planted edges whose single replacement must change the output on these pairs."""

    def __post_init__(self) -> None:
        if self.clean.shape != self.corrupt.shape:
            raise ShapeMismatch(
                f"{self.name}: clean is {list(self.clean.shape)}, corrupt {list(self.corrupt.shape)}; "
                "pairs are aligned, token by token."
            )
        for what in ("clean_labels", "corrupt_labels", "contrast"):
            if len(getattr(self, what)) != len(self.clean):
                raise ShapeMismatch(
                    f"{self.name}: {len(self.clean)} pairs but {len(getattr(self, what))} entries in {what}."
                )
        if outside := sorted(self.active - self.circuit):
            raise BadData(f"{self.name}: {outside[0]} is called active but is not in the circuit.")

    @property
    def structural(self) -> frozenset[str]:
        """Planted edges that carry the same on both halves: no replacement from the other half can show them."""
        return self.circuit - self.active

    @property
    def active_nodes(self) -> frozenset[str]:
        """Writers of the active edges: whose output differs between the halves and is read."""
        return frozenset(edge.partition("->")[0] for edge in self.active)

    def metric(self, logits: Logits) -> Float[Tensor, " image"]:
        """Logit of the clean label minus that of the contrast class, per pair, in logits."""
        at = (logits.gather(-1, classes[:, None])[:, 0] for classes in (self.clean_labels, self.contrast))
        return next(at) - next(at)

    def __len__(self) -> int:
        return len(self.clean)
