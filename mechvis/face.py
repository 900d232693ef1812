"""A face: a wrapped model as the plain `nn.Module` that attribution libraries expect.

Such a library (captum is one) calls a function of pixels thousands of times, on batches that it makes of the user's
images by repeating them in an order of its own. So a face

1. returns a plain tensor `[image column]`: all logits, some classes, a difference of two, or any function of them;
2. carries edits, and gathers everything of them that belongs to one image (a source's row, a row of a token mask) by an
   *example id* given beside the pixels. Repeating a cached activation "like the batch" is silently wrong by as much as
   65 % of the result, in an order that differs from method to method;
3. has parameters but no modules inside: methods that rewrite the backward pass of modules (DeepLift, guided backprop,
   LRP) know none of a transformer's parts and would return something plausible; here they fail with the reason.

Example:
    >>> face = model.face("logit_diff", target="circle", contrast="star")       # doctest: +SKIP
    >>> face(pixels).shape                                                      # doctest: +SKIP
    torch.Size([8, 1])
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechvis.cache import Cache
from mechvis.edits import Edit
from mechvis.errors import BadData, OutOfRange, RefusedMethod, ShapeMismatch, TrainMode, unknown
from mechvis.inputs import check_kind
from mechvis.plan import plan
from mechvis.run import Active

Classes = int | str | Sequence[int | str] | Tensor
"""A class by index or name, or one per example."""

Ids = Int[Tensor, " image"]

BY_ROW = ("patch", "resample", "freeze")
"""Kinds of edits whose source has a row per image."""


class Face(nn.Module):
    """A wrapped model as a plain module: pixels `[image channel height width]` to `[image column]`.

    Made by `model.face(...)`. Gradients flow to the pixels, with frozen weights too. It is always in eval mode.
    """

    def __init__(
        self,
        model: Any,
        output: str | int | Sequence[str | int] | Callable[[Tensor], Tensor] | None = None,
        *,
        target: Classes | None = None,
        contrast: Classes | None = None,
        edits: Sequence[Edit] | Edit = (),
    ):
        """
        Args:
            model: a wrapped vision tower.
            output: what comes out. None or `"logits"`: everything that the model returns (`[image class]`, or the
                embedding of a model without a head); a class index or name, or a list of them: these columns;
                `"logit_diff"`: the logit of `target` minus that of `contrast`; or a function of the logits.
            target: for `"logit_diff"`: a class, or one per example.
            contrast: likewise.
            edits: interventions that are active inside. What belongs to one image (rows of a source, `rows=`, masks
                `[row token]`) refers to example ids.

        Raises:
            BadData, UnknownName, UnknownSite, OutOfRange, TrainMode.
        """
        super().__init__()
        if model.parts.modality != "image":
            raise BadData("a face takes pixels; this is a text tower.")
        model._check_mode()
        self.__dict__["model"] = model
        self.edits: tuple[Edit, ...] = (edits,) if isinstance(edits, Edit) else tuple(edits)
        """Interventions active inside."""
        plan(self.edits, model.graph, model.parts.prefix)
        if any(row < 0 for edit in self.edits for row in edit.rows or ()):
            raise BadData("rows= of a face's edits are example ids, counted from 0.")
        self.columns: tuple[str, ...] = ()
        """Names of what comes out, where they are known."""
        self._read = self._reader(output, target, contrast)
        self._sources = any(map(_of_examples, self.edits))

    def forward(self, pixels: Tensor, example_id: Tensor | None = None) -> Float[Tensor, "image column"]:
        """The output for a batch.

        Args:
            pixels: images `[image channel height width]`, in any number and order.
            example_id: for each row, which example it is a variant of; needed where edits or classes belong to single
                examples.

        Raises:
            BadData: ids are needed and none were given.
            ShapeMismatch: not one id per row.
        """
        model = self.model
        if pixels.ndim != 4:
            raise ShapeMismatch(f"pixels are [image channel height width], got {list(pixels.shape)}.")
        check_kind(model, pixels, "pixels")
        ids = self._ids(pixels, example_id)
        _, graph = model._for_size(tuple(pixels.shape[2:]))
        active = Active(
            plan=plan(self.edits if ids is None else edits_of(self.edits, ids), graph, model.parts.prefix),
            capture=frozenset(),
            cache=Cache(graph),
            owner=model,
            keep_graph=False,
        )
        with model._running(active):
            out = self._read(model(pixels), ids)
        return out[:, None] if out.ndim == 1 else out

    def column(self, name: int | str) -> int:
        """Index of a column by its name (or index).

        Raises:
            UnknownName: no column is called so.
        """
        if not isinstance(name, str):
            return name
        if name not in self.columns:
            raise unknown("column", name, self.columns)
        return self.columns.index(name)

    # geometry

    @property
    def preprocess(self) -> Any:
        """The image preprocessing that belongs to the model."""
        return self.model.preprocess

    @property
    def prefix_tokens(self) -> tuple[str, ...]:
        """Names of the tokens before the patches."""
        return self.model.parts.prefix

    @property
    def grid(self) -> tuple[int, int]:
        """Patches (down, across)."""
        return self.model.parts.grid

    @property
    def patch_size(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels."""
        return self.model.parts.patch_size

    @property
    def patch_mask(self) -> Int[Tensor, "1 1 height width"]:
        """Which patch each pixel belongs to, 0 to `down * across - 1` row by row: a feature mask. Patch `i` is token
        `len(prefix_tokens) + i`; pixels beyond the last whole patch count to it."""
        return self._mask(self.model.parts.image_size)

    def _mask(self, size: tuple[int, int]) -> Int[Tensor, "1 1 height width"]:
        lines = [
            (torch.arange(side, device=self.model.device) // patch).clamp(max=side // patch - 1)
            for side, patch in zip(size, self.patch_size, strict=True)
        ]
        return (lines[0][:, None] * (size[1] // self.patch_size[1]) + lines[1])[None, None]

    def to_patches(self, attributions: Tensor, reduce: str = "sum") -> Float[Tensor, "image down across"]:
        """Attributions of pixels per patch.

        Args:
            attributions: `[image channel height width]`.
            reduce: `"sum"`, or `"mean"` (of feature-wise methods, which write the same number at every pixel of a
                feature).
        """
        if reduce not in ("sum", "mean"):
            raise unknown("way to reduce", reduce, ("sum", "mean"))
        if attributions.ndim != 4 or any(n < p for n, p in zip(attributions.shape[2:], self.patch_size, strict=True)):
            raise ShapeMismatch(f"attributions are [image channel height width], got {list(attributions.shape)}.")
        size = (attributions.shape[2], attributions.shape[3])
        down, across = (side // patch for side, patch in zip(size, self.patch_size, strict=True))
        mask = self._mask(size).flatten().to(attributions.device)
        values = (attributions.sum(1) if reduce == "sum" else attributions.mean(1)).flatten(1)
        patches = values.new_zeros(len(values), down * across).index_add(1, mask, values)
        if reduce == "mean":
            patches = patches / mask.bincount(minlength=down * across)
        return patches.unflatten(1, (down, across))

    # what comes out

    def _reader(self, output: Any, target: Any, contrast: Any) -> Callable[[Tensor, Ids | None], Tensor]:
        if (target is not None or contrast is not None) and output != "logit_diff":
            raise BadData('target= and contrast= are for face("logit_diff", target=..., contrast=...).')
        self._labels: tuple[Tensor, ...] = ()
        if callable(output):
            self.columns = (getattr(output, "__name__", "output"),)
            return lambda logits, ids: _checked(output(logits), len(logits))
        if output is None or output == "logits":
            self.columns = self.model.parts.class_names
            return lambda logits, ids: logits
        if isinstance(output, str) and output == "logit_diff":
            if target is None or contrast is None:
                raise BadData("logit_diff needs target= and contrast=, each a class or one class per example.")
            self._labels = one, other = self._classes(target), self._classes(contrast)
            if one.ndim and other.ndim and len(one) != len(other):
                raise ShapeMismatch(f"target names {len(one)} classes, contrast {len(other)}.")
            if (one == other).any():
                raise BadData("target and contrast are the same class (of some example): their difference is zero.")
            self.columns = ("logit_diff",)
            return self._difference
        wanted = [output] if isinstance(output, (int, str)) else list(output)
        if not wanted:
            raise BadData("output=[] selects no class.")
        chosen = self._classes(wanted)
        names = self.model.parts.class_names
        self.columns = tuple(names[i] if names else str(i) for i in chosen.tolist())
        return lambda logits, ids: logits[:, self._in_range(chosen, logits)]

    def _difference(self, logits: Tensor, ids: Ids | None) -> Tensor:
        one, other = (self._gathered(labels, logits, ids) for labels in self._labels)
        return (logits.gather(1, one[:, None]) - logits.gather(1, other[:, None]))[:, 0]

    def _gathered(self, labels: Tensor, logits: Tensor, ids: Ids | None) -> Tensor:
        labels = self._in_range(labels, logits)
        return labels.expand(len(logits)) if labels.ndim == 0 else labels[_checked_ids(ids, len(labels), "classes")]

    def _classes(self, classes: Classes) -> Tensor:
        if isinstance(classes, (list, tuple)):
            return torch.stack([self.model.class_index(one) for one in classes])
        return self.model.class_index(classes)

    def _in_range(self, classes: Tensor, logits: Tensor) -> Tensor:
        return self.model.class_index(classes, logits.shape[1])

    # ids

    @property
    def needs_ids(self) -> bool:
        """Do edits or classes belong to single examples?"""
        return self._sources or any(labels.ndim > 0 for labels in self._labels)

    def _ids(self, pixels: Tensor, example_id: Tensor | None) -> Ids | None:
        if not self.needs_ids:
            return None
        if example_id is None:
            raise BadData(
                "this face has edits or classes that belong to single examples; say which example each row is: "
                "face(pixels, torch.arange(len(pixels))), and in captum additional_forward_args=(example_id,)."
            )
        if example_id.ndim != 1 or len(example_id) != len(pixels) or example_id.is_floating_point():
            raise ShapeMismatch(
                f"example_id is one whole number per row: got {example_id.dtype} {list(example_id.shape)} for "
                f"{len(pixels)} rows."
            )
        return example_id.to(pixels.device)

    # a module without modules

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The user's model's parameters."""
        return self.model.parameters(recurse)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The user's model's parameters under their own names."""
        return self.model.named_parameters(*args, **kwargs)

    def train(self, mode: bool = True) -> "Face":
        """Stays in eval mode."""
        if mode:
            raise TrainMode("a face is of a model in eval mode: dropout would make effects of nothing.")
        return self

    @property
    def training(self) -> bool:
        """Never."""
        return False

    @training.setter
    def training(self, mode: bool) -> None:
        # nn.Module.__init__ sets this.
        pass

    def apply(self, fn: Callable[[nn.Module], None]) -> NoReturn:
        """Refused: captum's DeepLift, guided backprop and deconvolution hook modules this way."""
        raise RefusedMethod(_NO_MODULES)

    def children(self) -> NoReturn:
        """Refused: captum's LRP looks for its layers this way."""
        raise RefusedMethod(_NO_MODULES)

    def _apply(self, fn: Any, recurse: bool = True) -> NoReturn:
        raise BadData("move the model, not its face: model.to(...).")

    def extra_repr(self) -> str:
        """For print."""
        shown = ", ".join(self.columns[:4]) + (" ..." if len(self.columns) > 4 else "")
        return f"{self.model.title or self.model.parts.family}: {shown or 'all outputs'}; {len(self.edits)} edits"


_NO_MODULES = (
    "a face has no modules inside. Methods that rewrite the backward pass of modules have no rule for GELU, softmax "
    "and LayerNorm, of which transformers are made, and would return something plausible (DeepLift: Input x Gradient; "
    "guided backprop: the plain gradient). Use integrated_gradients, occlusion, feature_ablation or "
    "shapley_value_sampling."
)


def edits_of(edits: Sequence[Edit], ids: Ids) -> list[Edit]:
    """The edits of a batch whose rows are variants of examples: everything that belongs to one example gathered by its
    id. An edit of examples that are not in the batch is left out."""
    rows, batch = ids.tolist(), []
    for edit in edits:
        changed: dict[str, Any] = {}
        if edit.rows is not None:
            changed["rows"] = tuple(i for i, row in enumerate(rows) if row in edit.rows)
            if not changed["rows"]:
                continue
        if isinstance(edit.tokens, Tensor) and edit.tokens.ndim == 2:
            changed["tokens"] = edit.tokens[
                _checked_ids(ids, len(edit.tokens), "the token mask").to(edit.tokens.device)
            ]
            if not changed["tokens"].any():
                continue
        if edit.kind in BY_ROW and not _one_for_all(edit):
            n = len(edit.source_rows or next(iter(edit.values.values())))
            _checked_ids(ids, n, f"the source of {edit!r}")
            changed["source_rows"] = tuple(edit.source_rows[row] if edit.source_rows else row for row in rows)
        if edit.kind == "add" and (vector := edit.values["*"]).ndim >= 3 and len(vector) > 1:
            changed["values"] = {
                "*": vector[_checked_ids(ids, len(vector), f"the vectors of {edit!r}").to(vector.device)]
            }
        batch.append(replace(edit, **changed) if changed else edit)
    return batch


def _of_examples(edit: Edit) -> bool:
    """Does any of it belong to single examples?"""
    mask = isinstance(edit.tokens, Tensor) and edit.tokens.ndim == 2
    vectors = edit.kind == "add" and edit.values["*"].ndim >= 3 and len(edit.values["*"]) > 1
    return edit.rows is not None or mask or vectors or (edit.kind in BY_ROW and not _one_for_all(edit))


def _one_for_all(edit: Edit) -> bool:
    return edit.source_rows is not None and len(edit.source_rows) == 1


def _checked_ids(ids: Ids, n: int, what: str) -> Ids:
    low, high = (int(v) for v in torch.aminmax(ids))
    if low < 0 or high >= n:
        raise OutOfRange(f"example id {low if low < 0 else high}: {what} has examples 0 to {n - 1}.")
    return ids


def _checked(out: Any, n: int) -> Tensor:
    if not isinstance(out, Tensor) or out.ndim not in (1, 2) or len(out) != n:
        seen = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ShapeMismatch(f"output= must return [image] or [image column] for {n} images, got {seen}.")
    return out
