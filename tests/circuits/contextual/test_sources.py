"""Sources and targets: what can be named, and what is refused."""

import pytest
import torch

from circuits.contextual.sources import Source, at_groups, joint, representatives, sources_of
from circuits.contextual.targets import before, measure, targets_of, token_mask
from mechvis.errors import BadData, OutOfRange, ShapeMismatch, UnknownName, UnknownSite
from mechvis.units import Unit


def names(model, what, **more):
    return [source.name for source in sources_of(model, what, **more)]


def test_words_names_units_lists_and_mappings(f1, bench):
    model = f1.model
    assert names(model, "heads")[:5] == ["L0H0", "L0H1", "L0H2", "L0H3", "L1H0"] and len(names(model, "heads")) == 12
    assert names(model, "heads", layers=[2]) == ["L2H0", "L2H1", "L2H2", "L2H3"]
    assert names(model, "mlp_out") == ["L0MLP", "L1MLP", "L2MLP"]
    assert names(model, "tokens") == [f"L0 token {i}" for i in range(10)]
    assert names(model, "tokens", layers=[1])[3] == "L1 token 3"
    assert len(names(model, "neurons")) == 96
    assert names(model, "L2 attn_out") == ["L2 attn_out"] and names(model, "embed") == ["embed"]
    assert names(model, [Unit(1, "heads", 2), "L0 neuron 31", ["L0H0", "L1MLP"]]) == [
        "L1H2",
        "L0 neuron 31",
        "L0H0 + L1MLP",
    ]
    assert names(model, {"first": ["L0H0", "L0H1"], "second": "L1MLP"}) == ["first", "second"]
    assert names(bench("siglip-vision").model, "pool_heads") == [f"pool H{i}" for i in range(4)]
    (both,) = sources_of(model, [["L2H0", "L0MLP"]])
    assert (
        both.layer == 0
        and both.row == {}
        and {p.site for p in both.pieces}
        == {
            "blocks.2.attn.hook_z",
            "blocks.0.hook_mlp_out",
        }
    )
    assert sources_of(model, "L1H3")[0].row == {"layer": 1, "head": 3}


def test_what_a_source_selects(f1):
    total = torch.zeros(2, 10, 4, 4)
    piece = sources_of(f1.model, "L0H3")[0].pieces[0]
    mask = piece.where(total, range(2)).expand_as(total)
    assert mask.sum() == 2 * 10 * 4 and mask[:, :, 3].all()
    neuron = sources_of(f1.model, "L0 neuron 7")[0].pieces[0]
    assert neuron.where(torch.zeros(2, 10, 32), range(2)).expand(2, 10, 32).nonzero()[:, 2].unique().tolist() == [7]
    token = sources_of(f1.model, "L1 token 4")[0].pieces[0]
    assert token.where(torch.zeros(2, 10, 16), range(2)).expand(2, 10, 16).nonzero()[:, 1].unique().tolist() == [4]


@pytest.mark.parametrize(
    ("what", "error", "text"),
    [
        ("head", UnknownName, "unknown source 'head'. Names: 'embed', 'L0H1'"),
        (["L0H9"], OutOfRange, "heads of layer 0 take index 0 to 3"),
        (["L7H0"], OutOfRange, "layers 0 to 2"),
        (["L0 neuron 32"], OutOfRange, "index 0 to 31"),
        (["L0H1", "L0H1"], BadData, "'L0H1' is listed twice"),
        ([["L0H1", "L0H1"]], BadData, "two parts of a joint source are at the same place of blocks.0.attn.hook_z"),
        ([], BadData, "no sources given"),
        ([[]], BadData, "a joint source needs at least one part"),
        ([3], BadData, "a source is a name, a unit, or a list of these"),
        (3, BadData, "sources are a word"),
        ([Unit(0, "result", 1)], BadData, "use the kind 'heads'"),
        ("pool_heads", BadData, "no attention pooling"),
    ],
)
def test_sources_that_do_not_exist(f1, what, error, text):
    with pytest.raises(error, match=text):
        sources_of(f1.model, what)


def test_layers_go_with_words(f1):
    with pytest.raises(BadData, match="layers= goes with a word"):
        sources_of(f1.model, ["L0H1"], layers=[0])


def test_groups_cover_all_tokens(f1, bench):
    halves = {"left": [1, 4, 7], "right": [2, 3, 5, 6, 8, 9]}
    found = at_groups(f1.model, f1.images, sources_of(f1.model, ["L0H1", "L1MLP"]), halves)
    assert [source.name for source in found] == [
        f"{name} {group}" for name in ("L0H1", "L1MLP") for group in ("left", "right", "cls")
    ]
    assert found[0].row == {"layer": 0, "head": 1, "group": "left"}
    assert torch.stack([source.pieces[0].tokens[0] for source in found[:3]]).sum(0).tolist() == [1] * 10
    with_registers = bench("dinov2-registers-classifier")
    found = at_groups(with_registers.model, with_registers.images, sources_of(with_registers.model, ["L0H1"]), (1, 1))
    assert [source.row["group"] for source in found] == ["cell 0,0", "cls", "registers"]
    assert found[2].pieces[0].tokens[0].nonzero().flatten().tolist() == [1, 2]


def test_tokens_and_pooling_have_no_groups(f1, bench):
    with pytest.raises(BadData, match="cannot be restricted to the tokens"):
        at_groups(f1.model, f1.images, sources_of(f1.model, ["L0 token 3"]), (1, 1))
    pooled = bench("siglip-vision").model
    with pytest.raises(BadData, match="cannot be restricted to the tokens"):
        at_groups(pooled, torch.zeros(1, 3, 12, 12), sources_of(pooled, ["pool H0"]), (1, 1))


def test_a_mask_of_another_image_size_is_refused(f1):
    source = sources_of(f1.model, "L0H1")[0].at("some", torch.ones(1, 7, dtype=torch.bool))
    with pytest.raises(ShapeMismatch, match="tokens of 7, and these images have 10 tokens"):
        f1.batched([source], "default")


def test_joint_sources_at_different_tokens(f1):
    (head,) = sources_of(f1.model, "L0H1")
    masks = torch.eye(10, dtype=torch.bool)
    both = joint([head.at("a", masks[:1]), head.at("b", masks[1:2])])
    assert both.name == "L0H1 a + L0H1 b"
    with pytest.raises(BadData, match="same place"):
        joint([head.at("a", masks[:1]), head])
    tokens = sources_of(f1.model, ["L0 token 1", "L0 token 2"])
    assert len(joint(tokens).pieces) == 2


def test_one_unit_per_site_is_asked_for(f1):
    listed = sources_of(f1.model, ["L0H1", "L0H2", "L1MLP", "L1 neuron 3", "embed", "L2 attn_out", "L0 token 3"])
    assert [unit.site for unit in representatives(f1.model, listed)] == [
        "blocks.0.attn.hook_z",
        "blocks.0.hook_resid_pre",
        "blocks.1.hook_mlp_out",
        "blocks.1.mlp.hook_post",
        "blocks.2.hook_attn_out",
    ]


def test_targets(f1, bench):
    found = targets_of(f1.model, ["L1H2", "L1H2.q", "L1MLP", "L1MLP.pre", "L2.resid_mid", "hook_pooled"])
    assert [(t.name, t.node, t.site, t.head) for t in found] == [
        ("L1H2.z", "L1H2", "blocks.1.attn.hook_z", 2),
        ("L1H2.q", "L1H2", "blocks.1.attn.hook_q", 2),
        ("L1MLP.out", "L1MLP", "blocks.1.hook_mlp_out", None),
        ("L1MLP.pre", "L1MLP", "blocks.1.mlp.hook_pre", None),
        ("L2.resid_mid", "L2.resid_mid", "blocks.2.hook_resid_mid", None),
        ("hook_pooled", "hook_pooled", "hook_pooled", None),
    ]
    assert [t.name for t in targets_of(f1.model, "heads", at="k")][:2] == ["L0H0.k", "L0H1.k"]
    assert [t.name for t in targets_of(f1.model, "mlp_out")] == ["L0MLP.out", "L1MLP.out", "L2MLP.out"]
    assert targets_of(bench("siglip-vision").model, "pool H1.k")[0].site == "pool.attn.hook_k"
    assert targets_of(f1.model, "hook_embed")[0].site == "blocks.0.hook_resid_pre"


@pytest.mark.parametrize(
    ("what", "error", "text"),
    [
        ("L9H0", OutOfRange, "layers 0 to 2"),
        ("L1H4.q", OutOfRange, "heads 0 to 3"),
        ("L1H2.p", UnknownSite, "no site matches 'L1H2.p'"),
        ("blocks.1.attn.hook_pattern", BadData, "is not split"),
        ("pool H0", BadData, "no attention pooling"),
        ("pool_heads", BadData, "no attention pooling"),
        ([], BadData, "no targets given"),
        (["L1H2", "L1H2.z"], BadData, "'L1H2.z' is listed twice"),
        ([3], BadData, "a target is a name"),
    ],
)
def test_targets_that_do_not_exist(f1, what, error, text):
    with pytest.raises(error, match=text):
        targets_of(f1.model, what)
    with pytest.raises(UnknownName, match="unknown activation of a head 'pattern'"):
        targets_of(f1.model, "L1H2", at="pattern")


def test_what_comes_before_what(f1):
    def comes(source, target):
        return before(f1.model, sources_of(f1.model, [source])[0], targets_of(f1.model, [target])[0])

    assert comes("L0H1", "L1H0.q") and comes("L1H1", "L1MLP.pre") and comes("embed", "L0H0.v")
    assert comes("L1MLP", "L1.resid_post") and comes("L1 neuron 3", "L1MLP") and comes(["L2H0", "L0H0"], "L1H1")
    for source, target in [("L1H1", "L1H0"), ("L1H1", "L1H0.q"), ("L1MLP", "L1MLP.pre"), ("L2H0", "L1H0")]:
        assert not comes(source, target)


def test_tokens_of_targets():
    assert token_mask(("cls", "register0"), 5, "registers").tolist() == [False, True, False, False, False]
    assert token_mask(("cls",), 3, [0, 2]).tolist() == [True, False, True]
    for tokens, error, text in [
        ("cls", BadData, "selects no token"),
        ("object", UnknownName, "unknown token group"),
        ([5], OutOfRange, "tokens 0 to 3"),
        ([], BadData, "selects no token"),
    ]:
        with pytest.raises(error, match=text):
            token_mask((), 4, tokens)


def test_measures_by_hand():
    total = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]], [[3.0, -1.0], [0.0, 0.0]]]])  # image token head d_head
    beta = torch.tensor([[[[2.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [0.0, 0.0]]]])[None]
    ratio, projected = measure(total, beta, by_head=True)
    # |beta| sums to 2 + 0 + 1 + 1 = 4, |gamma| to 1 + 1 + 2 + 2 = 6; beta . t = 2 + 0 + 3 - 1, |t|^2 = 12
    assert ratio[0, 0].tolist() == [pytest.approx(0.4), 0.0]
    assert projected[0, 0].tolist() == [pytest.approx(4 / 12), 0.0]
    ratio, projected = measure(total, beta, by_head=True, tokens=torch.tensor([True, False]))
    assert ratio[0, 0, 0] == pytest.approx(0.5) and projected[0, 0, 0] == pytest.approx(1.0)
    assert measure(total, beta, by_head=False)[0][0, 0].tolist() == [pytest.approx(0.4)]


def test_a_source_can_be_made_by_hand(f1):
    (head,) = sources_of(f1.model, "L0H1")
    mine = Source(name="mine", pieces=head.pieces)
    assert names(f1.model, [mine]) == ["mine"]
