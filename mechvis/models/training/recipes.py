"""From a bundled model's name to its finished folder: the recipe of each, start to end.

`train` runs the stages of a recipe one after another. Every stage keeps its checkpoint in ``<out>/training`` and is
skipped when it is done, so the same command continues a killed run; the model folder itself is written at the end.

The figures in a card are measured on scenes outside the training data sets.
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from transformers import CLIPModel, ViTModel

from mechvis.errors import BadData, unknown
from mechvis.models.training.backbone import BALANCE, LEARN, LossWeights, MultiTask, backbone_config, multi_task_loss
from mechvis.models.training.cards import measure_clip, measure_vit, write_clip_card, write_vit_card
from mechvis.models.training.classifier import ClassifierPlan, build_classifier
from mechvis.models.training.clip import clip_config, clip_tokenizer, contrastive_loss, start_from_backbone
from mechvis.models.training.folders import save_model
from mechvis.models.training.loop import TrainingPlan, fit

Trainable = Literal["scenes-backbone", "scenes-vit", "scenes-clip"]
TRAINABLE: tuple[str, ...] = ("scenes-backbone", "scenes-vit", "scenes-clip")

LEARN_PLAN = TrainingPlan(steps=4500, stop=2300, batch=128, learning_rate=1e-3, seed=1, bf16=True)
"""The first half of a cosine: the second stage goes on at a similar learning rate."""
BALANCE_PLAN = TrainingPlan(steps=300, batch=128, learning_rate=7e-4, seed=7, bf16=True)
CLIP_PLAN = TrainingPlan(steps=400, batch=128, learning_rate=1e-3, seed=3, bf16=True)


def train(
    name: str,
    out: Path | str,
    *,
    seed: int = 0,
    images: int | None = None,
    device: str = "cpu",
    backbone: Path | str | None = None,
    bf16: bool = True,
    resume: bool = True,
    progress: bool = True,
    measure: bool = True,
) -> Path:
    """Train a bundled model from scratch and write its folder.

    Args:
        name: "scenes-backbone", "scenes-vit" or "scenes-clip".
        out: The model folder; checkpoints go to its subfolder `training`.
        seed: 0 is the seed of the bundled models; any other number gives a sibling with other weights and data.
        images: Training images of each gradient stage; None takes the recipe's (294,400, 38,400 and 51,200).
        device: "cpu" or "cuda".
        backbone: Folder of a trained backbone (a `ViTModel`, or `scenes-vit` itself); None trains one first.
        bf16: Whether to train under bfloat16 autocast, as the bundled models were; weights stay float32.
        resume: Whether to continue from the checkpoints in `out`; False starts over.
        progress: Whether to show progress, images per second and the remaining time.
        measure: Whether to measure the figures of the card (a few minutes on one core).

    Returns:
        The folder, ready for `from_pretrained`.

    Raises:
        UnknownName: If there is no such recipe.
        BadData: If `images` is less than one batch.
        ResultMismatch: If a checkpoint in `out` belongs to other settings.

    Example:
        >>> train("scenes-vit", "runs/scenes-vit")  # doctest: +SKIP
        PosixPath('runs/scenes-vit')
    """
    if name not in TRAINABLE:
        raise unknown("recipe", name, TRAINABLE)
    if images is not None and images < LEARN_PLAN.batch:
        raise BadData(f"images must be at least one batch of {LEARN_PLAN.batch}, got {images}.")
    out = Path(out)
    work = out / "training"
    if not resume and work.exists():
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)

    def planned(plan: TrainingPlan) -> TrainingPlan:
        # one thousand data sets apart, so that no two seeds share images
        plan = replace(plan, seed=plan.seed + 1000 * seed, bf16=bf16)
        return plan if images is None else replace(plan, steps=images // plan.batch, stop=None)

    run = {"device": device, "progress": progress}
    vit = ViTModel.from_pretrained(backbone, add_pooling_layer=False) if backbone else _backbone(work, planned, **run)
    vit = vit.cpu().eval()
    if name == "scenes-backbone":
        return save_model(vit, out)
    if name == "scenes-vit":
        plan = ClassifierPlan(seed=ClassifierPlan().seed + 1000 * seed)
        classifier = build_classifier(vit, plan)
        save_model(classifier, out)
        if measure:
            write_vit_card(measure_vit(classifier), out, plan)
        return out

    plan = planned(CLIP_PLAN)
    torch.manual_seed(plan.seed)
    clip = CLIPModel(clip_config())
    start_from_backbone(clip, vit)
    clip.to(device)
    loss = contrastive_loss(plan.seed, plan.batch, device)
    fit(clip, loss, plan, checkpoint=work / "clip.safetensors", **run)
    clip = clip.cpu().eval()
    save_model(clip, out, tokenizer=clip_tokenizer())
    if measure:
        write_clip_card(measure_clip(clip), out)
    return out


def _backbone(work: Path, planned, *, device: str, progress: bool) -> ViTModel:
    stages: tuple[tuple[str, TrainingPlan, LossWeights], ...] = (
        ("learn", planned(LEARN_PLAN), LEARN),
        ("balance", planned(BALANCE_PLAN), BALANCE),
    )
    torch.manual_seed(stages[0][1].seed)
    module = MultiTask(backbone_config()).to(device)
    for stage, plan, weights in stages:
        loss = multi_task_loss(weights, seed=plan.seed, batch=plan.batch, device=device)
        checkpoint = work / f"{stage}.safetensors"
        fit(module, loss, plan, checkpoint=checkpoint, device=device, progress=progress)
    return module.vit
