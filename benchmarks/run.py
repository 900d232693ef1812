"""The same work done by mechvis and by its peers, side by side in one process: `python -m benchmarks [--quick]`.

1. Every contender of a row does the same task on the same model and pixels; what they compute is compared.
2. Repetitions are interleaved (A B C A B C ...), so that a machine that is busy at times is busy for all of them.
3. A row reports the median time of each, and the median over repetitions of the ratio to the contender that the row is
   about. With one thread the time is that of the process on the processor, so that other programs count less.

Writes `results.md` and `results.json` beside this file. Times are this machine's; the ratios are the point.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import mechvis
from benchmarks import peers
from mechvis.engine import budget_bytes
from mechvis.models.load import wrap

HERE = Path(__file__).parent
PACKAGES = ("torch", "transformers", "transformer_lens", "nnsight")


@dataclass
class Row:
    """One task and what everyone took for it."""

    task: str
    """What is done."""
    ours: str
    """Contender that the ratios are about."""
    seconds: dict[str, float]
    """Median time per contender."""
    ratios: dict[str, float]
    """Ours divided by each other contender, median over repetitions."""
    targets: dict[str, float] = field(default_factory=dict)
    """Ratios that must not be exceeded."""
    notes: list[str] = field(default_factory=list)
    """What else was measured."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Libraries talk; the table does not."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def clock() -> float:
    """Seconds: of this process on the processor with one thread, else of the wall clock."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def race(
    task: str,
    contenders: dict[str, Callable[[], Any]],
    *,
    repetitions: int,
    targets: dict[str, float] | None = None,
    scale: dict[str, float] | None = None,
    warm_up: bool = True,
) -> Row:
    """Time every contender `repetitions` times in turn; the first is ours.

    Args:
        task: what is done.
        contenders: function per name.
        repetitions: rounds.
        targets: largest allowed ratio of ours to a contender.
        scale: factor on a contender's time, where it does a known share of the work.
        warm_up: run everyone once untimed before.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    with quiet():
        for round_ in range(repetitions + warm_up):
            # Reversed in every other round, so that nobody always runs after the same one.
            for name in list(contenders)[:: 1 if round_ % 2 else -1]:
                start = clock()
                contenders[name]()
                seconds = (clock() - start) * (scale or {}).get(name, 1.0)
                if round_ >= warm_up:
                    times[name].append(seconds)
    ours, *others = contenders
    row = Row(
        task=task,
        ours=ours,
        seconds={name: statistics.median(found) for name, found in times.items()},
        ratios={
            name: statistics.median(a / b for a, b in zip(times[ours], times[name], strict=True)) for name in others
        },
        targets=targets or {},
    )
    print(describe(row), flush=True)
    return row


def describe(row: Row) -> str:
    """A row in words."""
    ratios = ", ".join(f"{value:.3f} x {name}" for name, value in row.ratios.items())
    return f"{row.task}: {row.ours} {1000 * row.seconds[row.ours]:.4g} ms = {ratios}. " + " ".join(row.notes)


def vit_b_16() -> nn.Module:
    """The shape of ViT-B/16, random weights."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(num_labels=1000)).eval()


def small() -> tuple[nn.Module, str]:
    """The bundled classifier; where it is missing, a random model of its shape."""
    from transformers import ViTConfig, ViTForImageClassification

    from mechvis.models import zoo

    with contextlib.suppress(OSError, mechvis.errors.MechvisError):
        return ViTForImageClassification.from_pretrained(zoo.path("scenes-vit")).eval(), "scenes-vit"
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=128, num_attention_heads=4, num_hidden_layers=4, intermediate_size=256, image_size=64, patch_size=8
    )
    return ViTForImageClassification(config).eval(), "random model of the shape of scenes-vit"


def pixels_for(bare: nn.Module, n: int) -> Tensor:
    """Random pixels."""
    size = bare.config.image_size
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(n))


def multiplications(bare: nn.Module) -> tuple[float, float]:
    """Multiply-adds (billions) of the head sweep of one image, from shapes: one full forward per head, and the least
    that is exact when each head restarts at its layer and the last block computes the CLS token only."""
    config = bare.config
    n_layers, n_heads, d = config.num_hidden_layers, config.num_attention_heads, config.hidden_size
    hidden, tokens = config.intermediate_size, (config.image_size // config.patch_size) ** 2 + 1
    mlp = 2 * tokens * d * hidden
    block = 4 * tokens * d * d + 2 * tokens * tokens * d + mlp
    last = 2 * tokens * d * d + 2 * d * d + 2 * tokens * d + 2 * d * hidden
    last_mlp = 2 * d * hidden
    embed = (tokens - 1) * 3 * config.patch_size**2 * d
    clean = embed + (n_layers - 1) * block + last
    rows = 0
    for layer in range(n_layers):
        # The half-block of its own layer, full blocks between, and the last block.
        own = last_mlp if layer == n_layers - 1 else mlp + (n_layers - 2 - layer) * block + last
        rows += n_heads * own
    full = embed + n_layers * block
    return n_layers * n_heads * full / 1e9, (clean + rows) / 1e9


def peak_rate(bare: nn.Module) -> float:
    """Multiply-adds per second (billions) of a matrix product of the MLP's shape, the most this machine reaches."""
    d, hidden = bare.config.hidden_size, bare.config.intermediate_size
    a, b = torch.randn(2048, d), torch.randn(d, hidden)
    best = 0.0
    for _ in range(8):
        start = clock()
        torch.mm(a, b)
        best = max(best, 2048 * d * hidden / 1e9 / (clock() - start))
    return best


def forward(name: str, bare: nn.Module, batch: int, repetitions: int) -> Row:
    """Wrapped forward without edits against the bare model."""
    model, pixels = wrap(bare), pixels_for(bare, batch)
    with torch.no_grad():
        return race(
            f"{name}: forward without edits, batch {batch}",
            {"mechvis": lambda: model(pixels), "bare model": lambda: bare(pixels)},
            repetitions=repetitions,
            targets={"bare model": 1.05},
        )


def head_sweep(name: str, bare: nn.Module, images: int, repetitions: int, *, peers_run: int, others: bool) -> Row:
    """Zero every head; peers run evenly spread heads and are scaled, since each of theirs is one full forward."""
    model, pixels = wrap(bare), pixels_for(bare, images)
    everything = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    chosen = everything[:: max(1, len(everything) // peers_run)]
    metric, wrapped = peers.predicted(bare, pixels), peers.bridge(bare)
    answers: dict[str, Tensor] = {}

    def ours() -> None:
        result = mechvis.sweep(model, pixels, units="heads", edit="zero", metric="logit", progress=False)
        left = result.baseline["logit"] - result.values["logit"].mean(1)
        answers["mechvis.sweep"] = torch.tensor([left[everything.index(place)] for place in chosen])

    def peer(name: str, function: Callable, *arguments: Any) -> Callable[[], None]:
        def run() -> None:
            answers[name] = function(*arguments, pixels, chosen, metric)

        return run

    contenders = {
        "mechvis.sweep": ours,
        "loop of bare forwards with a hook": peer("bare", peers.bare_loop, bare),
        "transformer_lens head sweep": peer("transformer_lens", peers.transformer_lens_sweep, wrapped),
    }
    if others:
        contenders["transformer_lens run_with_hooks"] = peer("tl hooks", peers.transformer_lens_hooks, wrapped)
        contenders["nnsight, a trace per head"] = peer("nnsight", peers.nnsight_traces, bare)
        contenders["nnsight, heads of a layer as rows"] = peer("nnsight rows", peers.nnsight_rows, bare)
    share = len(everything) / len(chosen)
    row = race(
        f"{name}: zero each of {len(everything)} heads, {images} image{'s' if images > 1 else ''}",
        contenders,
        repetitions=repetitions,
        targets={"loop of bare forwards with a hook": 0.48, "transformer_lens head sweep": 0.42},
        scale={other: share for other in list(contenders)[1:]},
        warm_up=repetitions > 3,
    )
    expected = answers["bare"]
    worst = max(float((found - expected).abs().max()) for found in answers.values())
    if worst > 1e-4 * max(1.0, float(expected.abs().max())):
        raise RuntimeError(f"{row.task}: the contenders disagree by {worst:.2e}.")
    row.notes.append(f"All agree to {worst:.0e} logits.")
    if share > 1:
        row.notes.append(f"Peers ran {len(chosen)} evenly spread heads (each costs one full forward), scaled.")
    naive, least = multiplications(bare)
    reached = images * least / row.seconds["mechvis.sweep"]
    row.notes.append(
        f"Multiply-adds per image: {naive:.4g} G for full forwards, {least:.4g} G at least: ratio {least / naive:.3f}. "
        f"Reached {100 * reached / peak_rate(bare):.0f} % of the rate of a plain matrix product."
    )
    print("   ", " ".join(row.notes), flush=True)
    return row


def cache(name: str, bare: nn.Module, batch: int, repetitions: int) -> list[Row]:
    """Capturing everything, and one site."""
    model, pixels, wrapped = wrap(bare), pixels_for(bare, batch), peers.bridge(bare)
    layer = model.cfg.n_layers // 2
    site = f"blocks.{layer}.attn.hook_z"
    rows = []
    for what, names in (("every site", None), (f"one site ({site})", site)):
        only = {} if names is None else {"names_filter": names}
        capture = [n for n in model.graph.names if not n.endswith("hook_result")] if names is None else [names]
        contenders = {
            "mechvis run": lambda capture=capture: model.run(pixels, capture=capture).cache,
            "mechvis run_with_cache": lambda only=only: model.run_with_cache(pixels, **only)[1],
            "transformer_lens run_with_cache": lambda only=only: wrapped.run_with_cache(pixels, **only)[1],
            "bare model, nothing kept": lambda: bare(pixels),
        }
        with torch.no_grad():
            row = race(f"{name}: cache {what}, batch {batch}", contenders, repetitions=repetitions)
            with quiet():
                for contender in list(contenders)[:3]:
                    found = contenders[contender]()
                    row.notes.append(f"{contender} keeps {kept(found) / 2**20:.1f} MiB in {len(found)} entries.")
        print("   ", " ".join(row.notes), flush=True)
        rows.append(row)
    return rows


def kept(found: Any) -> int:
    """Bytes of memory that a cache holds, memory shared by several entries counted once."""
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in found.values()}
    return sum(storages.values())


def memory_of(what: str, images: int) -> None:
    """In a process of its own: print the resident memory (MiB) before a task, and the peak during it."""
    bare = vit_b_16()
    model, pixels = wrap(bare), pixels_for(bare, images)
    with torch.no_grad():
        bare(pixels[:1])
    # Linux: start the record of the peak anew, so that making the model does not count.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    if what == "sweep":
        mechvis.sweep(model, pixels, units="heads", edit="zero", progress=False)
    else:
        peers.bare_loop(bare, pixels, [(0, 0), (5, 5)], peers.predicted(bare, pixels))
    print(json.dumps({"before": before, "peak": resident("VmHWM")}))


def resident(field: str) -> float:
    """A memory figure of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**10


def memory(images: int, threads: int) -> dict[str, Any]:
    """Peak resident memory of the ViT-B/16 sweep at the default budget, and of the loop."""
    found = {}
    for what in ("loop", "sweep"):
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks", "--memory", what, "--images", str(images)]
        done = subprocess.run(
            [*command, "--threads", str(threads)], capture_output=True, text=True, check=True, cwd=HERE.parent
        )
        found[what] = json.loads(done.stdout.splitlines()[-1])
    budget = budget_bytes(None, torch.device("cpu")) / 2**20
    found["text"] = (
        f"ViT-B/16 head sweep of {images} image{'s' if images > 1 else ''} at the default budget "
        f"({budget:.0f} MiB): {found['sweep']['before']:.0f} MiB resident before (model, libraries), "
        f"{found['sweep']['peak']:.0f} MiB at the peak, so {found['sweep']['peak'] - found['sweep']['before']:.0f} MiB "
        f"for the sweep. A loop of bare forwards: {found['loop']['before']:.0f} and {found['loop']['peak']:.0f} MiB."
    )
    print(found["text"], flush=True)
    return found


def table(found: dict[str, Any]) -> str:
    """`results.md`."""
    machine = found["machine"]
    lines = [
        "# Timings side by side",
        "",
        f"`{found['command']}`, {found['date']}: {machine['cores']} cores, {machine['threads']} thread(s), "
        + ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        + ".",
        "",
        "Ratio = our time divided by the peer's, median over interleaved repetitions; below 1 we are faster. "
        f"Times are medians of {machine['clock']}. The machine may have been busy with other work: read the ratios.",
        "",
        "| task | contender | time (ms) | ours / theirs | target |",
        "|---|---|---:|---:|---|",
    ]
    for row in found["rows"]:
        for name, seconds in row["seconds"].items():
            ratio = row["ratios"].get(name)
            target = row["targets"].get(name)
            goal = "" if target is None else f"<= {target:g} {'met' if ratio <= target else 'MISSED'}"
            task = row["task"] if name == row["ours"] else ""
            shown = "" if ratio is None else f"{ratio:.3f}"
            lines.append(f"| {task} | {name} | {1000 * seconds:.4g} | {shown} | {goal} |")
    lines += ["", "## Notes", ""]
    lines += [f"* {row['task']}: {' '.join(row['notes'])}" for row in found["rows"] if row["notes"]]
    lines += [f"* {entry['text']}" for entry in found["memory"]]
    return "\n".join([*lines, ""])


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repetitions and heads: minutes instead of an hour")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for results.md and results.json")
    parser.add_argument("--repetitions", type=int, help="rounds of the ViT-B/16 sweep")
    parser.add_argument("--memory", choices=("sweep", "loop"), help=argparse.SUPPRESS)
    parser.add_argument("--images", type=int, default=1, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    if chosen.memory:
        with quiet():
            memory_of(chosen.memory, chosen.images)
        return
    few = chosen.quick
    with quiet():
        (little, little_name), large = small(), vit_b_16()
    rows: list[Row] = []
    for batch, repetitions in ((1, 300), (8, 120), (64, 40)):
        with quiet():
            rows.append(forward(little_name, little, batch, repetitions // (4 if few else 1)))
    for batch in (1, 4):
        with quiet():
            rows.append(forward("ViT-B/16", large, batch, 4 if few else 20))
    with quiet():
        rows.append(head_sweep(little_name, little, 32, 3 if few else 15, peers_run=16, others=True))
        rows += cache(little_name, little, 8, 10 if few else 40)
        if not few:
            rows += cache("ViT-B/16", large, 1, 8)
        rounds = chosen.repetitions or (1 if few else 3)
        rows.append(head_sweep("ViT-B/16", large, 1, rounds, peers_run=12 if few else 24, others=not few))
        if not few:
            rows.append(head_sweep("ViT-B/16", large, 2, rounds, peers_run=12, others=False))
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": "python -m benchmarks" + (" --quick" if few else ""),
        "machine": {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "clock": "the process's time on the processor" if torch.get_num_threads() == 1 else "the wall clock",
            "versions": {name: metadata.version(name.replace("_", "-")) for name in PACKAGES},
        },
        "rows": [asdict(row) for row in rows],
        "memory": [] if few else [memory(1, chosen.threads), memory(4, chosen.threads)],
    }
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    (chosen.out / "results.md").write_text(table(found))
    print((chosen.out / "results.md").read_text())


if __name__ == "__main__":
    main()
