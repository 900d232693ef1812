"""The tables of a decision timeline: per group, per anchor, per followed class, per corruption, per image."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl

from mechvis.data.images import ImageSet
from mechvis.errors import ShapeMismatch
from mechvis.stats import bootstrap
from probes.features import Features, collect
from probes.timeline.corrupt import mildly_corrupted
from probes.timeline.depth import by_anchor, shift_of, summary_of, table_of
from probes.timeline.running import Running
from probes.timeline.settle import NEVER, decision_layer, fell_back, settle, settle_conf

Groups = Mapping[str, np.ndarray]
"""Name -> which of the judged images, bool."""


def only(features: Features, sites: Sequence[str]) -> Features:
    """The features of some sites, in their order."""
    names = [name for site in sites for name, at in features.sites.items() if at == site]
    return replace(
        features,
        rows={name: features.rows[name] for name in names},
        sites={name: features.sites[name] for name in names},
        layers={name: features.layers[name] for name in names},
    )


def group_lines(
    predictions: np.ndarray,
    probability: np.ndarray,
    labels: np.ndarray,
    groups: Groups,
    *,
    k: int,
    settle_p: float,
    draws: int,
    more: Mapping[str, int],
) -> pl.DataFrame:
    """One line per group."""
    sure, rows = settle_conf(predictions, probability, settle_p), []
    for name, where in groups.items():
        line = {"group": name} | summary_of(predictions[where], labels[where], k=k, draws=draws, **more)
        mine = sure[where]
        never = (mine == NEVER).astype(float)
        found = bootstrap(np.stack([np.where(mine == NEVER, np.nan, mine), never]), **more)
        for at, word in enumerate(("settle_conf", "never_sure")):
            ends = (found.effect[at], found.low[at], found.high[at])
            keys = (word, f"{word}_low", f"{word}_high")
            line |= {key: None if np.isnan(end) else float(end) for key, end in zip(keys, ends, strict=True)}
        rows.append(line)
    return table_of(rows)


def anchor_lines(
    predictions: np.ndarray,
    probability: np.ndarray,
    labels: np.ndarray,
    groups: Groups,
    running: Running,
    sites: Sequence[str],
    *,
    k: int,
    more: Mapping[str, int],
) -> pl.DataFrame:
    """Per group and anchor: accuracy, agreement with the final prediction, confidence, and where images decide."""
    correct = (predictions == labels[:, None]).astype(float)
    final = (predictions == predictions[:, -1:]).astype(float)
    rows = []
    for name, where in groups.items():
        at = by_anchor(predictions[where], k=k)
        columns = {
            "accuracy": correct[where].T,
            "agrees_with_last": final[where].T,
            "confidence": probability[where].max(-1).T,
        }
        found = {word: bootstrap(values, **more) for word, values in columns.items()}
        for anchor, site in enumerate(sites):
            line = {"group": name, "anchor": anchor, "site": site, "features": running.names[anchor]}
            for word, values in found.items():
                line |= {
                    word: float(values.effect[anchor]), f"{word}_low": float(values.low[anchor]),
                    f"{word}_high": float(values.high[anchor]),
                }  # fmt: skip
            line |= {word: float(values[anchor]) for word, values in at.items()}
            rows.append(line | {"weight_decay": running.weight_decays[anchor], "n": int(where.sum())})
    return table_of(rows)


def following_lines(
    predictions: np.ndarray,
    follow: Mapping[str, np.ndarray],
    groups: Groups,
    *,
    n: int,
    test: np.ndarray,
    more: Mapping[str, int],
) -> pl.DataFrame:
    """Share of images whose running prediction is a class that is followed.

    Raises:
        ShapeMismatch: not one class per image of the set.
    """
    rows = []
    for what, classes in follow.items():
        classes = np.asarray(classes)
        if classes.shape != (n,) or classes.dtype.kind not in "iu":
            raise ShapeMismatch(
                f"follow={what!r}: one class number per image ({n}), got {classes.dtype} {list(classes.shape)}."
            )
        same = (predictions == classes[test][:, None]).astype(float)
        for name, where in groups.items():
            found = bootstrap(same[where].T, **more)
            rows += [
                {
                    "follow": what, "group": name, "anchor": anchor, "share": float(found.effect[anchor]),
                    "share_low": float(found.low[anchor]), "share_high": float(found.high[anchor]),
                    "n": int(where.sum()),
                }
                for anchor in range(predictions.shape[1])
            ]  # fmt: skip
    return table_of(rows)


def corruption_lines(
    model: Any,
    images: ImageSet,
    corruptions: Sequence[tuple[str, int]],
    running: Running,
    predictions: np.ndarray,
    labels: np.ndarray,
    sites: Sequence[str],
    *,
    k: int,
    seed: int,
    more: Mapping[str, int],
    **collecting: Any,
) -> pl.DataFrame:
    """How far decisions move when the judged images get a little worse; the probes stay as they are."""
    rows = []
    for kind, severity in corruptions:
        worse = mildly_corrupted(images, kind, severity, seed=seed)
        changed = running.probability(only(collect(model, worse, list(sites), **collecting), sites)).argmax(-1)
        accuracy = float((changed[:, -1] == labels).mean())
        line = {"corruption": kind, "severity": severity, "final_accuracy": accuracy}
        rows.append(line | shift_of(predictions, changed, k=k, **more))
    return table_of(rows)


def image_lines(
    ids: Sequence[str],
    groups: np.ndarray | None,
    labels: np.ndarray,
    predictions: np.ndarray,
    sure: np.ndarray,
    *,
    k: int,
) -> pl.DataFrame:
    """One line per judged image."""
    columns: dict[str, Any] = {"image": list(ids)}
    if groups is not None:
        columns["group"] = [str(name) for name in groups]
    columns |= {
        "label": labels,
        "decision": decision_layer(predictions, k),
        "fallback": fell_back(predictions, k),
        "settle": settle(predictions),
        "settle_conf": [None if at == NEVER else int(at) for at in sure],
        "final": predictions[:, -1],
        "predictions": predictions.tolist(),
    }
    return pl.DataFrame(columns)
