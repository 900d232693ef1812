"""What dictionaries of a bundled model are worth: `python -m benchmarks.scenes_dictionaries`.

1. TopK, BatchTopK and Matryoshka dictionaries of one site of `scenes-vit`, two seeds each, trained on the same rows.
2. The table of `sae.evaluate` beside all baselines, on other scenes; embeddings of `scenes-clip` say which images are
   alike.
3. How stable directions are across seeds.
4. Control: how many latents have to be exchanged between a scene and its counterfactual (another background, another
   object) until the model says what it says of the counterfactual.

Writes `docs/scenes_dictionaries.md` and `docs/scenes_dictionaries.json`. Needs no download; minutes on a CPU core.
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import torch

import mechvis
import sae
from mechvis import files
from mechvis.cli import say

DOCS = Path(__file__).parent.parent / "docs"
SITE = "blocks.2.hook_resid_post"
LATENTS, K, ROWS = 512, 8, 150_000
BASELINES = ("pca", "pca_rank", "ica", "kmeans", "semi_nmf", "random", "identity", "zero", "mean")
KS = (1, 4, 16, 64)
TRAINED_ON, JUDGED, PAIRS = 1500, 450, 160


def trained(model: Any, images: Any) -> tuple[dict[str, Any], dict[str, float]]:
    """Dictionaries by name and seed, and the seconds per dictionary of each kind."""
    kinds = {
        "topk": sae.TopK(n_latents=LATENTS, k=K),
        "batch_topk": sae.BatchTopK(n_latents=LATENTS, k=K),
        "matryoshka": sae.architectures.Matryoshka(n_latents=LATENTS, k=K),
    }
    found, seconds = {}, {}
    for name, architecture in kinds.items():
        started = time.perf_counter()
        source = sae.from_model(model, images, SITE, size=512)
        jobs = {f"{name}-{seed}": sae.Job(architecture=architecture, seed=seed) for seed in (0, 1)}
        settings = sae.Training(tokens=ROWS, batch=512, lr=2e-3)
        found |= sae.train(source, jobs, settings, progress=False).dictionaries
        seconds[name] = (time.perf_counter() - started) / len(jobs)
    return found, seconds


def measured() -> dict[str, Any]:
    """Everything, as records."""
    from sae.evaluation import control_in_model, evaluate, stability

    model, clip = mechvis.load("scenes-vit"), mechvis.load("scenes-clip")
    images, judged = mechvis.data.scenes(TRAINED_ON, seed=91), mechvis.data.scenes(JUDGED, seed=92)
    dictionaries, seconds = trained(model, images)
    first = {name.removesuffix("-0"): d for name, d in dictionaries.items() if name.endswith("-0")}
    started = time.perf_counter()
    table = evaluate(first, model, judged, baselines=BASELINES, judge=clip.vision, trained_on=images, progress=False)
    seconds["the table"] = time.perf_counter() - started
    stable = {name: stability({f"{name}-{seed}": dictionaries[f"{name}-{seed}"] for seed in (0, 1)}) for name in first}
    rows = model.run(images[:100], capture=SITE).cache[SITE].flatten(0, 1)
    control = {}
    others = {
        "pca": sae.baselines.pca({SITE: rows}, k=K),
        "random": sae.baselines.random_dictionary({SITE: rows}, LATENTS, k=K),
    }
    for change in ("background", "object"):
        pairs = mechvis.data.scene_pairs(PAIRS, seed=93, change=change)
        for name, d in {**first, **others}.items():
            control[change, name] = control_in_model(d, model, pairs, ks=KS)
    return {"table": table, "stability": stable, "control": control, "seconds": seconds}


def main() -> None:
    """Measure, write the page and its numbers."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    found = measured()
    table = found["table"]
    lines = [
        "# What dictionaries of a bundled model are worth",
        "",
        f"`python -m benchmarks.scenes_dictionaries`: `scenes-vit` at `{SITE}` (width 128, 65 tokens), {LATENTS} "
        f"latents, k = {K}, {ROWS:,} rows of {TRAINED_ON:,} scenes. Judged on {table.of('topk')['images']} other "
        f"scenes ({table.of('topk')['rows']:,} rows); {table.facts['n_reference']} more fit the baselines (with the "
        "same number of active latents), give the means and train the probes. Intervals are 95 % over images.",
        "",
        *_rows(table),
        *_model(table),
        *_concepts(table),
        *_stability(found["stability"]),
        *_control(found["control"]),
        "## Time",
        "",
        "Seconds on one core of a shared machine (training: per dictionary, harvest included): "
        + ", ".join(f"{name} {value:.0f}" for name, value in found["seconds"].items())
        + ".",
        "",
        "## How far to believe it",
        "",
        *(f"* {line}" for line in table.caveats),
    ]
    files.write_text(DOCS / "scenes_dictionaries.md", "\n".join(lines) + "\n")
    files.write_json(DOCS / "scenes_dictionaries.json", files.plain_json(_rounded(_numbers(found))))
    say("\n".join(lines))
    say(f"\n{time.perf_counter() - started:.0f} s")


def _rows(table: Any) -> Iterator[str]:
    yield "## How well rows are written"
    yield ""
    types = {(r["dictionary"], r["type"]): r for r in table.tables["types"].iter_rows(named=True)}
    yield "| dictionary | latents | FVU | FVU, CLS | FVU, patches | cosine | L0 | L0, CLS | dead |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    for row in table.table.iter_rows(named=True):
        cls, patch = (types[row["dictionary"], kind] for kind in ("cls", "patch"))
        yield (
            f"| {row['dictionary']} | {row['latents']} | {_cell(row, 'fvu')} | {cls['fvu']:.3f} | {patch['fvu']:.3f} | "
            f"{row['cosine']:.3f} | {row['l0']:.1f} | {cls['l0']:.1f} | {row['dead']:.1%} |"
        )
    yield ""
    yield "`pca`: all directions, the k largest coefficients of each row; `pca_rank`: the first k directions."
    yield ""


def _model(table: Any) -> Iterator[str]:
    yield "## What the model still does"
    yield ""
    yield "Recovered shares: 0 as with the site ablated (zero, or the mean of each position), 1 as the model itself."
    yield ""
    outputs = {row["variant"]: row for row in table.tables["outputs"].iter_rows(named=True)}
    yield "| in place | accuracy | loss, nats | loss (zero) | loss (mean) | KL (mean) | same answer | embedding |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    known = {row["dictionary"]: row for row in table.table.iter_rows(named=True)}
    for name, out in outputs.items():
        row = known.get(name)
        shares = [_cell(row, c) if row else "" for c in ("loss_zero", "loss_mean", "kl_mean")]
        yield (
            f"| {name} | {_cell(out, 'accuracy')} | {out['loss']:.2f} | " + " | ".join(shares) + f" | "
            f"{_cell(out, 'agree')} | {out['embedding_cosine']:.3f} |"
        )
    yield ""


def _concepts(table: Any) -> Iterator[str]:
    yield "## Concepts in latents"
    yield ""
    dense = table.facts["probe_dense"]
    yield (
        "Probes: balanced accuracy, mean over the values of shape, background and colour, from the k best latents (in "
        f"brackets: random ones); from the activation itself {dense[0]:.3f} [{dense[1]:.3f}, {dense[2]:.3f}]. MS: "
        f"monosemanticity by `scenes-clip` (all pairs of images: {table.facts['ms_all_pairs']:.3f}). Moran: of patch "
        "maps. Absorbed: share of a concept's images where its latent is silent and that of the special case takes "
        "over, beside the same for a special case that the image does not show."
    )
    yield ""
    yield "| dictionary | probe, k=1 | k=4 | k=16 | MS | Moran | absorbed | other case | concepts | coherence |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for row in table.table.iter_rows(named=True):
        probes = [
            "" if row[f"probe_{k}"] is None else f"{row[f'probe_{k}']:.3f} ({row[f'probe_random_{k}']:.3f})"
            for k in (1, 4, 16)
        ]
        parents = "" if row["parents"] is None else row["parents"]
        cells = [*probes, _cell(row, "ms"), _cell(row, "moran"), _cell(row, "absorbed"), _cell(row, "absorbed_other")]
        yield f"| {row['dictionary']} | " + " | ".join(cells) + f" | {parents} | {_cell(row, 'coherence')} |"
    yield ""
    yield "Signed codes (PCA, ICA, identity) have no silence, so absorption is not told of them."
    yield ""


def _stability(found: Mapping[str, Any]) -> Iterator[str]:
    yield "## Two seeds"
    yield ""
    yield "| dictionary | mean cosine of matched latents | same (cosine ≥ .7) | random directions |"
    yield "|---|---:|---:|---:|"
    for name, record in found.items():
        row = record.table.row(0, named=True)
        yield f"| {name} | {_cell(row, 'cosine')} | {row['same']:.1%} | {row['random']:.3f} |"
    yield ""


def _control(found: Mapping[tuple[str, str], Any]) -> Iterator[str]:
    yield "## Control"
    yield ""
    yield (
        "Of k latents, exchanged at all tokens between a scene and its counterfactual: the share of pairs on which the "
        "model then says what it says with the counterfactual activation in place (of the pairs where that is another "
        "class), and in brackets how much of the KL to it is gone. Greedy knows the counterfactual; random draws among "
        "the latents that differ."
    )
    yield ""
    yield (
        "| change | dictionary | pairs | "
        + " | ".join(f"greedy {k}" for k in KS)
        + " | "
        + " | ".join(f"random {k}" for k in KS)
        + " | all |"
    )
    yield "|---|---|---:|" + "---:|" * (2 * len(KS) + 1)
    for (change, name), record in found.items():
        rows = {
            (row["way"], row["k"]): row
            for row in record.table.filter(pl.col("attribute").str.contains("moves")).iter_rows(named=True)
        }
        if not rows:
            continue
        keys = [("greedy", k) for k in KS] + [("random", k) for k in KS] + [("everything", None)]
        cells = [f"{rows[key]['success']:.2f} ({rows[key]['recovered']:.2f})" for key in keys]
        yield f"| {change} | {name} | {rows['everything', None]['n']} | " + " | ".join(cells) + " |"
    yield ""
    yield "Exchanging all latents leaves the error of the dictionary where it was; the identity would reach 1."
    yield ""


def _cell(row: Mapping[str, Any], name: str) -> str:
    if row.get(name) is None:
        return ""
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    return f"{row[name]:.3f}" if low is None or high is None else f"{row[name]:.3f} [{low:.3f}, {high:.3f}]"


def _rounded(value: Any) -> Any:
    """Numbers with five digits: what is below the intervals' width is not kept."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _numbers(found: Mapping[str, Any]) -> dict[str, Any]:
    table = found["table"]
    return {
        "settings": {
            "site": SITE,
            "latents": LATENTS,
            "k": K,
            "rows": ROWS,
            "trained_on": TRAINED_ON,
            "judged": JUDGED,
        },
        "tables": {name: table.tables[name].to_dicts() for name in ("dictionaries", "types", "outputs")},
        "facts": table.facts,
        "stability": {name: record.table.to_dicts() for name, record in found["stability"].items()},
        "control": [
            {"change": change, "dictionary": name, **row}
            for (change, name), record in found["control"].items()
            for row in record.table.to_dicts()
        ],
        "seconds": {name: round(value, 1) for name, value in found["seconds"].items()},
        "versions": table.provenance["versions"],
        "platform": table.provenance["platform"],
    }


if __name__ == "__main__":
    main()
