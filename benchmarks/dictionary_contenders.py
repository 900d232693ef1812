"""One contender of `benchmarks.dictionaries`, in a process of its own: `python dictionary_contenders.py NAME FOLDER`.

Needs torch, safetensors and the library that it is about; run by file, so that nothing of mechvis is imported where it
is not asked for. Reads `start.safetensors` (rows, held-out rows, initial weights) and `plan.json` from the folder,
then lines of JSON from the standard input:

    {"steps": 10}     takes that many steps, answers the seconds of each (of the processor; on a GPU of the clock)
    {"judge": true}   answers the FVU on the held-out rows, and how many latents are active

Every contender starts from the same weights (unit rows of W_dec = W_enc, b_dec = the mean), sees the same batches in
the same order, and takes Adam with one learning rate, no schedule and no loss of dead latents.
"""

import importlib.util
import json
import os
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Step = Callable[[Tensor], Any]
Write = Callable[[Tensor], tuple[Tensor, float]]
"""Rows to what is written for them, and active latents per row."""


def sae_lens(plan: dict, start: dict[str, Tensor], bf16: bool) -> tuple[Step, Write]:
    """`SAETrainer.step`: everything but logging and saving."""
    from sae_lens import LoggingConfig, SAETrainer, TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig

    config = TopKTrainingSAEConfig(
        d_in=plan["d"], d_sae=plan["n"], k=plan["k"], device=plan["device"], aux_loss_coefficient=0.0
    )
    sae = TopKTrainingSAE(config)
    put(sae.W_enc, start["W"].T), put(sae.W_dec, start["W"]), put(sae.b_dec, start["mean"]), put(sae.b_enc, None)
    settings = SAETrainerConfig(
        total_training_samples=10**9, train_batch_size_samples=plan["batch"], lr=plan["lr"], lr_end=plan["lr"],
        device=plan["device"], autocast=bf16, logger=LoggingConfig(log_to_wandb=False),
    )  # fmt: skip
    trainer = SAETrainer(settings, sae, iter(()))

    def write(x: Tensor) -> tuple[Tensor, float]:
        codes = sae.encode(x)
        codes = codes.to_dense() if codes.is_sparse else codes
        return sae.decode(codes), active(codes)

    return trainer.step, write


def dictionary_learning(plan: dict, start: dict[str, Tensor], bf16: bool) -> tuple[Step, Write]:
    """`TopKTrainer.update`; it clips gradients at 1 always."""
    from dictionary_learning.trainers.top_k import TopKTrainer

    trainer = TopKTrainer(
        steps=10**6, activation_dim=plan["d"], dict_size=plan["n"], k=plan["k"], layer=0, lm_name="none", lr=plan["lr"],
        auxk_alpha=0.0, warmup_steps=1, seed=0, device=plan["device"],
    )  # fmt: skip
    ae = trainer.ae
    put(ae.encoder.weight, start["W"]), put(ae.encoder.bias, None)
    put(ae.decoder.weight, start["W"].T), put(ae.b_dec, start["mean"])
    trainer.optimizer.param_groups[0]["lr"] = plan["lr"]
    trainer.scheduler.step = lambda: None
    number = [0]

    def step(x: Tensor) -> None:
        number[0] += 1  # from 1: step 0 would put another bias in the place of the mean
        with torch.autocast(torch.device(plan["device"]).type, torch.bfloat16, enabled=bf16):
            trainer.update(number[0], x)

    def write(x: Tensor) -> tuple[Tensor, float]:
        codes = ae.encode(x)
        return ae.decode(codes), active(codes)

    return step, write


def overcomplete(plan: dict, start: dict[str, Tensor], bf16: bool) -> tuple[Step, Write]:
    """The body of `train_sae`, without clipping and monitoring. It has no bias to write with: rows are centred."""
    spec = importlib.util.find_spec("overcomplete")
    package = types.ModuleType("overcomplete")  # its __init__ wants torchvision
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["overcomplete"] = package
    from overcomplete.sae import TopKSAE

    sae = TopKSAE(plan["d"], nb_concepts=plan["n"], top_k=plan["k"], device=plan["device"])
    (linear,) = (m for m in sae.encoder.modules() if isinstance(m, torch.nn.Linear))
    put(linear.weight, start["W"]), put(linear.bias, None), put(sae.dictionary._weights, start["W"])
    optimiser = torch.optim.Adam(sae.parameters(), lr=plan["lr"])
    mean = start["mean"].to(plan["device"])

    def step(x: Tensor) -> None:
        sae.train()
        x = x - mean
        optimiser.zero_grad()
        with torch.autocast(torch.device(plan["device"]).type, torch.bfloat16, enabled=bf16):
            _, _, found = sae(x)
        (x - found).square().mean().backward()
        optimiser.step()

    def write(x: Tensor) -> tuple[Tensor, float]:
        sae.eval()
        _, codes, found = sae(x - mean)
        return found + mean, active(codes)

    return step, write


def sparsify(plan: dict, start: dict[str, Tensor], bf16: bool) -> tuple[Step, Write]:
    """The loop of its trainer, for rows."""
    from sparsify import SparseCoder, SparseCoderConfig

    sae = SparseCoder(plan["d"], SparseCoderConfig(num_latents=plan["n"], k=plan["k"]), device=plan["device"])
    put(sae.encoder.weight, start["W"]), put(sae.encoder.bias, None)
    put(sae.W_dec, start["W"]), put(sae.b_dec, start["mean"])
    optimiser = torch.optim.Adam(sae.parameters(), lr=plan["lr"])

    def step(x: Tensor) -> None:
        sae.set_decoder_norm_to_unit_norm()
        with torch.autocast(torch.device(plan["device"]).type, torch.bfloat16, enabled=bf16):
            out = sae(x)
        out.fvu.backward()
        sae.remove_gradient_parallel_to_decoder_directions()
        optimiser.step()
        optimiser.zero_grad()

    def write(x: Tensor) -> tuple[Tensor, float]:
        sae.set_decoder_norm_to_unit_norm()
        out = sae(x)
        return out.sae_out, float((out.latent_acts > 0).sum(1).float().mean())

    return step, write


def dense(plan: dict, start: dict[str, Tensor], bf16: bool) -> tuple[Step, Write]:
    """What a good dense trainer would be: products in bfloat16 both ways, float32 masters, torch's fused Adam."""
    names = ("W_enc", "W_dec", "b_enc", "b_dec")
    values = (start["W"], start["W"], torch.zeros(plan["n"]), start["mean"])
    W_enc, W_dec, b_enc, b_dec = (
        torch.nn.Parameter(value.to(plan["device"]).clone()) for _, value in zip(names, values, strict=True)
    )
    optimiser = torch.optim.Adam([W_enc, W_dec, b_enc, b_dec], lr=plan["lr"], fused=True)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        pre = torch.nn.functional.linear(x - b_dec, W_enc, b_enc)
        best, at = pre.topk(plan["k"], dim=1, sorted=False)
        codes = torch.zeros_like(pre).scatter(1, at, best.relu())
        return codes @ W_dec + b_dec, codes

    def step(x: Tensor) -> None:
        with torch.autocast(torch.device(plan["device"]).type, torch.bfloat16, enabled=bf16):
            found, _ = run(x)
        (x - found.float()).square().sum(1).mean().backward()
        with torch.no_grad():
            W_dec.grad -= (W_dec.grad * W_dec).sum(1, keepdim=True) * W_dec
        optimiser.step()
        optimiser.zero_grad()
        with torch.no_grad():
            W_dec.div_(W_dec.norm(dim=1, keepdim=True))

    def write(x: Tensor) -> tuple[Tensor, float]:
        found, codes = run(x)
        return found, active(codes)

    return step, write


def mechvis(
    plan: dict, start: dict[str, Tensor], bf16: bool, fast: bool = True, decoder: str = "unit"
) -> tuple[Step, Write]:
    """`Learner.step`: with its log, its counters and the norm of gradients."""
    import sae
    from sae.data import Rows
    from sae.training.job import Learner

    architecture = sae.TopK(n_latents=plan["n"], k=plan["k"], aux=0.0, normalise="none", decoder=decoder)
    d = sae.start(architecture, {"site": start["rows"][:4096].to(plan["device"])}, seed=0)
    put(d.W_enc, start["W"]), put(d.W_dec, start["W"]), put(d.b_dec, start["mean"]), put(d.b_enc, None)
    settings = sae.Training(
        tokens=10**9, batch=plan["batch"], lr=plan["lr"], lr_warm_up=0, decay=0.0, fast=fast,
        precision="bfloat16" if bf16 else "float32", clip=plan.get("clip"),
    )  # fmt: skip
    learner = Learner(d, settings)
    number = [0]

    def step(x: Tensor) -> None:
        learner.step(number[0], Rows(activations={"site": x}))
        number[0] += 1

    def write(x: Tensor) -> tuple[Tensor, float]:
        codes = d.encode(x)
        return d.decode(codes), active(codes)

    return step, write


CONTENDERS: dict[str, tuple[Callable[..., tuple[Step, Write]], bool]] = {
    "SAELens": (sae_lens, False),
    "dictionary_learning": (dictionary_learning, False),
    "overcomplete": (overcomplete, False),
    "sparsify": (sparsify, False),
    "SAELens, bf16 autocast": (sae_lens, True),
    "dictionary_learning, bf16 autocast": (dictionary_learning, True),
    "overcomplete, bf16 autocast": (overcomplete, True),
    "sparsify, bf16 autocast": (sparsify, True),
    "fair dense, bf16": (dense, True),
    "mechvis, plain twin": (lambda *args: mechvis(*args, fast=False), False),
    "mechvis": (mechvis, False),
    "mechvis, bf16 encoder": (mechvis, True),
    "mechvis, free rows": (lambda *args: mechvis(*args, decoder="free"), False),
}
"""By name: what makes it, and whether products are in bfloat16."""
OURS = ("fair dense, bf16", "mechvis, plain twin", "mechvis", "mechvis, bf16 encoder", "mechvis, free rows")
"""Those that run in the Python of mechvis."""


def put(parameter: Tensor, value: Tensor | None) -> None:
    """Fill a parameter; zeros for None."""
    with torch.no_grad():
        parameter.zero_() if value is None else parameter.copy_(value)


def active(codes: Tensor) -> float:
    """Latents above zero per row."""
    return float((codes > 0).sum(1).float().mean())


def main() -> None:
    """Build the contender, say so, and answer until the input ends."""
    from safetensors.torch import load_file

    name, folder = sys.argv[1], Path(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")  # libraries print; answers go another way
    os.dup2(2, 1)
    plan, start = json.loads((folder / "plan.json").read_text()), load_file(folder / "start.safetensors")
    torch.set_num_threads(plan["threads"])
    torch.manual_seed(0)
    on_gpu = plan["device"] != "cpu"
    if on_gpu and plan.get("tf32", True):
        torch.backends.cuda.matmul.allow_tf32 = True
    make, bf16 = CONTENDERS[name]
    step, write = make(plan, start, bf16)
    batches = [rows.to(plan["device"]) for rows in start["rows"].split(plan["batch"])]
    held_out = start["held_out"].to(plan["device"])
    clock = time.perf_counter if on_gpu else time.process_time
    done = 0

    def say(found: dict) -> None:
        print(json.dumps(found), file=answers, flush=True)

    def timed(x: Tensor) -> float:
        if on_gpu:
            torch.cuda.synchronize()
        began = clock()
        step(x)
        if on_gpu:
            torch.cuda.synchronize()
        return clock() - began

    def judge() -> dict[str, float]:
        with torch.no_grad():
            parts = [write(x) for x in held_out.split(plan["batch"])]
        y, found = held_out.double(), torch.cat([part for part, _ in parts]).double()
        error, spread = (y - found).square().sum(), (y - y.mean(0)).square().sum()
        return {"fvu": float(error / spread), "l0": sum(count for _, count in parts) / len(parts)}

    say({"ready": name, "torch": torch.__version__})
    for line in sys.stdin:
        asked = json.loads(line)
        if "judge" in asked:
            say(judge())
        else:
            seconds = []
            for _ in range(asked["steps"]):
                seconds.append(timed(batches[done % len(batches)]))
                done += 1
            say({"seconds": seconds})


if __name__ == "__main__":
    main()
