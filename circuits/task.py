"""The behaviour that a circuit is to explain: images, what takes the place of what is cut, and what is measured.

Every method of this package that looks for edges or judges a circuit is given a `Task`, so that all of them mean the
same by their words and can be compared: the same images, the same ablation, the same metric, the same classes.

    task = circuits.task(model, pairs, metric="logit_diff")            # clean and corrupt images, aligned
    task = circuits.task(model, images, ablation="mean_positional", reference=others)
    task.measure(gates)                                                # the metric of circuits, per image

`m` is the metric, higher = behaviour kept. `m(full)` is the model as it is, `m(empty)` the model with every edge cut.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from circuits.edges.base import ABLATIONS, Outputs, Recorded, mean_outputs, record, zeros
from circuits.edges.gated import Gates, gated
from circuits.edges.graph import EdgeGraph
from circuits.edges.wiring import Wiring, wiring
from circuits.evaluation.image_hashes import image_hashes
from circuits.pairs.pairs import Pairs
from mechvis import metrics
from mechvis.data.images import ImageSet, refuse_overlap
from mechvis.engine import budget_bytes
from mechvis.errors import BadData, NotFinite, ShapeMismatch, SplitOverlap, unknown
from mechvis.labels import with_model_classes
from mechvis.progress import track
from mechvis.wave import rows_at_once as cached_rows

Ablation = Literal["patch", "resample", "zero", "mean", "mean_positional"]

_SAME = 1e-6
"""A metric that moves less than this share of its size between the full and the empty model counts as constant."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Batch:
    """Some images of a task, run and ready to be cut."""

    rows: range
    """Which images."""
    clean: Recorded
    """Their clean run."""
    base: Outputs
    """What cut edges carry; one row where it is the same for all images."""
    classes: tuple[Tensor, Tensor]
    """Target and contrast class per image."""
    logits: Float[Tensor, "image class"]
    """The clean run's output."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Task:
    """Images, ablation and metric; made by :func:`task`."""

    model: Any
    """A wrapped model with a head."""
    name: str
    """Name of the images."""
    clean: Tensor
    """Pixels `[image channel height width]`."""
    ablation: str
    """One of patch, resample, zero, mean, mean_positional."""
    corrupt: Tensor | None = None
    """For patch and resample: the images whose activations cut edges carry."""
    fixed: Outputs | None = None
    """For means: what cut edges carry, one row."""
    metric_name: str
    """Name of the metric."""
    metric: Callable
    """See `mechvis.metrics`."""
    target: Tensor
    """Class per image that the metric is about."""
    contrast: Tensor
    """The class it is compared with."""
    ids: tuple[str, ...]
    """One name per image."""
    labels: Tensor | None = None
    """Given labels, where there are any."""
    same_class: Tensor | None = None
    """For pairs: whether the model gives both halves one class, `[image]`."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What was asked for, as JSON can hold it."""
    seed: int = 0
    """Of resampling."""
    budget: int
    """Memory for activations in bytes."""

    def __len__(self) -> int:
        return len(self.clean)

    @property
    def undistinguished(self) -> int:
        """Pairs whose halves the model gives one class."""
        return 0 if self.same_class is None else int(self.same_class.sum())

    @cached_property
    def graph(self) -> EdgeGraph:
        """The model's edges."""
        return EdgeGraph.of(self.model)

    @cached_property
    def wires(self) -> Wiring:
        """Graph and weights, made once."""
        return wiring(self.model, record(self.model, self.clean[:2]))

    def batch(self, rows: range) -> Batch:
        """Run some images.

        Args:
            rows: positions of the images.
        """
        at = slice(rows.start, rows.stop)
        clean = record(self.model, self.clean[at])
        if self.corrupt is not None:
            base: Outputs = record(self.model, self.corrupt[at])
        else:
            base = zeros(clean) if self.fixed is None else self.fixed
        logits = self.out_of(clean)
        return Batch(rows=rows, clean=clean, base=base, classes=(self.target[at], self.contrast[at]), logits=logits)

    def out_of(self, clean: Recorded) -> Tensor:
        """The model's output of a recorded run, by the same steps as a run with cut edges."""
        return gated(self.model, clean, zeros(clean), self._open(1), wires=self.wires)[0]

    def score(self, output: Float[Tensor, "*rows image class"], batch: Batch) -> Float[Tensor, "*rows image"]:
        """The metric of outputs for a batch's images."""
        return self.metric(output, *batch.classes, batch.logits)

    def batches(self, size: int | None = None, *, what: str = "", progress: bool = False) -> Iterator[Batch]:
        """The images in batches.

        Args:
            size: images per batch; default: as many as the budget allows for one circuit.
            what: words for the progress bar.
            progress: show one.
        """
        size = min(len(self), size or self.rows_at_once())
        with track(len(self), what, " images", show=progress) as bar:
            for start in range(0, len(self), size):
                rows = range(start, min(start + size, len(self)))
                yield self.batch(rows)
                bar.update(len(rows))

    def rows_at_once(self, n_forks: int | None = None) -> int:
        """Rows (image times circuit) of a run with cut edges that fit the budget.

        Args:
            n_forks: readers that have a stream of their own at one time; default: all heads of a layer.
        """
        parts = self.model.parts
        heads = max(self.graph.n_heads)
        widest = max(block.d_mlp for block in parts.blocks)
        forks = heads if n_forks is None else n_forks
        # Writers' differences, the forks before and after their norm, and what one block holds.
        values = parts.n_tokens * (parts.d_model * (self.graph.shape[0] + 3 * forks + 12) + 3 * widest)
        element = torch.finfo(self.model.dtype).bits // 8
        most = 256
        if self.model.device.type == "cpu":
            # Rows whose activations leave the processor's cache are slower: 256 rows of scenes-vit took 3.2 s at 256 a
            # batch, 1.4 to 1.5 s at 8 to 32.
            most = max(8, min(32, cached_rows(parts, element)))
        return max(1, min(most, self.budget // (values * element)))

    def measure(
        self,
        gates: Gates | np.ndarray,
        *,
        metric: Callable | None = None,
        progress: bool = False,
        what: str = "circuits",
    ) -> Float[np.ndarray, "circuit image"]:
        """The metric of each image for each circuit, everything outside replaced by the base.

        Args:
            gates: `[circuit writer reader]`, bool or float: 1 keeps an edge, 0 cuts it.
            metric: another function of the same signature than the task's own.
            progress: show a progress bar.
            what: words for it.

        Raises:
            ShapeMismatch: gates that do not fit the model's graph.
            NotFinite: a circuit gives NaN or Inf.
        """
        gates = gates if isinstance(gates, Tensor) else torch.from_numpy(np.array(gates))
        if gates.ndim != 3 or tuple(gates.shape[1:]) != self.graph.shape:
            raise ShapeMismatch(
                f"gates are [circuit writer reader] = [n, {self.graph.shape[0]}, {self.graph.shape[1]}], got "
                f"{list(gates.shape)}."
            )
        if not torch.isfinite(gates.to(torch.float64)).all():
            raise NotFinite("the gates hold NaN or Inf.")
        own = self if metric is None else replace(self, metric=metric)
        # The whole model and the empty one run alone, as `full` and `empty` do: rows beside others are rounded
        # otherwise, and the faithfulness of all edges is 1 exactly, that of none 0.
        kept = (gates != 0)[:, torch.from_numpy(self.graph.allowed)]
        alone = kept.all(1) & (gates == 1)[:, torch.from_numpy(self.graph.allowed)].all(1) | ~kept.any(1)
        groups = [[int(i)] for i in alone.nonzero()[:, 0]]
        at_once = self.rows_at_once()
        n_images = min(len(self), at_once)
        n_circuits = max(1, at_once // n_images)
        groups += [some.tolist() for some in (~alone).nonzero()[:, 0].split(n_circuits) if len(some)]
        found = np.empty((len(gates), len(self)))
        with track(len(gates) * len(self), what, " rows", show=progress) as bar:
            for batch in self.batches(n_images):
                at = slice(batch.rows.start, batch.rows.stop)
                for some in groups:
                    output = gated(self.model, batch.clean, batch.base, gates[some], wires=self.wires)
                    values = own.score(output, batch)
                    if not torch.isfinite(values).all():
                        circuit, image = (int(i) for i in (~torch.isfinite(values)).nonzero()[0])
                        raise NotFinite(
                            f"circuit {some[circuit]} gives NaN or Inf on image {self.ids[batch.rows[image]]!r}."
                        )
                    found[some, at] = values.double().cpu().numpy()
                    bar.update(len(some) * len(batch.rows))
        return found

    @cached_property
    def full(self) -> Float[np.ndarray, " image"]:
        """The metric of the model as it is."""
        return self.measure(self._open(1))[0]

    @cached_property
    def empty(self) -> Float[np.ndarray, " image"]:
        """The metric with every edge cut."""
        return self.measure(self._open(0))[0]

    def _open(self, value: int) -> Tensor:
        return torch.full((1, *self.graph.shape), value, dtype=torch.bool)

    def faithfulness(self, values: Float[np.ndarray, "*circuit image"]) -> Float[np.ndarray, "*circuit"]:
        """`(m(circuit) - m(empty)) / (m(full) - m(empty))`, the ratio of means over images (methods.md 5.7 **C**).

        Args:
            values: the metric per image, of one or more circuits.
        """
        empty, full = self.empty.mean(), self.full.mean()
        return (values.mean(-1) - empty) / (full - empty)

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> "Task":
        """The same task on some of its images."""
        chosen = index if isinstance(index, slice) else torch.as_tensor(np.asarray(index))
        empty = not isinstance(chosen, slice) and not chosen.numel()
        rows = torch.arange(0) if empty else torch.arange(len(self))[chosen].reshape(-1)
        if not len(rows):
            raise BadData(f"the selection from {self.name!r} holds no image.")

        def at(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[rows.to(values.device)]

        return replace(
            self,
            clean=at(self.clean),
            corrupt=at(self.corrupt),
            target=at(self.target),
            contrast=at(self.contrast),
            labels=at(self.labels),
            same_class=at(self.same_class),
            ids=tuple(self.ids[int(row)] for row in rows),
        )

    def halves(self, seed: int = 0) -> tuple["Task", "Task"]:
        """The task on two disjoint random halves of its images.

        Raises:
            BadData: fewer than two images.
        """
        if len(self) < 2:
            raise BadData(f"{len(self)} image cannot be split in two halves.")
        order = np.random.default_rng(seed).permutation(len(self))
        middle = len(self) // 2
        return self[np.sort(order[:middle])], self[np.sort(order[middle:])]

    def with_metric(self, metric: str | Callable) -> "Task":
        """The same images and ablation with another metric."""
        name, function = metrics.get(metric)
        return replace(self, metric_name=name, metric=function, settings={**self.settings, "metric": name})

    @property
    def fingerprint(self) -> str:
        """Hash of the images, ablation and metric."""
        import hashlib

        digest = hashlib.sha256(repr((self.ids, self.ablation, self.metric_name, self.seed)).encode())
        tensors = [self.clean, self.corrupt, self.target, self.contrast]
        tensors += [] if self.fixed is None else self.fixed.tensors()
        for value in tensors:
            if value is not None:
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    def image_table(self) -> Any:
        """One row per image, for results."""
        import polars as pl

        columns: dict[str, Any] = {"id": list(self.ids)}
        if self.labels is not None:
            columns["label"] = self.labels.cpu().numpy()
        return pl.DataFrame(columns)

    def provenance(self, **more: Any) -> dict:
        """Where a result comes from."""
        from mechvis.provenance import provenance

        facts = {
            **self.settings,
            "images": self.name,
            "n": len(self),
            "ablation": self.ablation,
            "metric": self.metric_name,
            "undistinguished_pairs": self.undistinguished,
            "n_heads": list(self.graph.n_heads),
            "fingerprint": self.fingerprint,
            "image_hashes": list(image_hashes(self.clean)),
        }
        return provenance(model=self.model, seed=self.seed, task=facts, **more)

    def __repr__(self) -> str:
        return (
            f"Task({self.name!r}: {len(self)} images, {self.ablation} ablation, {self.metric_name}: "
            f"m(full) {self.full.mean():.4g}, m(empty) {self.empty.mean():.4g}; {self.graph!r})"
        )


def task(
    model: Any,
    images: Any,
    *,
    ablation: Ablation | None = None,
    metric: str | Callable = "logit_diff",
    reference: Any = None,
    labels: Literal["given", "predicted"] | None = None,
    max_undistinguished: float = 0.5,
    budget: str | int | None = None,
    seed: int = 0,
    allow_overlap: bool = False,
) -> Task:
    """Settle what a circuit is to explain.

    Args:
        model: a `HookedViT` with a head (for CLIP: `clip.classifier(class_names)`).
        images: `Pairs`, an `ImageSet`, or pixels `[image channel height width]`.
        ablation: what cut edges carry: `patch` (the corrupt half; default for pairs), `resample` (another image of the
            set, drawn by `seed`), `zero`, `mean` (over reference images and tokens), `mean_positional` (per token;
            default without pairs, methods.md 5.8).
        metric: a name from `mechvis.metrics.METRICS`, or a function of the same signature. For pairs, `logit_diff`
            compares the class of the clean half with that of the corrupt half.
        reference: images for the means; needed for them.
        labels: measure against the `given` labels or the model's `predicted` classes; default: the labels if there are
            any.
        max_undistinguished: largest share of pairs to whose halves the model may give one class.
        budget: memory for activations, e.g. `"8GB"`.
        seed: of resampling.
        allow_overlap: accept reference images that are evaluated too.

    Raises:
        BadData: a metric that is the same with every edge cut; pairs that the model does not tell apart; means without
            reference images.
        UnknownName, ShapeMismatch, SplitOverlap, UnsupportedModel, NotFinite.

    Example:
        >>> pairs = circuits.pairs.scene_swap(model, n=64, change="object", seed=3)               # doctest: +SKIP
        >>> circuits.task(model, pairs)                                                           # doctest: +SKIP
    """
    EdgeGraph.of(model)
    metric_name, function = metrics.get(metric)
    if model.parts.head is None and not callable(metric):
        raise BadData(
            f"this model has no head, so {metric!r} has no classes to compare. For CLIP use clip.classifier(names), or "
            "pass a function of the output as metric=."
        )
    paired = isinstance(images, Pairs)
    ablation = ablation or ("patch" if paired else "mean_positional")
    if ablation not in ABLATIONS:
        raise unknown("ablation", ablation, ABLATIONS)
    if ablation == "patch" and not paired:
        raise BadData("ablation='patch' takes the corrupt half of pairs: pass circuits.Pairs, or another ablation.")
    name, ids, clean, given = _images(model, images)
    predicted = _predictions(model, clean)
    if labels == "given" and given is None:
        raise BadData("labels='given', and these images have none. Use labels='predicted'.")
    own = predicted[0] if labels == "predicted" or given is None else given.to(model.device)
    target, contrast = metrics.classes_of(predicted[1], own)
    corrupt, same_class = None, None
    if paired:
        other, _ = _predictions(model, images.corrupt)
        same_class = other == predicted[0]
        undistinguished = int(same_class.sum())
        if ablation == "patch" and undistinguished > max_undistinguished * len(images):
            raise BadData(
                f"the model gives one class to both halves of {undistinguished} of {len(images)} pairs ({name}): there "
                "is no behaviour to explain. Choose pairs that it tells apart (circuits.pairs.check_pairs lists them), "
                f"or raise max_undistinguished (now {max_undistinguished:g})."
            )
        # The class of the corrupt half; where that is the same (another background), what the model takes it for.
        for against in (other, images.corrupt_labels if labels != "predicted" else None):
            if against is not None:
                against = against.to(model.device)
                contrast = torch.where(against != target, against, contrast)
        corrupt = images.corrupt if ablation == "patch" else None
    if ablation == "resample":
        corrupt = clean[_others(len(clean), seed)]
    fixed = None
    if ablation in ("mean", "mean_positional"):
        fixed = _means(model, images, reference, ablation, allow_overlap)
    elif reference is not None:
        raise BadData(f"reference images are for means; ablation={ablation!r} uses none. Leave reference= out.")
    made = Task(
        model=model,
        name=name,
        clean=clean,
        ablation=ablation,
        corrupt=corrupt,
        fixed=fixed,
        metric_name=metric_name,
        metric=function,
        target=target,
        contrast=contrast,
        ids=ids,
        labels=given,
        same_class=same_class,
        settings={"labels": labels or ("given" if given is not None else "predicted")},
        seed=seed,
        budget=budget_bytes(budget, model.device),
    )
    full, empty = made.full, made.empty
    if np.abs(full - empty).max() <= _SAME * max(np.abs(full).max(), np.abs(empty).max(), 1e-30):
        raise BadData(
            f"{metric_name} is {full.mean():.4g} with all edges and the same with every edge cut ({ablation}): a "
            "constant metric cannot say which edges matter. Choose another metric or other images."
        )
    return made


def _images(model: Any, images: Any) -> tuple[str, tuple[str, ...], Tensor, Tensor | None]:
    """Name, ids, pixels and labels of whatever was given."""
    if isinstance(images, Pairs):
        return images.name, images.ids, model.inputs(images.clean), images.clean_labels
    if isinstance(images, ImageSet):
        known = with_model_classes(images, model)
        labels = None if known.labels is None else torch.from_numpy(np.asarray(known.labels))
        return known.name, known.ids, model.inputs(known), labels
    pixels = model.inputs(images)
    return "pixels", tuple(f"image {i}" for i in range(len(pixels))), pixels, None


@torch.no_grad()
def _predictions(model: Any, pixels: Tensor, size: int = 64) -> tuple[Tensor, Tensor]:
    """Predicted class and logits of each image."""
    logits = torch.cat([model.run(pixels[start : start + size]).output for start in range(0, len(pixels), size)])
    if logits.ndim != 2 or not torch.isfinite(logits).all():
        raise NotFinite("the model's logits hold NaN or Inf on these images.")
    return logits.argmax(-1), logits


def _others(n: int, seed: int) -> Tensor:
    """For each image another one: a random cycle through all of them.

    Raises:
        BadData: a single image.
    """
    if n < 2:
        raise BadData("resampling needs at least two images.")
    order = np.random.default_rng(seed).permutation(n)
    other = np.empty(n, dtype=np.int64)
    other[order] = np.roll(order, 1)
    return torch.from_numpy(other)


def _means(model: Any, images: Any, reference: Any, ablation: str, allow_overlap: bool) -> Outputs:
    if reference is None:
        raise BadData(f"ablation={ablation!r} needs reference= images, other ones than those that are measured.")
    if isinstance(images, ImageSet) and isinstance(reference, ImageSet) and not allow_overlap:
        refuse_overlap(images, reference, what="images that means are made of must not be measured too")
    elif reference is images and not allow_overlap:
        raise SplitOverlap("the reference images are the images that are measured; pass others, or allow_overlap=True.")
    _, _, pixels, _ = _images(model, reference)
    return mean_outputs(model, pixels, positional=ablation == "mean_positional")
