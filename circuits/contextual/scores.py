"""What every source contributes to the output: one pass forward, no gradient (methods2.md 15.1, 15.2; CD-T **C**).

    found = contextual(model, images, sources="heads", rules="default")
    found.top(5)

The score of a source is its part `beta` of the logit of the target minus that of the contrast class, per image.
With `rules="all_rest"` this is exactly the effect of ablating the source (:func:`mechvis.sweep` with the same `edit`);
the other rules hold something of the clean run (patterns by default), and the score is what the source contributes
given that.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from circuits.contextual.passes import Setup, check_shapes, decompose_all, setup
from circuits.contextual.rules import Rules
from circuits.contextual.sources import joint, sources_of
from mechvis.errors import BadData, ShapeMismatch
from mechvis.metrics import classes_of
from mechvis.results import Result

Target = str | int | tuple[str | int, str | int] | Tensor


def contextual(
    model: Any,
    images: Any,
    *,
    sources: Any = "heads",
    target: Target = "logit_diff",
    rules: str | Rules = "default",
    edit: Literal["zero", "mean", "mean_positional", "resample", "patch"] = "mean_positional",
    reference: Any = None,
    source: Any = None,
    groups: Any = None,
    layers: Iterable[int] | None = None,
    labels: Literal["given", "predicted"] | None = None,
    paths: Literal["all", "direct"] = "all",
    batch_size: int = 256,
    seed: int = 0,
    progress: bool = True,
    allow_overlap: bool = False,
) -> Result:
    """The part of every source in the output; one row of the result per source.

    Args:
        model: a wrapped model; without a head, give a direction as `target`.
        images: an `ImageSet`, pixels, or `circuits.pairs.Pairs`, whose corrupt half then serves `edit="patch"` and,
            by default, the means, and whose labels are target and contrast (the best other class where both halves
            are of one).
        sources: a word (`heads`, `mlp_out`, `attn_out`, `neurons`, `tokens`, `pool_heads`), a name (`L0H1`, `L0MLP`,
            `embed`), or a list or mapping of these, where an inner list is one joint source; see
            :func:`circuits.contextual.sources.sources_of`.
        target: `logit_diff` (label or prediction against the best other class), `logit`; a class, or a pair of classes
            (a tuple), for every image; or a direction `[d_embed]`: the cosine with it.
        rules: a preset (`default`, `published`, `all_rest`) or :class:`circuits.contextual.Rules`.
        edit: what gamma is where a source sits: `mean_positional`, `mean`, `zero`, `resample`, `patch`.
        reference: images for the means; if left out, a third of `images` is set aside.
        source: for `patch`: images aligned one to one with `images`.
        groups: split every source by groups of tokens: a grid, `"object"` (the images' masks), or what else
            :func:`mechvis.patches.patch_groups` takes; prefix tokens become groups of their own.
        layers: only these blocks, for words.
        labels: measure against `given` labels or `predicted` classes; by default the labels if there are any.
        paths: `all` paths to the output, or only the `direct` one: what the source itself wrote into the stream.
        batch_size: rows (source x image) at a time.
        seed: of resampling, of the split and of the bootstrap.
        progress: show a progress bar.
        allow_overlap: accept reference images that are decomposed too.

    Returns:
        Result: beta in logits (or in cosine), positive = supports the target, with intervals and per-image values.
        Sources are not additive: see :func:`interaction`.

    Raises:
        UnknownName, OutOfRange, BadData, ShapeMismatch, SplitOverlap: arguments.
        RefusedMethod: the rules have to look into a part of this model and cannot.
        NotFinite: NaN or Inf in a stream, a reference or a score.

    Example:
        >>> found = contextual(model, images, sources="heads")                                     # doctest: +SKIP
        >>> found.cube("layer", "head")                                                            # doctest: +SKIP
    """
    direction = isinstance(target, Tensor)
    model = _with_direction(model, target) if direction else model
    if model.parts.head is None:
        raise BadData(
            "this model has no head, so it has no logits: give target=, a direction [d_embed] (for CLIP: "
            "clip.encode_text([...])[0]), or use clip.classifier(class_names)."
        )
    about = ("cosine", 0, None) if direction else _target_of(model, target)
    ready = setup(
        model,
        images,
        sources,
        rules=rules,
        edit=edit,
        reference=reference,
        source=source,
        groups=groups,
        layers=layers,
        labels="predicted" if about[0] not in ("logit_diff", "logit") else labels,
        paths=paths,
        batch_size=batch_size,
        seed=seed,
        allow_overlap=allow_overlap,
    )
    values, clean = scores(ready, about, progress=progress)
    rows = [{"unit": source.name, **source.row} for source in ready.sources]
    return _result(ready, rows, about[0], values, clean, kind="contextual", title="Parts of sources in the output")


def interaction(
    model: Any,
    images: Any,
    sources: Sequence[Any],
    *,
    target: Target = "logit_diff",
    rules: str | Rules = "default",
    **more: Any,
) -> Result:
    """How far several sources together are from the sum of each alone: `beta(S) - sum beta(s)`.

    Sharing biases by magnitude, norms and activations make beta non-linear in the source, so the sum over heads is not
    the part of all heads (methods2.md 15.4). A large interaction says that scores of single sources must not be added.

    Args:
        model, images, target, rules: as for :func:`contextual`.
        sources: two or more sources.
        more: further arguments of :func:`contextual` (`edit`, `reference`, ...).

    Returns:
        Result: rows `joint`, `sum` and `interaction` (their difference), then each source alone.

    Raises:
        BadData: fewer than two sources, or two that overlap.

    Example:
        >>> interaction(model, images, ["L0H0", "L0H1"]).top(3)                                    # doctest: +SKIP
    """
    listed = sources_of(model, sources, layers=more.pop("layers", None))
    if len(listed) < 2:
        raise BadData("an interaction is between two sources or more.")
    if more.get("groups") is not None:
        raise BadData("interaction takes whole sources; restrict them before: Source.at(name, tokens).")
    found = contextual(model, images, sources=[*listed, joint(listed, "joint")], target=target, rules=rules, **more)
    (metric,) = found.metrics
    values = found.values[metric]
    alone, together = values[:-1], values[-1]
    rows = [{"unit": "joint"}, {"unit": "sum"}, {"unit": "interaction"}]
    rows += [{"unit": source.name} for source in listed]
    return Result.from_values(
        "contextual_interaction",
        "Several sources together, and each alone",
        rows,
        {metric: np.stack([together, alone.sum(0), together - alone.sum(0), *alone])},
        images=found.images,
        provenance=found.provenance,
        baseline=found.baseline,
        seed=found.provenance["seeds"].get("seed", 0),
    )


def scores(ready: Setup, about: tuple[str, int | None, int | None], *, progress: bool) -> tuple[np.ndarray, np.ndarray]:
    """Beta of the target per source and image `[source image]`, and the target's clean value per image.

    Args:
        ready: what to decompose.
        about: name of the target, class and contrast where they are fixed.
        progress: show a progress bar.
    """
    values = np.zeros((len(ready.sources), ready.n_images))
    clean = np.zeros(ready.n_images)

    def see(site: str, total: Tensor, beta: Tensor, rows: Sequence[int], part: range) -> None:
        check_shapes(beta, total, site)
        first, second = _classes(ready, about, total, part)
        at = slice(part.start, part.stop)
        values[list(rows), at] = _of(beta, first, second).double().cpu().numpy()
        clean[at] = _of(total, first, second).double().cpu().numpy()

    decompose_all(ready, ("hook_logits",), see, progress=progress, what="contextual decomposition")
    return values, clean


def _of(logits: Tensor, first: Tensor, second: Tensor | None) -> Tensor:
    """The target's logit `[... image]`, minus that of the contrast where there is one."""

    def at(classes: Tensor) -> Tensor:
        return logits.gather(-1, classes.expand(logits.shape[:-1])[..., None])[..., 0]

    return at(first) if second is None else at(first) - at(second)


def _classes(
    ready: Setup, about: tuple[str, int | None, int | None], clean: Tensor, part: range
) -> tuple[Tensor, Tensor | None]:
    name, target, contrast = about
    if target is not None:
        first = torch.full((len(clean),), target, device=clean.device)
        return first, None if contrast is None else torch.full_like(first, contrast)
    if ready.classes is not None:
        first, given = (labels[part.start : part.stop].to(clean.device) for labels in ready.classes)
        ready.prepared.model.class_index(given, clean.shape[-1])
        first, second = classes_of(clean, first)
        # Pairs of one class (another background) have no class to be told from: the best other one, as for images.
        second = torch.where(given == first, second, given)
    else:
        first, second = ready.prepared.classes(clean, part)
    return first, second if name == "logit_diff" else None


def _target_of(model: Any, target: Any) -> tuple[str, int | None, int | None]:
    """Name, class and contrast; None where the image decides."""
    if isinstance(target, str) and target in ("logit_diff", "logit"):
        return target, None, None
    pair = target if isinstance(target, tuple) else (target,)
    known = model.parts.class_names
    if len(pair) not in (1, 2) or not all(
        isinstance(c, str | int | np.integer) and not isinstance(c, bool) for c in pair
    ):
        raise BadData(
            f"a target is 'logit_diff', 'logit', a class, a pair (class, contrast) or a direction; got {target!r}."
        )
    for given in pair:
        if isinstance(given, str) and given not in known:
            raise BadData(
                f"target {given!r}: beta adds up to logits, so a target is 'logit_diff', 'logit', or classes "
                f"({', '.join(known[:6]) or 'by index; these have no names'}); probabilities and divergences are no "
                "sums of parts. For parts of other components use relevance_to."
            )
    index = [int(model.class_index(c if isinstance(c, str) else int(c))) for c in pair]
    if len(set(index)) != len(index):
        raise BadData(f"target and contrast are the same class: {target!r}.")
    names = " vs ".join(known[i] if known else str(i) for i in index)
    return (f"logit[{names}]", index[0], None) if len(index) == 1 else (f"logit_diff[{names}]", index[0], index[1])


def _with_direction(model: Any, direction: Tensor) -> Any:
    """The model up to its embedding, with the cosine with a direction as its only output."""
    from mechvis.clip import ZeroShotHead
    from mechvis.hooked import HookedViT

    if direction.ndim != 1 or not torch.isfinite(direction).all() or not float(direction.norm()):
        raise ShapeMismatch(f"a direction is finite, non-zero and [d_embed]; got {list(direction.shape)}.")
    direction = direction.detach().to(model.device)
    head = ZeroShotHead((direction / direction.norm())[None], torch.ones((), device=model.device))
    parts = replace(model.parts, head=head, class_names=("cosine",))
    return HookedViT(model.bare, parts, preprocess=model.preprocess, name=model.title)


def _result(
    ready: Setup, rows: list[dict], metric: str, values: np.ndarray, clean: np.ndarray, *, kind: str, title: str
) -> Result:
    return Result.from_values(
        kind,
        title,
        rows,
        {metric: values},
        images=ready.prepared.image_table(),
        provenance=ready.provenance(target=metric),
        baseline={metric: float(clean.mean())},
        seed=ready.prepared.settings["seed"],
    )
