"""The whole question in one call: are there long tokens, who writes them, what do they hold, do registers help?

1. Lengths per layer and a threshold. One hill in every layer: the diagnosis ends here.
2. The neurons that write long patches.
3. What long patches hold, and who looks at them (where the images have labels).
4. Test-time registers on other images, beside their controls (where the model has a head).
"""

from typing import Any

import polars as pl

from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.errors import BadData
from mechvis.provenance import provenance
from mechvis.record import Record
from probes.registers.content import outlier_content
from probes.registers.effect import register_effect
from probes.registers.neurons import RankBy, RegisterNeurons, register_neurons
from probes.registers.norms import TokenNorms, token_norms


class RegisterDiagnosis(Record):
    """Everything about long tokens of a model; see :func:`diagnose_registers`."""

    KIND = "register_diagnosis"

    @property
    def found(self) -> bool:
        """Are there long tokens?"""
        return self.facts["layer"] is not None

    def norms(self) -> TokenNorms:
        """The lengths, as :func:`token_norms` gives them."""
        lengths = {name: array for name, array in self.arrays.items() if name.startswith("norms/")}
        return TokenNorms(
            title=self.title,
            tables={"layers": self.tables["layers"]},
            arrays=lengths,
            facts={name: self.facts[name] for name in ("n_prefix", "grid")},
            provenance=self.provenance,
        )

    def neurons(self) -> RegisterNeurons:
        """The neurons, as :func:`register_neurons` gives them.

        Raises:
            BadData: no long tokens were found.
        """
        if "neurons" not in self.tables:
            raise BadData("no long tokens were found, so there are no neurons that write them.")
        return RegisterNeurons(title=self.title, tables={"neurons": self.tables["neurons"]}, provenance=self.provenance)

    def figures(self) -> list:
        """Histograms of the lengths per layer."""
        return self.norms().figures()


def diagnose_registers(
    model: Any,
    images: ImageSet,
    others: ImageSet,
    *,
    layer: int | None = None,
    threshold: float | None = None,
    n_neurons: int = 10,
    upto: int | None = None,
    rank_by: RankBy = "activation",
    n_registers: int = 1,
    seed: int = 0,
    progress: bool = True,
    allow_overlap: bool = False,
) -> RegisterDiagnosis:
    """Long tokens, their neurons, what they hold, and what registers change.

    Args:
        model: a wrapped image tower.
        images: to find long patches and neurons in (100 to 500, **C**).
        others: other images, on which registers are judged.
        layer: after which block patches are measured; default: the last whose lengths have a second hill.
        threshold: length above which a patch is long; default: the suggested one.
        n_neurons: register neurons to move.
        upto: last block whose neurons are looked at.
        rank_by: see :func:`register_neurons`.
        n_registers: tokens to add.
        seed: of everything that is drawn.
        progress: show progress bars.
        allow_overlap: accept images in `others` that chose the neurons.

    Returns:
        RegisterDiagnosis: tables `layers`, and if there are long patches `neurons`, `held`, `attention`, `arms`.

    Raises:
        SplitOverlap: registers would be judged on the images that chose the neurons.
        BadData, OutOfRange, RefusedMethod: see the functions that it calls.

    Example:
        >>> probes.diagnose_registers(model, some, others).found                                   # doctest: +SKIP
        False
    """
    if not allow_overlap:
        refuse_overlap(images, others, what="images that choose register neurons and images that judge them")
    norms = token_norms(model, images, seed=seed, progress=progress)
    chosen = norms.last_with_outliers() if layer is None else layer
    tables, said, facts = dict(norms.tables), list(norms.caveats), {"layer": chosen, "threshold": threshold}
    words = dict(norms.words)
    if chosen is not None:
        limit = norms.pick(layer=chosen)["threshold"] if threshold is None else threshold
        outliers = norms.outliers(chosen, limit)
        facts["threshold"] = limit
        neurons = register_neurons(
            model, images, outliers, upto=upto, n=n_neurons, rank_by=rank_by, seed=seed, progress=progress
        )
        parts: list[Record] = [neurons]
        if images.labels is not None:
            parts.append(outlier_content(model, images, outliers, layer=chosen, seed=seed))
        if model.parts.head is not None:
            settings = {"layer": chosen, "threshold": limit, "n_registers": n_registers, "seed": seed}
            effect = register_effect(model, others, neurons.by_layer(), **settings)
            parts.append(effect)
            said.insert(0, _verdict(effect.table))
        for part in parts:
            tables |= part.tables
            said += part.caveats
            words |= part.words
    return RegisterDiagnosis(
        title=f"Long tokens of {getattr(model, 'name', '') or 'a model'}",
        tables=tables,
        arrays=norms.arrays,
        facts={**norms.facts, **facts},
        words=words,
        caveats=tuple(dict.fromkeys(said)),
        provenance=provenance(model=model, images=images, seed=seed),
    )


def _verdict(arms: pl.DataFrame) -> str:
    rows = {row["arm"]: row for row in arms.iter_rows(named=True)}
    before, after, control = (rows[name] for name in ("as it is", "registers", "random neurons"))
    text = (
        f"Registers take the share of long patches from {before['share']:.2%} to {after['share']:.2%} "
        f"[{after['share_low']:.2%}, {after['share_high']:.2%}] (random neurons: {control['share']:.2%}), and change "
        f"the answers by {after['changed']:.3f} [{after['changed_low']:.3f}, {after['changed_high']:.3f}] in total "
        "variation"
    )
    if "accuracy" in after:
        text += f"; accuracy {before['accuracy']:.1%} to {after['accuracy']:.1%}"
    return f"{text} (n={after['n']})."
