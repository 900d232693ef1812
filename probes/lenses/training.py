"""Training a tuned lens: for every layer the affine map whose reading comes closest to the final answer.

    1. split the images: a part is held out for judging (or give `validation=`)
    2. start every map at the identity: D = 0, b = 0 (the tuned lens starts as the logit lens)
    3. minimise KL(p_final || softmax(head(LN(x + x D + b)))) per layer over unlabelled images, with Adam and decoupled
       weight decay on D (so on A - I), the learning rate falling to zero along a half cosine
    4. a map that is no better than the identity on the very images it was trained on is put back to the identity: where
       the identity is right already, gradients are rounding, and Adam walks off along them
    5. held-out KL per layer, tuned beside logit, with intervals over images and their paired difference

The maps of different layers never meet: L small problems that share their forward passes. The tokens that are needed
are kept in memory where they fit (one forward pass per image), else every epoch streams through the model; both see
the same batches. The model's weights are not touched and get no gradient.

Source: methods.md 3.3 (**K** Belrose et al. 2023; low rank `D = U V^T`: **X**). For tokens other than those that the
model reads, the goal is the image's answer (`goal="output"`) or what the last layer says at the same token
(`goal="token"`), since there is no answer per token (**X**).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.engine import free_memory
from mechvis.errors import BadData, FailedCheck, OutOfRange
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.stats import RESAMPLES, bootstrap, paired_difference
from probes.lenses.passes import Batches
from probes.lenses.problem import Goal, Map, Reading, Settings, Where
from probes.lenses.targets import with_texts
from probes.lenses.tuned import TunedLens


def tuned_lens(
    model: Any,
    images: Any,
    *,
    sites: str | Sequence[str] = "blocks.*.hook_resid_post",
    tokens: Where = "read",
    goal: Goal = "output",
    validation: Any = None,
    held_out: float = 0.2,
    rank: int | None = None,
    epochs: int = 20,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    keep: bool | None = None,
    texts: Sequence[str] | None = None,
    templates: Any = ("a photo of a {}",),
    seed: int = 0,
    resamples: int = RESAMPLES,
    budget: str | int | None = None,
    progress: bool = True,
    allow_overlap: bool = False,
) -> TunedLens:
    """Train a tuned lens on unlabelled images.

    Args:
        model: a wrapped image tower with a head, or a CLIP with `texts`.
        images: an `ImageSet` or pixels; labels are not looked at.
        sites: names or patterns; the stream after the last block needs no map and is left out.
        tokens: `read`, `cls` or `patches`.
        goal: `output`, or with patches `token`: what the last layer says at the same token.
        validation: images to judge by; default: a share of `images`.
        held_out: that share.
        rank: rank of D; None: full.
        epochs: times that every image is seen.
        batch_size: images per step.
        learning_rate: of Adam at the first step; falls to zero.
        weight_decay: pulls D to zero.
        keep: keep the tokens in memory; None: if they take less than a quarter of what is free.
        texts: for CLIP: the classes.
        templates: for CLIP: prompts with {} for a class.
        seed: of split, order and factors.
        resamples: of the bootstrap.
        budget: memory for a forward pass.
        progress: show a progress bar.
        allow_overlap: accept validation images that were trained on.

    Returns:
        TunedLens: save it, or pass it to `logit_lens(..., tuned=)`.

    Raises:
        SplitOverlap: validation images among the training images.
        BadData: nothing to train, a goal that does not fit, a model without a head.
        FailedCheck: training went to NaN or Inf; says at which site, and to lower the learning rate.

    Example:
        >>> lens = tuned_lens(model, mechvis.data.scenes(2000, seed=3))                        # doctest: +SKIP
        >>> lens.table.select("layer", "logit_kl", "tuned_kl")                                 # doctest: +SKIP
    """
    settings = Settings(
        tokens=tokens,
        goal=goal,
        rank=rank,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        seed=seed,
    )
    model = with_texts(model, texts, templates)
    training, judging = _split(images, validation, held_out, seed, allow_overlap)
    last = f"blocks.{len(model.parts.blocks) - 1}.hook_resid_post"
    chosen = tuple(name for name in dict.fromkeys(model.graph.match(sites)) if name != last)
    if not chosen:
        raise BadData(f"there is nothing to tune: {last} is what the model reads already. Add earlier sites.")
    if rank is not None and not 1 <= rank <= model.parts.d_model:
        raise OutOfRange(f"rank={rank}: D has the width {model.parts.d_model}; give 1 to {model.parts.d_model}.")
    passes = Batches.over(model, training, chosen, budget)
    reading = Reading(model=model, passes=passes, settings=settings, seen=set())
    maps = [
        Map.start(model.parts.d_model, rank, model.device, torch.promote_types(model.dtype, torch.float32), seed + i)
        for i in range(len(passes.sites))
    ]
    known = _kept(reading) if _fits(reading, keep) else None
    _train(reading, maps, settings, known, progress)
    _put_back(maps, _judge(reading, maps, known), _judge(reading, [None] * len(maps), known))
    judged = Reading(model=model, passes=Batches.over(model, judging, chosen, budget), settings=settings)
    logit = _judge(judged, [None] * len(maps))
    tuned = _judge(judged, maps)
    seen = np.array(sorted(reading.seen), np.uint64)
    return _record(model, training, judging, passes.sites, maps, logit, tuned, settings, resamples, seen)


def _split(images: Any, validation: Any, held_out: float, seed: int, allow_overlap: bool) -> tuple[Any, Any]:
    if validation is not None:
        if isinstance(images, ImageSet) and isinstance(validation, ImageSet) and not allow_overlap:
            refuse_overlap(images, validation, what="training and validation images of a lens")
        return images, validation
    if not 0 < held_out < 1:
        raise OutOfRange(f"held_out={held_out}: a share of the images, between 0 and 1.")
    n = len(images)
    n_judged = round(held_out * n)
    if not 1 <= n_judged < n:
        raise BadData(f"{n} images cannot be split with held_out={held_out}: give more images, or validation=.")
    order = np.random.default_rng(seed).permutation(n)
    judged, trained = np.sort(order[:n_judged]), np.sort(order[n_judged:])
    if isinstance(images, ImageSet):
        return images[trained], images[judged]
    return images[torch.from_numpy(trained)], images[torch.from_numpy(judged)]


def _train(
    reading: Reading, maps: list[Map], settings: Settings, known: tuple[Tensor, Tensor] | None, progress: bool
) -> None:
    passes, n = reading.passes, reading.passes.n
    changes = [part for one in maps for part in one.change]
    optimiser = torch.optim.AdamW(
        [
            {"params": changes, "weight_decay": settings.weight_decay},
            {"params": [one.bias for one in maps], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
    )
    steps = settings.epochs * math.ceil(n / settings.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    generator = np.random.default_rng(settings.seed)
    with track(settings.epochs * n, "tuned lens", " images", show=progress) as bar:
        for _ in range(settings.epochs):
            order = generator.permutation(n)
            for start in range(0, n, settings.batch_size):
                part = order[start : start + settings.batch_size]
                x, goal = reading.of(part) if known is None else (known[0][:, part], known[1][part])
                _step(reading, maps, x, goal, passes.sites)
                optimiser.step()
                schedule.step()
                bar.update(len(part))


def _step(reading: Reading, maps: list[Map], x: Tensor, goal: Tensor, sites: Sequence[str]) -> None:
    """Gradients of every map, and of nothing else: weights of the user's model keep theirs."""
    with torch.enable_grad():
        for one, tokens, site in zip(maps, x, sites, strict=True):
            loss = reading.loss(one(tokens), goal).mean()
            if not torch.isfinite(loss):
                raise FailedCheck(
                    f"training the lens at {site} went to {loss.item()}: lower learning_rate, or look at the stream."
                )
            parameters = (*one.change, one.bias)
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.grad = gradient


def _fits(reading: Reading, keep: bool | None) -> bool:
    if keep is not None:
        return keep
    x, goal = reading.of(np.arange(1))
    needed = reading.passes.n * (x.numel() * x.element_size() + goal.numel() * goal.element_size())
    return needed < free_memory() / 4


def _kept(reading: Reading) -> tuple[Tensor, Tensor]:
    return reading.of(np.arange(reading.passes.n))


@torch.no_grad()
def _put_back(maps: list[Map], trained: np.ndarray, identity: np.ndarray) -> None:
    """Maps that do not lower the KL `[site image]` of their own training images become the identity again."""
    for one, worse in zip(maps, trained.mean(1) >= identity.mean(1), strict=True):
        if worse:
            one.change[0].zero_()
            one.bias.zero_()


@torch.no_grad()
def _judge(
    reading: Reading,
    maps: Sequence[Callable[[Tensor], Tensor] | None],
    known: tuple[Tensor, Tensor] | None = None,
) -> np.ndarray:
    """KL `[site image]`; `known` are tokens and goals that have been kept."""
    found, passes = [], reading.passes
    for start in range(0, passes.n, passes.at_once):
        part = np.arange(start, min(start + passes.at_once, passes.n))
        x, goal = reading.of(part) if known is None else (known[0][:, part], known[1][part])
        losses = [reading.loss(tokens if m is None else m(tokens), goal) for m, tokens in zip(maps, x, strict=True)]
        found.append(torch.stack(losses).double().cpu().numpy())
    return np.concatenate(found, axis=1)


def _record(
    model: Any,
    training: Any,
    judging: Any,
    sites: tuple[str, ...],
    maps: list[Map],
    logit: np.ndarray,
    tuned: np.ndarray,
    settings: Settings,
    resamples: int,
    seen: np.ndarray,
) -> TunedLens:
    options = {"resamples": resamples, "seed": settings.seed}
    known = {"tuned_kl": bootstrap(tuned, **options), "logit_kl": bootstrap(logit, **options)}
    known["saved"] = paired_difference(logit, tuned, **options)
    columns: dict[str, Any] = {
        "site": list(sites),
        "layer": pl.Series([model.graph[site].layer for site in sites], dtype=pl.Int64),
        "n": known["tuned_kl"].n,
    }
    for name, found in known.items():
        columns |= {name: found.effect, f"{name}_low": found.low, f"{name}_high": found.high}
    names = ("change",) if settings.rank is None else ("u", "v")
    stacked = {name: [one.change[i].detach().cpu().numpy() for one in maps] for i, name in enumerate(names)}
    arrays = {name: np.stack(values) for name, values in stacked.items()}
    arrays["bias"] = np.stack([one.bias.detach().cpu().numpy() for one in maps])
    arrays["seen"] = seen
    full = arrays["change"] if settings.rank is None else arrays["u"] @ arrays["v"].swapaxes(1, 2)
    columns["size"] = np.linalg.norm(full, axis=(1, 2)) / math.sqrt(full.shape[1])
    n = len(training)
    return TunedLens(
        title=f"Tuned lens on {model.title or model.parts.family}",
        tables={"layers": pl.DataFrame(columns).with_columns(pl.col(pl.Float64).fill_nan(None))},
        arrays=arrays,
        facts={
            "sites": list(sites),
            "model": model.fingerprint,
            "name": model.title or model.parts.family,
            "trained on": n,
            "judged on": len(judging),
            **{name: getattr(settings, name) for name in settings.__dataclass_fields__},
        },
        words={
            "tuned_kl": "KL(goal || tuned reading) on held-out images, nats, mean over images",
            "logit_kl": "the same of the untuned reading",
            "saved": "logit_kl - tuned_kl, image by image",
            "size": "Frobenius norm of D over that of the identity",
        },
        caveats=(
            "A tuned lens is trained to say what the model will say: where its reading is right, the information is "
            "there and can be read by one affine map; that the model reads it there does not follow.",
            f"Trained on {n} images; with few images for {full.shape[1]} x {full.shape[1]} numbers per layer it "
            "overfits: compare tuned_kl with the logit lens' on the held-out images, or give rank=.",
        ),
        provenance=provenance(
            model=model,
            images=training if isinstance(training, ImageSet) else None,
            seed=settings.seed,
            validation=judging.fingerprint if isinstance(judging, ImageSet) else "pixels",
        ),
    )
