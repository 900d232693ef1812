"""The certificate of a planted model: that its circuit is the only one is measured, not believed.

For every family of pairs, by plain forwards alone (`edge_oracle`), in the model's own precision:

1. the exact effect of every single edge. The active ones must be large, everything else small: the gate is on *largest
   outside / smallest active* (benchmark_apps.md A.5: at most 0.05). Edge by edge, since one patched edge can push an
   outside head further off its range than replacing the whole head does (A.6, **M**);
2. everything outside the circuit replaced at once: the output must stay;
3. the whole circuit replaced at once: the output must become the corrupt one, whatever the outside edges carry.

Besides: the accuracy on fresh images, and how loud each writer is where the output is read. A planted model whose other
heads are silent is solved by looking at norms.

Sizes: of an active edge the mean effect, so that an edge which helps here and hurts there does not pass; of any other
edge the mean of |effect|, so that errors of both signs do not cancel.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from mechvis.axes import Labels, Pixels
from mechvis.errors import BadData, FailedCheck, ShapeMismatch
from mechvis.testing.planted.edge_oracle import edge_effects, edge_forward, edges_of, writes_of
from mechvis.testing.planted.pairs import PlantedPairs


@dataclass(frozen=True, kw_only=True, eq=False)
class FamilyCertificate:
    """What was measured on one family of pairs; everything in units of its metric (logits)."""

    pairs: PlantedPairs
    """The pairs, with the truth that is certified."""
    effects: Mapping[str, Float[Tensor, " image"]] = field(repr=False)
    """Exact effect of every edge by itself, per pair."""
    clean: float
    """Mean metric of the clean images."""
    corrupt: float
    """Mean metric of the corrupt images; it equals `clean` in families that leave the output alone."""
    circuit_only: float
    """Mean metric with every edge outside the circuit replaced at once."""
    rest_only: float
    """Mean metric with every edge of the circuit replaced at once."""

    @property
    def weakest_active(self) -> tuple[str, float] | None:
        """The active edge of the smallest mean effect, and that effect; None where no edge is active."""
        sizes = {edge: float(self.effects[edge].mean()) for edge in sorted(self.pairs.active)}
        return min(sizes.items(), key=lambda item: item[1]) if sizes else None

    def strongest(self, *grades: str) -> tuple[str, float] | None:
        """The edge of the largest mean |effect| among those of some grades (see :meth:`grade`), and that size.

        Example:
            >>> family.strongest("structural", "out")        # doctest: +SKIP
            ('L1H2->out', 0.05)
        """
        sizes = {edge: float(v.abs().mean()) for edge, v in self.effects.items() if self.grade(edge) in grades}
        return max(sizes.items(), key=lambda item: item[1]) if sizes else None

    @property
    def faithfulness(self) -> float | None:
        """(circuit only - corrupt) / (clean - corrupt); None in families that leave the output alone."""
        gap = self.clean - self.corrupt
        return (self.circuit_only - self.corrupt) / gap if abs(gap) > 0.1 * abs(self.clean) else None

    def grade(self, edge: str) -> str:
        """`active`, `structural` (planted, but constant in these pairs) or `out`."""
        if edge in self.pairs.active:
            return "active"
        return "structural" if edge in self.pairs.circuit else "out"


@dataclass(frozen=True, kw_only=True, eq=False)
class Certificate:
    """What was measured on a planted model; :meth:`check` says whether it is enough."""

    title: str
    """The model."""
    accuracy: float
    """Share of fresh images whose largest logit is the label's."""
    n_images: int
    """How many fresh images."""
    families: Mapping[str, FamilyCertificate] = field(repr=False)
    """By the name of the pairs."""
    norms: Mapping[str, float] = field(repr=False)
    """Mean norm of each writer's write at token 0, on the fresh images."""

    @property
    def weakest_active(self) -> tuple[str, str, float]:
        """Family, edge and mean effect of the weakest active edge of all families."""
        found = [(name, *one.weakest_active) for name, one in self.families.items() if one.weakest_active]
        return min(found, key=lambda item: item[2])

    def strongest(self, *grades: str) -> tuple[str, str, float]:
        """Family, edge and mean |effect| of the strongest edge of some grades; without grades: of all but `active`."""
        grades = grades or ("structural", "out")
        found = [(name, *best) for name, one in self.families.items() if (best := one.strongest(*grades))]
        return max(found, key=lambda item: item[2])

    @property
    def ratio(self) -> float:
        """Strongest edge that is not active over weakest active edge, over all families: smaller is better. Infinite
        where an active edge does not support the behaviour at all."""
        weakest = self.weakest_active[2]
        return self.strongest()[2] / weakest if weakest > 0 else float("inf")

    def check(self, *, accuracy: float = 0.99, outside: float = 0.05, joint: float = 0.01) -> None:
        """Refuse a model that does not pass.

        Args:
            accuracy: smallest accuracy allowed.
            outside: largest ratio allowed of any other edge to the weakest active edge of all families.
            joint: largest change of the metric allowed, relative to the clean metric, when everything outside the
                circuit (or all of it) is replaced at once.

        Raises:
            FailedCheck: lists every gate that is not passed.
        """
        wrong = []
        if not self.accuracy >= accuracy:
            wrong.append(f"accuracy {self.accuracy:.3f} on {self.n_images} images, asked {accuracy:g}")
        if not self.ratio <= outside:
            (family, edge, size), (weak_family, weak, smallest) = self.strongest(), self.weakest_active
            wrong.append(
                f"the edge {edge}, which should be silent, has mean |effect| {size:.3g} ({family}), the weakest "
                f"active edge {weak} {smallest:.3g} ({weak_family}): ratio {self.ratio:.3g}, allowed {outside:g}"
            )
        for name, one in self.families.items():
            for what, got, wanted in (
                ("the circuit alone", one.circuit_only, one.clean),
                ("everything but the circuit", one.rest_only, one.corrupt),
            ):
                if not abs(got - wanted) <= joint * abs(one.clean):
                    wrong.append(f"{what} gives {got:.4g} instead of {wanted:.4g} ({name})")
        if wrong:
            raise FailedCheck(f"{self.title} is not what it claims to be: " + "; ".join(wrong) + ".")

    def table(self, *, seed: int = 0) -> Any:
        """One row per family and edge, in polars: grade, n, mean effect with its 95 % interval, largest |effect|.

        Args:
            seed: of the bootstrap over pairs.
        """
        import polars as pl

        from mechvis.stats import bootstrap

        rows = []
        for name, one in self.families.items():
            values = torch.stack(list(one.effects.values())).numpy()
            estimate = bootstrap(values, seed=seed)
            for index, edge in enumerate(one.effects):
                rows.append(
                    {
                        "family": name,
                        "edge": edge,
                        "grade": one.grade(edge),
                        "n": len(one.pairs),
                        "effect": float(values[index].mean()),
                        "low": float(estimate.low[index]),
                        "high": float(estimate.high[index]),
                        "largest": float(abs(values[index]).max()),
                    }
                )
        return pl.DataFrame(rows)

    def __str__(self) -> str:
        weak_family, weak, smallest = self.weakest_active
        lines = [
            f"{self.title}: accuracy {self.accuracy:.3f} (n={self.n_images}), silent over active {self.ratio:.2g}",
            f"  weakest active edge: {weak} {smallest:.3g} ({weak_family})",
        ]
        for grade in ("structural", "out"):
            if any(one.strongest(grade) for one in self.families.values()):
                family, edge, size = self.strongest(grade)
                lines.append(f"  strongest edge graded {grade}: {edge} {size:.2g} ({family})")
        for name, one in self.families.items():
            faithful = "" if one.faithfulness is None else f", faithfulness {one.faithfulness:.4f}"
            lines.append(
                f"  {name} (n={len(one.pairs)}): {len(one.pairs.active)} active edges; clean {one.clean:.3f}, "
                f"circuit only {one.circuit_only:.3f}, rest only {one.rest_only:.3f}, corrupt {one.corrupt:.3f}"
                + faithful
            )
        return "\n".join(lines)


@torch.no_grad()
def certify(model: Any, families: Sequence[PlantedPairs], pixels: Pixels, labels: Labels) -> Certificate:
    """Measure everything; judge nothing (see :meth:`Certificate.check`).

    Args:
        model: a wrapped planted model.
        families: one or more families of pairs, each with its truth; small numbers of pairs do.
        pixels: fresh images, for the accuracy.
        labels: their labels.

    Raises:
        BadData: no family, two of one name, none with an active edge, or a planted edge that the model does not have.
        ShapeMismatch: images and labels of different numbers.

    Example:
        >>> from mechvis.testing.planted import cue_images, cue_lookup, cue_pairs
        >>> certificate = certify(cue_lookup(), [cue_pairs("cue", 4)], *cue_images(20))
        >>> certificate.check()
        >>> certificate.weakest_active[1]
        'embed->L0H1.v'
    """
    names = [pairs.name for pairs in families]
    if len(set(names)) != len(names) or not any(pairs.active for pairs in families):
        raise BadData(f"a certificate needs families of different names, one of them with an active edge; got {names}.")
    if len(pixels) != len(labels):
        raise ShapeMismatch(f"{len(pixels)} images but {len(labels)} labels.")
    everything = edges_of(model)
    for pairs in families:
        if strange := sorted(pairs.circuit.difference(everything)):
            raise BadData(f"{pairs.name}: the model has no edge {strange[0]}. Were the pairs made for other heads?")
    return Certificate(
        title=model.title,
        accuracy=float((model(pixels).argmax(-1) == labels).double().mean()),
        n_images=len(pixels),
        families={pairs.name: _family(model, pairs, everything) for pairs in families},
        norms={name: float(wrote[:, 0].norm(dim=-1).mean()) for name, wrote in writes_of(model, pixels).items()},
    )


def _family(model: Any, pairs: PlantedPairs, everything: Sequence[str]) -> FamilyCertificate:
    base = writes_of(model, pairs.corrupt)

    def metric(kept: set[str] | frozenset[str]) -> float:
        return float(pairs.metric(edge_forward(model, pairs.clean, base, kept)).mean())

    return FamilyCertificate(
        pairs=pairs,
        effects=edge_effects(model, pairs.clean, base, pairs.metric),
        clean=metric(frozenset(everything)),
        corrupt=metric(frozenset()),
        circuit_only=metric(pairs.circuit),
        rest_only=metric(set(everything) - pairs.circuit),
    )
