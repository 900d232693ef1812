"""A small CLIP of which everything is known: ten concepts, a vector and a text of each."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mechvis
import sae
from mechvis import testing
from mechvis.hooked import HookedViT

CONCEPTS = tuple(f"concept {i}" for i in range(10))
SITE = "blocks.1.hook_resid_post"


@dataclass
class PlantedClip:
    """A patch shows a concept (its colour says which) or nothing; the first token is the mean of the patches; blocks
    write nothing; the embedding is linear in the first token; a text is what its concept's vector becomes."""

    vision: HookedViT
    vectors: Tensor
    """Concepts, then the white and the black patch."""
    project: Tensor

    blur: float = 0.0
    """How many neighbours (in a circle) a concept's text shares with it; 0: none."""

    def encode_text(self, texts: list[str]) -> Tensor:
        place = torch.arange(10)
        away = (place[:, None] - place).abs()
        away = torch.minimum(away, 10 - away).double()
        kernel = torch.exp(-0.5 * (away / self.blur) ** 2) if self.blur else torch.eye(10).double()
        rows = kernel[[CONCEPTS.index(text) for text in texts]] @ self.vectors[:10] @ self.project
        return torch.nn.functional.normalize(rows, dim=1)

    def images(self, shown: list[list[int]]) -> Tensor:
        """Pixels of images that show these concepts, one patch each; the other patches are white."""
        pixels = torch.ones(len(shown), 3, 12, 12, dtype=self.vectors.dtype)
        for image, concepts in enumerate(shown):
            for place, concept in enumerate(concepts):
                down, across = divmod(place + image % 4, 3)
                pixels[image, :, 4 * down : 4 * down + 4, 4 * across : 4 * across + 4] = concept / 12
        return pixels


@pytest.fixture(scope="session")
def planted_clip():
    generator = torch.Generator().manual_seed(0)
    clip = mechvis.load(
        testing.tiny("clip", dtype=torch.float64), preprocess=testing.tiny_preprocess(), tokenizer=testing.Words()
    )
    parts = clip.vision.parts
    vectors = torch.linalg.qr(torch.randn(parts.d_model, parts.d_model, generator=generator).double()).Q[:12]
    vectors[10:] = (
        torch.nn.functional.normalize(vectors[10:] - 0.02 * vectors[:10].sum(0), dim=1)
        * torch.tensor([[1.0], [0.5]]).double()
    )
    project = torch.linalg.qr(torch.randn(parts.d_model, parts.d_model, generator=generator).double()).Q

    def embed(pixels: Tensor) -> Tensor:
        patches = torch.nn.functional.avg_pool2d(pixels.mean(1, keepdim=True), 4).flatten(1)
        which = torch.where(
            patches > 0.95, 10, torch.where(patches < -0.5, 11, (patches * 12).round().clamp(0, 9).long())
        )
        tokens = vectors[which]
        return torch.cat([tokens.mean(1, keepdim=True), tokens], 1)

    none = {"scale1": torch.zeros_like, "scale2": torch.zeros_like}
    blocks = tuple(replace(block, **none) for block in parts.blocks)
    made = replace(parts, embed=embed, blocks=blocks, ln_final=nn.Identity(), project=lambda x: x @ project)
    return PlantedClip(HookedViT(clip.vision.bare, made, preprocess=clip.preprocess), vectors, project)


@pytest.fixture(scope="session")
def planted_dictionary(planted_clip):
    """Latent i reads the concept `reads[i]` and writes the concept `writes[i]`."""

    def make(reads=range(10), writes=None, site: str = SITE) -> Any:
        reads = list(reads)
        writes = reads if writes is None else list(writes)
        rows = planted_clip.vectors[reads]
        d = sae.start(
            sae.TopK(n_latents=len(reads), k=len(reads), normalise="none"),
            {site: torch.randn(50, rows.shape[1]).double()},
        )
        with torch.no_grad():
            d.W_enc.copy_(rows)
            d.W_dec.copy_(planted_clip.vectors[writes])
            d.b_dec.zero_()
            # The white patch has a small share of every concept; a mean over nine patches a ninth of one.
            d.b_enc.fill_(-0.02)
        return d

    return make


def _rows(tower: Any, images: Any, site: str) -> Tensor:
    some = [
        tower.run(images[i : i + 64], capture=[site], stop_when_captured=True).cache[site]
        for i in range(0, len(images), 64)
    ]
    return torch.cat(some).flatten(0, 1)


@pytest.fixture(scope="session")
def scenes_vit_dictionary():
    """A quickly trained dictionary of the small trained classifier, and images that it has not seen."""
    model, site = mechvis.load("scenes-vit"), "blocks.2.hook_resid_post"
    rows = _rows(model, mechvis.data.scenes(512, seed=11), site)
    settings = sae.Training(tokens=400_000, batch=512, lr=2e-3)
    d = sae.train({site: rows}, sae.TopK(n_latents=512, k=8), settings, progress=False).dictionary
    return model, d, mechvis.data.scenes(512, seed=7)


@pytest.fixture(scope="session")
def scenes_clip_dictionary():
    """The same for the small CLIP."""
    clip, site = mechvis.load("scenes-clip"), "blocks.2.hook_resid_post"
    rows = _rows(clip.vision, mechvis.data.scenes(512, seed=11), site)
    settings = sae.Training(tokens=300_000, batch=512, lr=2e-3)
    d = sae.train({site: rows}, sae.TopK(n_latents=256, k=8), settings, progress=False).dictionary
    return clip, d, mechvis.data.scenes(256, seed=7)
