"""A small ViT of our own whose weights can be wired by hand: gates (OR, AND), norms on queries and keys, and a norm
after the mixing of values. And the families that patching is compared on."""

import dataclasses

import pytest
import torch
from einops import rearrange
from torch import nn

import mechvis
from mechvis import testing
from mechvis.data.preprocess import plain_scaling
from mechvis.models.load import wrap
from mechvis.models.parts import AttentionParts, BlockParts, TowerParts

GRID = 2


class Layer(nn.Module):
    """Attention, then ReLU neurons; with norms where asked."""

    def __init__(self, d_model, heads, d_head, d_mlp, norms):
        super().__init__()
        self.heads, width = heads, heads * d_head
        self.q, self.k, self.v = (nn.Linear(d_model, width) for _ in range(3))
        self.o, self.w_in, self.w_out = nn.Linear(width, d_model), nn.Linear(d_model, d_mlp), nn.Linear(d_mlp, d_model)
        self.norm1, self.norm2 = (nn.LayerNorm(d_model) if norms else nn.Identity() for _ in range(2))
        self.q_norm, self.k_norm = (nn.LayerNorm(d_head) if norms else nn.Identity() for _ in range(2))
        self.after = nn.LayerNorm(width) if norms else None

    def split(self, x):
        return rearrange(x, "i t (h e) -> i t h e", h=self.heads)

    def forward(self, x):
        y = self.norm1(x)
        q, k, v = self.q_norm(self.split(self.q(y))), self.k_norm(self.split(self.k(y))), self.split(self.v(y))
        pattern = torch.einsum("iqhe,ikhe->ihqk", q, k).softmax(-1)
        z = torch.einsum("ihqk,ikhe->iqhe", pattern, v).flatten(2)
        x = x + self.o(z if self.after is None else self.after(z))
        return x + self.w_out(self.w_in(self.norm2(x)).relu())


class OwnViT(nn.Module):
    """Patches of one pixel on a 2 x 2 grid, read out at the CLS token."""

    def __init__(self, d_model=8, heads=2, d_head=3, d_mlp=5, layers=2, classes=2, norms=False):
        super().__init__()
        self.embed = nn.Conv2d(1, d_model, 1)
        self.places = nn.Parameter(torch.zeros(1 + GRID * GRID, d_model))
        self.layers = nn.ModuleList(Layer(d_model, heads, d_head, d_mlp, norms) for _ in range(layers))
        self.head = nn.Linear(d_model, classes)
        self.double().eval()

    def tokens(self, pixels):
        patches = self.embed(pixels).flatten(2).mT
        return torch.cat([torch.zeros_like(patches[:, :1]), patches], 1) + self.places

    def forward(self, pixels):
        x = self.tokens(pixels)
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, 0])


def own_parts(model):
    def block(layer):
        attention = AttentionParts(
            n_heads=layer.heads,
            d_head=layer.q.out_features // layer.heads,
            q=lambda x: layer.q_norm(layer.split(layer.q(x))),
            kv=lambda x: (layer.k_norm(layer.split(layer.k(x))), layer.split(layer.v(x))),
            after=layer.after,
            out=layer.o,
            out_weight=lambda: rearrange(layer.o.weight, "d (h e) -> h e d", h=layer.heads),
            out_bias=lambda: layer.o.bias,
            in_weights=lambda: tuple(
                rearrange(m.weight, "(h e) d -> h d e", h=layer.heads) for m in (layer.q, layer.k, layer.v)
            ),
            in_biases=lambda: tuple(
                rearrange(m.bias, "(h e) -> h e", h=layer.heads) for m in (layer.q, layer.k, layer.v)
            ),
            scale=1.0,
            fused=lambda: False,
        )
        return BlockParts(
            ln1=layer.norm1,
            attn=attention,
            ln2=layer.norm2,
            mlp_in=layer.w_in,
            act=torch.relu,
            mlp_out=layer.w_out,
            mlp_out_weight=lambda: layer.w_out.weight.T,
            mlp_out_bias=lambda: layer.w_out.bias,
            d_mlp=layer.w_in.out_features,
        )

    return TowerParts(
        family="own",
        embed=model.tokens,
        blocks=tuple(map(block, model.layers)),
        d_model=model.embed.out_channels,
        ln_final=nn.Identity(),
        reads=(0,),
        norm="tokens",
        pool=lambda tokens: tokens[:, 0],
        head=model.head,
        image_size=(GRID, GRID),
        patch_size=(1, 1),
        channels=1,
        n_tokens=1 + GRID * GRID,
        class_names=tuple("ab"),
        reference=model,
        example=lambda generator: torch.rand(2, 1, GRID, GRID, generator=generator).double(),
    )


def own(model):
    return wrap(model, family=own_parts, preprocess=plain_scaling(GRID, GRID), title="own")


@pytest.fixture(scope="session")
def gate():
    """(gate) -> a wrapped model whose logit of class a is above that of b exactly if the gate is open.

    Head (0, 0) copies the first patch to the CLS token's slot A, head (0, 1) the second to slot B; neurons make
    OR = relu(A + B) - relu(A + B - 1), or AND = relu(A + B - 1); the logits are +-(OUT - 1/2).
    """

    def made(word):
        value, mark, inputs, out = 0, (1, 2), (3, 4), 5
        model = OwnViT(d_model=6, heads=2, d_head=1, d_mlp=2, layers=1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
            model.embed.weight[value] = 1
            layer = model.layers[0]
            for head in range(2):
                model.places[1 + head, mark[head]] = 1
                layer.q.bias[head] = 1
                layer.k.weight[head, mark[head]] = 60
                layer.v.weight[head, value] = 1
                layer.o.weight[inputs[head], head] = 1
            layer.w_in.weight[:, inputs] = 1
            layer.w_in.bias[1] = -1
            layer.w_out.weight[out] = torch.tensor([1.0, -1.0] if word == "OR" else [0.0, 1.0])
            model.head.weight[:, out] = torch.tensor([1.0, -1.0])
            model.head.bias[:] = torch.tensor([-0.5, 0.5])
        return own(model)

    return made


@pytest.fixture(scope="session")
def normed():
    """Random weights, norms on queries, keys, and after the mixing of values: heads do see each other."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = OwnViT(norms=True)
        for name, parameter in model.named_parameters():
            nn.init.normal_(parameter, std=0.7) if "norm" not in name and "after" not in name else None
    return own(model)


@pytest.fixture(scope="session")
def family():
    """(name) -> a tiny random model in float64 with a head, and two batches of images."""

    def made(name, n=4):
        model = mechvis.load(testing.tiny(name, dtype=torch.float64), preprocess=testing.tiny_preprocess())
        if model.parts.head is None:
            parts = dataclasses.replace(model.parts, head=lambda pooled: pooled[:, :5])
            model = mechvis.hooked.HookedViT(model.bare, parts, preprocess=model.preprocess)
        return model, *(testing.tiny_input("vit", n=n, seed=seed, dtype=torch.float64) for seed in (1, 5))

    return made
