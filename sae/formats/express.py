"""Dictionaries in the terms that all formats share, in both directions.

In: tensors of a file become a :class:`sae.Dictionary` (:func:`built`). Out: what a dictionary says is brought to what a
format can hold (:func:`exported`), or refused with the reason:

1. A free decoder whose rows' norms decide what is kept is folded: no other format ranks by them.
2. A constant scale is folded into the weights (`sae.formats.scale`); a scale of each row's own only fits formats that
   have the same.
3. Whether `b_dec` is taken off before encoding is moved into the encoder's bias where a format has it the other way.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mechvis.errors import BadData, NotFinite, RefusedMethod
from sae.architecture import Architecture
from sae.ends import Ends
from sae.normaliser import OF_ROWS

if TYPE_CHECKING:
    from sae.dictionary import Dictionary

KINDS = {
    "relu": "relu",
    "p_anneal": "relu",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "topk": "topk",
    "nested_k": "topk",
    "batch_topk": "batch_topk",
    "matryoshka": "batch_topk",
    "matching_pursuit": "matching_pursuit",
    "fixed_pursuit": "matching_pursuit",
    "signed_topk": "signed_topk",
}
"""Architectures whose codes other formats can say -> the rule by which codes are found."""
WORDS = {
    "relu": "ReLU",
    "jumprelu": "JumpReLU",
    "gated": "gated",
    "topk": "TopK",
    "batch_topk": "BatchTopK",
    "matching_pursuit": "matching pursuit",
    "signed_topk": "TopK with signs",
}
HAS = {
    "relu": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "jumprelu": ("W_enc", "b_enc", "W_dec", "b_dec", "threshold"),
    "gated": ("W_enc", "b_gate", "b_mag", "r_mag", "W_dec", "b_dec"),
    "topk": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "batch_topk": ("W_enc", "b_enc", "W_dec", "b_dec"),
    "matching_pursuit": ("W_dec", "b_dec"),
    "signed_topk": ("W_enc", "b_enc", "W_dec", "b_dec"),
}
"""Tensors of each rule (and `W_skip`, where there is one)."""
LATENT_BIASES = ("b_enc", "b_gate", "b_mag")


def kind_of(d: "Dictionary") -> str | None:
    """By which rule codes are found; None: by one that no other format has."""
    if d.architecture.NAME == "archetypal":
        return d.architecture.select
    return KINDS.get(d.architecture.NAME)


@dataclass(frozen=True, kw_only=True, eq=False)
class Exported:
    """What a format has to write."""

    kind: str
    """The rule: a value of :data:`KINDS`."""
    tensors: dict[str, Tensor]
    """`W_enc [latent d_in]`, `W_dec [latent d_out]`, biases, `threshold [latent]`; on the CPU."""
    rows: str
    """How rows are scaled: none, layer_norm, token_norm, input_norm."""
    subtracts: bool
    """Is `b_dec` taken off before encoding?"""
    k: int | None
    """Of TopK and BatchTopK."""
    threshold: float | None
    """Of BatchTopK; None: none, or never trained."""
    ends: Ends
    """Sites."""
    source: "Dictionary"
    """The dictionary, in this form."""

    @property
    def site(self) -> str:
        """What is read."""
        return next(iter(self.ends.reads))

    @property
    def n(self) -> int:
        """Latents."""
        return len(self.tensors["W_dec"])

    def recentred(self, subtracts: bool) -> "Exported":
        """The same with `b_dec` taken off before encoding, or not: the encoder's biases take it over."""
        if subtracts == self.subtracts:
            return self
        tensors = dict(self.tensors)
        moved = tensors["W_enc"] @ tensors["b_dec"] * (1 if subtracts else -1)
        for name in LATENT_BIASES:
            if name in tensors:
                tensors[name] = tensors[name] + (moved * tensors["r_mag"].exp() if name == "b_mag" else moved)
        return dataclasses.replace(self, tensors=tensors, subtracts=subtracts)


def exported(
    d: "Dictionary",
    form: str,
    *,
    kinds: Iterable[str],
    rows: Iterable[str] = (),
    transcoder: bool = False,
    skip: bool = False,
) -> Exported:
    """What a dictionary says, as a format can hold it.

    Args:
        d: the dictionary.
        form: name of the format, for errors.
        kinds: rules that the format has.
        rows: scales of each row's own that it has.
        transcoder: can it write another site than it reads?
        skip: can it have a skip connection?

    Raises:
        RefusedMethod: something that the format cannot say; the message says what.
        NotFinite: a parameter holds NaN or Inf.
    """
    from sae.formats.scale import unscaled

    architecture, kind = d.architecture, kind_of(d)
    if kind not in kinds:
        raise RefusedMethod(
            f"{form} has no place for {architecture.NAME!r}; it holds {', '.join(WORDS[k] for k in kinds)}. Keep it as "
            "'mechvis', or choose another format."
        )
    if len(d.ends.reads) > 1 or len(d.ends.writes) > 1:
        raise RefusedMethod(
            f"{form} holds dictionaries of one site; this is a crosscoder of {', '.join(d.ends.reads)}."
        )
    if d.ends.transcodes and not transcoder:
        raise RefusedMethod(f"{form} has no transcoders; this writes {', '.join(d.ends.writes)}.")
    if architecture.skip and not skip:
        raise RefusedMethod(f"{form} has no skip connections.")
    if architecture.normalise in OF_ROWS and architecture.normalise not in rows:
        raise RefusedMethod(
            f"normalise={architecture.normalise!r} scales every row by its own norm. {form} has no such scale, and "
            "it cannot be folded into weights: the file would mean something else. Scale rows before they are used "
            "with it, or train with 'mean_square'."
        )
    for name, tensor in d.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise NotFinite(f"{name} of this dictionary holds NaN or Inf; it is not saved.")
    if kind in ("topk", "batch_topk") and architecture.decoder == "free":
        d = plainly_ranked(d)
    if d.architecture.normalise not in OF_ROWS:
        d = unscaled(d)
    found = {name: tensor.detach().cpu().contiguous() for name, tensor in d.state_dict().items()}
    if "log_threshold" in found:
        found["threshold"] = found["log_threshold"].exp()
    if kind == "jumprelu":
        if float(found["threshold"].min()) < -architecture.bandwidth:
            below = int((found["threshold"] < 0).sum())
            raise RefusedMethod(
                f"{below} thresholds are below zero, so codes can be negative; {form} takes the ReLU first."
            )
        # The last step of training may leave one a little below zero, where the next would have put it right.
        found["threshold"] = found["threshold"].clamp_min(0)
    threshold = None
    if kind == "batch_topk" and float(found["threshold"]) >= 0:
        threshold = float(found["threshold"])
    tensors = {name: found[name] for name in (*HAS[kind], *(("W_skip",) if architecture.skip else ()))}
    return Exported(
        kind=kind,
        tensors=tensors,
        rows=d.architecture.normalise,
        subtracts=d.architecture.subtracts_bias(d.ends),
        k=steps(architecture),
        threshold=threshold,
        ends=d.ends,
        source=d,
    )


def plainly_ranked(d: "Dictionary") -> "Dictionary":
    """TopK or BatchTopK by the codes themselves, made of one that ranks by the norms of its rows too: these are
    folded."""
    from sae.architectures.batch_topk import BatchTopK
    from sae.architectures.topk import TopK
    from sae.dictionary import Dictionary

    a, kind, state = d.architecture, kind_of(d), d.folded().state_dict()
    known = {"n_latents": a.n_latents, "k": steps(a), "normalise": a.normalise, "skip": a.skip, "decoder": "unit"}
    known["centre"] = a.subtracts_bias(d.ends)
    names = (*HAS[kind], *(("W_skip",) if a.skip else ()))
    plain = TopK(**known) if kind == "topk" else BatchTopK(**known, row_limit=None)
    kept = {name: state[name] for name in ("scale_in", "scale_out", *plain.state(d.ends))}
    return Dictionary(plain, d.ends, {name: state[name] for name in names}, kept, provenance=d.provenance)


def steps(a: Architecture) -> int | None:
    """k, where there is one."""
    return getattr(a, "k", None) or (max(a.ks) if a.NAME == "nested_k" else None)


def needed_threshold(e: Exported, form: str) -> float:
    """BatchTopK's threshold.

    Raises:
        BadData: there is none: it was never trained.
    """
    if e.threshold is None:
        raise BadData(f"this dictionary has no threshold yet, which {form} needs: it is learned while it is trained.")
    return e.threshold
