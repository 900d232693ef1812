"""What a latent or direction does to the output, beside what makes it active: descriptions from the output side.

A label from top images says what a unit *detects*. What it *does* can be another thing (methods2.md 21.3; **A**, **K**,
port **X**):

* *Read-out*: the direction through the last norm (frozen scale) and the head, as if it were written right before the
  end: the classes or texts it points to. No image takes part, and later blocks do not either.
* *Label change*: add `alpha * direction` where the unit fires (else on all patches) and see what the centred outputs
  do, later blocks included; z-scored against random directions of equal length. Labels with |z| > 3 count.
* *Input side*: how well each label's presence tells images where the unit fires from the others (AUC).
* *Agreement*: Spearman correlation of input side and label change over the same labels. Low agreement means that the
  detector differs from the effect.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechvis import edits
from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from mechvis.record import finite
from mechvis.store.forward import reader
from probes.second_order.readout import Of, read_out_of
from probes.unit_labels.measures import area, spearman

RANDOM, Z, FACTORS = 64, 3.0, (1.0, 2.0, 4.0)

Toward = Callable[[Tensor], Tensor]
"""The model's output `[image d_out]` to one number per image and label, e.g. cosines of an embedding with texts."""


def read_out(
    model: Any, directions: Float[np.ndarray, "unit d_model"], *, of: Of = "output", texts: np.ndarray | None = None
) -> Float[np.ndarray, "unit label"]:
    """Where directions of the last stream point to in the output, up to the last norm's scale.

    Args:
        model: a wrapped image tower whose read-out is linear (CLS or mean pooling).
        directions: in the stream, e.g. rows of a decoder.
        of: `logits`, `embedding`, `pooled` or the model's `output`.
        texts: text embeddings `[text d_embed]`: cosines with them, without the mean over the pool (texts of one model
            share a large mean).

    Returns:
        Change of the output per unit of direction and of 1/scale `[unit d_out]`; centred over classes for logits.

    Raises:
        ShapeMismatch: directions of another width, or texts of another space.
        RefusedMethod: the read-out is not linear.

    Example:
        >>> read_out(model, decoder[:5]).argsort(1)[:, -3:]                              # doctest: +SKIP
    """
    directions = finite("the directions", np.asarray(directions, dtype=np.float64))
    if directions.ndim != 2 or directions.shape[1] != model.parts.d_model:
        raise ShapeMismatch(f"directions are [unit {model.parts.d_model}] here, got {list(directions.shape)}.")
    read = read_out_of(model, of, unit=None if hasattr(model.parts.head, "prompts") else False)
    matrix = torch.einsum("s,sdo->do", read.weights.sum(1).double(), read.matrix.double()).cpu().numpy()
    found = read.centre(torch.from_numpy(directions)).numpy() @ matrix
    if texts is None:
        return found - found.mean(1, keepdims=True) if read.of == "logits" else found
    texts = np.asarray(texts, dtype=np.float64)
    if texts.ndim != 2 or texts.shape[1] != found.shape[1]:
        raise ShapeMismatch(f"texts are [text {found.shape[1]}] here, got {list(texts.shape)}. Use of='embedding'.")
    pool = texts / np.linalg.norm(texts, axis=1, keepdims=True)
    pool = pool - pool.mean(0)
    lengths = np.linalg.norm(found, axis=1, keepdims=True) * np.linalg.norm(pool, axis=1)
    return found @ pool.T / np.where(lengths > 0, lengths, 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelChange:
    """What adding a direction does to the labels."""

    change: Float[np.ndarray, "factor label"]
    """Mean change of the centred output over images, per factor of the natural activation."""
    z: Float[np.ndarray, "factor label"]
    """In standard deviations of random directions of equal length, their mean taken off."""
    factors: tuple[float, ...]
    """Times the natural activation."""
    natural: float
    """alpha at factor 1: the unit's 99 % activation."""
    n: int
    """Images."""

    def labels(self, names: Sequence[str], *, z: float = Z, factor: int = -1) -> tuple[list[str], list[str]]:
        """(labels that rise, labels that fall) beyond `z`, strongest first, at one of the factors (by position)."""
        values = self.z[factor]
        order = np.argsort(-np.abs(values), kind="stable")
        up = [names[i] for i in order if values[i] > z]
        return up, [names[i] for i in order if values[i] < -z]


def label_change(
    model: Any,
    images: Any,
    site: str,
    direction: Float[np.ndarray, " d"],
    *,
    natural: float = 1.0,
    fires: Bool[np.ndarray, "image token"] | None = None,
    toward: Toward | None = None,
    factors: Sequence[float] = FACTORS,
    random: int = RANDOM,
    seed: int = 0,
    batch_size: int = 64,
) -> LabelChange:
    """Add a direction at a site and see which labels rise.

    Args:
        model: a wrapped image tower.
        images: reference images (some 256).
        site: where, e.g. `blocks.2.hook_resid_post`.
        direction: what one unit of activation writes, `[d]` of the site.
        natural: activation at factor 1, best the unit's 99 % quantile (`natural_activation`).
        fires: at which tokens; None: all patches. An image where it fires nowhere is steered at all patches.
        toward: output to labels; None: the logits (or embedding) themselves.
        factors: times the natural activation (**X**: 1, 2, 4).
        random: random directions of equal length for the null (**X**: 64).
        seed: of these.
        batch_size: images per forward pass.

    Returns:
        LabelChange: mean change of the centred labels, and its z-score, per factor.

    Raises:
        ShapeMismatch: a direction of another width than the site; `fires` of other images or tokens.
        BadData: a direction of length 0.
        OutOfRange: fewer than two random directions.
    """
    site = model.graph.resolve(site)
    axes = model.graph[site].axes
    direction = finite("the direction", np.asarray(direction, dtype=np.float64))
    width = model.run(reader(model, images)(np.arange(1)).to(model.device, model.dtype), capture=site).cache[site]
    if direction.shape != (width.shape[-1],) or width.ndim != 3:
        raise ShapeMismatch(f"{site} is {list(axes)}; a direction [{width.shape[-1]}] of a stream is needed, got "
                            f"{list(direction.shape)}.")  # fmt: skip
    if not np.linalg.norm(direction):
        raise BadData("the direction is zero: adding it changes nothing.")
    if random < 2:
        raise OutOfRange(f"random={random}: a spread needs two random directions or more.")
    prefix, n_tokens = len(model.parts.prefix), width.shape[1]
    patches = np.zeros((len(images), n_tokens), bool)
    patches[:, prefix:] = True
    if fires is not None:
        fires = np.asarray(fires, bool)
        if fires.shape != patches.shape:
            raise ShapeMismatch(f"fires is [image token] = {list(patches.shape)} here, got {list(fires.shape)}.")
        patches = np.where(fires.any(1, keepdims=True), fires, patches)
    length = np.linalg.norm(direction)
    noise = np.random.default_rng(seed).standard_normal((random, len(direction)))
    noise *= length / np.linalg.norm(noise, axis=1, keepdims=True)
    vectors = np.concatenate([direction[None], noise])
    # Blocks before the site are the same for all directions: restart from the stream before its block.
    layer = model.graph[site].layer if site.startswith("blocks.") else 0
    start_site = f"blocks.{layer}.hook_resid_pre"
    total = None
    for start in range(0, len(images), batch_size):
        part = np.arange(start, min(start + batch_size, len(images)))
        pixels = reader(model, images)(part).to(model.device, model.dtype)
        where = torch.from_numpy(patches[part]).to(model.device, model.dtype)[..., None]
        run, size = model.run(pixels, capture=start_site), tuple(pixels.shape[2:])
        stream, clean = run.cache[start_site], _centred(run.output, toward)
        moved = []
        for factor in factors:
            for vector in vectors:
                write = torch.from_numpy(factor * natural * vector).to(model.device, model.dtype)
                edit = edits.call(site, lambda x, write=write, where=where: x + where * write)
                steered = model.run(stream, edits=[edit], start_at_layer=layer, size=size) if layer else None
                steered = model.run(pixels, edits=[edit]) if steered is None else steered
                moved.append((_centred(steered.output, toward) - clean).sum(0).numpy())
        found = np.stack(moved).reshape(len(factors), len(vectors), -1)
        total = found if total is None else total + found
    total = total / len(images)
    change, null = total[:, 0], total[:, 1:]
    spread = null.std(1, ddof=1)
    z = (change - null.mean(1)) / np.where(spread > 0, spread, np.inf)
    return LabelChange(change=change, z=z, factors=tuple(factors), natural=natural, n=len(images))


def _centred(output: Tensor, toward: Toward | None) -> Tensor:
    labels = (output if toward is None else toward(output)).double().cpu()
    return labels - labels.mean(1, keepdim=True)


def natural_activation(values: Float[np.ndarray, "image token"], quantile: float = 0.99) -> float:
    """The activation at the quantile among the tokens where the unit is active (**X**: 0.99).

    Raises:
        BadData: it is never active.
    """
    active = np.asarray(values)[np.asarray(values) > 0]
    if not len(active):
        raise BadData("the unit is active nowhere on these images: it has no natural activation.")
    return float(np.quantile(active, quantile))


@dataclass(frozen=True, kw_only=True, eq=False)
class TwoSided:
    """A latent described from both sides."""

    inputs: tuple[str, ...]
    """Labels that go with it being active, best first."""
    raises: tuple[str, ...]
    """Labels that it raises beyond z, strongest first."""
    lowers: tuple[str, ...]
    """Labels that it lowers."""
    agreement: float
    """Spearman correlation of the two sides over all labels; low: the detector differs from the effect."""
    input_auc: Float[np.ndarray, " label"]
    """How well each label tells images where it fires from the others."""
    change: LabelChange
    """The output side."""


def describe_latent(
    model: Any,
    images: Any,
    site: str,
    dictionary: Any,
    latent: int,
    presence: Float[np.ndarray, "image label"],
    names: Sequence[str],
    *,
    decoder: Float[np.ndarray, " d"] | None = None,
    top: int = 3,
    z: float = Z,
    dense: float = 0.5,
    **settings: Any,
) -> TwoSided:
    """A latent of a dictionary from the input and the output side, in the same labels.

    Args:
        model: a wrapped image tower whose outputs are the labels (or `toward=` makes them so).
        images: reference images.
        site: where the dictionary reads and writes.
        dictionary: `encode(x [row d]) -> [row latent]`, `decode([row latent]) -> [row d]`.
        latent: which.
        presence: of every label in every image: labels, or similarity with its text.
        names: one per label, in the order of the outputs.
        decoder: what the latent writes per unit; None: asked of `decode`.
        top: input labels that are named.
        z: output labels beyond this are named (**X**: 3).
        dense: share of the natural activation above which a latent fires that is positive in over half of the images
            (**X**); other latents fire above 0.
        settings: of :func:`label_change` (`toward`, `factors`, `random`, `seed`, `batch_size`).

    Raises:
        ShapeMismatch: presence, names and outputs that do not fit.
        BadData: a latent that fires nowhere, or in every image.
    """
    presence = np.asarray(presence, np.float64)
    if presence.shape != (len(images), len(names)):
        raise ShapeMismatch(f"presence is [image label] = {[len(images), len(names)]}, got {list(presence.shape)}.")
    values = _latent_values(model, images, site, dictionary, latent, settings.get("batch_size", 64))
    natural = natural_activation(values)
    # Sparse latents fire where they are above 0. Dense ones (neurons) are so nearly everywhere: half the natural
    # activation then.
    limit = dense * natural if (values > 0).any(1).mean() > 0.5 else 0.0
    firing = (values > limit).any(1)
    if not 0 < firing.sum() < len(firing):
        raise BadData("the latent is as active in every image: nothing tells firing images from the others.")
    auc = np.array([area(column, firing) for column in presence.T])
    if decoder is None:
        decoder = written(dictionary, latent)
    change = label_change(model, images, site, decoder, natural=natural, fires=values > limit, **settings)
    if change.z.shape[1] != len(names):
        raise ShapeMismatch(f"{change.z.shape[1]} outputs and {len(names)} labels; pass toward= to make them one.")
    up, down = change.labels(names, z=z)
    order = np.argsort(-auc, kind="stable")[:top]
    return TwoSided(
        inputs=tuple(names[i] for i in order if auc[i] > 0.5),
        raises=tuple(up),
        lowers=tuple(down),
        agreement=spearman(auc, change.change[-1]),
        input_auc=auc,
        change=change,
    )


def written(dictionary: Any, latent: int) -> Float[np.ndarray, " d"]:
    """What one unit of a latent writes: `decode` of one, without `decode` of nothing.

    Raises:
        BadData: the dictionary has no decode, or no `n_latents` or `d_latent` to say how many latents it has.
    """
    n = getattr(dictionary, "n_latents", getattr(dictionary, "d_latent", None))
    if n is None or not hasattr(dictionary, "decode"):
        raise BadData("the dictionary does not say what a latent writes (decode and n_latents); pass decoder=.")
    if not 0 <= latent < n:
        raise OutOfRange(f"latent {latent}: the dictionary has latents 0 to {n - 1}.")
    code = torch.zeros(2, n)
    code[1, latent] = 1
    like = next(iter(dictionary.parameters()), None) if hasattr(dictionary, "parameters") else None
    code = code if like is None else code.to(like.device, like.dtype)
    with torch.no_grad():
        nothing, one = dictionary.decode(code)
    return (one - nothing).double().cpu().numpy()


def _latent_values(
    model: Any, images: Any, site: str, dictionary: Any, latent: int, batch_size: int
) -> Float[np.ndarray, "image token"]:
    """Activation of the latent at every token of the stream."""
    read, found = reader(model, images), []
    for start in range(0, len(images), batch_size):
        part = np.arange(start, min(start + batch_size, len(images)))
        pixels = read(part).to(model.device, model.dtype)
        value = model.run(pixels, capture=[site], stop_when_captured=True).cache[site]
        code = dictionary.encode(value.flatten(0, 1)).detach()
        if not 0 <= latent < code.shape[-1]:
            raise OutOfRange(f"latent {latent}: the dictionary has latents 0 to {code.shape[-1] - 1}.")
        found.append(code[:, latent].unflatten(0, value.shape[:2]).double().cpu().numpy())
    return np.concatenate(found)


def output_score(
    changes: Float[np.ndarray, "unit label"], described: Sequence[Sequence[int]], *, candidates: int = 3, seed: int = 0
) -> Bool[np.ndarray, " unit"]:
    """Does a description pick its own unit: among `candidates`, is it the one whose steering raises the described
    labels most (chance 1 / candidates)?

    Args:
        changes: label change of every unit, on one scale (z, or change at equal factor).
        described: places of the labels that each unit's description names.
        candidates: the unit and so many others minus one, drawn at random.
        seed: of the draws.

    Returns:
        Right or wrong per unit; a description without labels is wrong.

    Raises:
        OutOfRange: more candidates than units.
        ShapeMismatch: not one description per unit.

    Example:
        >>> output_score(np.eye(4), [[0], [1], [2], [0]], candidates=4)
        array([ True,  True,  True, False])
    """
    changes = finite("changes", np.asarray(changes, np.float64))
    if len(described) != len(changes):
        raise ShapeMismatch(f"{len(changes)} units and {len(described)} descriptions.")
    if not 2 <= candidates <= len(changes):
        raise OutOfRange(f"candidates={candidates} of {len(changes)} units.")
    generator = np.random.default_rng(seed)
    right = np.zeros(len(changes), bool)
    for unit, labels in enumerate(described):
        others = generator.choice(np.delete(np.arange(len(changes)), unit), candidates - 1, replace=False)
        if len(labels):
            mean = changes[:, list(labels)].mean(1)
            right[unit] = mean[unit] > mean[others].max()
    return right
