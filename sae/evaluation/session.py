"""The passes over images of an evaluation: every dictionary on the same batches, sums per image.

Each batch is run clean once; every dictionary encodes and decodes the same rows and is put in their place.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechvis.data.images import ImageSet
from mechvis.progress import track
from sae.dictionary import Dictionary
from sae.evaluation.monosemanticity import Sums as AlikeSums
from sae.evaluation.place import Place, one_per_image
from sae.evaluation.reconstruction import Reconstruction
from sae.evaluation.recovered import ABLATIONS, Clean, Outputs, clean_pass, embedding_site, replaced
from sae.evaluation.reference import Reference
from sae.evaluation.spatial import Sums as MapSums


@dataclass(kw_only=True, eq=False)
class Judged:
    """What is known of one dictionary while images stream by."""

    dictionary: Dictionary
    """The dictionary."""
    kind: str
    """trained or baseline."""
    fit: Reconstruction = field(default_factory=Reconstruction)
    """How rows are written."""
    outputs: Outputs = field(default_factory=Outputs)
    """What the model does with them."""
    ms: AlikeSums = field(default_factory=AlikeSums)
    """Monosemanticity."""
    maps: MapSums = field(default_factory=MapSums)
    """Spatial coherence."""
    codes: list[np.ndarray] = field(default_factory=list)
    """One vector per judging image."""
    reference: list[np.ndarray] = field(default_factory=list)
    """One vector per reference image."""


@dataclass(kw_only=True, eq=False)
class Session:
    """The passes over images."""

    model: Any
    """The model."""
    reads: dict[str, Place]
    """What dictionaries read, by their name for it."""
    writes: dict[str, Place]
    """What they write."""
    known: Reference
    """Means of the ablation."""
    wanted: set[str]
    """Metrics."""
    judge: Any
    """The model that says which images are alike; None: this one."""
    pool: str
    """How rows of an image become one."""
    clean: Outputs = field(default_factory=Outputs)
    """What the model does untouched."""
    ablated: dict[str, Outputs] = field(default_factory=lambda: {name: Outputs() for name in ABLATIONS})
    """What it does without the site."""
    rows: dict[str, list[np.ndarray]] = field(default_factory=lambda: {"test": [], "train": []})
    """One vector of activations per image, for the dense probe."""

    @property
    def sites(self) -> list[str]:
        """All sites, once."""
        return list(dict.fromkeys(p.site for p in [*self.reads.values(), *self.writes.values()]))

    @torch.no_grad()
    def judge_images(self, judged: Mapping[str, Judged], images: ImageSet, batch_size: int, progress: bool) -> None:
        """The pass of the module's step 2."""
        with track(len(images), "judging", " images", show=progress) as bar:
            for start in range(0, len(images), batch_size):
                part = images[start : start + batch_size]
                clean = clean_pass(self.model, part, self.sites)
                x, y = self._rows(clean, self.reads), self._rows(clean, self.writes)
                labels = self._labels(part)
                alike = self._alike(part, clean) if "monosemanticity" in self.wanted else None
                if "recovered" in self.wanted:
                    self.clean.add(clean.logits, clean.embedding, clean, labels)
                    for name in ABLATIONS:
                        self.ablated[name].add(*self._ablated(clean, name), clean, labels)
                if {"probing", "absorption"} & self.wanted:
                    self.rows["test"].append(one_per_image(x, self.pool).cpu().numpy())
                for one in judged.values():
                    self._judge(one, clean, x, y, labels, alike)
                bar.update(len(part))

    def _judge(self, one: Judged, clean: Clean, x: Tensor, y: Tensor, labels: Any, alike: Tensor | None) -> None:
        codes = one.dictionary.encode(x)
        y_hat = one.dictionary.decode(codes, like=x)
        places = list(self.writes.values())
        types = places[0].types(clean.activations[places[0].site].shape[1])
        one.fit.add(y, y_hat.to(y), codes, types if len(types) == y.shape[1] else ())
        if "recovered" in self.wanted:
            parts = y_hat.split(list(one.dictionary.ends.writes.values()), dim=-1)
            new = {p.site: p.put(clean.activations[p.site], part) for p, part in zip(places, parts, strict=True)}
            one.outputs.add(*replaced(self.model, clean, new), clean, labels)
        if alike is not None:
            one.ms.add(torch.amax(codes, 1).cpu(), alike.cpu())
        if "spatial" in self.wanted:
            patches = [i for i, kind in enumerate(types) if kind == "patch"]
            one.maps.add(codes[:, patches], self.model.parts.grid)
        if {"probing", "absorption"} & self.wanted:
            one.codes.append(one_per_image(codes, self.pool).cpu().numpy())

    @torch.no_grad()
    def encode_reference(self, judged: Mapping[str, Judged], images: ImageSet, batch_size: int, progress: bool) -> None:
        """Codes of the reference images."""
        with track(len(images), "encoding reference", " images", show=progress) as bar:
            for start in range(0, len(images), batch_size):
                part = images[start : start + batch_size]
                run = self.model.run(part, capture=self.sites, stop_when_captured=True)
                x = torch.cat([p.take(run.cache[p.site]) for p in self.reads.values()], dim=-1)
                self.rows["train"].append(one_per_image(x, self.pool).cpu().numpy())
                for one in judged.values():
                    one.reference.append(one_per_image(one.dictionary.encode(x), self.pool).cpu().numpy())
                bar.update(len(part))

    def _rows(self, clean: Clean, places: Mapping[str, Place]) -> Tensor:
        return torch.cat([p.take(clean.activations[p.site]) for p in places.values()], dim=-1)

    def _ablated(self, clean: Clean, name: str) -> tuple[Tensor | None, Tensor]:
        new = {}
        for place in self.writes.values():
            value = clean.activations[place.site]
            other = (
                torch.zeros_like(value) if name == "zero" else self.known.means[place.site].to(value).expand_as(value)
            )
            new[place.site] = place.put(value, place.take(other))
        return replaced(self.model, clean, new)

    def _labels(self, part: ImageSet) -> Tensor | None:
        return part.label_tensor if part.labels is not None and self.model.parts.head is not None else None

    def _alike(self, part: ImageSet, clean: Clean) -> Tensor:
        if self.judge is None:
            return clean.embedding
        site = embedding_site(self.judge)
        return self.judge.run(part, capture=[site], stop_when_captured=True).cache[site]
