"""Harvesting and reading activations beside what one writes by hand: `python -m benchmarks.harvest [--quick]`.

One thread, ViT-B/16 with random weights. The contenders of a row do the same work in turn (A B C, C B A, ...), what
they write is compared, and a row reports medians and the ratio of ours to each. The time of harvests is that of the
process on the processor (all its threads); reading is also timed by the wall clock, with the files in memory and after
the system was asked to drop them. Writes `harvest.md` beside this file.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import mechvis
from benchmarks.models import SIZES
from benchmarks.race import quiet
from mechvis.models.load import wrap

HERE = Path(__file__).parent


class Stop(Exception):
    """Ends a forward pass by hand."""


def vit(name: str) -> nn.Module:
    """A Hugging Face ViT with random weights."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**SIZES[name])).eval()


def hooked(bare: nn.Module, pixels: Tensor, layer: int, batch: int, *, stop: bool) -> Iterator[Tensor]:
    """The stream after a layer, a batch at a time, with a forward hook; with `stop`, nothing after it is computed."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)
        if stop:
            raise Stop

    handle = bare.vit.layers[layer].register_forward_hook(keep)
    try:
        for start in range(0, len(pixels), batch):
            kept.clear()
            try:
                with torch.no_grad():
                    bare(pixels[start : start + batch])
            except Stop:
                pass
            yield kept[0]
    finally:
        handle.remove()


def saved(batches: Iterator[Tensor], out: Path) -> Callable[[], Tensor]:
    """By torch.save, everything at once."""
    torch.save(torch.cat(list(batches)), out)
    return lambda: torch.load(out, weights_only=True).flatten(0, 1)


def mapped(batches: Iterator[Tensor], out: Path, shape: tuple[int, ...]) -> Callable[[], Tensor]:
    """Into a numpy memory map, a batch at a time."""
    file = np.lib.format.open_memmap(out, mode="w+", dtype=np.float32, shape=shape)
    at = 0
    for value in batches:
        file[at : at + len(value)] = value.numpy()
        at += len(value)
    file.flush()
    return lambda: torch.from_numpy(np.load(out, mmap_mode="c")).flatten(0, 1)


def race(contenders: dict[str, Callable[[], Any]], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median seconds of each, in turn."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name in list(contenders)[:: 1 if number % 2 else -1]:
            start = clock()
            contenders[name]()
            if number:  # the first round warms up
                times[name].append(clock() - start)
    return {name: statistics.median(found) for name, found in times.items()}


def one_site(bare: nn.Module, images: int, layer: int, rounds: int, folder: Path) -> tuple[list[str], int]:
    """One site, by us and by hand; also how many images everybody put into a forward pass."""
    model, size = wrap(bare), bare.config.image_size
    pixels = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(0))
    tokens = (size // bare.config.patch_size) ** 2 + 1
    shape, site = (images, tokens, bare.config.hidden_size), f"blocks.{layer}.hook_resid_post"
    shutil.rmtree(folder / "ours", ignore_errors=True)
    store = mechvis.harvest(model, pixels, site, out=folder / "ours", progress=False)
    batch, expected, answers = store.manifest.batch, store[site][:], {}

    def ours() -> None:
        shutil.rmtree(folder / "ours")
        mechvis.harvest(model, pixels, site, out=folder / "ours", progress=False)

    def by_hand(name: str, keep: Callable, *, stop: bool = False, **more: Any) -> Callable[[], None]:
        def work() -> None:
            (folder / name).unlink(missing_ok=True)
            answers[name] = keep(hooked(bare, pixels, layer, batch, stop=stop), folder / name, **more)

        return work

    stopping = "hook that stops the pass, numpy memmap"
    contenders = {
        "mechvis.harvest": ours,
        "hook, torch.save": by_hand("hook, torch.save", saved),
        "hook, numpy memmap": by_hand("hook, numpy memmap", mapped, shape=shape),
        stopping: by_hand(stopping, mapped, stop=True, shape=shape),
    }
    seconds = race(contenders, rounds, time.process_time)
    for name, answer in answers.items():
        far = float((answer() - expected).abs().max() / expected.abs().max())
        if not far < 1e-5:
            raise RuntimeError(f"{name} wrote something else: {far:.1e} of the largest.")
    return rows(f"layer {layer} of {len(bare.vit.layers)}, {images} images", seconds), batch


def many_sites(bare: nn.Module, images: int, rounds: int, folder: Path) -> list[str]:
    """All layers in one pass, and with and without stopping."""
    model, size = wrap(bare), bare.config.image_size
    pixels = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(0))
    last = len(bare.vit.layers) - 1

    def work(sites: Any) -> Callable[[], None]:
        def run() -> None:
            shutil.rmtree(folder / "ours", ignore_errors=True)
            mechvis.harvest(model, pixels, sites, out=folder / "ours", progress=False)

        return run

    contenders = {
        f"all {last + 1} residual streams in one pass": work("blocks.*.hook_resid_post"),
        "the last one alone": work(f"blocks.{last}.hook_resid_post"),
        "the activations of the MLP before it": work(f"blocks.{last}.mlp.hook_post"),
        "the first one alone": work("blocks.0.hook_resid_post"),
    }
    return rows(f"{images} images", race(contenders, rounds, time.process_time))


def reads(bare: nn.Module, images: int, rounds: int, folder: Path) -> tuple[list[str], str]:
    """One epoch of shuffled batches, and reading the files from front to back."""
    model, size, step = wrap(bare), bare.config.image_size, 4096
    one = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    store = mechvis.harvest(
        model, one.expand(images, -1, -1, -1), "hook_embed", out=folder / "read", dtype="bfloat16", progress=False
    )
    rows_there = len(store["hook_embed"])
    whole = store["hook_embed"][:].view(torch.int16).numpy()
    np.save(folder / "whole.npy", whole)
    del whole
    buffer = memoryview(bytearray(2**22))

    def raw() -> None:
        for path in store.paths():
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    def batches() -> None:
        seen = sum(len(batch) for batch in store.batches("hook_embed", size=step))
        assert seen == rows_there

    def random_rows() -> None:
        file = np.load(folder / "whole.npy", mmap_mode="r")
        order = np.random.default_rng(0).permutation(rows_there)
        for start in range(0, rows_there, step):
            torch.from_numpy(file[order[start : start + step]]).view(torch.bfloat16)

    def whole_file() -> None:
        file = torch.from_numpy(np.load(folder / "whole.npy")).view(torch.bfloat16)
        order = torch.randperm(rows_there)
        for start in range(0, rows_there, step):
            file.index_select(0, order[start : start + step])

    def cold(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            for path in [*store.paths(), folder / "whole.npy"]:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            work()

        return run

    contenders = {
        "store.batches (shuffled, checked)": batches,
        "raw read of the files": raw,
        "random rows of a numpy memmap": random_rows,
        "whole array in memory, shuffled": whole_file,
    }
    size_of = f"{store.n_bytes / 1e6:,.0f} MB, batches of {step}"
    lines = rows(f"{size_of}; files in memory, processor time", race(contenders, rounds, time.process_time))
    lines += rows(f"{size_of}; files in memory, wall clock", race(contenders, rounds, time.perf_counter))
    dropped = {name: cold(work) for name, work in contenders.items()}
    seconds = race(dropped, max(2, rounds // 2), time.perf_counter)
    lines += rows(f"{size_of}; files dropped from memory before, wall clock", seconds)
    first = next(iter(seconds))
    return (
        lines,
        f"{store.n_bytes / 1e9 / seconds[first]:.2f} GB/s, {rows_there / 1e6 / seconds[first]:.2f} million rows/s",
    )


def rows(task: str, seconds: dict[str, float]) -> list[str]:
    """Lines of the table; the first contender is ours."""
    ours = next(iter(seconds.values()))
    lines = [f"| {task} | {name} | {took:.3g} | {ours / took:.3f} |" for name, took in seconds.items()]
    print("\n".join(lines), flush=True)
    return lines


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the toy model: does it run at all")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of harvest.md")
    quick, out = (given := parser.parse_args()).quick, given.out
    torch.set_num_threads(1)
    bare, rounds, images = vit("toy" if quick else "ViT-B/16"), 2 if quick else 3, 32 if quick else 48
    last = len(bare.vit.layers) - 1
    with tempfile.TemporaryDirectory() as place, quiet():
        folder = Path(place)
        middle, batch = one_site(bare, images, last // 2, rounds, folder)
        end, _ = one_site(bare, images, last, rounds, folder)
        many = many_sites(bare, images, rounds, folder)
        read, cold = reads(bare, 128 if quick else 1024, 2 * rounds, folder)
    head = ["", "| task | who | seconds | ours / theirs |", "|---|---|---:|---:|"]
    lines = [
        "# Harvesting and reading activations",
        "",
        f"`python -m benchmarks.harvest`: {'a toy model' if quick else 'ViT-B/16, random weights'}, one thread,",
        f"medians of {rounds} rounds in turn, torch {torch.__version__}. What everybody wrote was compared (1e-5 of",
        "the largest).",
        "",
        f"One site, float32, {batch} images per forward pass, time of the process on the processor:",
        *head, *middle, *end,
        "",
        "What several sites cost in one pass, and what stopping saves (the first is *ours* here):",
        *head, *many,
        "",
        f"Reading, bfloat16, pools of 256 MB, blocks of 1 MB, {2 * rounds} rounds (cold: {rounds}). From a cold disk",
        f"`store.batches` gave {cold}.",
        *head, *read,
        "",
    ]  # fmt: skip
    (out / "harvest.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
