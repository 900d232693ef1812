"""What the tests of contextual decomposition share: models, images, and both implementations side by side."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from circuits.contextual.decompose import decompose
from circuits.contextual.plain import plain_halves
from circuits.contextual.sources import sources_of
from mechvis import testing
from mechvis.hooked import HookedViT
from mechvis.means import means
from mechvis.models.load import wrap

UNSPLIT = ("hook_scale", "hook_attn_scores", "hook_pattern", "hook_result")


def tower(family):
    """A tiny model in float64, by the name of its family; `odd` is made here."""
    if family == "odd":
        return odd_model()
    model = wrap(testing.tiny(family.split(" ")[0], dtype=torch.float64), preprocess=testing.tiny_preprocess())
    if family.endswith(" text"):
        return model.text
    return getattr(model, "vision", model)


def odd_model():
    """A ViT with what no tiny Hugging Face model has: RMS norms, norms of queries and keys, norms before both output
    products, and a norm behind the attention's write."""
    bare = testing.rand_vit()
    generator = torch.Generator().manual_seed(5)

    def norm(kind, width):
        made = kind(width, dtype=torch.float64)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.copy_(0.8 + 0.3 * torch.randn(width, generator=generator))
        return made

    def odd(block):
        after, per_q, per_k = norm(nn.RMSNorm, 16), norm(nn.RMSNorm, 4), norm(nn.LayerNorm, 4)
        old = block.attn

        def kv(x):
            k, v = old.kv(x)
            return per_k(k), v

        attn = replace(old, q=lambda x: per_q(old.q(x)), kv=kv, qkv=None, after=after)
        norms = {"ln1": norm(nn.RMSNorm, 16), "ln2": norm(nn.RMSNorm, 16), "mlp_norm": norm(nn.LayerNorm, 32)}
        return replace(block, attn=attn, scale1=norm(nn.LayerNorm, 16), linear_writes=False, **norms)

    parts = wrap(bare, preprocess=testing.tiny_preprocess()).parts
    parts = replace(parts, blocks=tuple(map(odd, parts.blocks)), ln_final=norm(nn.RMSNorm, 16))
    return HookedViT(bare, parts, preprocess=testing.tiny_preprocess())


def batch(model, n, seed=1):
    if model.parts.modality == "image":
        size = model.parts.image_size
        return torch.randn(n, 3, *size, generator=torch.Generator().manual_seed(seed)).double()
    example = [model.parts.example_batch(model.bare, torch.Generator().manual_seed(seed + i)) for i in range(n)]
    return torch.cat(example)[:n]


def splittable(model):
    return [name for name in model.graph.names if not name.endswith((*UNSPLIT, "hook_embed"))]


class Bench:
    """A model with reference images and images, and decompositions of them."""

    def __init__(self, family, n_reference=4, n=3):
        self.model = tower(family)
        images = batch(self.model, n_reference + n)
        self.reference, self.images = images[:n_reference], images[n_reference:]
        self.sites = splittable(self.model)
        self.run = self.model.run(self.images, capture=self.sites)
        self.means = means(self.model, self.reference, self.sites)

    def batched(self, sources, rules, **more):
        settings = {"reference": self.reference, "batch_size": 7, **more}
        return decompose(self.model, self.images, sources, settings.pop("sites", self.sites), rules=rules, **settings)

    def plain(self, source, rules, **more):
        (source,) = sources_of(self.model, [source])
        more = {"values": lambda site: self.means[site][None], "sites": self.sites, **more}
        return plain_halves(self.model, self.images, source, rules, **more)

    def gap(self, first, second, site):
        """Largest difference, relative to the activation."""
        return float((first - second).abs().max() / self.run.cache[site].abs().max())


@pytest.fixture(scope="session")
def bench():
    """Family -> `Bench`, made once."""
    return cache(Bench)


@pytest.fixture(scope="session")
def f1(bench):
    return bench("vit")
