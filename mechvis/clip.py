"""HookedCLIP: both towers hooked, and a zero-shot head that is a head like any other.

`clip.vision` and `clip.text` are `HookedViT`s. `clip.classifier(class_names)` is the vision tower with the prompts as
its classes, so that every sweep, metric and study works for "this image against these prompts".

Models trained with a softmax over texts (CLIP) and with one sigmoid per pair (SigLIP) differ in two ways only: the
latter add a bias to their logits, and `clip.probabilities` treats every class for itself.
"""

import hashlib
import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mechvis.data.preprocess import Preprocess
from mechvis.errors import BadData, MechvisWarning
from mechvis.hooked import HookedViT
from mechvis.models.parts import TowerParts, TwoTowers

TEMPLATES = ("a photo of a {}",)

Template = str | Callable[[str], str]
"""A prompt around a class name: text with `{}` in its place, or a function from name to prompt."""


class ZeroShotHead:
    """Image embedding to logits: cosine with each prompt, times the model's own logit scale, plus its bias if any.

    The tensors stay as they are given; each call uses them in the embedding's type and on its device.
    """

    def __init__(self, prompts: Tensor, scale: Tensor, bias: Tensor | None = None):
        self.prompts = prompts
        """Unit-length prompt embeddings `[class d_embed]`."""
        self.scale = scale
        """Logit scale (already exponentiated), a scalar tensor."""
        self.bias = bias
        """What is added to every logit, a scalar tensor, or None."""

    def __call__(self, embedding: Tensor) -> Tensor:
        unit = _unit(embedding)
        logits = unit @ self.prompts.to(unit).T * self.scale.to(unit)
        return logits if self.bias is None else logits + self.bias.to(unit)

    @property
    def fingerprint(self) -> str:
        """Hash of the prompts' embeddings, the scale and the bias."""
        digest = hashlib.sha256()
        for tensor in (self.prompts, self.scale, self.bias):
            if tensor is not None:
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]


def _unit(embedding: Tensor) -> Tensor:
    return embedding / embedding.norm(dim=-1, keepdim=True)


class HookedCLIP:
    """Two hooked towers around one model of images and texts: CLIP, open_clip, SigLIP.

    Example:
        >>> clip = mechvis.load("scenes-clip")                                     # doctest: +SKIP
        >>> model = clip.classifier(["circle", "star"], ["a photo of a {}"])       # doctest: +SKIP
        >>> model.run(images).logits                                               # doctest: +SKIP
        >>> clip.similarity(images, ["a star on grass", "a blue circle"])          # doctest: +SKIP
    """

    def __init__(
        self,
        bare: nn.Module,
        *,
        towers: TwoTowers,
        vision: TowerParts,
        text: TowerParts,
        preprocess: Preprocess | None,
        tokenizer: Any = None,
        name: str = "",
    ):
        self.bare = bare
        self.towers = towers
        self.vision = HookedViT(bare, vision, preprocess=preprocess, name=f"{name or 'CLIP'} vision")
        self.text = HookedViT(bare, text, name=f"{name or 'CLIP'} text")
        self.preprocess = preprocess
        self._tokenizer = tokenizer

    # texts

    @property
    def tokenizer(self) -> Any:
        """What makes token ids of texts: a Hugging Face tokenizer, one of open_clip's, or any function from a list of
        texts to ids `[row token]`. It may also be given as a function without arguments that makes one when needed.

        Raises:
            BadData: none came with the model; pass tokenizer= to mechvis.load.
        """
        found = self._tokenizer() if _makes_one(self._tokenizer) else self._tokenizer
        if found is None:
            raise BadData("this CLIP model came without a tokenizer; pass tokenizer= to mechvis.load.")
        self._tokenizer = found
        return found

    def tokenize(self, texts: Sequence[str] | str) -> Tensor:
        """Token ids `[row token]`, padded as the model was trained.

        A text that is longer than the model can read is cut as its tokenizer does it, and a warning says which.
        """
        texts, longest = _texts(texts), self.text.parts.n_tokens
        encode = _encoder(self.tokenizer, self.towers)
        ids = encode(texts, longest)
        cut = _cut(encode, texts, ids, longest)
        if cut:
            warnings.warn(
                f"{len(cut)} of {len(texts)} texts are longer than the {longest} tokens that this model reads; what "
                f"comes after was cut off: {', '.join(map(_short, cut[:3]))}{' ...' if len(cut) > 3 else ''}",
                MechvisWarning,
                stacklevel=3,
            )
        return ids.to(self.text.device)

    def encode_text(self, texts: Sequence[str] | str, *, batch_size: int = 256) -> Tensor:
        """Unit-length text embeddings `[row d_embed]`; `batch_size` texts go through the tower together."""
        texts = _texts(texts)
        return torch.cat([_unit(self.text.run(self.tokenize(some)).output) for some in _slices(texts, batch_size)])

    # images

    def encode_image(self, images: Any, *, batch_size: int = 256) -> Tensor:
        """Unit-length image embeddings `[image d_embed]`; `batch_size` images go through the tower together."""
        return torch.cat([_unit(self.vision.run(some).output) for some in _slices(images, batch_size)])

    # both

    @property
    def logit_scale(self) -> Tensor:
        """Factor on the cosine, a scalar tensor."""
        return self.towers.logit_scale()

    @property
    def logit_bias(self) -> Tensor | None:
        """What is added to the scaled cosine (SigLIP), a scalar tensor, or None."""
        return self.towers.logit_bias()

    def similarity(self, images: Any, texts: Sequence[str] | str, *, batch_size: int = 256) -> Tensor:
        """Logits `[image text]`, upstream's `logits_per_image`: the scaled cosine, plus the bias if there is one."""
        head = ZeroShotHead(self.encode_text(texts, batch_size=batch_size), *self._scale_and_bias())
        return head(self.encode_image(images, batch_size=batch_size))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits `[... text]` as probabilities, in the way the model was trained: a softmax over the texts (they sum to
        one), or a sigmoid of each (SigLIP: every text for itself; none of them may fit)."""
        return logits.softmax(-1) if self.towers.loss == "softmax" else logits.sigmoid()

    def _scale_and_bias(self) -> tuple[Tensor, Tensor | None]:
        bias = self.logit_bias
        return self.logit_scale.detach(), None if bias is None else bias.detach()

    def prompts(
        self,
        class_names: Sequence[str],
        templates: Sequence[Template] | Template = TEMPLATES,
        *,
        batch_size: int = 256,
    ) -> Tensor:
        """One unit-length direction per class: mean over templates of unit-length embeddings, `[class d_embed]`.

        Args:
            class_names: different names.
            templates: see :meth:`classifier`.
            batch_size: texts that go through the tower together; memory does not grow with the number of prompts.

        Raises:
            BadData: no or repeated names, a template that does not use the name.
        """
        names = _class_names(class_names)
        templates = _templates(templates, names)
        means = []
        for some in _slices(names, max(1, batch_size // len(templates))):
            texts = [_prompt(template, name) for name in some for template in templates]
            embeddings = self.encode_text(texts, batch_size=batch_size)
            means.append(_unit(embeddings.unflatten(0, (len(some), len(templates))).mean(1)))
        return torch.cat(means)

    def classifier(
        self,
        class_names: Sequence[str],
        templates: Sequence[Template] | Template = TEMPLATES,
        *,
        batch_size: int = 256,
    ) -> HookedViT:
        """The vision tower with a zero-shot head over these classes: logits are image-text logits.

        Args:
            class_names: one name per class.
            templates: prompts around a name, averaged: texts with `{}`, or functions from name to prompt, such as the
                80 of open_clip for ImageNet.
            batch_size: prompts that go through the text tower together.

        Raises:
            BadData: no or repeated names, a template that does not use the name.

        Example:
            >>> from open_clip import OPENAI_IMAGENET_TEMPLATES                    # doctest: +SKIP
            >>> model = clip.classifier(["tench", "goldfish"], OPENAI_IMAGENET_TEMPLATES)  # doctest: +SKIP
            >>> mechvis.sweep(model, images, units="heads")                        # doctest: +SKIP
        """
        head = ZeroShotHead(self.prompts(class_names, templates, batch_size=batch_size), *self._scale_and_bias())
        names, size = tuple(class_names), self.vision.parts.image_size

        def with_head(parts: TowerParts) -> TowerParts:
            return replace(parts, head=head, class_names=names, reference=lambda x: head(parts.reference(x)))

        parts, title = with_head(self.vision.parts), f"{self.vision.title}, zero-shot"
        model = HookedViT(self.bare, parts, preprocess=self.preprocess, name=title)
        model.__dict__["family"] = lambda module: with_head(self.towers.vision(module).at_size(size))
        model.__dict__["parity"] = self.vision.parity
        return model

    # the borrowed module

    def to(self, *args: Any, **kwargs: Any) -> "HookedCLIP":
        """Move or convert the user's model, as `nn.Module.to` does."""
        for tower in (self.vision, self.text):
            tower.to(*args, **kwargs)
        return self

    def __repr__(self) -> str:
        scale, bias = (None if x is None else f"{x.item():.2f}" for x in self._scale_and_bias())
        said = f"logit scale {scale}{'' if bias is None else f', bias {bias}'}, trained with a {self.towers.loss}"
        return f"HookedCLIP({said})\n{self.vision!r}\n{self.text!r}"

    def _repr_html_(self) -> str:
        from mechvis.show import clip, safely

        return safely(clip, self)


def _slices(rows: Any, size: int) -> Iterator[Any]:
    """Rows in groups; what has no rows goes as it is, to be refused where it arrives."""
    if size < 1:
        raise BadData(f"batch_size={size}: give at least 1.")
    if not (isinstance(rows, (list, Tensor)) or hasattr(rows, "pixels_for")) or not len(rows):
        yield rows
        return
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


# class names and templates


def _class_names(names: Sequence[str]) -> list[str]:
    if isinstance(names, str):
        raise BadData(f"class_names is one text ({names!r}); give a list of names.")
    names = list(names)
    if not names:
        raise BadData("classifier needs at least one class name and one template.")
    if strange := [name for name in names if not isinstance(name, str) or not name.strip()]:
        raise BadData(f"class names are texts, got {strange[0]!r}.")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise BadData(f"class names repeat: {', '.join(twice[:5])}. Their logits would be the same.")
    return names


def _templates(templates: Sequence[Template] | Template, names: list[str]) -> list[Template]:
    templates = [templates] if isinstance(templates, str) or callable(templates) else list(templates)
    if not templates:
        raise BadData("classifier needs at least one class name and one template.")
    for template in templates:
        some = [*names[:2], "a name", "another name"] if isinstance(template, str) else names[:2]
        if len({_prompt(template, name) for name in some}) < len(set(some)):
            raise BadData(
                f"the template {template!r} gives the same prompt for different class names: it has to use the name, "
                "as 'a photo of a {}' does."
            )
    return templates


def _prompt(template: Template, name: str) -> str:
    try:
        prompt = template(name) if callable(template) else template.format(name)
    except (LookupError, ValueError, AttributeError) as error:
        raise BadData(
            f"the template {template!r} cannot be filled with {name!r} ({error!r}); write {{}} where the name goes."
        ) from error
    if not isinstance(prompt, str):
        raise BadData(f"the template {template!r} makes {type(prompt).__name__} of {name!r}, not a text.")
    return prompt


# tokenizers


def _texts(texts: Sequence[str] | str) -> list[str]:
    texts = [texts] if isinstance(texts, str) else list(texts)
    if not texts:
        raise BadData("no texts given.")
    if strange := [text for text in texts if not isinstance(text, str)]:
        raise BadData(f"texts are strings, got {type(strange[0]).__name__}. Token ids go to clip.text.run(ids).")
    return texts


def _makes_one(tokenizer: Any) -> bool:
    """Is this a function without required arguments (a maker), not a tokenizer?"""
    function = tokenizer.func if isinstance(tokenizer, partial) else tokenizer
    if not inspect.isroutine(function):
        return False
    given = inspect.signature(tokenizer).parameters.values()
    return all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in given)


def _encoder(tokenizer: Any, towers: TwoTowers) -> Callable[[list[str], int], Tensor]:
    """(texts, room) -> ids: the tokenizer called as its parameters say that it wants to be called."""
    parameters = inspect.signature(tokenizer).parameters
    if "context_length" in parameters:  # open_clip
        return lambda texts, room: tokenizer(texts, context_length=room)
    if "max_length" in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):  # Hugging Face
        return partial(towers.encode_ids or _padded_to_the_longest, tokenizer)
    return lambda texts, room: torch.as_tensor(tokenizer(texts))


def _padded_to_the_longest(tokenizer: Any, texts: list[str], longest: int) -> Tensor:
    settings = {"padding": True, "truncation": True, "max_length": longest, "return_tensors": "pt"}
    return tokenizer(texts, **settings)["input_ids"]


def _cut(encode: Callable[[list[str], int], Tensor], texts: list[str], ids: Tensor, longest: int) -> list[str]:
    """Texts that a tokenizer has cut, which it does without a word.

    A text that fits gains nothing but padding when there is more room, and padding is what the shortest of texts gains.
    (Which id means padding is not asked: for CLIP it is the end of text, or an id that ordinary words have too.)
    """

    def gained(text: str) -> set[int]:
        less, more = (Counter(encode([text], room)[0].tolist()) for room in (longest, 2 * longest))
        return set(more - less)

    if ids.shape[1] < longest:
        return []
    padding = gained("a")
    full = [text for text, row in zip(texts, ids, strict=True) if not set(row[-2:].tolist()) <= padding]
    return [text for text in full if gained(text) - padding]


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
