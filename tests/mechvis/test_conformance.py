"""`check_family` finds what is wrong in a map, and says where."""

from dataclasses import replace

import pytest
import torch

from mechvis.errors import ParityError
from mechvis.models.transformers.vit import vit
from mechvis.testing import check_family, tiny
from mechvis.testing.families import render


def attention(**changes):
    """The map of ViT with other attention parts: field -> function of the right part."""

    def family(module):
        parts = vit(module)
        blocks = [
            replace(block, attn=replace(block.attn, **{name: make(block.attn) for name, make in changes.items()}))
            for block in parts.blocks
        ]
        return replace(parts, blocks=tuple(blocks))

    return family


def blocks(**changes):
    def family(module):
        parts = vit(module)
        changed = [replace(b, **{name: make(b) for name, make in changes.items()}) for b in parts.blocks]
        return replace(parts, blocks=tuple(changed))

    return family


def tower(**changes):
    def family(module):
        parts = vit(module)
        return replace(parts, **{name: make(parts) for name, make in changes.items()})

    return family


def aliased(path, site):
    return tower(aliases=lambda parts: {**parts.aliases, path: site})


WRONG = {
    "heads of W_O in another order": (
        attention(out_weight=lambda a: lambda: a.out_weight().flip(0)),
        r"with every site captured: gradient of|z W_O",
    ),
    "no output bias": (attention(out_bias=lambda a: lambda: None), r"gradients reach|sum of its heads"),
    "keys' weights for values": (attention(in_weights=lambda a: lambda: a.in_weights()[::-1]), "against W_V and b_V"),
    "no value bias": (attention(in_biases=lambda a: lambda: (None,) * 3), "against W_V and b_V"),
    "one prefix token too many": (tower(prefix=lambda p: ("cls", "register0")), "10 tokens, but prefix"),
    "one prefix token too few": (tower(prefix=lambda p: ()), "10 tokens, but prefix"),
    "W_out of another size": (
        blocks(mlp_out_weight=lambda b: lambda: b.mlp_out_weight() * 1.01),
        "against neurons times W_out",
    ),
    "number of neurons": (blocks(d_mlp=lambda b: 31), "mlp.hook_pre has shape"),
    "alias of another module": (aliased("vit.layernorm", "hook_embed"), r"alias vit.layernorm -> hook_embed"),
    "alias of a module that is never called": (
        aliased("vit.embeddings.patch_embeddings.projection.nothing", "hook_embed"),
        "nothing",
    ),
    "copied weights": (tower(head=lambda p: torch.nn.Linear(16, 8)), "gradient|rng|does not reproduce"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_map_is_found(name):
    family, words = WRONG[name]
    with pytest.raises((AssertionError, AttributeError, ParityError), match=words):
        check_family(tiny("vit", dtype=torch.float64), family=family)


@pytest.mark.parametrize(
    "family",
    [attention(scale=lambda a: a.scale * 1.1), tower(embed=lambda p: lambda x: p.embed(x.transpose(2, 3)))],
    ids=["scale", "patches in another order"],
)
def test_what_changes_outputs_is_refused_at_load(family):
    with pytest.raises(ParityError, match="family's map is wrong"):
        check_family(tiny("vit", dtype=torch.float64), family=family)


def test_a_row_of_the_page():
    (measured,) = check_family(tiny("vit", dtype=torch.float64))
    (text,) = check_family(tiny("clip-text", dtype=torch.float64))
    both = [{**measured.row(), "outputs": 1.26e-7}, text.row()]
    page = render({"sources": {"Somewhere": {"A model": both, "Text only": [text.row()]}}})
    row = next(line for line in page.splitlines() if "A model" in line)
    assert row.startswith("| A model | 1e-07 |") and row.endswith("| 0 | 20 x 16: 0 |")
    assert page.splitlines()[-1].endswith("|  | 0 |  |")
