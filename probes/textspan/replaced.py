"""How much of a model's zero-shot accuracy is in the texts: heads replaced by their spans (methods.md 2.2 step 4).

Everything that is no head of the chosen layers is put at its mean over the images of the text span, and every head is
replaced by its mean plus its part along its first `k` texts. What accuracy is left is compared with

* `heads whole`: the heads as they are, everything else at its mean: what the heads alone are good for;
* `principal`: `k` principal directions instead of texts, the best that `k` directions can do for the variance;
* `random`: `k` picks from as many random directions as there are texts;
* `other heads`: every head with the texts of another head;
* `nothing`: all at its mean; `model`: the model as it is.

No forward pass is edited: all is the sum of terms of the embedding, divided by its length before (**C**).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from mechvis import stats
from mechvis.data.images import ImageSet
from mechvis.errors import BadData, OutOfRange, ResultMismatch, SplitOverlap
from mechvis.provenance import provenance
from mechvis.record import Record
from probes.textspan.reading import read, tower_of
from probes.textspan.record import TextSpan, image_keys
from probes.textspan.tasks import Task, check_tasks

WORDS = {
    "task": "the property that is asked for",
    "heads": "what takes the place of the heads' writes",
    "k": "directions per head",
    "accuracy": "share of images whose nearest text is the right one; low and high: 95 % interval over images",
    "chance": "share of the most frequent value",
    "n": "images",
}


def replaced_accuracy(
    clip: Any,
    images: ImageSet,
    found: TextSpan,
    tasks: Mapping[str, Task],
    *,
    ks: Sequence[int] = (1, 2, 5, 10, 20),
    batch_size: int = 32,
    seed: int = 0,
    allow_overlap: bool = False,
    progress: bool = True,
) -> Record:
    """Zero-shot accuracy after heads are replaced by their first `k` texts.

    Args:
        clip: the model of the text span.
        images: images to judge on, other than those of the text span.
        found: the text span.
        tasks: properties of these images.
        ks: how many texts per head; those above the text span's `m` are left out.
        batch_size: images per forward pass.
        seed: of the choice of other heads, and of the intervals.
        allow_overlap: accept images that the text span was found on.
        progress: show a progress bar.

    Returns:
        Record: one row per task, kind of replacement and `k`.

    Raises:
        SplitOverlap: images that the text span was found on.
        ResultMismatch: a text span of another model.
        OutOfRange: no usable `k`.

    Example:
        >>> replaced_accuracy(clip, others, found, tasks).table                            # doctest: +SKIP
    """
    tower = tower_of(clip)
    ks = sorted({int(k) for k in ks if 1 <= int(k) <= found.facts["m"]})
    if not ks:
        raise OutOfRange(f"ks: none lies between 1 and the {found.facts['m']} texts per head of the text span.")
    if found.provenance.get("model", {}).get("fingerprint") not in (None, tower.fingerprint):
        raise ResultMismatch(f"this text span belongs to another model than {tower.name}, or its weights have changed.")
    shared = np.isin(image_keys(images.ids), found.arrays["image_keys"])
    if shared.any() and not allow_overlap:
        raise SplitOverlap(
            f"{int(shared.sum())} images are among those that the text span was found on "
            f"({images.ids[int(shared.argmax())]} ...). Judge on others, or allow_overlap=True if you know why."
        )
    arrays = found.arrays
    n_heads = len(found.heads)
    bases = {"texts": arrays["basis"], "principal": arrays["pca_basis"], "random": arrays["random_basis"]}
    if n_heads > 1:
        bases["other heads"] = arrays["basis"][_moved(n_heads, seed)]
    constant = arrays["rest_mean"] + arrays["mean"].sum(0)
    correct = {
        (name, kind, k): np.zeros(len(images), bool)
        for name in tasks
        for kind, k in [("model", 0), ("heads whole", 0), ("nothing", 0), *((kind, k) for kind in bases for k in ks)]
    }
    layers = sorted({int(layer) for layer, _ in arrays["keys"] if layer < len(tower.parts.blocks)}) or None
    settings = {"layers": layers, "convention": found.facts["convention"], "batch_size": batch_size}
    for batch in read(clip, images, **settings, progress=progress):
        if batch.names != found.heads:
            raise ResultMismatch(f"the text span is about {', '.join(found.heads[:4])} ..., not {batch.names[0]} ...")
        check_tasks(tasks, len(images), batch.whole.shape[1])
        deviation = batch.heads - arrays["mean"]
        embeddings = {("model", 0): batch.whole, ("heads whole", 0): constant + deviation.sum(1)}
        embeddings["nothing", 0] = np.broadcast_to(constant, batch.whole.shape)
        for kind, basis in bases.items():
            along = np.einsum("ihd,hkd->ihk", deviation, basis)
            for k in ks:
                embeddings[kind, k] = constant + np.einsum("ihk,hkd->id", along[..., :k], basis[:, :k])
        for name, task in tasks.items():
            for key, each in embeddings.items():
                correct[name, *key][batch.where] = task.correct(each, batch.where)
    keys = list(correct)
    known = stats.bootstrap(np.stack([correct[key] for key in keys]).astype(float), seed=seed)
    most = {name: float(np.bincount(task.target).max() / len(task.target)) for name, task in tasks.items()}
    rows = [
        {"task": name, "heads": kind, "k": k or None, "accuracy": known.effect[i], "low": known.low[i]}
        | {"high": known.high[i], "chance": most[name], "n": len(images)}
        for i, (name, kind, k) in enumerate(keys)
    ]
    return Record(
        kind="replaced_heads",
        title=f"Zero-shot accuracy with heads replaced by their texts, {len(images)} images",
        tables={"accuracy": pl.DataFrame(rows, schema_overrides={"k": pl.Int64})},
        facts={"n": len(images), "span_n": found.facts["n"], "bank": found.facts["bank"], "ks": ks},
        words=WORDS,
        caveats=(
            "Everything but the heads of the chosen layers is at its mean: `heads whole` is the most to be reached.",
            "The direct path only: no later block reacts.",
        ),
        provenance=provenance(model=tower, images=images, seed=seed, span=found.provenance.get("data", {})),
    )


def _moved(n: int, seed: int) -> np.ndarray:
    """Another head for every head."""
    if n < 2:
        raise BadData("one head has no other head.")
    order = np.random.default_rng(seed).permutation(n)
    found = np.empty(n, int)
    found[order] = np.roll(order, 1)
    return found
