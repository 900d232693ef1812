"""A bottleneck without concept labels: directions in any backbone that follow CLIP's opinion of each concept.

Algorithm (methods2.md 17.6, **C** for the values):

1. Texts are filtered by their words (:func:`filter_texts`; thresholds **K**): too long, too close to a class name, too
   close to each other.
2. A concept is dropped if the mean of its five highest CLIP activations is at most 0.25: no image shows it.
3. Projection `W`, one direction per concept, maximises the *cubed cosine* with CLIP's activations: both columns are
   centred over images and cubed, then their cosine. The cube lets the images decide that show the concept most.
   Adam, step 1e-3, at most 1000 steps, batches of 50,000; stops when the similarity of held-out images falls.
4. A concept whose similarity on held-out images is at most 0.45 is dropped: the backbone does not know it.
5. The rest goes to :func:`probes.bottleneck.bottleneck` with a linear chain and the elastic net (alpha 0.99, lambda
   7e-4). A linear chain can be undone by a classifier: run the bypass check on what comes out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float

from mechvis.errors import BadData, OutOfRange, ShapeMismatch
from probes.bottleneck.concepts import Concepts, checked_rows
from probes.bottleneck.entropy import train_and_test
from probes.bottleneck.head import bottleneck
from probes.bottleneck.record import Bottleneck

TOP = 5
"""Activations that say whether any image shows a concept."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Projection:
    """Learned directions, and how well they follow CLIP."""

    weight: Float[np.ndarray, "concept d"]
    """One direction per concept, for features as they are."""
    similarity: Float[np.ndarray, " concept"]
    """Cubed cosine on held-out images, in [-1, 1]."""
    steps: int
    """Steps taken until the held-out similarity was best."""


def filter_texts(
    names: Sequence[str],
    embeddings: Float[np.ndarray, "concept d"],
    *,
    class_embeddings: Float[np.ndarray, "class d"] | None = None,
    longest: int = 30,
    from_class: float = 0.85,
    from_each_other: float = 0.9,
) -> pl.DataFrame:
    """Which texts to keep (methods2.md 17.6, thresholds **K**).

    Args:
        names: the texts, the more important first: of two that are too close the first stays.
        embeddings: one per text.
        class_embeddings: of the class names; a concept that says the class would make the bottleneck pointless.
        longest: largest number of characters.
        from_class: largest cosine with a class name.
        from_each_other: largest cosine with a text that is kept.

    Returns:
        One row per text, in order: `concept`, `kept`, `why` (empty where it is kept).

    Raises:
        ShapeMismatch: names and embeddings that do not fit.
        BadData: nothing is left.

    Example:
        >>> filter_texts(["red", "very red"], np.array([[1.0, 0.0], [1.0, 0.01]]))["kept"].to_list()
        [True, False]
    """
    embeddings = _unit(checked_rows("text embeddings", embeddings))
    if len(names) != len(embeddings):
        raise ShapeMismatch(f"{len(names)} texts and {len(embeddings)} embeddings.")
    classes = None if class_embeddings is None else _unit(checked_rows("class embeddings", class_embeddings))
    rows, kept = [], []
    for i, name in enumerate(names):
        why = ""
        if len(name) > longest:
            why = f"{len(name)} characters, more than {longest}"
        elif classes is not None and float((embeddings[i] @ classes.T).max()) > from_class:
            why = f"cosine {float((embeddings[i] @ classes.T).max()):.2f} with a class name"
        elif kept and float((embeddings[i] @ embeddings[kept].T).max()) > from_each_other:
            other = kept[int((embeddings[i] @ embeddings[kept].T).argmax())]
            why = f"cosine {float(embeddings[i] @ embeddings[other]):.2f} with {names[other]!r}"
        if not why:
            kept.append(i)
        rows.append({"concept": name, "kept": not why, "why": why})
    if not kept:
        raise BadData(f"none of the {len(names)} texts is kept; the first: {rows[0]['why']}. Loosen the thresholds.")
    return pl.DataFrame(rows)


def learn_projection(
    features: Float[np.ndarray, "image d"],
    activations: Float[np.ndarray, "image concept"],
    *,
    share: float = 0.25,
    rate: float = 1e-3,
    steps: int = 1000,
    batch: int = 50_000,
    patience: int = 20,
    seed: int = 0,
) -> Projection:
    """Directions whose scores follow given activations, by the cubed cosine (methods2.md 17.6, **C**).

    Features are standardised inside, so that one step size serves all backbones (**X**); the directions that come out
    are for features as they are. A column that is linear in the features reaches a similarity near 1.

    Args:
        features: of the backbone.
        activations: CLIP's, one column per concept.
        share: of the images that are held out, for stopping and for the similarity.
        rate, steps, batch: of Adam.
        patience: steps without a better held-out similarity after which it stops (**X**).
        seed: of split, start and batches.

    Raises:
        ShapeMismatch: features and activations of different images.
        BadData: too few images, or a concept with the same activation everywhere.
        OutOfRange: a setting outside its range.

    Example:
        >>> x = np.random.default_rng(0).standard_normal((400, 4))
        >>> bool(learn_projection(x, x[:, :2], rate=0.05).similarity.min() > 0.95)
        True
    """
    z, p = checked_rows("features", features), checked_rows("activations", activations)
    if len(z) != len(p):
        raise ShapeMismatch(f"features of {len(z)} images and activations of {len(p)}.")
    if not 0 < share < 1 or steps < 1 or batch < 2 or rate <= 0 or patience < 1:
        raise OutOfRange(
            f"share={share}, steps={steps}, batch={batch}, rate={rate}, patience={patience}: share lies between 0 and "
            "1, the others are positive (batch at least 2)."
        )
    held = round(share * len(z))
    if held < 10 or len(z) - held < 10:
        raise BadData(f"{len(z)} images: at least ten to learn from and ten to hold out are needed.")
    if (flat := p.std(0) == 0).any():
        raise BadData(f"concept {int(flat.argmax())} has the same activation on every image; drop it.")
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(z))
    learn, stop = order[held:], order[:held]
    mean, scale = z[learn].mean(0), z[learn].std(0)
    scale = np.where(scale > 0, scale, 1.0)
    x = torch.from_numpy((z - mean) / scale)
    q = torch.from_numpy(p)
    weight = torch.from_numpy(generator.standard_normal((p.shape[1], z.shape[1])) / np.sqrt(z.shape[1]))
    weight.requires_grad_(True)
    optimiser = torch.optim.Adam([weight], lr=rate)
    best, kept, at, similar = -np.inf, weight.detach().clone(), 0, None
    with torch.enable_grad():
        for step in range(steps + 1):
            with torch.no_grad():
                seen = cubed_cosine(x[stop] @ weight.T, q[stop])
            if float(seen.mean()) > best:
                best, kept, at, similar = float(seen.mean()), weight.detach().clone(), step, seen
            if step == steps or step - at >= patience:
                break
            part = learn if len(learn) <= batch else generator.choice(learn, batch, replace=False)
            optimiser.zero_grad()
            (-cubed_cosine(x[part] @ weight.T, q[part]).sum()).backward()
            optimiser.step()
    return Projection(weight=kept.numpy() / scale, similarity=similar.numpy(), steps=at)


def cubed_cosine(
    ours: Float[torch.Tensor, "image concept"], theirs: Float[torch.Tensor, "image concept"]
) -> Float[torch.Tensor, " concept"]:
    """Cosine of columns after centring and cubing, in [-1, 1]."""

    def cubed(columns: torch.Tensor) -> torch.Tensor:
        centred = columns - columns.mean(0)
        # Without this a large column overflows in its sixth power, and a small one vanishes.
        centred = centred / centred.abs().amax(0).clamp(min=1e-30)
        return centred**3

    a, b = cubed(ours), cubed(theirs)
    return (a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0)).clamp(min=1e-30)


def label_free(
    train: Any,
    test: Any,
    names: Sequence[str],
    activations: Float[np.ndarray, "image concept"],
    *,
    name: str | None = None,
    target: str | None = None,
    active: float = 0.25,
    similar: float = 0.45,
    rate: float = 1e-3,
    steps: int = 1000,
    nec: int | float = 30,
    lam: float = 7e-4,
    alpha: float = 0.99,
    seed: int = 0,
    **more: Any,
) -> Bottleneck:
    """A concept bottleneck on any backbone, taught by CLIP's activations instead of concept labels.

    Args:
        train: `Features` of the backbone on training images.
        test: `Features` of other images.
        names: the texts.
        activations: CLIP's cosine of every *training* image with every text.
        name: which features, where there are several.
        target: what is predicted; None: the labels.
        active: a concept stays if the mean of its five highest activations is above this.
        similar: and if its held-out similarity is above this.
        rate, steps: of learning the projection.
        nec, lam, alpha: of the sparse layer.
        seed: of the projection.
        more: of :func:`probes.bottleneck.bottleneck`, e.g. `layer="relu"`, or `teacher="probe"`.

    Returns:
        Bottleneck: with the table `filtered`: every text, its activation and similarity, and why it was dropped.

    Raises:
        ShapeMismatch: activations that do not fit names or images.
        BadData: no concept passes.
        SplitOverlap: training images among the test images.

    Example:
        >>> activations = (clip.encode_image(images) @ clip.encode_text(texts).T).numpy()     # doctest: +SKIP
        >>> label_free(train, test, texts, activations).weights()                             # doctest: +SKIP
    """
    z, _, _, _ = train_and_test(train, test, name, target)
    p = checked_rows("activations", activations)
    if p.shape != (len(z), len(names)):
        raise ShapeMismatch(f"activations are [training image concept] = {[len(z), len(names)]}, got {list(p.shape)}.")
    top = np.sort(p, axis=0)[-TOP:].mean(0)
    shown = top > active
    if not shown.any():
        raise BadData(f"no text is active: the highest mean of five activations is {top.max():.3f}, asked {active}.")
    found = learn_projection(z, p[:, shown], rate=rate, steps=steps, seed=seed)
    similarity = np.full(len(names), np.nan)
    similarity[shown] = found.similarity
    kept = shown & (np.nan_to_num(similarity, nan=-1.0) > similar)
    if not kept.any():
        raise BadData(f"no concept is known to the backbone: the best similarity is {np.nanmax(similarity):.2f}.")
    directions = found.weight[kept[shown]]
    # One direction may be as long as another: scores are standardised afterwards.
    concepts = Concepts(
        names=tuple(n for n, k in zip(names, kept, strict=True) if k), directions=directions, normalise=False
    )
    settings = {"layer": "linear", "teacher": None, "nec": nec, "lam": lam, "alpha": alpha, "seed": seed}
    made = bottleneck(train, test, concepts, name=name, target=target, **{**settings, **more})
    why = [
        "" if k else f"five highest activations {t:.2f}" if not s else f"similarity {m:.2f}"
        for k, s, t, m in zip(kept, shown, top, similarity, strict=True)
    ]
    columns = {"concept": list(names), "kept": kept, "top_activation": top, "similarity": similarity, "why": why}
    return Bottleneck(
        title="Label-free concept bottleneck",
        tables={**made.tables, "filtered": pl.DataFrame(columns, nan_to_null=True)},
        arrays=made.arrays,
        facts={**made.facts, "label_free": True, "projection_steps": found.steps, "active": active, "similar": similar},
        words={
            **made.words,
            "top_activation": "mean of the five highest CLIP cosines of training images with the text",
            "similarity": "cubed cosine of the projected feature with CLIP's cosine, held-out training images",
        },
        caveats=(*made.caveats, "Concepts follow CLIP's opinion, with its mistakes."),
        provenance=made.provenance,
    )


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
