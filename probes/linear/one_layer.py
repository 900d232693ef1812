"""Probing one set of features: the task, its controls and baselines, on the same images and at the same capacity."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mechvis.errors import ShapeMismatch
from mechvis.stats import bootstrap, paired_difference
from probes.features import Features
from probes.linear.baselines import majority_accuracy
from probes.linear.batches import rows_of
from probes.linear.judge import Judged, judge, validation_loss
from probes.linear.online_code import online_code
from probes.linear.split import Split

Task = tuple[np.ndarray, np.ndarray | None]
"""Targets of the images, and of other images that judge (None: a part of the same does)."""


class Study:
    """The parts of one call that every set of features shares."""

    def __init__(
        self,
        features: Features,
        kind: str,
        split: Split,
        judge_on: Features | None,
        resamples: int,
        seed: int,
        settings: Mapping[str, Any],
    ):
        self.features, self.kind, self.split, self.settings = features, kind, split, settings
        self.judged = features if judge_on is None else judge_on
        self.places = split.test if judge_on is None else np.arange(judge_on.n_images)
        self.more = {"resamples": resamples, "seed": seed}
        self.seed = seed

    def rows(self, name: str, target: np.ndarray, images: np.ndarray, of: Features | None = None) -> tuple:
        of = self.features if of is None else of
        x = rows_of(of[name], of.n_images, images)
        return x, np.repeat(target[images], len(of[name]) // of.n_images, axis=0)

    def fitted(self, name, target, elsewhere, decay, *, rank=None, of=None, on=None) -> tuple[Judged, float]:
        """A probe, judged, and its validation loss."""
        of, on = self.features if of is None else of, self.judged if on is None else on
        wanted = target if elsewhere is None else elsewhere
        train = self.rows(name, target, self.split.train, of)
        test = self.rows(name, wanted, self.places, on)
        found = judge(
            self.kind, train, test, len(self.places), weight_decay=decay, rank=rank, seed=self.seed, **self.settings
        )
        if not len(self.split.validation):
            return found, float("nan")
        return found, validation_loss(self.kind, found.probe, *self.rows(name, target, self.split.validation, of))

    def chosen(self, name, target, elsewhere, decays, *, of=None, on=None) -> tuple[Judged, float, list]:
        """The probe of the weight decay with the smallest validation loss; all of them besides."""
        tried = [(decay, *self.fitted(name, target, elsewhere, decay, of=of, on=on)) for decay in decays]
        decay, found, _ = min(tried, key=lambda one: (one[2], -one[0])) if len(tried) > 1 else tried[0]
        return found, decay, tried

    def one(self, name, tasks, decays, ranks, capacity) -> tuple[dict, Judged]:
        """The row of one set of features; adds to the table of capacities."""
        found, decay, tried = self.chosen(name, *tasks["task"], decays)
        controls = {task: pair for task, pair in tasks.items() if task != "task"}
        row = self._about(name) | self._score("score", found) | {"n": len(self.places)}
        train = self.rows(name, tasks["task"][0], self.split.train)
        row |= {
            "train_score": float(found.probe.score(*train)),
            "weight_decay": decay,
            "converged": found.probe.converged_,
        }
        at = [(None, other, judged, loss) for other, judged, loss in tried]
        at += [(rank, decay, *self.fitted(name, *tasks["task"], decay, rank=rank)) for rank in ranks]
        for rank, other, judged, loss in at:
            line = {"features": name, "rank": rank, "weight_decay": other, "validation_loss": loss}
            line |= self._score("score", judged)
            for task, pair in controls.items():
                control, _ = self.fitted(name, *pair, other, rank=rank)
                word = "selectivity" if task == "control" else "type_selectivity"
                both = self._score(task, control) | self._difference(word, judged, control)
                line |= both
                if rank is None and other == decay:
                    row |= both
            capacity.append(line | {"chosen": rank is None and other == decay})
        return row, found

    def code(self, name, task, target, blocks) -> dict:
        """Code lengths of one task; adds to the table of blocks."""
        images = np.concatenate([self.split.train, self.split.validation])
        found = online_code(*self.rows(name, target, images), seed=self.seed, **self.settings)
        blocks += [
            {"features": name, "task": task, "first": first, "last": last - 1, "bits": bits}
            for first, last, bits in found.blocks
        ]
        word = "" if task == "task" else f"{task}_"
        return {f"{word}bits": found.bits, f"{word}compression": found.compression}

    def by_group(self, name: str, scores: np.ndarray) -> list[dict]:
        groups = self.judged.groups
        if groups is None:
            return []
        mine, found = groups[self.places], []
        for group in np.unique(mine):
            at = bootstrap(scores[mine == group], **self.more)
            found.append(
                {
                    "features": name, "group": str(group), "score": float(at.effect[0]), "score_low": float(at.low[0]),
                    "score_high": float(at.high[0]), "n": int(at.n[0]),
                }
            )  # fmt: skip
        return found

    def baselines(self, given, task, decays, rows, scores) -> list[dict]:
        """Rows of baselines; `random model` is written into the table of layers too."""
        target, elsewhere = task
        wanted, table = (target if elsewhere is None else elsewhere)[self.places], []
        if self.kind == "classes":
            at = bootstrap(majority_accuracy(target[self.split.train], wanted), **self.more)
            table.append(_line("commonest class", None, at.effect[0], at.low[0], at.high[0], len(wanted)))
        for word, of in given.items():
            if isinstance(of, np.ndarray):
                of = _alone(word, of, self.features)
            if of.n_images != self.features.n_images or (of.ids != self.features.ids):
                raise ShapeMismatch(
                    f"the baseline {word!r} is about other images than the features: collect it from the same."
                )
            names = [name for name in of if name in self.features] or list(of)
            for name in names:
                found, _, _ = self.chosen(name, target, elsewhere, decays, of=of, on=of)
                alone = name not in self.features
                score, low, high = found.interval(**self.more)
                table.append(_line(word, None if alone else name, score, low, high, len(wanted)))
                place = None if alone else list(self.features).index(name)
                if place is not None and word == "random model":
                    gap = paired_difference(scores[place], found.scores, **self.more)
                    rows[place] |= {
                        "random_model": score, "random_model_low": low, "random_model_high": high,
                        "above_random": float(gap.effect[0]), "above_random_low": float(gap.low[0]),
                        "above_random_high": float(gap.high[0]),
                    }  # fmt: skip
        return table or [_line("none", None, float("nan"), float("nan"), float("nan"), len(wanted))]

    def _about(self, name: str) -> dict:
        site = self.features.sites[name]
        tokens = name[len(site) + 1 :]
        return {
            "features": name,
            "site": site,
            "layer": self.features.layers[name],
            "tokens": tokens or None,
            "d": self.features[name].shape[1],
        }

    def _score(self, word: str, found: Judged) -> dict:
        value, low, high = found.interval(**self.more)
        return {word: value, f"{word}_low": low, f"{word}_high": high}

    def _difference(self, word: str, first: Judged, second: Judged) -> dict:
        gap = paired_difference(first.scores, second.scores, **self.more)
        return {word: float(gap.effect[0]), f"{word}_low": float(gap.low[0]), f"{word}_high": float(gap.high[0])}


def _line(baseline: str, features: str | None, score: float, low: float, high: float, n: int) -> dict:
    return {
        "baseline": baseline, "features": features, "score": float(score), "score_low": float(low),
        "score_high": float(high), "n": n,
    }  # fmt: skip


def _alone(name: str, matrix: np.ndarray, like: Features) -> Features:
    """A matrix of the same images as a set of features of its own."""
    if matrix.ndim != 2 or len(matrix) != like.n_images:
        raise ShapeMismatch(
            f"the baseline {name!r} is {list(matrix.shape)}; expected [image d] of {like.n_images} images."
        )
    return replace(like, rows={name: matrix}, sites={name: name}, layers={name: None})
