"""What the model still does when an activation is replaced by its reconstruction: recovered shares.

    recovered = (L_ablated - L_dictionary) / (L_ablated - L_clean)       1 = as the model itself, 0 = as without it

for the loss (cross-entropy against labels), accuracy, log-probability of the model's own answer, KL from the clean
output ((KL_abl - KL_sae) / KL_abl, as SAEBench), and the cosine of the final embedding. Both ablations are reported:
zero, and the mean of each token position, which leaves less to recover and is the harder scale. Sums over all images
come first and are divided once.

For CLIP take `clip.classifier(names)`: its logits carry the logit scale. Without it (Prisma) the softmax over 1000
classes is flat, the clean loss 6.762 of ln 1000 = 6.908, and the share lives in a window of 0.146 nats.

1. One clean pass keeps the sites, the output, and the stream before the block of the first replaced site.
2. Every variant continues from there with the selected part of the sites replaced, nothing else. What it reads are the
   clean activations (several sites of a crosscoder are replaced together).
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from mechvis import edits
from mechvis.errors import EffectlessEdit, NotFinite, ShapeMismatch
from sae.evaluation.intervals import Interval, of_sums, ratio

ABLATIONS = ("zero", "mean")


@dataclass(frozen=True, kw_only=True, eq=False)
class Clean:
    """A batch as the model computes it."""

    activations: dict[str, Tensor]
    """By site, with all axes."""
    logits: Float[Tensor, "image class"] | None
    """Output of the head, where there is one."""
    embedding: Float[Tensor, "image d_embed"]
    """Final embedding: the projected one of CLIP, else what the head reads."""
    stream: Float[Tensor, "image token d_model"] | Tensor
    """Where variants continue from: the stream before a block, or pixels."""
    layer: int
    """The block that variants continue at."""
    size: tuple[int, int] | None
    """Height and width of the images."""


def embedding_site(model: Any) -> str:
    """The site of the final embedding."""
    return "hook_embedding" if "hook_embedding" in model.graph.sites else "hook_pooled"


@torch.no_grad()
def clean_pass(model: Any, images: Any, sites: list[str]) -> Clean:
    """Run a batch once.

    Args:
        model: a wrapped model.
        images: a batch, as `model.run` takes it.
        sites: to keep.
    """
    pixels = model.inputs(images)
    # Sites before the blocks need the pixels, and a pass that starts at block 0 reads pixels too.
    layers = [0 if site == "hook_embed" else model.graph[site].layer for site in sites]
    layer = min((layer for layer in layers if layer is not None), default=len(model.parts.blocks) - 1)
    start = [f"blocks.{layer}.hook_resid_pre"] if layer > 0 else []
    last = embedding_site(model)
    run = model.run(pixels, capture=[*sites, last, *start])
    stream = run.cache[start[0]] if start else pixels
    return Clean(
        activations={site: run.cache[site] for site in sites},
        logits=run.logits if model.parts.head is not None else None,
        embedding=run.cache[last],
        stream=stream,
        layer=layer,
        size=tuple(pixels.shape[2:]) if start and pixels.ndim == 4 else None,
    )


@torch.no_grad()
def replaced(model: Any, clean: Clean, new: Mapping[str, Tensor]) -> tuple[Tensor | None, Tensor]:
    """Logits (None without a head) and final embedding with sites replaced by other activations, whole.

    Args:
        model: a wrapped model.
        clean: the batch.
        new: activation by site, with all axes; of what is not selected the clean value.
    """
    last = embedding_site(model)

    def put(value: Tensor) -> Any:
        def swap(x: Tensor) -> Tensor:
            # An edit may see a site with other axes of size one; the numbers are the same ones.
            return value.to(x).reshape(x.shape)

        return swap

    changes = [edits.call(site, put(value)) for site, value in new.items()]
    from_stream = {} if clean.size is None else {"start_at_layer": clean.layer, "size": clean.size}
    with warnings.catch_warnings():
        # Writing back what was there is what the identity does; that is no mistake here.
        warnings.simplefilter("ignore", EffectlessEdit)
        run = model.run(clean.stream, edits=changes, capture=[last], **from_stream)
    return (run.logits if model.parts.head is not None else None), run.cache[last]


@dataclass(kw_only=True, eq=False)
class Outputs:
    """Per-image numbers of one variant: clean, an ablation, or a dictionary; filled batch by batch."""

    loss: list[np.ndarray] = field(default_factory=list)
    """Cross-entropy against the labels, nats."""
    correct: list[np.ndarray] = field(default_factory=list)
    """1 where the label has the largest logit."""
    own: list[np.ndarray] = field(default_factory=list)
    """Cross-entropy against the clean run's own answer, nats."""
    kl: list[np.ndarray] = field(default_factory=list)
    """KL(clean || this), nats."""
    agree: list[np.ndarray] = field(default_factory=list)
    """1 where the largest logit is that of the clean run."""
    cosine: list[np.ndarray] = field(default_factory=list)
    """Cosine of the final embedding with the clean one."""

    def add(
        self,
        logits: Float[Tensor, "image class"] | None,
        embedding: Float[Tensor, "image d_embed"],
        clean: Clean,
        labels: Int[Tensor, " image"] | None,
    ) -> None:
        """Count a batch.

        Args:
            logits: of this variant.
            embedding: of this variant.
            clean: the same images, untouched.
            labels: classes, or None where they are not known.

        Raises:
            ShapeMismatch: another number of images.
            NotFinite: NaN or Inf in the output.
        """
        if len(embedding) != len(clean.embedding) or (labels is not None and len(labels) != len(embedding)):
            raise ShapeMismatch("labels, outputs and clean outputs are about the same images.")
        if not torch.isfinite(embedding).all() or (logits is not None and not torch.isfinite(logits).all()):
            raise NotFinite("the model's output holds NaN or Inf after an activation was replaced.")
        # One cosine per image, over the embedding's own axis.
        self._keep("cosine", F.cosine_similarity(embedding.double(), clean.embedding.double(), dim=-1, eps=1e-300))
        if logits is None:
            return
        log_q, log_p = logits.double().log_softmax(-1), clean.logits.double().log_softmax(-1)
        answer = clean.logits.argmax(-1)
        self._keep("own", F.nll_loss(log_q, answer, reduction="none"))
        self._keep("kl", (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0))
        self._keep("agree", (logits.argmax(-1) == answer).double())
        if labels is not None:
            labels = labels.to(logits.device)
            self._keep("loss", F.nll_loss(log_q, labels, reduction="none"))
            self._keep("correct", (logits.argmax(-1) == labels).double())

    def _keep(self, name: str, values: Tensor) -> None:
        getattr(self, name).append(values.cpu().numpy())

    def column(self, name: str) -> np.ndarray:
        """A number per image."""
        return np.concatenate(getattr(self, name))

    def mean(self, name: str, seed: int = 0) -> Interval:
        """Mean over images with its interval."""
        values = self.column(name)
        return ratio(values, np.ones(len(values)), seed=seed)

    @property
    def names(self) -> list[str]:
        """What is known of this variant."""
        return [name for name in ("loss", "correct", "own", "kl", "agree", "cosine") if getattr(self, name)]


def share(
    ablated: Float[np.ndarray, " image"],
    found: Float[np.ndarray, " image"],
    clean: Float[np.ndarray, " image"],
    *,
    seed: int = 0,
) -> Interval:
    """Recovered share: (Σ ablated - Σ found) / (Σ ablated - Σ clean), with its interval over images.

    NaN where ablating changes nothing that can be told from none: the interval of Σ ablated - Σ clean holds zero, and a
    share of it would be noise over noise.

    Args:
        ablated: a number per image without the site.
        found: with the dictionary.
        clean: untouched.
        seed: of the resamples.

    Example:
        >>> share(np.array([4.0, 2.0]), np.array([1.0, 1.0]), np.array([0.0, 0.0]))[0]
        0.6666666666666666
    """
    _, low, high = of_sums(lambda a, c: a - c, ablated, clean, seed=seed)
    if not (low > 0 or high < 0) and len(ablated) > 1:
        return (float("nan"),) * 3
    return of_sums(lambda a, f, c: (a - f) / (a - c), ablated, found, clean, seed=seed)


def shares(found: Outputs, clean: Outputs, ablated: Outputs, *, seed: int = 0) -> dict[str, Interval]:
    """All recovered shares of a dictionary on the scale of one ablation, by name of the quantity."""
    return {
        name: share(ablated.column(name), found.column(name), clean.column(name), seed=seed)
        for name in clean.names
        if name not in ("agree",)
    }
