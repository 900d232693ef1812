"""The figures of `python -m benchmarks.certified` as a page."""

from benchmarks.certified_worlds import EPS, IMAGES, TOP, UNITS


def page(found: dict) -> str:
    lines = [
        "# The certified top-K: cost and success",
        "",
        "`python -m benchmarks.certified`. One evaluation is one unit on one image. *Ratio*: what uniform sampling "
        "needs for the same certificate, divided by what elimination needs. Audit and re-estimation on fresh "
        "images are not in it; they are in the wall-clock table.",
        "",
        "## Simulated worlds",
        "",
        f"{UNITS} units, top {TOP}, tolerance {EPS:.0%}, probability of failure 5 %, {IMAGES:,} images. *Asked*: the "
        "figure of the earlier simulation, whose worlds were described in words only, so its parameters may differ.",
        "",
        "| world | method | evaluations | asked | ratio | success | runs |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for row in found["worlds"]:
        asked = "" if row["asked"] is None else f"{row['asked']:.2g}"
        uniform = row["method"].startswith("uniform")
        ratio = "" if uniform else f"{row['ratio']:.1f}"
        lines.append(
            f"| {row['world']} | {row['method']} | {row['cost']:.2g} | {asked} | {ratio} | {row['success']:.3f} | "
            f"{row['runs']} |"
        )
    lines += ["", "Calibrated by simulation on a pilot of 64 images (mean of the chosen z):", ""]
    lines += ["| world | z | evaluations | success | runs |", "|---|---:|---:|---:|---:|"]
    for row in found["calibration"]:
        lines.append(f"| {row['world']} | {row['z']:.2f} | {row['cost']:.2g} | {row['success']:.3f} | {row['runs']} |")
    lines += [
        "", "## Heavy tails", "",
        "The same worlds with other noise; in the last rows five of the top 16 units act on few images only, with the "
        "same means. Success below 0.95 breaks the promise.", "",
        "| noise | world | bound | evaluations | ratio | success | runs |", "|---|---|---|---:|---:|---:|---:|",
    ]  # fmt: skip
    for row in found["tails"]:
        lines.append(
            f"| {row['noise']} | {row['world']} | {row['bound']} | {row['cost']:.2g} | {row['ratio']:.1f} | "
            f"{row['success']:.3f} | {row['runs']} |"
        )
    lines += [
        "", "## The bundled models", "",
        "Zero ablation, effects of all units on all images computed once; elimination reads from that table. *Gap*: "
        "how far the first unit outside lies below the last inside. *Success*: all returned units within "
        f"{EPS:.0%}; *equal*: the very set of the full sweep; *ran out*: share of seeds in which the last units needed "
        "all images.", "",
        *_lookups(found["table"], "metric"),
        "", "## CIGMA", "",
        "The same for the mean scores of `circuits.cigma` over 4,000 selection images, given masks: the planted "
        "shortcut (ShortcutViT) and the bundled one.", "",
        *_lookups(found["cigma"], "ranked by"),
        "", "## Wall-clock", "",
        "`mechvis.certified_top` as it comes (audit 5 %, 1,024 fresh images for each returned unit) beside "
        "`mechvis.sweep`, logit_diff, and the certified scoring of a study beside the scoring of all heads (three "
        "views of each image); one thread, one run each, while others used the machine's second core.", "",
        "| what | model | units | images | top | bound | certified (s) | full (s) | saved | saved, time of "
        "the processor | evaluations: decide, audit, fresh | full | same set |",
        "|---|---|---|---:|---:|---|---:|---:|---:|---:|---|---:|---|",
    ]  # fmt: skip
    for what, rows in (("sweep", found["clock"]), ("CIGMA", found["cigma_clock"])):
        for row in rows:
            same = "yes" if row["same"] else "no"
            if "recommended" in row:
                same += ", recommended too" if row["recommended"] else ", others recommended"
            lines.append(
                f"| {what} | {row['model']} | {row['units']} | {row['images']:,} | {row['top']} | {row['bound']} | "
                f"{row['seconds']:.1f} | {row['full_seconds']:.1f} | {row['full_seconds'] / row['seconds']:.1f} x | "
                f"{row['full_cpu'] / row['cpu']:.1f} x | "
                f"{row['elimination']:,}, {row['audit']:,}, {row['fresh']:,} | {row['full']:,} | {same} |"
            )
    return "\n".join(lines) + "\n"


def _lookups(rows: list[dict], metric: str) -> list[str]:
    lines = [
        f"| model | units | {metric} | bound | top | gap | success | equal | evaluations | uniform | full | ran out | "
        "seeds |",
        "|---|---|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['model']} | {row['units']} | {row['metric']} | {row['bound']} | {row['top']} | {row['gap']:.1%} | "
            f"{row['success']:.3f} | {row['equal']:.3f} | {row['cost']:,.0f} | "
            f"{row['uniform']:,.0f} ({row['uniform'] / row['cost']:.1f} x) | "
            f"{row['full']:,} ({row['full'] / row['cost']:.1f} x) | {row['exhausted']:.0%} | {row['seeds']} |"
        )
    return lines
