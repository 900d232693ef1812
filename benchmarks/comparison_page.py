"""The page of `benchmarks.comparison`: tables, and what they say, made from the measured parts alone."""

from collections.abc import Iterator
from typing import Any

NAMES = {
    "ddb_out": "DDB out", "ddb_deep": "DDB deep", "ddb_global": "DDB global", "id_accuracy": "accuracy at home",
    "confidence": "confidence", "negative_entropy": "-entropy", "atc": "ATC", "css": "CSS", "matched": "matched CSS",
}  # fmt: skip


def page(parts: dict[str, Any]) -> str:
    """`comparison.md`.

    Args:
        parts: what `benchmarks.comparison.main` gathers.
    """
    lines = [
        "# Circuit scores and accuracy",
        "",
        "`python -m benchmarks.comparison`. Intervals are 95 % bootstrap intervals over models or over data sets. "
        "*Asked*: the figure of the method's description.",
        "",
        *_known(parts["known"]),
        *_models(parts),
        *_data(parts),
        *_false(parts["false alarms"]),
    ]
    return "\n".join(lines)


def _known(known: dict[str, Any]) -> Iterator[str]:
    yield from ("## Known answers", "", "DepthNet (F4), 12 layers, bands of three: DDB to the output.", "")
    yield from (
        "| g | asked | logit difference, zero ablation | KL, EAP-IG, mean_positional |",
        "|---:|---:|---:|---:|",
    )
    for row in known["depth"]:
        yield f"| {row['g']:g} | {row['asked']:+.1f} | {row['logit_diff']:+.10f} | {row['kl']:+.10f} |"
    yield from (
        "",
        "Planted noise on 2,000 edges. The description does not say how its weights were distributed; here they are "
        "normal numbers with log-normal sizes, mean of 20 seeds.",
        "",
        "| noise | Spearman | asked | Spearman, top 95 % of the mass | cosine | asked |",
        "|---:|---:|---:|---:|---:|---:|",
    )
    asked = {"0.1": (0.20, 0.003), "0.5": (0.52, 0.06), "1": (0.73, 0.19), "3": (0.85, 0.59)}
    for sigma, row in known["planted"].items():
        spearman, cosine = asked[sigma]
        yield (
            f"| {sigma} | {row['spearman 1']:.2f} | {spearman:.2f} | {row['spearman 0.95']:.2f} "
            f"| {row['cosine 1']:.3f} | {cosine:g} |"
        )
    yield ""


def _models(parts: dict[str, Any]) -> Iterator[str]:
    yield from (
        "## Models: DDB against the accuracy on shifted scenes",
        "",
        "All models start from the backbone of `scenes-vit` (4 layers, so the bands are the first and the last layer). "
        "*Fine-tuned*: a fresh classifier and the whole model trained on scenes whose background agrees with the shape "
        "in 80 or 95 %, three learning rates, 60 or 120 steps of 64, two seeds; *at 0.95*: those of one training "
        "distribution, as the published zoos are. *Heads*: the backbone frozen, logistic regression at seven "
        "agreements and two ridges. Accuracy is on 300 scenes, scores are on 60 others without labels (20 more for the "
        "means). Home is scenes with 95 % agreement.",
        "",
        "Spearman with accuracy:",
        "",
    )
    scores = [name for name in NAMES if name not in ("css", "matched")]
    yield "| target | models | accuracy | " + " | ".join(NAMES[name] for name in scores) + " |"
    yield "|---|---|---|" + "---:|" * len(scores)
    totals: dict[str, dict[str, list[float]]] = {}
    for target, part in parts["models"].items():
        for group, found in part["groups"].items():
            own = {row["score"]: row for row in found["correlations"] if row["statistic"] == "spearman"}
            low, high = found["accuracy"]
            cells = " | ".join(_value(own[name]) for name in scores)
            yield f"| {target} | {group} ({found['models']}) | {low:.2f} to {high:.2f} | {cells} |"
            for name in scores:
                if own[name]["value"] is not None:
                    totals.setdefault(group, {}).setdefault(name, []).append(own[name]["value"])
    yield from ("", *_verdict(parts["models"]))
    yield from ("", "R squared and Kendall of the recommended DDB and of the accuracy at home:", "")
    yield "| target | models | DDB out: R squared | Kendall | accuracy at home: R squared | Kendall |"
    yield "|---|---|" + "---:|" * 4
    for target, part in parts["models"].items():
        for group, found in part["groups"].items():
            own = {(row["score"], row["statistic"]): row for row in found["correlations"]}
            pairs = ((score, statistic) for score in ("ddb_out", "id_accuracy") for statistic in ("r2", "kendall"))
            yield f"| {target} | {group} | " + " | ".join(_value(own[pair]) for pair in pairs if pair in own) + " |"
    yield from (
        "",
        "Mean Spearman over the targets, signs as they are (published, mean correlation: DDB out 0.766, accuracy at "
        "home 0.632):",
        "",
    )
    yield "| models | " + " | ".join(NAMES[name] for name in scores) + " |"
    yield "|---|" + "---:|" * len(scores)
    for group, found in totals.items():
        cells = (f"{sum(found[name]) / len(found[name]):+.2f}" if name in found else "" for name in scores)
        yield f"| {group} | " + " | ".join(cells) + " |"
    yield ""


def _verdict(models: dict[str, Any]) -> Iterator[str]:
    """What the table says of DDB, per target over the groups of models: which sign, and whether it beats accuracy."""
    signs: dict[str, list[str]] = {"higher": [], "lower": [], "unclear": []}
    better, total = 0, 0
    for target, part in models.items():
        rows = []
        for found in part["groups"].values():
            own = {row["score"]: row for row in found["correlations"] if row["statistic"] == "spearman"}
            rows.append(own["ddb_out"])
            values = [own[name]["value"] for name in ("ddb_out", "id_accuracy")]
            if None not in values:
                total += 1
                better += abs(values[0]) > abs(values[1])
        if all(row["low"] is not None and row["low"] > 0 for row in rows):
            signs["higher"].append(target)
        elif all(row["high"] is not None and row["high"] < 0 for row in rows):
            signs["lower"].append(target)
        else:
            signs["unclear"].append(target)
    words = {
        "higher": "A higher DDB to the output goes with a *higher* accuracy in every group on",
        "lower": "with a *lower* one in every group on",
        "unclear": "not clearly, in every group, with either on",
    }
    said = "; ".join(f"{words[sign]} {', '.join(names)}" for sign, names in signs.items() if names)
    yield (
        f"{said}. So DDB tells which of these models draw on deep layers, and whether such models hold better depends "
        "on the shift: noise and colour casts spoil the shape more than the texture of the background, which still "
        "agrees with it there, so models that lean on the background keep more. In size DDB out is above accuracy at "
        f"home in {better} of {total} comparisons (home holds 5 % conflicting scenes: accuracy there already shows who "
        "leans on the background)."
    )


def _data(parts: dict[str, Any]) -> Iterator[str]:
    yield from (
        "## Data: CSS against the accuracy of one model under shifts",
        "",
        "80 scenes per set, six kinds of corruption at five severities (30 sets), reference of 240 (60 of them for the "
        "means). Spearman with accuracy:",
        "",
    )
    scores = ("css", "matched", "confidence", "negative_entropy", "atc")
    yield "| model | accuracy | " + " | ".join(NAMES[name] for name in scores) + " | seconds |"
    yield "|---|---|" + "---:|" * (len(scores) + 1)
    for name, part in parts["data"].items():
        own = {row["score"]: row for row in part["correlations"] if row["statistic"] == "spearman"}
        accuracy = [row["accuracy"] for row in part["table"] if row["role"] == "other"]
        cells = " | ".join(_value(own[score]) for score in scores)
        yield f"| {name} | {min(accuracy):.2f} to {max(accuracy):.2f} | {cells} | {part['seconds']:.0f} |"
    yield from ("", "Spearman of each distance with accuracy (all images of a set):", "")
    yield "| distance | " + " | ".join(parts["data"]) + " |"
    yield "|---|" + "---:|" * len(parts["data"])
    first = next(iter(parts["data"].values()))
    for kind in dict.fromkeys(row["score"] for row in first["distances"]):
        cells = (
            _value(next(r for r in part["distances"] if r["score"] == kind and r["statistic"] == "spearman"))
            for part in parts["data"].values()
        )
        yield f"| {kind} | " + " | ".join(cells) + " |"
    yield from ("", "The alarm at a loss of a tenth of the accuracy at home, set and judged on the same 30 sets:", "")
    yield from ("| model | threshold | set by | bad sets found | good sets alarmed |", "|---|---:|---|---:|---:|")
    for name, part in parts["data"].items():
        alarm = part["alarm"]
        if "error" in alarm:
            yield f"| {name} | | {alarm['error']} | | |"
        else:
            shares = f"{alarm['found']:.0%} | {alarm['false']:.0%}"
            yield f"| {name} | {alarm['threshold']:.3f} | {alarm['set_by']} | {shares} |"
    yield from ("", "By kind (matched CSS, floor 99 %, accuracy), scenes-vit:", "")
    yield from ("| set | matched CSS | floor 99 % | p | accuracy | confidence |", "|---|---:|---:|---:|---:|---:|")
    for row in parts["data"]["scenes-vit"]["table"]:
        p = "" if row["p"] is None else f"{row['p']:.3f}"
        yield (
            f"| {row['set']} | {row['matched']:.3f} | {row['floor_99']:.3f} | {p} | {row['accuracy']:.3f} "
            f"| {row['confidence']:.3f} |"
        )
    yield ""


def _false(found: dict[str, Any]) -> Iterator[str]:
    yield from (
        "## False alarms",
        "",
        f"{found['windows']} fresh windows of {found['n']} home scenes against each of {found['references']} reference "
        f"sets of {2 * found['n']} (scenes-vit): p at most 0.05 in {found['below 0.05']:.1%}, beyond the 99th "
        f"percentile of the floor in {found['beyond 99 %']:.1%}. Mean matched CSS {found['matched']:.3f}, mean floor "
        f"{found['floor']:.3f}.",
        "",
    )


def _value(row: dict[str, Any]) -> str:
    if row["value"] is None:
        return "undefined"
    ends = "" if row["low"] is None else f" [{row['low']:+.2f}, {row['high']:+.2f}]"
    return f"{row['value']:+.2f}{ends}"
