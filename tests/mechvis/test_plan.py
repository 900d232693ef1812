"""Edits to index arrays: what is resolved, what is merged into one launch, and in which order."""

import jaxtyping
import pytest
import torch

from mechvis import edits
from mechvis import plan as planning
from mechvis.errors import BadData, OutOfRange, ShapeMismatch, UnknownSite
from mechvis.kernels.patch_rows import patch_rows
from mechvis.models.load import wrap
from mechvis.testing import tiny, tiny_preprocess

SITE = "blocks.1.attn.hook_z"


@pytest.fixture(scope="module")
def model():
    return wrap(tiny("vit"), preprocess=tiny_preprocess())


@pytest.fixture
def launches(monkeypatch):
    """Number of targets of every kernel launch."""
    counts = []

    def counted(x, row, *rest, **more):
        counts.append(len(row))
        return patch_rows(x, row, *rest, **more)

    monkeypatch.setattr(planning, "patch_rows", counted)
    return counts


def planned(model, *several):
    return planning.plan(several, model.graph, model.parts.prefix)


def test_patterns_are_resolved_in_order(model):
    plan = planned(model, edits.zero("blocks.*.attn.hook_z", heads=[0]), edits.scale(SITE, 2))
    assert plan.sites == {f"blocks.{i}.attn.hook_z" for i in range(3)}
    assert [e.kind for e in plan.at[SITE]] == ["zero", "scale"]
    assert [e.kind for e in plan.at["blocks.0.attn.hook_z"]] == ["zero"]


def test_disjoint_edits_share_one_launch(model, launches):
    x = torch.randn(4, 10, 4, 4)
    several = [edits.zero(SITE, rows=[row], heads=[row]) for row in range(4)]
    out = planning.apply(
        planned(model, *several, edits.patch(SITE, torch.ones(4, 10, 4, 4), heads=[2], rows=[0, 1])), SITE, x
    )
    assert launches == [4 * 10 + 2 * 10]
    assert (out[0, :, 0] == 0).all() and (out[1, :, 2] == 1).all() and torch.equal(out[3, :, :3], x[3, :, :3])


def test_overlapping_edits_take_a_launch_each_in_order(model, launches):
    x = torch.randn(2, 10, 4, 4)
    chain = [
        edits.scale(SITE, 3, heads=[1]),
        edits.add(SITE, torch.ones(4), heads=[1]),
        edits.scale(SITE, 2, heads=[1]),
    ]
    out = planning.apply(planned(model, *chain), SITE, x)
    assert launches == [20, 20, 20]
    torch.testing.assert_close(out[:, :, 1], (x[:, :, 1] * 3 + 1) * 2)


def test_units_and_heads_do_not_share_a_launch(model, launches):
    x = torch.randn(2, 10, 4, 4)
    out = planning.apply(planned(model, edits.zero(SITE, heads=[0]), edits.zero(SITE, heads=[1], units=[2])), SITE, x)
    assert launches == [20, 20]
    assert (out[:, :, 0] == 0).all() and (out[:, :, 1, 2] == 0).all() and torch.equal(out[:, :, 2:], x[:, :, 2:])


def test_functions_split_launches(model, launches):
    x = torch.randn(2, 10, 4, 4)
    chain = [edits.zero(SITE, heads=[0]), edits.call(SITE, lambda v: v + 1, heads=[0]), edits.scale(SITE, 2, heads=[0])]
    assert (planning.apply(planned(model, *chain), SITE, x)[:, :, 0] == 2).all()
    assert launches == [20, 20]


def test_only_the_used_rows_of_a_source_travel(model):
    source = torch.full((100, 10, 4, 4), float("inf"))
    source[7] = 1
    with pytest.raises(BadData, match="NaN or Inf"):
        planning.apply(planned(model, edits.patch(SITE, source, 7)), SITE, torch.zeros(2, 10, 4, 4))


def test_the_activation_itself_stays_as_it_is(model):
    x = torch.randn(2, 10, 4, 4)
    copy = x.clone()
    planning.apply(
        planned(model, edits.zero(SITE), edits.call(SITE, lambda v: v + 1), edits.project(SITE, torch.ones(4))), SITE, x
    )
    assert torch.equal(x, copy)


@pytest.mark.parametrize(
    "site,shape",
    [
        ("blocks.0.hook_resid_pre", (3, 10, 16)),
        ("blocks.0.attn.hook_pattern", (3, 4, 10, 10)),
        ("hook_pooled", (3, 16)),
        ("blocks.0.ln1.hook_scale", (3, 10, 1)),
        ("blocks.0.attn.hook_result", (3, 10, 4, 16)),
    ],
)
def test_every_layout_keeps_its_shape(model, site, shape):
    x = torch.randn(shape)
    assert torch.equal(planning.apply(planned(model, edits.scale(site, 2)), site, x), x * 2)
    assert torch.equal(planning.apply(planned(model, edits.call(site, lambda v: v * 2)), site, x), x * 2)
    assert torch.equal(planning.apply(planned(model, edits.add(site, torch.ones(shape[-1]))), site, x), x + 1)
    assert torch.equal(planning.apply(planned(model, edits.patch(site, torch.ones(shape))), site, x), torch.ones(shape))


@pytest.mark.parametrize(
    "edit,error,words",
    [
        (
            edits.zero("blocks.0.hook_resid_pre", heads=[0]),
            BadData,
            r"has no head axis; its axes are row token d_model",
        ),
        (edits.zero("blocks.0.ln1.hook_scale", units=[0]), BadData, r"has no unit axis"),
        (edits.zero("hook_pooled", tokens=[0]), BadData, r"has no token axis; its axes are row d_model"),
        (edits.zero(SITE, heads=[4]), OutOfRange, r"head 4 does not exist .*which has 4 \(0 to 3\)"),
        (edits.zero(SITE, heads=[-5]), OutOfRange, r"head -5 does not exist .*which has 4 \(0 to 3\)"),
        (edits.zero(SITE, units=[4]), OutOfRange, r"unit 4 does not exist"),
        (edits.zero("blocks.0.mlp.hook_post", units=[32]), OutOfRange, r"unit 32 does not exist .*has 32 \(0 to 31\)"),
        (edits.zero("blocks.9.attn.hook_z"), OutOfRange, r"layer 9 .*has layers 0 to 2"),
        (edits.zero("blocks.*.attn.hook_y"), UnknownSite, r"no site matches .*Nearest: "),
        (
            edits.patch(SITE, {"blocks.0.attn.hook_z": torch.zeros(1)}),
            UnknownSite,
            r"the source holds no values for blocks\.1\.attn\.hook_z; it has blocks\.0\.attn\.hook_z",
        ),
        ("zero", BadData, r"edits are made with mechvis\.edits .*got str"),
    ],
)
def test_what_does_not_exist_is_refused_before_anything_runs(model, edit, error, words):
    # Where annotations are checked at run time, a wrong type is stopped before our own check sees it.
    with pytest.raises((error, jaxtyping.TypeCheckError), match=rf"{words}|Type-check error"):
        planned(model, edit)


@pytest.mark.parametrize(
    "edit,error,words",
    [
        (edits.zero(SITE, rows=[2]), OutOfRange, r"row 2 does not exist; there are 2 \(0 to 1\)"),
        (edits.zero(SITE, tokens=[10]), OutOfRange, r"token 10 does not exist; there are 10"),
        (edits.zero(SITE, tokens=[-11]), OutOfRange, r"token -11 does not exist"),
        (
            edits.zero(SITE, tokens=torch.ones(8, dtype=torch.bool)),
            ShapeMismatch,
            r"mask is \[8\]; this run has 2 rows of 10 tokens",
        ),
        (
            edits.zero(SITE, tokens=torch.ones(3, 9, dtype=torch.bool)),
            ShapeMismatch,
            r"mask is \[3, 9\]; this run has 2 rows",
        ),
        (edits.patch(SITE, torch.zeros(3, 10, 4, 4)), ShapeMismatch, r"source has 3 rows, the batch 2; .*source_rows="),
        (
            edits.patch(SITE, torch.zeros(3, 10, 4, 4), [0, 1, 2]),
            ShapeMismatch,
            r"source_rows needs one row .*got \[0, 1, 2\]",
        ),
        (edits.patch(SITE, torch.zeros(3, 10, 4, 4), [0, 3]), ShapeMismatch, r"one row of the source \(0 to 2\)"),
        (
            edits.patch(SITE, torch.zeros(2, 10, 4, 5)),
            ShapeMismatch,
            r"values of shape \[10, 4, 5\] do not fit .*\[10, 4, 4\]",
        ),
        (edits.patch(SITE, torch.full((2, 10, 4, 4), float("nan"))), BadData, r"the values hold NaN or Inf"),
        (edits.add(SITE, torch.zeros(5)), ShapeMismatch, r"vector of shape \[5\] does not broadcast"),
        (edits.project(SITE, torch.ones(5)), ShapeMismatch, r"directions have 5 entries, the site 4"),
        (edits.zero(SITE, tokens="registers"), BadData, r"has no registers token; its prefix is \['cls'\]"),
        (
            edits.call(SITE, torch.tanh, tokens=torch.eye(2, 9).bool()),
            BadData,
            r"call needs the same tokens in every row",
        ),
    ],
)
def test_what_does_not_fit_the_batch_is_refused(model, edit, error, words):
    with pytest.raises(error, match=words):
        planning.apply(planned(model, edit), SITE, torch.zeros(2, 10, 4, 4))
