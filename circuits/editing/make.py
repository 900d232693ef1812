"""The edits that one asks for: heads, edges, directions."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

from torch import Tensor

from circuits.circuit import Circuit
from circuits.editing.change import Change
from circuits.editing.edge_cut import Ablation, edge_cut
from circuits.editing.edited_model import EditedModel
from circuits.editing.head_removal import Mode, head_removal
from circuits.editing.model_edit import ModelEdit, run_time_fingerprint
from circuits.editing.projection import projection
from circuits.editing.slices import differences
from circuits.editing.weights import deviation
from mechvis.errors import BadData, EffectlessEdit, RefusedMethod, UnsupportedModel, unknown
from mechvis.provenance import provenance
from mechvis.units import Unit

How = Literal["auto", "weights", "run-time"]


def remove_heads(
    model: Any,
    heads: Sequence[Unit],
    *,
    mode: Mode = "zero",
    reference: Any = None,
    how: How = "auto",
    stack: bool = False,
) -> ModelEdit:
    """Remove heads for good.

    Args:
        model: a `HookedViT`; it is not touched.
        heads: which.
        mode: what takes their place: `zero`, `mean` (over reference images and tokens: goes into the output bias,
            exactly), or `mean_positional` (per token: cannot go into weights, stays a run-time edit).
        reference: images (`ImageSet`, pixels or `Means`) for the means, other ones than the edit is measured on.
        how: `weights`, `run-time`, or `auto`: in the weights where that is exact.
        stack: put it on top of the edits that the model carries already.

    Returns:
        ModelEdit: `.apply(model)` gives the edited model.

    Raises:
        RefusedMethod, UnsupportedModel: `how="weights"`, and no weights can hold it; says why.
        OutOfRange, UnknownName, BadData.

    Example:
        >>> edit = remove_heads(model, head_units([(2, 1)]), mode="mean", reference=others)         # doctest: +SKIP
        >>> edited = edit.apply(model)                                                             # doctest: +SKIP
    """
    return _made(model, head_removal(_base(model, stack), heads, mode, reference), how)


def project_out(
    model: Any,
    directions: Tensor,
    *,
    at: str,
    tokens: str | Sequence[int] | None = None,
    how: How = "auto",
    stack: bool = False,
) -> ModelEdit:
    """Take directions out of what a component writes, of what is read out, or of the stream.

    Args:
        model: a `HookedViT`; it is not touched.
        directions: `[d]` or `[direction d]`; they are orthonormalised.
        at: a writer (`L2H1`, `L2 attn_out`, `L2MLP`) or `out` (after the last norm): these go into the weights. Any
            other site name: at run time.
        tokens: only at these tokens (then at run time).
        how: as for :func:`remove_heads`.
        stack: as for :func:`remove_heads`.

    Raises:
        RefusedMethod, UnsupportedModel: `how="weights"`, and no weights can hold it; says why.
        ShapeMismatch, OutOfRange, UnknownName, BadData.

    Example:
        >>> project_out(model, direction, at="L3MLP").folded                                       # doctest: +SKIP
        True
        >>> project_out(model, direction, at="blocks.3.hook_resid_pre").folded                     # doctest: +SKIP
        False
    """
    return _made(model, projection(_base(model, stack), directions, at, tokens), how)


def remove_edges(
    model: Any,
    edges: Circuit | Iterable[str],
    *,
    ablation: Ablation = "zero",
    reference: Any = None,
    how: How = "auto",
    stack: bool = False,
) -> ModelEdit:
    """Cut edges for good: always at run time, since no weights can hold it (:mod:`circuits.editing.edge_cut`).

    Args:
        model: a `HookedViT`; it is not touched.
        edges: names such as `L0H1->L1H2.q`, or a circuit.
        ablation: what a cut edge carries: `zero`, `mean` or `mean_positional`.
        reference: images for the means.
        how: `auto` or `run-time`; `weights` is refused.
        stack: as for :func:`remove_heads`.

    Raises:
        RefusedMethod: `how="weights"`.
        UnknownName, BadData, ResultMismatch, UnsupportedModel.

    Example:
        >>> edited = remove_edges(model, ["L0H1->L1H2.q", "L0MLP->out"]).apply(model)               # doctest: +SKIP
    """
    change = edge_cut(_base(model, stack), edges, keep=False, ablation=ablation, reference=reference)
    return _made(model, change, how)


def keep_only(
    model: Any,
    circuit: Circuit | Iterable[str],
    *,
    ablation: Ablation = "zero",
    reference: Any = None,
    how: How = "auto",
    stack: bool = False,
) -> ModelEdit:
    """Cut every edge that is not in a circuit; arguments and errors as for :func:`remove_edges`.

    Example:
        >>> alone = keep_only(model, circuit, ablation="mean_positional", reference=others)         # doctest: +SKIP
    """
    change = edge_cut(_base(model, stack), circuit, keep=True, ablation=ablation, reference=reference)
    return _made(model, change, how)


def _base(model: Any, stack: bool) -> Any:
    """Refuse what is no model, and edits that pile up unnoticed."""
    if isinstance(model, EditedModel):
        raise BadData(
            f"this model carries an edit at run time ({model.edit.title}), and a second one cannot be put on top of "
            "it. Edit model.model, and fold what can be folded first."
        )
    if not hasattr(model, "parts"):
        raise BadData(
            f"an edit is made of a wrapped model, got {type(model).__name__}. For CLIP: clip.classifier(class_names) "
            "or clip.vision; for a module: mechvis.load(module)."
        )
    if (earlier := model.__dict__.get("edits", ())) and not stack:
        raise BadData(
            f"this model carries {len(earlier)} edit{'s' * (len(earlier) != 1)} already; another one would be measured "
            "against the edited model, and has to be undone first. Pass stack=True if that is meant."
        )
    return model


def _made(model: Any, change: Change, how: str) -> ModelEdit:
    if how not in get_args(How):
        raise unknown("place of the edit", how, get_args(How))
    before, note, edited = model.fingerprint, "", None
    if how != "run-time":
        try:
            with warnings.catch_warnings():
                # A head that did nothing before: the edit says so itself.
                warnings.simplefilter("ignore", EffectlessEdit)
                edited = change.fold(model)
                far, allowed = deviation(model, edited, change)
        except (RefusedMethod, UnsupportedModel) as error:
            if how == "weights":
                raise
            note, edited = str(error), None
    shared = {
        "change": change,
        "before": before,
        "chain": tuple(model.__dict__.get("edits", ())),
        "provenance": provenance(model=model),
    }
    if edited is None:
        return ModelEdit(folded=False, after=run_time_fingerprint(before, change), note=note, **shared)
    return ModelEdit(
        folded=True,
        slices=differences(model.bare, edited.bare),
        after=edited.fingerprint,
        deviation=far,
        allowed=allowed,
        **shared,
    )
