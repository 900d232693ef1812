"""From a vector in the stream to classes or texts, and what a head writes there: the full OV circuit.

A vector v written into the stream of the token that is read changes the output by (methods.md 2.1, `phi`, **C**, **P**)

    v C diag(gain_final) P t_k / s

for class (or text) k: centred, times the gain of the last norm, through the projection P where there is one, onto the
class weight or text embedding t_k. The scale `s` of the last norm belongs to an image, not to the weights; it is left
out here, so numbers are *logits times the image's scale*: their signs and ranks are those of every image.

    ReadOut     into = C diag(gain_final) P   [d_model d_out],  targets = t   [class d_out]
    written     u C diag(gain_1) W_V W_O into targets^T: what a head writes when it attends to a token with direction u
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from circuits.weights.exact import model_of_one_tower
from circuits.weights.folding import at_least_single, fold
from circuits.weights.ov_qk import ov
from mechvis.errors import BadData, NotFinite, ShapeMismatch


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ReadOut:
    """How vectors of the stream are read as classes or texts. Made by :func:`read_out`."""

    names: tuple[str, ...]
    """Name of each class, or each text."""
    kind: Literal["class", "text"]
    """What the names are."""
    into: Float[Tensor, "d_model d_out"] = field()
    """From the stream to where the targets live, the last norm's centring and gain included, its scale left out."""
    project: Float[Tensor, "d_model d_out"] = field()
    """The same from behind the last norm's gain."""
    targets: Float[Tensor, "class d_out"] = field()
    """Class weights (times the logit scale in a zero-shot head), or unit text embeddings."""

    def logits(
        self, vectors: Float[Tensor, "*vector d_model"], *, behind_norm: bool = False
    ) -> Float[Tensor, "*vector class"]:
        """Logits times the last norm's scale that vectors of the stream write (of texts: dot products with their unit
        embeddings). `behind_norm`: the vectors are taken from behind the last norm's gain."""
        return self._mapped(vectors, behind_norm) @ self.targets.T

    def cosines(
        self, vectors: Float[Tensor, "*vector d_model"], *, behind_norm: bool = False
    ) -> Float[Tensor, "*vector class"]:
        """Cosines with the targets, in the space where they live; zero for a vector that does not get there."""
        mapped = torch.nn.functional.normalize(self._mapped(vectors, behind_norm), dim=-1)
        return mapped @ torch.nn.functional.normalize(self.targets, dim=-1).T

    def directions(self) -> Float[Tensor, "class d_model"]:
        """The direction of the stream along which each class or text rises fastest."""
        return self.targets @ self.into.T

    def _mapped(self, vectors: Tensor, behind_norm: bool) -> Tensor:
        if vectors.shape[-1] != len(self.into):
            raise ShapeMismatch(
                f"vectors of the stream have {len(self.into)} entries in this model, got {list(vectors.shape)}."
            )
        if not torch.isfinite(vectors).all():
            raise NotFinite("NaN or Inf in the vectors to read.")
        return vectors.to(self.into) @ (self.project if behind_norm else self.into)

    def __repr__(self) -> str:
        some = ", ".join(map(repr, self.names[:3])) + (" ..." if len(self.names) > 3 else "")
        return f"ReadOut({len(self.names)} {'classes' if self.kind == 'class' else 'texts'}: {some})"


def read_out(model: Any, texts: Sequence[str] | None = None, *, centred: bool = False) -> ReadOut:
    """The read-out of a classifier onto its classes, or of a CLIP model's image tower onto texts.

    Args:
        model: a wrapped classifier (also `clip.classifier(names)`), or a `HookedCLIP` together with `texts`.
        texts: what a CLIP model's directions are read as.
        centred: take the texts' mean embedding off before anything is compared: texts share a large common part, which
            says nothing about any of them (methods.md 2.7 **N**). The order of texts for a direction stays as it is;
            the cosines become those of what tells the texts apart.

    Raises:
        BadData: no head, texts without a text tower, repeated texts, attention pooling, or a read-out that is not one
            linear map of one token.

    Example:
        >>> read_out(mechvis.load("scenes-vit"))                                                   # doctest: +SKIP
        ReadOut(8 classes: 'circle', 'square', 'triangle' ...)
        >>> read_out(mechvis.load("scenes-clip"), ["a star", "grass"], centred=True)               # doctest: +SKIP
        ReadOut(2 texts: 'a star', 'grass')
    """
    from mechvis.interop.transformer_lens import unembedding

    if hasattr(model, "encode_text"):
        return _onto_texts(model, texts, centred)
    if texts is not None:
        raise BadData("texts need a text tower: pass the CLIP model itself (mechvis.load(...)), not one of its towers.")
    parts = model_of_one_tower(model).parts
    if parts.head is None:
        raise BadData(
            f"{parts.family} has no head to read classes from; for CLIP: pass the whole model and texts=[...], or "
            "clip.classifier(class_names)."
        )
    with torch.no_grad():
        weight, _ = unembedding(parts)
    weight = at_least_single(weight)
    unit = torch.eye(len(weight)).to(weight)
    names = parts.class_names or tuple(f"class {i}" for i in range(weight.shape[1]))
    targets = weight.T
    if centred:
        targets = _centred(targets, "classes")
    return ReadOut(names=tuple(names), kind="class", into=fold(parts.ln_final, unit), project=unit, targets=targets)


def written(
    model: Any,
    layer: int,
    reads: Float[Tensor, "direction d_model"],
    out: ReadOut,
    head: int | None = None,
    *,
    folded: bool = True,
) -> Float[Tensor, "*head direction class"]:
    """The full OV circuit: what a head writes to each class when it attends to a token that has a direction.

    Args:
        model: the wrapped tower.
        layer: block.
        reads: directions of the stream, one per row; any length.
        out: :func:`read_out` of the model.
        head: one head; None for all, with a leading axis.
        folded: the directions are of the stream itself. False: of the stream behind the norm's gain.

    Returns:
        Logits, times the scale of the norm before attention (with `folded`) and of the last norm: divide by an image's
        two scales to get its logits. The heads' biases are not in it: they are written whatever is attended to.

    Raises:
        RefusedMethod, OutOfRange, ShapeMismatch, NotFinite.

    Example:
        >>> out = read_out(model)                                                                  # doctest: +SKIP
        >>> written(model, 3, out.directions(), out, head=1).shape      # class attended to -> class  # doctest: +SKIP
        torch.Size([8, 8])
    """
    circuit = ov(model, layer, head, folded=folded)
    reads = torch.as_tensor(reads)
    if reads.ndim != 2 or reads.shape[1] != circuit.ldim:
        raise ShapeMismatch(f"directions to read are [direction d_model={circuit.ldim}], got {list(reads.shape)}.")
    if not torch.isfinite(reads).all():
        raise NotFinite("NaN or Inf in the directions to read.")
    return out.logits((reads.to(circuit.A) @ circuit.A) @ circuit.B)


def _onto_texts(clip: Any, texts: Sequence[str] | None, centred: bool) -> ReadOut:
    from mechvis.interop.transformer_lens import unembedding

    if texts is None:
        raise BadData("what should directions be read as? Pass texts=[...], or use clip.classifier(class_names).")
    if isinstance(texts, str):
        raise BadData(f"texts is one text ({texts!r}); give a list of texts.")
    if len(set(texts)) != len(texts):
        raise BadData(f"texts repeat: {len(texts)} texts, {len(set(texts))} different ones.")
    targets = at_least_single(clip.encode_text(list(texts)))
    with torch.no_grad():
        # An identity for a head: what comes after the last norm is then the projection into the joint space.
        project, _ = unembedding(replace(clip.vision.parts, head=torch.nn.Identity()))
    project = at_least_single(project)
    if centred:
        targets = _centred(targets, "texts")
    into = fold(clip.vision.parts.ln_final, project)
    return ReadOut(names=tuple(texts), kind="text", into=into, project=project, targets=targets.to(project))


def _centred(targets: Tensor, what: str) -> Tensor:
    if len(targets) < 2:
        raise BadData(f"centred=True takes the mean of the {what} off, and there is only one.")
    return targets - targets.mean(0)
