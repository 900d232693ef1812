"""Is it used? Take what a probe reads out of the stream, and look at the model's own output (methods.md 3.2).

1. Features of one site and token choice; a probe and erasers are fitted on training images.
2. On held-out images the model runs with each eraser as an edit of its stream at that site
   (:meth:`probes.linear.Eraser.edit`).
3. Beside it, erasers of equal rank that know nothing of the target: random subspaces (many draws), and the largest
   principal components (loud, but not about the target).
4. Per eraser: what a *new* probe, fitted to erased features, still reads; the model's accuracy and its paired drop, how
   far the output moves (KL in nats, share of changed predictions), all with intervals over images, and by group.

A probe that is right while its erasure changes the output no more than a random subspace reads something that the model
does not use *at that site and at those tokens*; it may come back from other tokens at the next layer.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch

from mechvis.errors import BadData, EffectlessEdit, unknown
from mechvis.progress import track
from mechvis.provenance import provenance
from mechvis.stats import RESAMPLES, bootstrap
from mechvis.store.forward import reader
from probes.features import collect
from probes.linear.batches import rows_of
from probes.linear.erasers import Eraser, inlp, largest_components, leace, random_subspace, row_space_eraser
from probes.linear.erasure import CAVEATS, WORDS, Erasure
from probes.linear.estimators import ClassProbe
from probes.linear.judge import judge, kind_of
from probes.linear.split import FRACTIONS, Split, split_images

METHODS = ("projection", "inlp", "leace")


def erase(
    model: Any,
    images: Any,
    *,
    site: str,
    tokens: str = "read",
    target: str | np.ndarray | None = None,
    methods: Sequence[str] = METHODS,
    edited_tokens: Any = "same",
    split: Split | None = None,
    fractions: tuple[float, float, float] = FRACTIONS,
    weight_decay: float | None = 1e-2,
    rounds: int = 8,
    randoms: int = 20,
    resamples: int = RESAMPLES,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> Erasure:
    """Erase a target from a site of the model and measure the model's own output.

    Args:
        model: a wrapped model with a head.
        images: a labelled `ImageSet`.
        site: one site, e.g. `blocks.2.hook_resid_post`.
        tokens: what the probe reads there, see :mod:`probes.features`.
        target: a column of classes by name (default: the labels), or one class per image.
        methods: of `projection` (one probe's row space), `inlp`, `leace`.
        edited_tokens: `same`: the tokens that the probe read; else a selection of :mod:`mechvis.edits` (None: all).
        split: who trains and who judges (validation joins the training); default by `fractions` and `seed`.
        fractions: of train, validation and test.
        weight_decay: of the probes (**X**).
        rounds: most rounds of INLP.
        randoms: draws of random subspaces per eraser.
        resamples: of the bootstrap.
        batch_size: images per forward pass.
        seed: of split, random subspaces and bootstrap.
        progress: show a progress bar.

    Returns:
        Erasure: `table` starts with the untouched model.

    Raises:
        UnknownName: no such method or token choice.
        BadData: a site pattern that matches several, a model without a head, images without labels, or a choice of
            tokens that no edit covers (`cls+mean`).
        SplitOverlap: parts that share an image.

    Example:
        >>> found = erase(model, images, site="blocks.2.hook_resid_post", target="background")      # doctest: +SKIP
        >>> found.against_random("LEACE")                                                          # doctest: +SKIP
    """
    for method in methods:
        if method not in METHODS:
            raise unknown("method", method, METHODS)
    if not methods or randoms < 1:
        raise BadData(f"methods={list(methods)}, randoms={randoms}: at least one of each.")
    if model.parts.head is None or getattr(images, "labels", None) is None:
        raise BadData("the model's own output is judged: it needs a head, and the images labels.")
    if tokens == "cls+mean":
        raise BadData(
            "tokens='cls+mean' puts two tokens side by side, and no edit acts on both at once: erase one of them."
        )
    precision = "float64" if model.dtype == torch.float64 else "float32"
    features = collect(model, images, site, tokens=tokens, dtype=precision, progress=progress)
    if len(features) != 1:
        raise BadData(
            f"site={site!r} means {len(features)} sites; an erasure is at one: {', '.join(list(features)[:3])} ..."
        )
    name = next(iter(features))
    classes = np.asarray(features.target(target) if target is None or isinstance(target, str) else target)
    if len(classes) != features.n_images or kind_of(classes) != "classes":
        raise BadData(f"the target of an erasure is one class per image ({features.n_images} images).")
    split = split_images(classes, fractions, seed=seed) if split is None else split.within(features.n_images)
    if not len(split.test):
        raise BadData("the test part is empty: nobody judges.")
    fit = np.concatenate([split.train, split.validation])
    each = len(features[name]) // features.n_images
    train = rows_of(features[name], features.n_images, fit)[:], np.repeat(classes[fit], each)
    test = rows_of(features[name], features.n_images, split.test)[:]
    settings = {"weight_decay": weight_decay}
    erasers: list[tuple[Eraser | None, str | None]] = [(None, None)]
    made = [
        row_space_eraser(ClassProbe(**settings).fit(*train), train[0])
        if method == "projection"
        else inlp(*train, rounds=rounds, seed=seed, **settings)[0]
        if method == "inlp"
        else leace(*train)
        for method in methods
    ]
    for eraser in made:
        draws = [random_subspace(eraser.mean, eraser.rank, seed=seed + 1000 + draw) for draw in range(randoms)]
        loud = largest_components(train[0], eraser.rank)
        erasers += [(eraser, None), (loud, eraser.name), *((draw, eraser.name) for draw in draws)]
    where = _edited(model, tokens, edited_tokens, has_tokens=name != features.sites[name])
    judged = images[split.test]
    read, outputs, told = reader(model, judged), [], set()
    with track(len(erasers), "erasing", " erasers", show=progress) as bar:
        for eraser, _ in erasers:
            edit = [] if eraser is None else [eraser.edit(features.sites[name], tokens=where)]
            outputs.append(_outputs(model, read, len(judged), edit, batch_size, told))
            bar.update(1)
    scores = _scores(outputs, np.asarray(_labels(model, judged)))
    more = {"resamples": resamples, "seed": seed}
    rows, group_rows = [], []
    groups = None if judged.groups is None else np.asarray(judged.groups)
    for eraser, control_for, places in _collected(erasers):
        line = _about(eraser, control_for, train[0])
        first = None if eraser is None else eraser
        after = _x(first, test), np.repeat(classes[split.test], each)
        probe = judge("classes", (_x(first, train[0]), train[1]), after, len(split.test), **settings)
        value, low, high = probe.interval(**more)
        line |= {"probe": value, "probe_low": low, "probe_high": high}
        mine = {word: values[places].mean(0) for word, values in scores.items()}
        rows.append(line | _means(mine, more) | {"p": _p(eraser, control_for, erasers, scores["kl"]), "n": len(judged)})
        for group in [] if groups is None else np.unique(groups):
            part = {word: values[groups == group] for word, values in mine.items()}
            group_rows.append(line | {"group": str(group)} | _means(part, more) | {"n": int((groups == group).sum())})
    tables = {"erasers": pl.DataFrame(rows, infer_schema_length=None)}
    if group_rows:
        tables["groups"] = pl.DataFrame(group_rows, infer_schema_length=None)
    word = target if isinstance(target, str) else "label" if target is None else "a given target"
    return Erasure(
        title=f"Erasing {word} at {name}",
        tables=tables,
        arrays={"kl": scores["kl"], "correct": scores["accuracy"], "test": split.test},
        facts={
            "site": features.sites[name], "tokens": tokens, "edited_tokens": str(where), "target": word, "seed": seed,
            "randoms": randoms, "train": len(fit), "test": len(judged), "weight_decay": weight_decay,
        },
        words=WORDS,
        caveats=(*CAVEATS, *sorted(told)),
        provenance=provenance(model=model, images=images, seed=seed),
    )  # fmt: skip


def _edited(model: Any, choice: str, asked: Any, *, has_tokens: bool) -> Any:
    """Which tokens an erasure of what the probe read acts on."""
    if not has_tokens:
        return None
    if not (isinstance(asked, str) and asked == "same"):
        return asked
    parts = model.parts
    if choice == "read":
        if isinstance(parts.reads, tuple):
            return list(parts.reads)
        return "patches" if parts.prefix and parts.reads is None and parts.pooling is None else None
    return {"cls": "cls", "mean": "patches", "registers": "registers", "patches": "patches", "all": None}[choice]


def _labels(model: Any, images: Any) -> np.ndarray:
    from mechvis.labels import with_model_classes

    return with_model_classes(images, model).labels


@torch.no_grad()
def _outputs(model: Any, read: Any, n: int, edit: list, batch_size: int, told: set[str]) -> np.ndarray:
    """Log-probabilities of all images: `[image class]`; adds what the model says about edits that cannot matter."""
    found = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always", EffectlessEdit)
        for start in range(0, n, batch_size):
            pixels = read(np.arange(start, min(start + batch_size, n)))
            logits = model.run(pixels.to(model.device, model.dtype), edits=edit).logits
            found.append(logits.double().log_softmax(-1).cpu().numpy())
    for warning in seen:
        if issubclass(warning.category, EffectlessEdit):
            told.add(f"Said by the model: {warning.message}")
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return np.concatenate(found)


def _scores(outputs: list[np.ndarray], labels: np.ndarray) -> dict[str, np.ndarray]:
    clean, all_of = outputs[0], np.stack(outputs)
    predicted = all_of.argmax(-1)
    correct = (predicted == labels).astype(float)
    return {
        "accuracy": correct,
        "drop": correct[:1] - correct,
        "kl": (np.exp(clean) * (clean - all_of)).sum(-1),
        "changed": (predicted != predicted[:1]).astype(float),
    }


def _collected(erasers: list) -> list[tuple[Eraser | None, str | None, list[int]]]:
    """Erasers with the places of their outputs; the draws of a random control together."""
    together: dict[tuple, tuple] = {}
    for place, (eraser, control_for) in enumerate(erasers):
        key = (None if eraser is None else eraser.name, control_for)
        together.setdefault(key, (eraser, control_for, []))[2].append(place)
    return list(together.values())


def _about(eraser: Eraser | None, control_for: str | None, x: np.ndarray) -> dict[str, Any]:
    if eraser is None:
        return {"eraser": "nothing", "control_for": None, "rank": 0, "removed_variance": 0.0}
    centred = x - x.mean(0)
    removed = float(((centred @ eraser.remove.T) ** 2).sum() / (centred**2).sum())
    return {"eraser": eraser.name, "control_for": control_for, "rank": eraser.rank, "removed_variance": removed}


def _x(eraser: Eraser | None, x: np.ndarray) -> np.ndarray:
    return x if eraser is None else eraser(x)


def _means(scores: dict[str, np.ndarray], more: dict[str, int]) -> dict[str, float]:
    found = bootstrap(np.stack(list(scores.values())), **more)
    line: dict[str, float] = {}
    for at, word in enumerate(scores):
        line |= {
            word: float(found.effect[at]),
            f"{word}_low": float(found.low[at]),
            f"{word}_high": float(found.high[at]),
        }
    return line


def _p(eraser: Eraser | None, control_for: str | None, erasers: list, kl: np.ndarray) -> float | None:
    if eraser is None or control_for is not None:
        return None
    draws = [kl[at].mean() for at, (e, c) in enumerate(erasers) if c == eraser.name and e.name == "random subspace"]
    mine = next(kl[at].mean() for at, (e, c) in enumerate(erasers) if e is eraser)
    return (1 + sum(draw >= mine for draw in draws)) / (1 + len(draws))
