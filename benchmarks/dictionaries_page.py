"""The page of `benchmarks.dictionaries`, drawn from what it kept."""

from typing import Any

GOALS = {"mechvis": (3.0, 1.2), "mechvis, bf16 encoder": (6.0, 2.5)}
"""How many times as fast as the dense libraries, and as sparsify, both in float32, was asked for."""
DENSE = ("SAELens", "dictionary_learning", "overcomplete")
ENVIRONMENT = """\
    python -m venv peers && peers/bin/pip install torch sae-lens dictionary-learning overcomplete eai-sparsify
    peers/bin/pip uninstall -y torchvision      # only where torch is a CPU build: its torchvision breaks transformers
    python -m benchmarks.dictionaries --peers peers/bin/python
    python -m benchmarks.dictionaries --peers peers/bin/python --device cuda     # n = 24,576 and 98,304, on a GPU
"""


def page(results: dict[str, Any]) -> str:
    """Markdown."""
    from benchmarks.dictionaries import LR, SIZES

    lines = [
        "# Training dictionaries: steps beside other libraries",
        "",
        "Drawn by `python -m benchmarks.dictionaries`; numbers are in `dictionaries.json`. One process per contender, "
        f"the same rows, initial weights (unit rows, W_dec = W_enc, b_dec = mean) and batches, Adam at {LR:g}, no "
        "schedule, no loss of dead latents, no clipping (dictionary_learning always clips). *ms* and *rows/s*: medians "
        "over interleaved rounds, of the time on the processor on a CPU, of the clock on a GPU. *FVU*: on held-out "
        "rows, before the first step (equal where contenders really start alike) and after the last one, after the "
        "same number of rows for all.",
        "",
        "Peers live in an environment of their own:",
        "",
        ENVIRONMENT,
    ]
    for key in sorted(results, key=lambda key: (key.split(" ")[0], list(SIZES).index(key.split(" ")[1]))):
        lines += _part(key, results[key])
    lines += _notes(results)
    return "\n".join(lines)


def _part(key: str, part: dict[str, Any]) -> list[str]:
    from benchmarks.dictionaries import IDEAL, spread_of, step_of
    from benchmarks.dictionary_contenders import CONTENDERS

    size, about = part["size"], part["machine"]
    found = {name: part["contenders"][name] for name in CONTENDERS if name in part["contenders"]}
    ran = {name: one for name, one in found.items() if "failed" not in one}
    device, label = key.split(" ")
    taken = size["warm"] + size["rounds"] * size["turn"]
    where = f"{about['processor']}, {part['threads']} thread{'s' if part['threads'] > 1 else ''}"
    if device == "cpu":
        where += ", with bf16 instructions" if about["bf16"] else ", without bf16 instructions"
    ideal = IDEAL.get(label) if device != "cpu" else None
    lines = [
        f"## d = {size['d']}, n = {size['n']:,}, k = {size['k']}, {size['batch']} rows per step"
        + (" (a rehearsal)" if label == "tiny" else ""),
        "",
        f"{where}; torch {about['torch']} here, {about['peers'].get('torch', 'none')} with the peers; "
        + ", ".join(f"{name} {version}" for name, version in about["peers"].items() if name != "torch")
        + f". {size['warm']} steps to warm up, {size['rounds']} rounds of {size['turn']}; FVU after "
        f"{taken * size['batch']:,} rows.",
        "",
        "| contender | ms | rows/s | speed of mechvis over it | of mechvis, bf16 encoder | FVU before | FVU after |"
        + (" of ideal |" if ideal else ""),
        "|---|---:|---:|---:|---:|---:|---:|" + ("---:|" if ideal else ""),
    ]
    for name, one in ran.items():
        times = [
            "{:.2f} ({:.2f} to {:.2f})".format(*spread_of(ran[ours], one)) if ours in ran and ours != name else ""
            for ours in ("mechvis", "mechvis, bf16 encoder")
        ]
        rate = size["batch"] / step_of(one)
        lines.append(
            f"| {name} | {1000 * step_of(one):.1f} | {rate:,.0f} | {times[0]} | {times[1]} | {one['start']:.4f} | "
            f"{one['fvu']:.4f} |" + (f" {rate / ideal:.0%} |" if ideal else "")
        )
    lines += ["", *(f"* {name} did not run: {one['failed']}" for name, one in found.items() if "failed" in one)]
    lines += [*_goals(ran), ""]
    return lines


def _goals(ran: dict[str, Any]) -> list[str]:
    from benchmarks.dictionaries import step_of

    lines = []
    for ours, (over_dense, over_sparse) in GOALS.items():
        if ours not in ran:
            continue
        for others, goal in ((DENSE, over_dense), (("sparsify",), over_sparse)):
            times = {name: step_of(ran[name]) / step_of(ran[ours]) for name in others if name in ran}
            if times:
                slowest = min(times, key=times.get)
                lines.append(
                    f"* {ours}: asked for {goal:g} times {' and '.join(times)} in float32; at least "
                    f"{times[slowest]:.2f} times ({slowest}): {'reached' if times[slowest] >= goal else 'missed'}."
                )
        sparse = [name for name in ("sparsify", "sparsify, bf16 autocast") if name in ran]
        if sparse:
            rest = max(ran[name]["fvu"] for name in sparse)
            lines.append(f"* {ours}: FVU {ran[ours]['fvu']:.4f}; sparsify {rest:.4f} after the same rows.")
    return lines


def _notes(results: dict[str, Any]) -> list[str]:
    lines = [
        "## How to read this",
        "",
        "* `mechvis` in float32 finds the k largest through a product in bfloat16 where the CPU has instructions for "
        "it, with a bound on the error, and computes whatever may be among them in float32 (`sae/screen.py`): the "
        "latents are those of the product in float32. Without such instructions it multiplies in float32.",
        "* So the encoder in bfloat16 gains little more here: it only leaves out the bound. Where a goal is missed at "
        "the small size, what is not the product (moments of four million weights, sums over entries) is two thirds "
        "of a step.",
        "* FVU after the same rows is the same where the recipe is: mechvis in all its forms, the dense trainer and "
        "sparsify. That of the others differs with their recipes (free rows and their ranking; clipping; no bias), "
        "after few steps: it says nothing about what they end with. All start with rows that write too much (FVU over "
        "1); free rows, as SAELens has them and as `mechvis, free rows` has, shrink at once. `sae.train` starts with "
        "an encoder of the right length instead, which is switched off here, as everybody has the same weights.",
        "* `mechvis` logs FVU, L0, dead latents and the norm of gradients at every step; the peers' loops here do not.",
        "* Ranges in brackets are quartiles over rounds. The time on the processor does not count waiting for others, "
        "but a neighbour on the same core or cache slows every contender; ratios suffer less than milliseconds.",
        "* overcomplete has no bias to write with, so it gets centred rows, and its decoder is not projected. SAELens "
        "keeps free decoder rows, and ranks by their norms. Both are what these libraries do.",
        "* *fair dense, bf16*: a dense trainer of our own with products in bfloat16 both ways, float32 masters and "
        "torch's fused Adam: what is left when only sparsity is missing.",
    ]
    if not any(key.startswith("cuda") for key in results):
        lines.append(
            "* Missed: no GPU was at hand, so n = 24,576 and 98,304 and the share of the roofline are not measured; "
            "the same command with `--device cuda` does it, and was rehearsed on a CPU with a small size."
        )
    lines.append("* Missed: every library with its own defaults as a second column (other optimisers and schedules).")
    return [*lines, ""]
