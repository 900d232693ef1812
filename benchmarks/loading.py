"""What loading costs beside the bare model: time and memory, on ViT-B/16 from a folder: `python -m benchmarks.loading`.

Every measurement is a process of its own, so that nothing is warm or shared. The time is the median over rounds of the
process's time on the processor; memory is what is resident afterwards (and at the peak) above the bare model's.
Writes `loading.md` beside this file.
"""

import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
ROUNDS = 5
WAYS = {
    "bare": "bare model: `ViTForImageClassification.from_pretrained(folder)` and a first forward of 2 images",
    "load": "`mechvis.load(folder)`: the same, wrapped, with image processor and parity check (2 images, 3 forwards)",
    "wrap": "`mechvis.load(module)` of a module in memory, parity check included",
    "map": "of that, without the parity check",
    "bridge": "transformer_lens `TransformerBridge.boot_transformers(hf_model=module)`, a module in memory",
}


def one(way: str, folder: str) -> None:
    """In a process of its own: do it, print time and memory."""
    import torch

    torch.set_num_threads(1)
    from benchmarks import peers
    from benchmarks.run import quiet, resident

    with quiet():
        from transformers import ViTForImageClassification

        import mechvis
        import mechvis.hooked
        from mechvis.models import load

        bare = None if way in ("bare", "load") else ViTForImageClassification.from_pretrained(folder).eval()
        if way == "bridge":
            import transformer_lens.model_bridge  # noqa: F401  warm, as mechvis is
        if way == "map":
            load.check_parity = lambda model: None
        with torch.no_grad():
            torch.nn.Linear(768, 768)(torch.randn(8, 768))
        if bare is not None:
            with torch.no_grad():
                bare(torch.randn(2, 3, 224, 224))
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        before, start = resident("VmRSS"), time.process_time()
        if way == "bare":
            kept = ViTForImageClassification.from_pretrained(folder).eval()
            with torch.no_grad():
                kept(torch.randn(2, 3, 224, 224))
        elif way == "load":
            kept = mechvis.load(folder)
        elif way == "bridge":
            kept = peers.bridge(bare, copied=False)
        else:
            kept = mechvis.load(bare)
        seconds = time.process_time() - start
        peak = resident("VmHWM")
        gc.collect()
        after = resident("VmRSS")
    assert kept is not None
    print(json.dumps({"seconds": seconds, "kept": after - before, "peak": peak - before}))


def main() -> None:
    """The command."""
    if len(sys.argv) == 3:
        one(*sys.argv[1:])
        return
    from benchmarks.run import quiet, vit_b_16

    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        with quiet():
            model = vit_b_16()
            model.save_pretrained(folder)
            from transformers import ViTImageProcessorPil

            ViTImageProcessorPil().save_pretrained(folder)
            weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
        for _ in range(ROUNDS):
            for way, rounds in found.items():
                command = [sys.executable, "-W", "ignore", "-m", "benchmarks.loading", way, folder]
                done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE.parent)
                rounds.append(json.loads(done.stdout.splitlines()[-1]))
    lines = [
        "# What loading costs",
        "",
        f"`python -m benchmarks.loading`: ViT-B/16 ({weights:.0f} MiB of weights), one thread, medians of {ROUNDS}",
        "processes each. *Kept* is what stays resident, *peak* the most in between, both above what was resident",
        "before (the bare model included where it is in memory already).",
        "",
        "| what | time (s) | kept (MiB) | peak (MiB) |",
        "|---|---:|---:|---:|",
    ]
    for way, text in WAYS.items():
        seconds, kept, peak = (statistics.median(r[key] for r in found[way]) for key in ("seconds", "kept", "peak"))
        lines.append(f"| {text} | {seconds:.2f} | {kept:.0f} | {peak:.0f} |")
    (HERE / "loading.md").write_text("\n".join([*lines, ""]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
