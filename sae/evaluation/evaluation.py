"""The one table of an evaluation: what its columns mean, how it is made of sums, what can be asked of it."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from mechvis.record import Record
from mechvis.stats import bootstrap
from sae.evaluation.coherence import Coherence
from sae.evaluation.intervals import Interval, columns, ratio
from sae.evaluation.reconstruction import ALL, density
from sae.evaluation.recovered import Outputs, shares

if TYPE_CHECKING:
    from mechvis.report.blocks import Block

SHARES = {"loss": "loss", "correct": "accuracy", "own": "own", "kl": "kl", "cosine": "embedding"}
"""Quantity of `Outputs` -> its word in column names."""

WORDS = {
    "dictionary": "its name",
    "kind": "trained, or a baseline fitted on the reference images",
    "latents": "latents",
    "fvu": "fraction of variance unexplained: 0 perfect, 1 as good as the mean (float64, mean of each column)",
    "cosine": "mean cosine of a row and what was written for it",
    "l0": "mean number of active latents of a row",
    "dead": "share of latents that fired on none of the judged rows; each fires on fewer than 3/rows of all (95 %)",
    "rows": "judged rows",
    "images": "judged images",
    "loss_zero": "recovered share of the loss (cross-entropy), 0: as with the site set to zero, 1: as the model itself",
    "loss_mean": "the same, 0: as with the site at its mean of each token position",
    "accuracy_zero": "recovered share of the accuracy, by zero ablation",
    "accuracy_mean": "the same by mean ablation",
    "own_zero": "recovered share of the loss against the model's own answer, by zero ablation",
    "own_mean": "the same by mean ablation",
    "kl_zero": "(KL_ablated - KL) / KL_ablated from the clean output, by zero ablation",
    "kl_mean": "the same by mean ablation",
    "embedding_zero": "recovered share of the cosine of the final embedding with the clean one, by zero ablation",
    "embedding_mean": "the same by mean ablation",
    "agree": "share of images with the clean run's answer",
    "embedding_cosine": "mean cosine of the final embedding with the clean one",
    "loss": "cross-entropy against the labels, nats",
    "accuracy": "share of images where the label has the largest logit",
    "own": "cross-entropy against the clean run's own answer, nats",
    "kl": "KL from the clean output, nats",
    "ms": "monosemanticity: activation-weighted cosine of pairs of images; mean over latents active on two or more",
    "ms_all_pairs": "what a latent that does not care about images scores",
    "moran": "Moran's I of patch maps, mean over latents: 1 smooth, 0 scattered",
    "coherent": "share of latents whose maps are smoother than shuffled ones",
    "absorbed": "share of a concept's images where its latent is silent and the latent of the special case takes over",
    "absorbed_other": "control: the same with a special case that the image does not show",
    "parents": "concepts with a latent that could be absorbed",
    "coherence": "largest |cosine| of two directions",
    "effective_rank": "dimensions that the directions use",
    "probe_dense": "balanced accuracy of probes on the activation itself, mean over concepts",
    "type": "type of token",
    "variant": "clean, an ablation, or a dictionary in place of the site",
    "low": "lower end of a bin, log10 of the share of rows that a latent fires on",
    "high": "upper end",
    "count": "latents in the bin",
}


class DictionaryEvaluation(Record):
    """Dictionaries and baselines, one row each; more tables: types of tokens, outputs, density, probing, absorption."""

    KIND = "dictionary_evaluation"

    def of(self, dictionary: str) -> dict[str, Any]:
        """The row of one dictionary."""
        return self.pick(dictionary=dictionary)

    def above(self, column: str, dictionary: str, baseline: str) -> float:
        """By how much a dictionary is larger than a baseline in a column; see both intervals for what that is worth."""
        return self.of(dictionary)[column] - self.of(baseline)[column]

    def figures(self) -> "list[Block]":
        """How often latents fire."""
        from mechvis.plots.curve import Line, curve
        from mechvis.report.blocks import Figure

        lines = []
        for name in self.tables["density"]["dictionary"].unique(maintain_order=True):
            rows = self.tables["density"].filter(pl.col("dictionary") == name)
            middle = ((rows["low"] + rows["high"]) / 2).to_numpy()
            lines.append(Line(name=name, x=middle, y=rows["count"].to_numpy().astype(float)))
        if not lines:
            return []
        figure = curve(lines, title="How often latents fire", x_label="log10 share of rows", y_label="latents")
        return [Figure(figure, "Latents by the share of rows that they fire on; those that never fire are left out.")]


def record(
    judged: Mapping[str, tuple],
    clean: Outputs,
    ablated: Mapping[str, Outputs],
    *,
    wanted: set[str],
    shapes: Mapping[str, Coherence],
    probes: Mapping[str, Any],
    absorbed: Mapping[str, Any],
    notes: Sequence[str],
    facts: Mapping[str, Any],
    known: Mapping[str, Any],
    seed: int,
) -> DictionaryEvaluation:
    """The table from all sums.

    Args:
        judged: by name: kind, latents, and the sums of rows, outputs, monosemanticity, maps.
        clean: outputs of the model itself.
        ablated: outputs under each ablation.
        wanted: metrics.
        shapes: coherence by name.
        probes: sparse probing by name.
        absorbed: absorption by name.
        notes: sentences on what could not be checked or was left out.
        facts: settings.
        known: provenance.
        seed: of the resamples.
    """
    rows, types, bins, arrays = [], [], [], {}
    outputs = [{"variant": "clean", **_outputs(clean, seed)}] if "recovered" in wanted else []
    outputs += [{"variant": f"{name} ablation", **_outputs(found, seed)} for name, found in ablated.items() if outputs]
    told = list(notes)
    facts = dict(facts)
    for name, (kind, latents, fit, out, ms, maps) in judged.items():
        fits = fit.found(seed)
        row: dict[str, Any] = {"dictionary": name, "kind": kind, "latents": latents, **fits[ALL].cells()}
        types += [{"dictionary": name, "type": t, **f.cells()} for t, f in fits.items() if t != ALL]
        arrays[f"frequency/{name}"] = fits[ALL].frequency
        edges, counts = density(fits[ALL].frequency)
        bins += [
            {"dictionary": name, "low": float(a), "high": float(b), "count": int(n)}
            for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)
        ]
        if "recovered" in wanted:
            outputs.append({"variant": name, **_outputs(out, seed)})
            for scale, gone in ablated.items():
                for quantity, found in shares(out, clean, gone, seed=seed).items():
                    row |= columns(f"{SHARES[quantity]}_{scale}", found)
            if out.agree:
                row |= columns("agree", out.mean("agree", seed))
            row |= columns("embedding_cosine", out.mean("cosine", seed))
        if "monosemanticity" in wanted:
            found = ms.found()
            row |= columns("ms", _over_latents(found.score[found.images >= 2], seed))
            arrays[f"ms/{name}"] = found.score
            facts["ms_all_pairs"] = found.all_pairs
        if "spatial" in wanted:
            found = maps.found()
            row |= columns("moran", _over_latents(found.moran[found.images > 0], seed))
            row["coherent"] = _number(found.coherent)
            arrays[f"moran/{name}"] = found.moran
        if name in probes:
            for line in probes[name].table.iter_rows(named=True):
                if line["features"] == "chosen":
                    row |= columns(f"probe_{line['k']}", (line["accuracy"], *_ends(line)))
                if line["features"] == "random":
                    row[f"probe_random_{line['k']}"] = line["accuracy"]
                if line["features"] == "dense":
                    facts["probe_dense"] = [line["accuracy"], line["accuracy_low"], line["accuracy_high"]]
        if name in absorbed:
            row |= columns("absorbed", absorbed[name].mean)
            row["absorbed_other"] = absorbed[name].facts["other_child"]
            row["parents"] = absorbed[name].facts["parents_with_a_latent"]
        if name in shapes:
            row |= {"coherence": _number(shapes[name].coherence), "effective_rank": shapes[name].effective_rank}
        rows.append(row)
    if "recovered" in wanted:
        told += _nothing_at_stake(clean, ablated, seed)
    tables = {"dictionaries": _frame(rows), "types": _frame(types), "outputs": _frame(outputs), "density": _frame(bins)}
    for key, found in (("probing", probes), ("absorption", absorbed)):
        frames = [
            r.tables[t].insert_column(0, pl.lit(n).alias("dictionary"))
            for n, r in found.items()
            for t in list(r.tables)[:1]
        ]
        if frames:
            tables[key] = pl.concat(frames, how="diagonal_relaxed")
    words = dict(WORDS)
    for row in rows:
        for column in row:
            if column.startswith("probe_random_"):
                words[column] = f"balanced accuracy of probes on {column.split('_')[2]} random latents"
            elif column.startswith("probe_") and column.split("_")[1].isdigit() and column.count("_") == 1:
                words[column] = (
                    f"balanced accuracy of probes on the {column.split('_')[1]} best latents, mean over concepts"
                )
    n = next(iter(judged.values()))[2].found(seed)[ALL].images
    told.append("Intervals are over judged images (of ms and moran: over latents); they say nothing about other seeds.")
    return DictionaryEvaluation(
        title=f"{len(rows)} dictionaries at {', '.join(facts['sites'])}, judged on {n} images",
        tables={
            name: table for name, table in tables.items() if name == "dictionaries" or table.height or name == "density"
        },
        arrays=arrays,
        facts=facts,
        words=words,
        caveats=tuple(told),
        provenance=dict(known),
    )


def _frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """Rows with different columns as one table, columns in the order in which they are first met."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pl.DataFrame({name: [row.get(name) for row in rows] for name in names}, strict=False)


def _outputs(found: Outputs, seed: int) -> dict[str, float | None]:
    words = {"correct": "accuracy", "cosine": "embedding_cosine"}
    cells: dict[str, float | None] = {}
    for name in found.names:
        cells |= columns(words.get(name, name), found.mean(name, seed))
    return cells


def _over_latents(values: np.ndarray, seed: int) -> Interval:
    values = values[np.isfinite(values)]
    if not len(values):
        return (float("nan"),) * 3
    found = bootstrap(values[None], seed=seed, method="percentile")
    return float(found.effect[0]), float(found.low[0]), float(found.high[0])


def _ends(line: Mapping[str, Any]) -> tuple[float, float]:
    low, high = line["accuracy_low"], line["accuracy_high"]
    return (np.nan if low is None else low), (np.nan if high is None else high)


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _nothing_at_stake(clean: Outputs, ablated: Mapping[str, Outputs], seed: int) -> list[str]:
    """Ablations that change nothing: shares of nothing are left empty, and this says why."""
    found = []
    for scale, gone in ablated.items():
        for name in clean.names:
            if name == "agree":
                continue
            gap = gone.column(name) - clean.column(name)
            value, low, high = ratio(gap, np.ones(len(gap)), seed=seed)
            if not (low > 0 or high < 0):
                found.append(
                    f"{SHARES[name]}_{scale} is empty: the {scale} ablation changes it by {value:.3g} "
                    f"[{low:.3g}, {high:.3g}], so there is nothing to recover."
                )
    return found
