"""Side by side with ViT-Prisma, in the second environment: `.venv-towers/bin/python -m benchmarks.prisma`.

ViT-Prisma needs timm, and its release asks for an old plotly that is not used here, so it is installed by hand:
`.venv-towers/bin/python -m pip install --no-deps vit-prisma`. Its model gets the weights of the bare Hugging Face
model, and every task checks that all contenders computed the same. Writes `prisma.md` beside this file.
"""

import argparse
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from mechvis.testing.operators import declare_torchvision_operators

declare_torchvision_operators()  # before anything imports torchvision

import mechvis  # noqa: E402
from benchmarks import peers  # noqa: E402
from benchmarks.run import Row, pixels_for, quiet, race, small, vit_b_16  # noqa: E402
from mechvis.models.load import wrap  # noqa: E402

HERE = Path(__file__).parent


def prisma(bare: nn.Module, model: Any) -> nn.Module:
    """ViT-Prisma's model with the weights of a Hugging Face ViT."""
    from vit_prisma.configs.HookedViTConfig import HookedViTConfig
    from vit_prisma.models.base_vit import HookedViT

    config = bare.config
    made = HookedViT(
        HookedViTConfig(
            n_layers=config.num_hidden_layers,
            d_model=config.hidden_size,
            d_head=model.cfg.d_head,
            n_heads=config.num_attention_heads,
            d_mlp=config.intermediate_size,
            eps=config.layer_norm_eps,
            patch_size=config.patch_size,
            image_size=config.image_size,
            n_classes=config.num_labels,
            return_type="class_logits",
            use_wandb=False,
        )
    )
    embeddings, state = bare.vit.embeddings, {}
    state["cls_token"], state["pos_embed.W_pos"] = embeddings.cls_token, embeddings.position_embeddings[0]
    for name in ("weight", "bias"):
        state[f"embed.proj.{name}"] = getattr(embeddings.patch_embeddings.projection, name)
    for i, (layer, block) in enumerate(zip(bare.vit.layers, model.blocks, strict=True)):
        for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
            state[f"blocks.{i}.attn.{name}"] = getattr(block.attn, name)
        for ours, theirs in (("layernorm_before", "ln1"), ("layernorm_after", "ln2")):
            norm = getattr(layer, ours)
            state[f"blocks.{i}.{theirs}.w"], state[f"blocks.{i}.{theirs}.b"] = norm.weight, norm.bias
        for ours, theirs in (("fc1", "in"), ("fc2", "out")):
            linear = getattr(layer.mlp, ours)
            state[f"blocks.{i}.mlp.W_{theirs}"] = rearrange(linear.weight, "out in -> in out")
            state[f"blocks.{i}.mlp.b_{theirs}"] = linear.bias
    state["ln_final.w"], state["ln_final.b"] = bare.vit.layernorm.weight, bare.vit.layernorm.bias
    state["head.W_H"], state["head.b_H"] = bare.classifier.weight.T, bare.classifier.bias
    made.load_state_dict(state)
    return made.eval()


def compare(name: str, bare: nn.Module, batch: int, images: int, repetitions: int, heads: int) -> list[Row]:
    """Forward, caches and head sweep."""
    model, pixels = wrap(bare), pixels_for(bare, batch)
    other = prisma(bare, model)
    with torch.no_grad():
        far = float((other(pixels) - bare(pixels).logits).abs().max() / bare(pixels).logits.abs().max())
        if not far < 1e-4:
            raise RuntimeError(f"{name}: ViT-Prisma's logits differ by {far:.1e} of the largest.")
        site = f"blocks.{model.cfg.n_layers // 2}.attn.hook_z"
        every = [found for found in model.graph.names if not found.endswith("hook_result")]
        rows = [
            race(
                f"{name}: forward, batch {batch}",
                {
                    "mechvis": lambda: model(pixels),
                    "bare model": lambda: bare(pixels),
                    "ViT-Prisma": lambda: other(pixels),
                },
                repetitions=repetitions,
            ),
            race(
                f"{name}: cache every site, batch {batch}",
                {
                    "mechvis run": lambda: model.run(pixels, capture=every),
                    "ViT-Prisma run_with_cache": lambda: other.run_with_cache(pixels),
                },
                repetitions=repetitions,
            ),
            race(
                f"{name}: cache one site, batch {batch}",
                {
                    "mechvis run": lambda: model.run(pixels, capture=[site]),
                    "ViT-Prisma run_with_cache": lambda: other.run_with_cache(pixels, names_filter=site),
                },
                repetitions=repetitions,
            ),
        ]
        rows[0].notes.append(f"logits agree to {far:.0e} of the largest")
        rows.append(sweep(name, bare, model, other, images, max(2, repetitions // 10), heads))
    return rows


def sweep(name: str, bare: nn.Module, model: Any, other: Any, images: int, repetitions: int, heads: int) -> Row:
    """Zero every head; ViT-Prisma by `run_with_hooks`, on evenly spread heads, scaled."""
    pixels = pixels_for(bare, images)
    everything = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    chosen = everything[:: max(1, len(everything) // heads)]
    metric, answers = peers.predicted(bare, pixels), {}

    def ours() -> None:
        result = mechvis.sweep(model, pixels, units="heads", edit="zero", metric="logit", progress=False)
        left = result.baseline["logit"] - result.values["logit"].mean(1)
        answers["ours"] = torch.tensor([left[everything.index(place)] for place in chosen])

    def theirs() -> None:
        answers["theirs"] = peers.transformer_lens_hooks(other, pixels, chosen, metric)

    row = race(
        f"{name}: zero each of {len(everything)} heads, {images} image{'s' * (images > 1)}",
        {"mechvis.sweep": ours, "ViT-Prisma run_with_hooks": theirs},
        repetitions=repetitions,
        scale={"ViT-Prisma run_with_hooks": len(everything) / len(chosen)},
    )
    far = _far(answers["ours"], answers["theirs"])
    if not far < 1e-3:
        raise RuntimeError(f"{row.task}: the contenders disagree by {far:.1e}.")
    row.notes.append(f"effects agree to {far:.0e} logits; ViT-Prisma ran {len(chosen)} of the heads, scaled")
    return row


def _far(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prisma", description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=40)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with quiet():
        (little, little_name), large = small(), vit_b_16()
        rows = compare(little_name, little, 8, 32, chosen.repetitions, 16)
        rows += compare("ViT-B/16", large, 1, 1, max(4, chosen.repetitions // 8), 12)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "vit-prisma"))
    lines = [
        "# Side by side with ViT-Prisma",
        "",
        f"`python -m benchmarks.prisma`, one thread: {versions}.",
        "Ratio = our time divided by theirs, median over interleaved repetitions; below 1 we are faster. The weights",
        "are the same.",
        "",
        "| task | contender | time (ms) | ours / theirs | |",
        "|---|---|---:|---:|---|",
    ]
    for row in rows:
        for contender, seconds in row.seconds.items():
            first = contender == row.ours
            ratio = "" if first else f"{row.ratios[contender]:.3f}"
            task, notes = (row.task, "; ".join(row.notes)) if first else ("", "")
            lines.append(f"| {task} | {contender} | {1000 * seconds:.4g} | {ratio} | {notes} |")
    (HERE / "prisma.md").write_text("\n".join([*lines, ""]))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
