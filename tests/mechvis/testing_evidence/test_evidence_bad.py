"""Known-bad explainers: each is wrong in its one way, and good in every other."""

import pytest
import torch

from mechvis.attribution.method import Method
from mechvis.attribution.methods.layer_ig import InputIG
from mechvis.attribution.question import Question
from mechvis.errors import NotFinite
from mechvis.target import Target
from mechvis.testing import evidence
from mechvis.testing.evidence.bad import BAD, GOOD, LIMITED, DirectWrites


@pytest.fixture(scope="module")
def ask() -> Question:
    planted = evidence.load("object", 0)
    asked = planted.ask(6)
    return Question(model=planted.model, pixels=asked.pixels, target=Target(classes=asked.classes), ids=asked.image)


@pytest.fixture(scope="module")
def good(ask) -> torch.Tensor:
    return InputIG(steps=4).maps(ask).values.unflatten(1, (8, 8))


def test_every_bad_explainer_claims_to_look_at_the_target_and_to_draw_nothing(ask):
    for name, kind in BAD.items():
        assert kind.CLAIMS.class_specific and not kind.CLAIMS.random, name
        assert kind().settings() == {}
        assert kind().maps(ask).values.shape == (6, 64)


def broken(name: str, ask: Question) -> torch.Tensor:
    return BAD[name]().maps(ask).values.unflatten(1, (8, 8))


def test_broken_grids_are_the_good_map_elsewhere(ask, good):
    assert torch.equal(broken("shifted_grid", ask)[:, :, 1:], good[:, :, :-1])
    assert torch.equal(broken("transposed_grid", ask), good.transpose(1, 2))
    assert torch.equal(broken("negated", ask), -good)


def test_leaks_and_stale_maps_depend_on_the_batch(ask, good):
    assert torch.equal(broken("stale_cache", ask)[1:], good[:-1])
    torch.testing.assert_close(broken("batch_leak", ask)[1], good[1] + 0.1 * good[0])
    alone = BAD["stale_cache"]().maps(
        Question(model=ask.model, pixels=ask.pixels[:1], target=ask.target[:1], ids=ask.ids[:1])
    )
    torch.testing.assert_close(alone.values[0].unflatten(0, (8, 8)), good[0], atol=1e-5, rtol=1e-3)


def test_wrong_class_is_the_good_map_of_the_next_class(ask):
    other = Target(classes=(ask.target.classes + 1) % 4)
    expected = InputIG(steps=4).maps(Question(model=ask.model, pixels=ask.pixels, target=other, ids=ask.ids)).values
    torch.testing.assert_close(BAD["wrong_class"]().maps(ask).values, expected)


def test_writes_with_the_right_weights_add_up_to_the_attention_s_part(ask):
    """The honest twin of the transposed ones: patches and prefix give gradient x write at CLS, bias apart."""
    honest = DirectWrites().maps(ask).values
    _, _, gradients = ask.gradients(["blocks.1.hook_attn_out"])
    bias = ask.parts.blocks[1].attn.out_bias()
    whole = ((ask.model.run(ask.pixels, capture=["blocks.1.hook_attn_out"]).cache["blocks.1.hook_attn_out"] - bias)
             * gradients["blocks.1.hook_attn_out"])[:, 0].sum(-1)  # fmt: skip
    _, seen = ask.captured(["blocks.1.attn.hook_pattern", "blocks.1.attn.hook_v"])
    weight = ask.parts.blocks[1].attn.out_weight()
    at_cls = torch.einsum(
        "ih,ihd,hdm,im->i", seen["blocks.1.attn.hook_pattern"][:, :, 0, 0], seen["blocks.1.attn.hook_v"][:, 0], weight,
        gradients["blocks.1.hook_attn_out"][:, 0],
    )  # fmt: skip
    torch.testing.assert_close(honest.sum(1) + at_cls, whole, atol=1e-4, rtol=1e-3)
    for name in ("transposed_o", "mis_split_o"):
        assert not torch.allclose(BAD[name]().maps(ask).values, honest, atol=1e-2)


def test_nan_and_constant_are_refused_by_attribute(ask):
    from mechvis.attribution import attribute
    from mechvis.errors import FailedCheck

    with pytest.raises(NotFinite, match="NaN"):
        attribute(ask.model, ask.pixels, BAD["nan"](), progress=False)
    with pytest.raises(FailedCheck, match="same number everywhere"):
        attribute(ask.model, ask.pixels, BAD["constant"](), progress=False)


def test_good_methods_find_the_object(ask):
    assert all(isinstance(one, Method) for one in GOOD.values())
    for one in (GOOD["input_ig"], LIMITED["occlusion"]):
        assert evidence.score(one, "object", n=8).table["auroc"][0] > 0.95, one
