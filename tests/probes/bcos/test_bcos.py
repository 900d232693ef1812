"""B-cos students: exact maps, the unit's formula, conversion, and the student as a HookedViT."""

import numpy as np
import pytest
import torch
from torch import nn

import mechvis
from mechvis import edits, testing
from mechvis.errors import BadData, FailedCheck, OutOfRange, ShapeMismatch, SplitOverlap, UnsupportedModel
from probes.bcos import (
    BcosLinear,
    RMSNorm,
    align,
    contributions,
    convert,
    explaining,
    measure_student,
    pointing,
    wrap_student,
)
from probes.bcos.align import depth_sites, losses_of
from probes.bcos.measure import gradient_times_input
from probes.bcos.units import GatedGELU, is_explaining

pytestmark = pytest.mark.filterwarnings("ignore::mechvis.errors.DefaultPreprocessing")


def tiny_teacher(family="vit", dtype=torch.float64, **more):
    return mechvis.load(testing.tiny(family, dtype=dtype, **more))


def noise(model, n=5, seed=3):
    return torch.randn(n, 3, *model.parts.image_size, generator=torch.Generator().manual_seed(seed)).to(model.dtype)


@pytest.fixture(scope="module")
def teacher():
    return tiny_teacher()


@pytest.fixture(scope="module")
def student(teacher):
    return convert(teacher, noise(teacher, 16, 9))


# the pieces


@pytest.mark.parametrize("b", [1.0, 1.5, 2.0, 3.0])
def test_unit_is_its_formula(b):
    unit, x = BcosLinear(6, 4, b=b).double(), torch.randn(7, 6, dtype=torch.float64)
    with torch.no_grad():
        unit.log_scale.normal_()
        found = unit(x)
        for row in range(7):
            for out in range(4):
                w = unit.weight[out]
                cosine = w @ x[row] / w.norm() / x[row].norm()
                expected = unit.scale[out] * cosine.abs() ** (b - 1) * (w / w.norm() @ x[row])
                assert found[row, out] == pytest.approx(float(expected), rel=1e-10)
        testing.assert_close(unit.after(unit.product(unit.before(x))), found, 1e-10, "in two steps")
        testing.assert_close(unit(3 * x), 3 * found, 1e-12, "the unit is homogeneous")


@pytest.mark.parametrize("piece", [BcosLinear(5, 5).double(), RMSNorm(5).double(), GatedGELU()])
def test_pieces_are_linear_while_explaining(piece):
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    with explaining():
        y = piece(x)
        (gradient,) = torch.autograd.grad(y[:, 2].sum(), x)
    testing.assert_close((gradient * x).sum(1), y[:, 2], 1e-12, "gradient times input")
    assert torch.equal(piece(x), y), "explaining changes gradients only"
    (true,) = torch.autograd.grad(piece(x)[:, 2].sum(), x)
    assert not torch.allclose(true, gradient), "outside it the gradient is the true one"
    assert not is_explaining()


def test_gelu_is_gelu():
    x = torch.linspace(-4, 4, 50, dtype=torch.float64)
    testing.assert_close(GatedGELU()(x), nn.functional.gelu(x), 1e-12)


def test_training_gradients_are_true():
    unit = BcosLinear(4, 3).double()
    assert torch.autograd.gradcheck(unit, torch.randn(2, 4, dtype=torch.float64, requires_grad=True))


# exact maps


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_contributions_sum_to_the_logit(dtype, allowed):
    teacher = tiny_teacher(dtype=dtype)
    student, x = convert(teacher, noise(teacher, 16, 9)), noise(teacher)
    for of in (None, 2, torch.tensor([0, 1, 2, 3, 4])):
        found = contributions(student, x, of, batch_size=2)
        total = found.pixels.sum((1, 2)) + found.special
        testing.assert_close(total, found.logits, allowed, "sum of contributions")
        with torch.no_grad():
            testing.assert_close(found.logits, student(x)[torch.arange(5), list(found.classes)], allowed)
        assert found.patches.shape == (5, 3, 3)
        testing.assert_close(found.patches.sum((1, 2)), found.pixels.sum((1, 2)), 10 * allowed)
    assert found.error <= allowed and (found.share_of_special >= 0).all()


def test_plain_gradients_do_not_sum(student, teacher):
    x = noise(teacher)
    exact = contributions(student, x)
    plain = gradient_times_input(student, x, torch.tensor(exact.classes))
    off = (plain.sum((1, 2)) + exact.special - exact.logits).abs().max() / exact.logits.abs().max()
    assert off > 0.01


def test_without_special_tokens_pixels_are_all(teacher):
    student = convert(teacher, noise(teacher, 16, 9))
    with torch.no_grad():
        student.special[1:] = 0
    found = contributions(student, noise(teacher))
    assert found.error <= 1e-10
    with torch.no_grad():
        student.special.zero_()
    # Only patches are left, and the class token reads them.
    alone = contributions(student, noise(teacher))
    assert alone.special.abs().max() == 0
    testing.assert_close(alone.pixels.sum((1, 2)), alone.logits, 1e-10)


def test_a_piece_that_is_not_linear_is_noticed(teacher):
    student = convert(teacher)
    student.blocks[0].act = nn.Tanh()
    with pytest.raises(FailedCheck, match="do not add up to the logit"):
        contributions(student, noise(teacher))


# conversion


def test_linear_units_without_biases_are_the_teacher():
    """With B = 1, no biases, RMS norms and no cosine the student is the teacher: the weights were read right."""
    from mechvis.models.load import wrap
    from probes.bcos.family import bcos_parts
    from probes.bcos.student import BcosViT

    teacher = tiny_teacher()
    once = convert(teacher, b=1.0)
    assert isinstance(once, BcosViT)
    for own, other in zip(once.blocks, teacher.parts.blocks, strict=True):
        testing.assert_close(
            own.attention.o_proj.rows * own.attention.o_proj.scale[:, None],
            other.attn.out_weight().permute(2, 0, 1).flatten(1),
            1e-10,
        )
        normal = torch.randn(2, 10, 16, dtype=torch.float64)
        with torch.no_grad():
            bias = other.mlp_in(torch.zeros_like(normal))
            testing.assert_close(own.fc1(normal), other.mlp_in(normal) - bias, 1e-10, "first MLP layer")
            testing.assert_close(
                own.fc2.product(normal @ torch.zeros(16, 32).double() + 1.0),
                other.mlp_out(torch.ones(2, 10, 32).double()) - other.mlp_out_bias(),
                1e-10,
            )
    x = noise(teacher)
    with torch.no_grad():
        testing.assert_close(once.tokens(once.six(x)), teacher.parts.embed(x), 1e-10, "six channels, special tokens")
    again = wrap(once, family=bcos_parts)
    assert again.parity.plain <= 1e-10


def test_scales_bring_writes_to_the_teachers_size():
    teacher = tiny_teacher()
    x = noise(teacher, 16, 9)
    student = wrap_student(convert(teacher, x), teacher)
    sites = ["blocks.*.hook_attn_out", "blocks.*.hook_mlp_out"]
    ours, theirs = (model.run(x, capture=sites).cache for model in (student, teacher))

    def spread(value):
        return (value - value.mean((0, 1))).square().mean().sqrt()

    for site in ours:
        assert float(spread(ours[site]) / spread(theirs[site])) == pytest.approx(1.0, rel=1e-6)


def test_the_teacher_is_left_as_it_was(teacher):
    with testing.assert_untouched(teacher):
        student = convert(teacher, noise(teacher, 16, 9))
        contributions(student, noise(teacher))
        align(student, teacher, noise(teacher, 8), steps=2, batch_size=4, progress=False)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("clip-vision", "it has no head"),
        ("beit", "depends on positions"),
        ("dinov2", "it has no head"),
        ("vit-base", "it has no head"),
        ("deit-distilled", "more than its class token"),
    ],
)
def test_what_cannot_be_converted_says_why(family, why):
    with pytest.raises(UnsupportedModel, match=why):
        convert(tiny_teacher(family))


def test_a_student_that_reads_the_mean_of_its_patches():
    teacher = tiny_teacher("siglip-classifier")
    student = convert(teacher, noise(teacher, 16, 9))
    assert student.reads == "mean" and contributions(student, noise(teacher)).error <= 1e-10
    assert wrap_student(student, teacher).parity.plain <= 1e-10


def test_a_norm_before_the_blocks_is_refused():
    with pytest.raises(UnsupportedModel, match="not a linear patch embedding"):
        convert(tiny_teacher("clip-classifier"))


# the student as a HookedViT


@pytest.fixture(scope="module")
def wrapped(student, teacher):
    return wrap_student(student, teacher)


def test_student_fits_the_parts(wrapped, student, teacher):
    assert wrapped.parity.plain <= 1e-10 and wrapped.parity.hooked <= 1e-10
    assert wrapped.parts.class_names == teacher.parts.class_names
    x = noise(teacher)
    run = wrapped.run(x, capture=["blocks.1.attn.hook_result", "blocks.1.hook_attn_out", "blocks.1.attn.hook_mix"])
    total = run.cache["blocks.1.attn.hook_result"].sum(2)
    unit = student.blocks[1].attention.o_proj
    testing.assert_close(unit.after(total), run.cache["blocks.1.hook_attn_out"], 1e-10, "heads add up to the product")
    testing.assert_close(
        unit(run.cache["blocks.1.attn.hook_mix"].flatten(2)), run.cache["blocks.1.hook_attn_out"], 1e-10
    )


def test_sweeps_and_edits_work(wrapped, student, teacher):
    x = noise(teacher)
    images = {"units": "heads", "edit": "zero", "metric": "prob", "progress": False}
    fast = mechvis.sweep(wrapped, x, engine="wave", **images)
    plain = mechvis.sweep(wrapped, x, engine="plain", **images)
    np.testing.assert_allclose(fast.values["prob"], plain.values["prob"], atol=1e-10)
    edited = wrapped.run(x, edits=[edits.zero("blocks.0.attn.hook_mix", heads=[1])]).logits
    import copy

    pruned = copy.deepcopy(student)
    with torch.no_grad():
        # A head without values is a head that is zero.
        pruned.blocks[0].attention.v_proj.log_scale[4:8] = -1e3
        testing.assert_close(edited, pruned(x), 1e-10, "zeroing a head by edit and in its values")


def test_token_contributions_at_any_layer(wrapped, teacher):
    """Inside `explaining` gradient times value sums to the logit at every place of the stream."""
    x = noise(teacher)
    with explaining():
        run = wrapped.run(x, capture=["hook_embed", "blocks.*.hook_resid_post"], grad=True)
        logit = run.logits[:, 3]
        values = dict(run.cache.items())
        gradients = torch.autograd.grad(logit.sum(), list(values.values()))
    for (site, value), gradient in zip(values.items(), gradients, strict=True):
        testing.assert_close((gradient * value).sum((1, 2)), logit, 1e-10, site)


def test_decompositions_refuse_it(wrapped):
    from mechvis.decompose import terms

    with pytest.raises(UnsupportedModel, match="no sum of"):
        terms(wrapped, noise(wrapped))


# alignment


def test_alignment_lowers_every_term(teacher):
    images = noise(teacher, 48, 5)
    student = convert(teacher, images)
    found = align(student, teacher, images, steps=40, batch_size=16, rate=3e-3, progress=False)
    first, last = found.losses[:4].mean(0), found.losses[-4:].mean(0)
    assert found.terms == ("embedding", "tokens", "norms", "logits")
    assert (last[[0, 1, 3]] < 0.8 * first[[0, 1, 3]]).all()
    assert contributions(student, noise(teacher)).error <= 1e-10, "exact after training too"
    assert not student.training and all(p.grad is None for p in student.parameters())


def test_norm_penalty_holds_the_scales(teacher):
    images, moved = noise(teacher, 32, 5), []
    for weight in (0.0, 1000.0):
        student = convert(teacher, images)
        before = student.blocks[0].fc1.log_scale.detach().clone()
        align(student, teacher, images, steps=40, batch_size=8, norm_weight=weight, progress=False)
        moved.append(float((student.blocks[0].fc1.log_scale - before).abs().mean().detach()))
    assert moved[1] < 0.5 * moved[0]


def test_losses_by_hand(wrapped, teacher):
    x = noise(teacher, 3)
    sites = depth_sites(3)
    assert sites == [f"blocks.{layer}.hook_resid_post" for layer in range(3)]
    assert depth_sites(4) == ["blocks.0.hook_resid_post", "blocks.2.hook_resid_post", "blocks.3.hook_resid_post"]
    unit = wrapped.bare.blocks[0].fc1
    found = losses_of(wrapped, teacher, x, sites, [unit], [unit.log_scale.detach() + 2]).detach()
    ours, theirs = (model.run(x, capture=[*sites, "hook_pooled"]).cache for model in (wrapped, teacher))

    def far(site):
        a, b = ours[site], theirs[site]
        return 1 - ((a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)).mean()

    testing.assert_close(found[0], far("hook_pooled"), 1e-10)
    testing.assert_close(found[1], torch.stack([far(site) for site in sites]).mean(), 1e-10)
    assert float(found[2]) == pytest.approx(4.0)
    p, q = (model.run(x).logits.softmax(-1) for model in (teacher, wrapped))
    testing.assert_close(found[3], (p * (p / q).log()).sum(-1).mean(), 1e-8)


# where maps point


def test_pointing_by_hand():
    mask = torch.zeros(4, 4, 4, dtype=torch.bool)
    mask[:, :2, :2] = True
    maps = torch.zeros(4, 4, 4)
    maps[0, :2, :2] = 1.0
    maps[1, 2:, 2:] = 1.0
    maps[2] = -1.0
    maps[3, 0, 0], maps[3, 3, 3] = 3.0, 1.0
    found = pointing(maps, mask, (2, 2))
    np.testing.assert_allclose(found["energy"], [1.0, 0.0, 0.25, 0.75])
    np.testing.assert_allclose(found["pointing"], [1.0, 0.0, 0.25, 1.0])
    assert found["auroc"][0] == 1.0 and found["auroc"][2] == 0.5
    from sklearn.metrics import roc_auc_score

    drawn = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = [roc_auc_score(m.flatten(), d.flatten()) for m, d in zip(mask.numpy(), drawn.numpy(), strict=True)]
    np.testing.assert_allclose(pointing(drawn, mask, (2, 2))["auroc"], expected)
    assert np.isnan(pointing(maps, torch.ones(4, 4, 4, dtype=torch.bool), (2, 2))["energy"]).all()
    with pytest.raises(ShapeMismatch, match="do not tile"):
        pointing(maps, mask, (3, 3))
    with pytest.raises(ShapeMismatch, match="bool masks"):
        pointing(maps, mask.float(), (2, 2))


def test_bad_input(student, teacher):
    x = noise(teacher)
    with pytest.raises(BadData, match="B-cos students only"):
        contributions(teacher.bare, x)
    with pytest.raises(ShapeMismatch, match=r"pixels \[image 3 12 12\]"):
        contributions(student, x[..., :8])
    with pytest.raises(OutOfRange, match="class 8 does not exist"):
        contributions(student, x, 8)
    with pytest.raises(ShapeMismatch, match="5 images and 2 classes"):
        contributions(student, x, torch.tensor([0, 1]))
    with pytest.raises(OutOfRange, match="of a B-cos unit is 1"):
        BcosLinear(2, 2, b=0.5)
    with pytest.raises(OutOfRange, match="at least one step"):
        align(student, teacher, x, steps=0)
    with pytest.raises(OutOfRange, match="shares of the depth"):
        align(student, teacher, x, batch_size=2, depths=(0.0,))
    with pytest.raises(BadData, match="fewer than a batch"):
        align(student, teacher, x, batch_size=64)


# the bundled model


@pytest.fixture(scope="module")
def scenes_vit():
    return mechvis.load("scenes-vit")


def test_scenes_student_before_training(scenes_vit):
    images = mechvis.data.scenes(n=24, seed=61)
    student = convert(scenes_vit, images)
    found = contributions(student, images.pixels_for(scenes_vit.preprocess))
    assert found.error <= 1e-5
    with pytest.raises(SplitOverlap, match="used to train the student"):
        measure_student(align(student, scenes_vit, images, steps=1, batch_size=4, progress=False), scenes_vit, images)


# a map that is known


def test_a_student_that_looks_for_one_colour_points_at_it(teacher):
    """One unit of the patch embedding is left, which looks for red: whatever the blocks do, the patch is the source."""
    student = convert(teacher, noise(teacher, 16, 9))
    with torch.no_grad():
        student.embed.log_scale[1:] = -1e3
        student.embed.weight[0] = torch.tensor([1.0, 0, 0, 0, 1, 1], dtype=torch.float64).repeat_interleave(16)
        student.embed.log_scale[0] = 0.0
        student.special.zero_()
        student.special[1:, 1] = 3.0  # a constant beside it: the norm would make weak and strong answers alike
    colours = torch.full((9, 3, 12, 12), 0.5, dtype=torch.float64)
    masks = torch.zeros(9, 12, 12, dtype=torch.bool)
    for place in range(9):
        row, column = divmod(place, 3)
        cell = (slice(4 * row, 4 * row + 4), slice(4 * column, 4 * column + 4))
        colours[place, :, cell[0], cell[1]] = torch.tensor([1.0, 0, 0], dtype=torch.float64)[:, None, None]
        masks[place][cell] = True
    pixels = (colours - student.mean) / student.std
    found = contributions(student, pixels, 0)
    sizes = found.patches.abs().flatten(1)
    assert (sizes.argmax(1) == torch.arange(9)).all()
    own = sizes[torch.arange(9), torch.arange(9)]
    assert (own > 1.5 * (sizes.sum(1) - own) / 8).all()
    assert pointing(found.pixels.abs(), masks, (4, 4))["pointing"].all()


def test_check_family_finds_nothing_but_the_values(student):
    """Queries, keys and values of a B-cos block are no linear maps: the one promise of a family that it cannot keep."""
    from probes.bcos import bcos_parts

    with pytest.raises(AssertionError, match="hook_v against W_V and b_V"):
        testing.check_family(student, family=bcos_parts)
    testing.check_family(convert(tiny_teacher(), b=1.0), family=bcos_parts)
