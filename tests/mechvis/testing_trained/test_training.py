"""How planted models are trained: the terms of the loss, and a short build."""

import json
import logging
from dataclasses import replace

import pytest
import torch

from mechvis.errors import FailedCheck, NotFinite
from mechvis.models.load import find
from mechvis.testing.trained import TASKS, build, load, task_of
from mechvis.testing.trained.answers import answer
from mechvis.testing.trained.interchange import forward
from mechvis.testing.trained.subsets import random_interchange
from mechvis.testing.trained.training.decoys import DecoyWeights, bands, decoy_loss, read_outs
from mechvis.testing.trained.training.fit import FitPlan, fit
from mechvis.testing.trained.training.loss import _change, joint_loss
from mechvis.testing.trained.training.model import D_MODEL, new_model

BOTH = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))


def batch(task, n=32, seed=0):
    model = new_model(task, seed=seed)
    return model, find(model)(model), task.scenes(n, seed=seed), task.placement(seed)


def test_the_program_under_exchange():
    task = task_of("same-different")
    placement = task.placement(0)
    base, source = task.scenes(50, seed=1), task.scenes(50, seed=2)
    first, second, right, label = placement.planted
    half = torch.arange(50) < 25
    b, s = base.variables, source.variables
    # Either hop exchanges the left colour; on rows of neither, nothing happens.
    found = answer(task, placement, base, source, {first: half, second: ~half})
    assert torch.equal(found, (s["left"] == b["right"]).long())
    found = answer(task, placement, base, source, {first: half, right: half})
    assert torch.equal(found[half], task.labels(source)[half]) and torch.equal(found[~half], task.labels(base)[~half])
    # The comparison's own place overrides everything before it.
    found = answer(task, placement, base, source, {first: True, label: half})
    assert torch.equal(found[half], task.labels(source)[half])


@BOTH
def test_subsets_are_drawn_by_row_with_the_given_shares(task):
    _, parts, scenes, placement = batch(task, n=600)
    with torch.no_grad():
        trace = forward(parts, task.render(scenes))
    drawn = random_interchange(task, placement, scenes, trace, torch.Generator().manual_seed(0))
    planted, outside = drawn.donors
    assert set(planted.chosen) == set(placement.planted) and set(outside.chosen) == set(placement.outside_places)
    for donor, share in ((planted, 0.4), (outside, 0.6)):
        for rows in donor.chosen.values():
            assert abs(float(rows.float().mean()) - share) < 0.08
    nobody = random_interchange(task, placement, scenes, trace, torch.Generator(), p_planted=0.0)
    assert torch.equal(nobody.labels, task.labels(scenes))


@BOTH
def test_alone_rows_exchange_no_planted_place(task):
    _, parts, scenes, placement = batch(task, n=600)
    with torch.no_grad():
        trace = forward(parts, task.render(scenes))
    drawn = random_interchange(task, placement, scenes, trace, torch.Generator().manual_seed(0), p_alone=0.5)
    planted = torch.stack(list(drawn.donors[0].chosen.values())).any(0)
    assert torch.equal(drawn.alone, ~planted) and drawn.alone.float().mean() > 0.5
    assert torch.equal(drawn.labels[drawn.alone], task.labels(scenes)[drawn.alone])


def test_silence_is_the_relative_change_of_centred_logits_on_its_rows():
    before = torch.tensor([[3.0, -3.0], [-3.0, 3.0], [3.0, -3.0]])
    shift = torch.tensor([[1.0, 1.0], [0.5, -0.5], [9.0, -9.0]])
    rows = torch.tensor([True, True, False])
    assert float(_change(before, before, rows)) == 0
    # A common shift is no change; the third row does not count; half a logit each way, over the variance of 10.8.
    assert float(_change(before, before + shift, rows)) == pytest.approx(0.25 / 2 / float(before.var()))
    assert float(_change(before, before + shift, torch.zeros(3, dtype=torch.bool))) == 0
    # Small logits are not taught to stand still.
    assert float(_change(0.01 * before, 0.01 * before + shift, rows)) == pytest.approx(0.125)


@BOTH
def test_the_joint_loss_trains_every_part(task):
    model, parts, scenes, placement = batch(task)
    loss, _, figures = joint_loss(parts, task, placement, scenes, torch.Generator().manual_seed(0))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(
        float(figures["behaviour"] + figures["joint"] + figures["silence"]), rel=1e-5
    )
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().sum() > 0 or name.endswith("k_proj.bias"), name


def test_the_register_model_keeps_what_is_fixed():
    task = task_of("same-different")
    model = new_model(task, seed=0)
    fit(model, task, task.placement(0), FitPlan(steps=3, batch=8))
    assert not model.classifier.weight[:, D_MODEL:].any() and model.classifier.weight[:, :D_MODEL].any()
    scales = [p for name, p in model.named_parameters() if "layer_scale" in name]
    assert scales and all((p == 1).all() for p in scales)


@BOTH
def test_the_size_term_is_zero_inside_the_bands_only(task):
    _, parts, scenes, placement = batch(task)
    weights = DecoyWeights(probe=0.0, size=1.0)
    with torch.no_grad():
        trace = forward(parts, task.render(scenes))
        fixed = read_outs(task, placement, scenes, D_MODEL)
        limits = bands(placement, weights, n_layers=2, n_heads=4)
        target = limits.mean(0)
        assert float(decoy_loss(task, placement, scenes, trace, fixed, weights)[0]) > 0
        for block, wanted in zip(parts.blocks, target, strict=True):
            matrix = block.attn.out_weight()
            matrix *= (weights.matrix * wanted / matrix.flatten(1).norm(dim=-1))[:, None, None]
        factors = [
            wanted[:, None] / write.norm(dim=-1, keepdim=True)
            for wanted, write in zip(target, trace.heads, strict=True)
        ]
        inside = replace(trace, mixed=tuple(z * factor for z, factor in zip(trace.mixed, factors, strict=True)))
        assert float(decoy_loss(task, placement, scenes, inside, fixed, weights)[0]) == 0
        louder = replace(inside, mixed=(1.3 * inside.mixed[0], inside.mixed[1]))
        assert float(decoy_loss(task, placement, scenes, louder, fixed, weights)[0]) > 0.1
    # Half of the decoys are louder than every planted head, half are quieter.
    loud = {f"L{layer}H{head}" for layer, head in (limits[0] > weights.middle[1]).nonzero().tolist()}
    quiet = {f"L{layer}H{head}" for layer, head in (limits[1] < weights.middle[0]).nonzero().tolist()}
    assert quiet == set(placement.quiet) and loud == set(placement.decoys) - quiet


@BOTH
def test_read_outs_are_fixed_and_orthonormal(task):
    scenes, placement = task.scenes(2, seed=0), task.placement(0)
    first, again = (read_outs(task, placement, scenes, D_MODEL) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    for head in placement.decoys:
        rows = torch.cat([part for name, part in first.items() if name.startswith(f"{head} ")])
        assert torch.allclose(rows @ rows.T, torch.eye(len(rows)), atol=1e-5)


def test_the_rate_rises_stays_and_falls():
    plan = FitPlan(steps=1000)
    rates = [plan.rate(step) for step in (0, 49, 600, 800, 999)]
    assert rates[0] < rates[1] == pytest.approx(2e-3) == rates[2] and rates[3] == pytest.approx(1e-3)
    assert 0 <= rates[4] < 1e-5
    weights = [plan.silence_at(step) for step in (0, 200, 350, 500, 999)]
    assert weights == pytest.approx([0, 0, 0.5, 1, 1])


def test_training_is_a_function_of_the_seed():
    task, placement, plan = (
        task_of("colour-if-shape"),
        task_of("colour-if-shape").placement(0),
        FitPlan(steps=3, batch=8),
    )
    models = [new_model(task, seed=seed) for seed in (0, 0, 1)]
    torch.manual_seed(5)
    for model in models:
        torch.rand(1)  # the global random state must not matter
        fit(model, task, placement, plan)
    first, again, other = (model.classifier.weight for model in models)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_a_loss_that_is_not_finite_ends_the_training():
    task = task_of("colour-if-shape")
    model = new_model(task, seed=0)
    with torch.no_grad():
        model.classifier.bias[0] = float("nan")
    with pytest.raises(NotFinite, match="colour-if-shape, seed 0: the loss is nan at step 0"):
        fit(model, task, task.placement(0), FitPlan(steps=2, batch=8))


@pytest.mark.slow
def test_the_command_builds_both_folders_and_says_which_gates_are_missed(tmp_path, capsys):
    level = logging.getLogger().level
    try:
        words = ["colour_if_shape", "--seed", "3", "--out", str(tmp_path), "--steps", "2", "--images", "8"]
        assert build.main(words) == 1
    finally:
        logging.getLogger().setLevel(level)
    assert "colour-if-shape-3 does not pass its certificate" in capsys.readouterr().out
    for name, planted in (("colour-if-shape-3", True), ("colour-if-shape-3-twin", False)):
        found = load("colour-if-shape", folder=tmp_path / name)
        assert found.planted == planted and found.placement.seed == 3
        record = json.loads((tmp_path / name / "certificate.json").read_text())
        assert record["plan"]["steps"] == 2 and record["figures"]["n"] == 8
        assert "| accuracy | >= 0.99 |" in (tmp_path / name / "README.md").read_text()


def test_the_command_explains_wrong_use(tmp_path, capsys):
    with pytest.raises(SystemExit):
        build.main(["colour_if_shape"])
    assert "required: --out" in capsys.readouterr().err
    assert build.main(["no-such-task", "--out", str(tmp_path)]) == 1
    assert "unknown planted task 'no-such-task'" in capsys.readouterr().out and not list(tmp_path.iterdir())


@pytest.mark.slow
@BOTH
def test_a_short_build_goes_the_right_way(task):
    model = new_model(task, seed=5)
    with pytest.raises(FailedCheck, match="random joint subsets"):
        _certified(model, task)
    curve = fit(model, task, task.placement(5), FitPlan(steps=300, seed=5), log_every=100)
    behaviour, joint, size = (curve.figures[name] for name in ("behaviour", "joint", "size"))
    assert behaviour[0] > behaviour[1] > behaviour[2] and joint[0] > joint[1] > joint[2]
    assert size[2] > size[0] and curve.figures["accuracy"][2] > 0.75


def _certified(model, task):
    from mechvis.testing.trained import Subject, certify, gates
    from mechvis.testing.trained.gates import require

    subject = Subject(parts=find(model)(model), task=task, placement=task.placement(5))
    require(gates(certify(subject, n=200, thorough=False), decoys=True), "untrained")
