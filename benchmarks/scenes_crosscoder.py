"""What a crosscoder finds between a model with and one without a shortcut: `python -m benchmarks.scenes_crosscoder`.

1. The backbone of `scenes-vit` is trained on, briefly and twice, with a new classifier: on scenes whose background
   says nothing about the shape (*without* the shortcut), and on scenes where it agrees in 95 % (*with* it).
2. A crosscoder learns both models' class tokens after the last block, on the same scenes with independent backgrounds.
3. Latents that only the second model has, by latent scaling; what they encode, by the labels of other scenes.
4. They are taken out of the second model, on conflicting scenes: accuracy with an interval, beside as many random
   latents of similar activity, and as many latents of the shape. A swap of backgrounds confirms them in both models.
5. A transcoder in place of one MLP of the bundled `scenes-vit`, beside the MLP's mean.

Writes `docs/scenes_crosscoder.md`, `.json` and the figures beside it.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import mechvis
import sae
from benchmarks.scenes_crosscoder_page import page
from mechvis import edits, files
from mechvis.cli import say
from mechvis.stats import bootstrap
from sae.architectures import BatchTopKCrosscoder, TopK
from sae.diffing import SwapSite, causal_swap, model_diff, shuffled_pairs
from sae.diffing.swap import similar

DOCS = Path(__file__).parent.parent / "docs"
SITE = "blocks.3.hook_resid_post"
IN, OUT = "blocks.2.ln2.hook_normalized", "blocks.2.hook_mlp_out"
STEPS, RATE, BATCH = 60, 5e-4, 64
SCENES = 2600
ROWS, LATENTS, K, TOKENS, DRAWS = 4000, 96, 5, 400_000, 10
ENCODES = 0.1
"""A latent is about the label that explains most of its variance, if that is at least this share."""
JUDGE = 1000
LABELS = ("background", "shape", "colour")
MODELS = ("without", "with")


def trained(correlation: float | None, seed: int) -> Any:
    """The bundled backbone with a new classifier, all of it trained on shapes for a minute."""
    from transformers import ViTForImageClassification

    from mechvis.data.scenes import render, sample_factors
    from mechvis.models import zoo
    from mechvis.models.training.backbone import to_pixels

    module = ViTForImageClassification.from_pretrained(zoo.path("scenes-vit")).train()
    torch.manual_seed(0)
    module.classifier.reset_parameters()
    factors = sample_factors(SCENES, seed=seed, correlation=correlation, training=True)
    pixels, shapes = to_pixels(render(factors)[0]), torch.from_numpy(factors.shape)
    optimiser = torch.optim.AdamW(module.parameters(), lr=RATE, weight_decay=0.05)
    for step in range(STEPS):
        at = torch.from_numpy(np.random.default_rng(step).integers(0, len(pixels), BATCH))
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 10) * (1 - step / STEPS)
        F.cross_entropy(module(pixel_values=pixels[at]).logits, shapes[at]).backward()
        optimiser.step()
        optimiser.zero_grad()
    return mechvis.load(module.eval(), preprocess=mechvis.load("scenes-vit").preprocess)


def class_tokens(models: dict[str, Any], images: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Class tokens `[image d]` after the last block, and logits, of every model."""
    rows, logits = {}, {}
    for name, model in models.items():
        parts = [model.run(images[at : at + 200], capture=[SITE]) for at in range(0, len(images), 200)]
        rows[f"{name}/{SITE}"] = torch.cat([run.cache[SITE][:, 0] for run in parts]).detach()
        logits[name] = torch.cat([run.output for run in parts]).detach()
    return rows, logits


def labels_of(images: Any) -> dict[str, np.ndarray]:
    """What the scenes show."""
    columns = images.columns
    return {"background": columns["background"], "shape": images.labels, "colour": columns["colour"]}


def explained(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Share of each column's variance that the label explains (η²), 0 for a column that does not vary."""
    centred = values - values.mean(0)
    between = sum((labels == v).sum() * centred[labels == v].mean(0) ** 2 for v in np.unique(labels))
    whole = (centred**2).sum(0)
    return np.where(whole > 0, between / np.where(whole > 0, whole, 1), 0)


def accuracy(logits: Tensor, images: Any) -> dict[str, float]:
    """Share of right shapes, with a 95 % interval over images."""
    right = (logits.argmax(-1).numpy() == images.labels).astype(float)
    found = bootstrap(right[None], seed=0)
    return {"value": float(found.effect[0]), "low": float(found.low[0]), "high": float(found.high[0]), "n": len(right)}


def without_latents(d: Any, model: Any, rows: dict[str, Tensor], latents: Any, name: str) -> Tensor:
    """Logits of a model with what some latents write taken off its class token: that alone reaches the classifier."""
    with torch.no_grad():
        codes = d.encode(rows)
        less = codes.clone()
        less[:, list(latents)] = 0
        change = d.ends.split(d.decode(codes) - d.decode(less))[f"{name}/{SITE}"]
    return model.run((rows[f"{name}/{SITE}"] - change)[:, None], start_at_layer=4).output.detach()


def crosscoder() -> dict[str, Any]:
    """Points 1 to 4."""
    models = {"without": trained(None, 905), "with": trained(0.95, 901)}
    return compared(models)


def compared(models: dict[str, Any]) -> dict[str, Any]:
    """Points 2 to 4, for two models that were trained."""
    train, look = mechvis.data.scenes(ROWS, seed=210), mechvis.data.scenes(2 * JUDGE, seed=211)
    rows, _ = class_tokens(models, train)
    others, _ = class_tokens(models, look)
    began = time.process_time()
    d, diff, control, log = diffed(rows, others)
    seconds = time.process_time() - began
    table, codes, labels = diff.table, d.encode(others).detach().numpy(), labels_of(look)
    eta = {name: explained(codes, values) for name, values in labels.items()}
    alive = (table["class"] != "rare").to_numpy()
    most = np.stack([eta[name] for name in LABELS])
    about = np.where(alive & (most.max(0) >= ENCODES), np.array(LABELS)[most.argmax(0)], "nothing named")
    stronger = (about == "background") & (table["stronger"] == "with").to_numpy()
    groups = {
        "background, only with": np.intersect1d(diff.latents("only with"), np.flatnonzero(about == "background")),
        "background, twice as much with": np.flatnonzero(stronger & (table["ratio_error"] < 0.5).to_numpy()),
        "background, all that are stronger with": np.flatnonzero(stronger),
    }
    size = codes.mean(0) * d.ends.split(d.W_dec.detach())[f"with/{SITE}"].norm(dim=1).numpy()
    shapes = np.flatnonzero(about == "shape")
    count = max(map(len, groups.values()))
    groups["as many of the shape"] = shapes[np.argsort(-size[shapes], kind="stable")[:count]]
    groups = {name: [int(i) for i in latents] for name, latents in groups.items() if len(latents)}
    plain, lines = ablated(d, models, groups, size)
    shares = {
        model: {name: float(explained_share(others[f"{model}/{SITE}"].numpy(), v)) for name, v in labels.items()}
        for model in MODELS
    }
    return {
        "diff": diff, "control": control, "about": about.tolist(), "eta": eta, "groups": groups, "plain": plain,
        "ablated": lines, "seconds": seconds, "fvu_of_training": log["fvu"][-1], "shares": shares,
        "swap": swapped(d, models, groups),
    }  # fmt: skip


def diffed(rows: dict[str, Tensor], others: dict[str, Tensor]) -> tuple[Any, Any, Any, Any]:
    """The crosscoder, the comparison through it with a second seed, and the one of shuffled pairs."""
    architecture = BatchTopKCrosscoder(n_latents=LATENTS, k=K)
    settings = sae.Training(tokens=TOKENS, batch=512, lr=5e-3, init_rows=len(rows[f"with/{SITE}"]))
    jobs = {"first": architecture, "second": sae.Job(architecture=architecture, seed=1)}
    run = sae.train(rows, jobs, settings, progress=False)
    # Pairs that have nothing in common hold twice as much to say: with as few latents they would be forced to share.
    twice = BatchTopKCrosscoder(n_latents=2 * LATENTS, k=2 * K)
    shuffled = sae.train(shuffled_pairs(rows, keep="with"), twice, settings, progress=False).dictionary
    control = model_diff(shuffled, shuffled_pairs(others, keep="with", seed=1), batch=100)
    d = run.dictionaries["first"]
    return d, model_diff(d, others, other=run.dictionaries["second"], control=control, batch=100), control, run.log


def ablated(d: Any, models: dict[str, Any], groups: dict[str, list[int]], size: np.ndarray) -> tuple[dict, list]:
    """Accuracy of both models as they are, and of the second without each group, beside random groups."""
    judged = {
        "conflicting": mechvis.data.scenes(JUDGE, seed=212, group="conflicting"),
        "agreeing": mechvis.data.scenes(JUDGE // 2, seed=213, group="consistent"),
    }
    plain, lines = {}, []
    for kind, images in judged.items():
        acts, logits = class_tokens(models, images)
        plain |= {f"{model}, {kind}": accuracy(logits[model], images) for model in MODELS}
        for name, latents in groups.items():
            found = accuracy(without_latents(d, models["with"], acts, latents, "with"), images)
            drawn = [
                accuracy(without_latents(d, models["with"], acts, some, "with"), images)["value"]
                for some in similar(size, latents, DRAWS, 0)
            ]
            other = accuracy(without_latents(d, models["without"], acts, latents, "without"), images)["value"]
            lines.append({"scenes": kind, "latents": name, "count": len(latents), **found,
                          "random": float(np.mean(drawn)), "random_low": min(drawn), "random_high": max(drawn),
                          "same_in_without": other})  # fmt: skip
    return plain, lines


def swapped(d: Any, models: dict[str, Any], groups: dict[str, list[int]]) -> list[dict[str, Any]]:
    """Backgrounds exchanged through the latents, in both models."""
    pairs = mechvis.data.scene_pairs(200, seed=214, change="background")
    sites = {f"{name}/{SITE}": SwapSite(model=models[name], site=SITE) for name in MODELS}
    record = causal_swap(d, sites, pairs.clean, pairs.corrupt, groups, tokens=[0], draws=3)
    return record.table.to_dicts()


def explained_share(rows: np.ndarray, labels: np.ndarray) -> float:
    """Share of the variance of all columns together that the label explains."""
    return float((explained(rows, labels) * rows.var(0)).sum() / rows.var(0).sum())


def transcoder() -> dict[str, Any]:
    """Point 5: one MLP of the bundled model."""
    model = mechvis.load("scenes-vit")
    train, judge = mechvis.data.scenes(1000, seed=220), mechvis.data.scenes(JUDGE, seed=221)

    def both(images: Any) -> dict[str, Tensor]:
        runs = [model.run(images[at : at + 200], capture=[IN, OUT]) for at in range(0, len(images), 200)]
        return {site: torch.cat([run.cache[site] for run in runs]).detach() for site in (IN, OUT)}

    there, here = both(train), both(judge)
    rows = {site: t.flatten(0, 1) for site, t in there.items()}
    settings = sae.Training(tokens=TOKENS, batch=1024, lr=2e-3)
    jobs = {
        f"{kind}, k = {k}": sae.Job(
            architecture=TopK(n_latents=512, k=k, normalise="mean_norm", skip=kind == "skip transcoder"),
            reads=IN,
            writes=OUT,
        )
        for kind in ("transcoder", "skip transcoder")
        for k in (16, 32)
    }
    run = sae.train(rows, jobs, settings, progress=False)
    mean = there[OUT].mean(0, keepdim=True)
    found = []
    true = here[OUT]
    ways = {name: d(here[IN]).detach() for name, d in run.dictionaries.items()}
    ways = {"the MLP itself": None, **ways, "its mean, token by token": mean.expand_as(true)}
    for name, written in ways.items():
        parts = []
        for at in range(0, len(judge), 200):
            made = [] if written is None else [edits.call(OUT, lambda x, put=written[at : at + 200]: put.to(x))]
            parts.append(model.run(judge[at : at + 200], edits=made).output.detach())
        left = 0 * true if written is None else true - written
        error = float(left.double().square().sum() / (true - true.mean((0, 1))).double().square().sum())
        d = run.dictionaries.get(name)
        l0 = None if d is None else float((d.encode(here[IN].flatten(0, 1)[::7]) != 0).float().sum(1).mean())
        found.append({"in_its_place": name, "fvu": error, "l0": l0, **accuracy(torch.cat(parts), judge)})
    return {"lines": found, "rows": len(rows[IN]), "judged": len(judge)}


def main() -> None:
    """Measure, draw, write the page."""
    torch.set_num_threads(1)
    started = time.process_time()  # of this one thread: the clock on the wall also counts what others do
    found = {"crosscoder": crosscoder(), "transcoder": transcoder()}
    write(found, time.process_time() - started)


def write(found: dict[str, Any], seconds: float) -> None:
    """The page, the numbers and the figures."""
    import matplotlib as mpl

    from mechvis.plots.model_diff import model_diff_histogram

    table, about = found["crosscoder"]["diff"].table, np.array(found["crosscoder"]["about"])
    alive = (table["class"] != "rare").to_numpy()
    with mpl.rc_context({"svg.hashsalt": "mechvis"}):
        delta = table["relative_norm"].to_numpy()[alive]
        figure = model_diff_histogram(delta, about[alive].tolist(), first="without", second="with")
        figure.savefig(DOCS / "scenes_crosscoder.svg", metadata={"Date": None})
    settings = {"steps": STEPS, "rate": RATE, "batch": BATCH, "scenes": SCENES, "rows": ROWS, "latents": LATENTS,
                "k": K, "tokens": TOKENS, "draws": DRAWS, "site": SITE, "seconds": round(seconds)}  # fmt: skip
    lines, numbers = page(found, settings)
    files.write_text(DOCS / "scenes_crosscoder.md", "\n".join(lines) + "\n")
    files.write_json(DOCS / "scenes_crosscoder.json", numbers)
    say("\n".join(lines))
    say(f"\n{seconds:.0f} s")


if __name__ == "__main__":
    main()
