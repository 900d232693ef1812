"""What `mechvis selftest` says about planted evidence: a table of cheap methods, and checks of what must come out.

The checks are about this installation, not about methods: exact gradients find all planted evidence, chance is chance,
and two failures that are known must appear (rollout on the hand-wired model, single-patch occlusion where evidence is
redundant). If a known failure is gone, something is computed differently here.
"""

from functools import lru_cache

import polars as pl

from mechvis.attribution.methods.layer_ig import InputIG
from mechvis.testing.evidence.certificate import certify
from mechvis.testing.evidence.names import VARIANTS, variant
from mechvis.testing.evidence.planted import load, seeds_of, variants_of
from mechvis.testing.evidence.score import PlantedScores, table_of

IMAGES = 16
METHODS = (
    InputIG(steps=8),
    "occlusion",
    "act_x_grad",
    "grad_cam",
    "chefer",
    "legrad",
    "rollout",
    "input_norm",
    "centre",
    "random",
)
"""Cheap ones."""


@lru_cache(maxsize=1)
def evidence_table(seed: int = 0) -> PlantedScores:
    """Cheap methods on the first model of every variant, 16 images each."""
    return table_of(METHODS, "all", seed, n=IMAGES)


def evidence_text(seed: int = 0) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """Rows and head of the printed table: AUROC and hit rate of each method on each variant; `-`: it refused."""
    found = evidence_table(seed)
    variants = variants_of("all")
    rows = []
    for method in found.table["method"].unique(maintain_order=True):
        own = {row["variant"]: row for row in found.table.filter(pl.col("method") == method).iter_rows(named=True)}
        cells = ["-" if own[v]["failed"] else f"{own[v]['auroc']:.2f} {own[v]['hit']:.2f}" for v in variants]
        rows.append((method, *cells))
    return rows, ("AUROC, hit rate", *variants)


def evidence_figures(seed: int = 0) -> list[tuple[str, str, str, bool]]:
    """(what, expected, measured, right) of every check."""
    table = evidence_table(seed).table

    def of(method: str, measure: str, variants: list[str]) -> pl.Series:
        return table.filter((pl.col("method") == method) & pl.col("variant").is_in(variants))[measure]

    everywhere = variants_of("all")
    found = [_certificates(seed)]
    exact = float(of("input_ig", "auroc", everywhere).min())
    found.append(("integrated gradients: smallest AUROC", ">= 0.90", f"{exact:.3f}", exact >= 0.9))
    chance = float(of("random", "auroc", everywhere).mean())
    found.append(("random maps: mean AUROC", "0.5 +- 0.1", f"{chance:.3f}", abs(chance - 0.5) <= 0.1))
    hit = float(of("rollout", "hit", variants_of("A")).max())
    trained = float(of("rollout", "auroc", ["object"]).min())
    found.append(("rollout on suite A: hit rate", "< 0.50", f"{hit:.3f}", hit < 0.5))
    found.append(("rollout on B/object: AUROC", ">= 0.90", f"{trained:.3f}", trained >= 0.9))
    hidden = float(of("occlusion", "auroc", ["redundant"]).max())
    found.append(("occlusion of redundant evidence: AUROC", "< 0.60", f"{hidden:.3f}", hidden < 0.6))
    return [(f"planted evidence: {what}", expected, measured, right) for what, expected, measured, right in found]


def _certificates(seed: int) -> tuple[str, str, str, bool]:
    names = [(name, number) for name in VARIANTS for number in seeds_of(name)]
    kept = [certify(load(name, number).model, variant(name), n=64, seed=seed)["certified"] for name, number in names]
    return "certificates that hold", f"all of {len(names)}", str(sum(kept)), all(kept)
