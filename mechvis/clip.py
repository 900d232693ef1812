"""HookedCLIP: both towers hooked, and a zero-shot head that is a head like any other.

`clip.vision` and `clip.text` are `HookedViT`s. `clip.classifier(class_names)` is the vision tower with the prompts as
its classes, so that every sweep, metric and study works for "this image against these prompts".
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from mechvis.data.preprocess import Preprocess
from mechvis.errors import BadData
from mechvis.hooked import HookedViT
from mechvis.models.parts import TowerParts, TwoTowers

TEMPLATES = ("a photo of a {}",)


class ZeroShotHead:
    """Image embedding to logits: cosine with each prompt, times the model's own logit scale."""

    def __init__(self, prompts: Tensor, scale: Tensor):
        self.prompts = prompts
        """Unit-length prompt embeddings `[class d_embed]`."""
        self.scale = scale
        """Logit scale (already exponentiated), a scalar tensor."""

    def __call__(self, embedding: Tensor) -> Tensor:
        unit = embedding / embedding.norm(dim=-1, keepdim=True)
        return unit @ self.prompts.T * self.scale

    @property
    def fingerprint(self) -> str:
        """Hash of the prompts' embeddings."""
        return hashlib.sha256(self.prompts.detach().cpu().float().numpy().tobytes()).hexdigest()[:16]


class HookedCLIP:
    """Two hooked towers around one CLIP model.

    Example:
        >>> clip = mechvis.load("scenes-clip")                                     # doctest: +SKIP
        >>> model = clip.classifier(["circle", "star"], ["a photo of a {}"])       # doctest: +SKIP
        >>> model.run(images).logits                                               # doctest: +SKIP
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

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that came with the model.

        Raises:
            BadData: none came; pass tokenizer= to mechvis.load.
        """
        found = (
            self._tokenizer()
            if callable(self._tokenizer) and not hasattr(self._tokenizer, "encode")
            else self._tokenizer
        )
        if found is None:
            raise BadData("this CLIP model came without a tokenizer; pass tokenizer= to mechvis.load.")
        self._tokenizer = found
        return found

    @property
    def logit_scale(self) -> Tensor:
        """Factor on the cosine, a scalar tensor."""
        return self.towers.logit_scale()

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids `[row token]`, padded."""
        if not texts:
            raise BadData("no texts given.")
        ids = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.text.parts.n_tokens, return_tensors="pt"
        )["input_ids"]
        return ids.to(self.text.device)

    def encode_image(self, images: Any) -> Tensor:
        """Unit-length image embeddings `[image d_embed]`."""
        embedding = self.vision.run(images).output
        return embedding / embedding.norm(dim=-1, keepdim=True)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit-length text embeddings `[row d_embed]`."""
        embedding = self.text.run(self.tokenize(texts)).output
        return embedding / embedding.norm(dim=-1, keepdim=True)

    def prompts(
        self, class_names: Sequence[str], templates: Sequence[str | Callable[[str], str]] = TEMPLATES
    ) -> Tensor:
        """One unit-length direction per class: mean over templates of unit-length embeddings, `[class d_embed]`."""
        if not class_names or not templates:
            raise BadData("classifier needs at least one class name and one template.")
        texts = [t(name) if callable(t) else t.format(name) for name in class_names for t in templates]
        mean = self.encode_text(texts).unflatten(0, (len(class_names), len(templates))).mean(1)
        return mean / mean.norm(dim=-1, keepdim=True)

    def classifier(
        self, class_names: Sequence[str], templates: Sequence[str | Callable[[str], str]] = TEMPLATES
    ) -> HookedViT:
        """The vision tower with a zero-shot head over these classes: logits are image-text logits."""
        head = ZeroShotHead(self.prompts(class_names, templates), self.logit_scale.detach())

        def family(module: nn.Module) -> TowerParts:
            parts = self.towers.vision(module)
            return replace(
                parts, head=head, class_names=tuple(class_names), reference=lambda x: head(parts.reference(x))
            )

        parts = replace(self.vision.parts, head=head, class_names=tuple(class_names))
        model = HookedViT(self.bare, parts, preprocess=self.preprocess, name=f"{self.vision.title}, zero-shot")
        model.__dict__["family"] = family
        model.__dict__["parity"] = self.vision.parity
        return model

    def __repr__(self) -> str:
        return f"HookedCLIP(logit scale {float(self.logit_scale):.2f})\n{self.vision!r}\n{self.text!r}"
