"""The sweep as a user calls it: signs, references, classes, resampling, patching, refusals, resuming after a kill."""

import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch

import mechvis
from mechvis import metrics, testing
from mechvis.data.images import ImageSet
from mechvis.errors import (
    BadData,
    MechvisError,
    OutOfRange,
    OutputNotWritable,
    ResultMismatch,
    ShapeMismatch,
    SplitOverlap,
    UnknownName,
)
from mechvis.means import means
from mechvis.sweep import EDITS, sweep
from mechvis.sweep_inputs import _captured_bytes, _sources
from mechvis.units import KINDS, Unit, head_units, units_of
from mechvis.wave import bytes_per_row

pytestmark = pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")

N = 9


@pytest.fixture(scope="module")
def model():
    return mechvis.load(testing.tiny("vit", dtype=torch.float64), preprocess=testing.tiny_preprocess())


@pytest.fixture(scope="module")
def pixels():
    return testing.tiny_input("vit", n=N, dtype=torch.float64)


def image_set(n=N, *, seed=0, labels=True, start=0, name="random"):
    drawn = np.random.default_rng(seed).integers(0, 256, (n, 12, 12, 3), dtype=np.uint8)
    return ImageSet(
        name=name,
        ids=tuple(f"{name}/{start + i}" for i in range(n)),
        read=lambda row: drawn[row],
        rows=np.arange(n),
        labels=np.arange(n) % 8 if labels else None,
        class_names=tuple("abcdefgh"),
    )


def quiet(model, images, **more):
    return sweep(model, images, **{"progress": False, **more})


def pieces_of(model, units, rows=3):
    """A budget that cuts the work into many pieces."""
    return rows * sum(bytes_per_row(model.parts, 8))


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("kind", KINDS)
def test_wave_equals_the_plain_twin(model, pixels, kind, edit):
    settings = {
        "units": kind if kind != "neurons" else [Unit(layer, kind, i) for layer in range(3) for i in (0, 9, 31)],
        "edit": edit,
        "metric": list(metrics.METRICS),
        "source": pixels.flip(0) * 0.9 if edit == "patch" else None,
    }
    fast = quiet(model, pixels, **settings)
    slow = quiet(model, pixels, engine="plain", **settings)
    cut = quiet(model, pixels, budget=pieces_of(model, kind), **settings)
    for name in metrics.METRICS:
        assert np.abs(fast.values[name] - slow.values[name]).max() < 1e-10, name
        assert np.abs(fast.values[name] - cut.values[name]).max() < 1e-10, name
        assert fast.baseline[name] == pytest.approx(slow.baseline[name], abs=1e-12)
    assert fast.table["unit"].to_list() == slow.table["unit"].to_list()


def test_effects_are_what_two_runs_give(model, pixels):
    """clean minus edited, by hand, with the runner-up of the clean run as contrast."""
    found = quiet(model, pixels, units="heads", metric="logit_diff")
    clean = model.run(pixels).logits
    first, second = clean.topk(2).indices.T
    at = torch.arange(N)
    for unit, values in zip(found.table["unit"], found.values["logit_diff"], strict=True):
        layer, head = int(unit[1]), int(unit[3])
        edit = mechvis.edits.zero(f"blocks.{layer}.attn.hook_z", heads=[head])
        edited = model.run(pixels, edits=[edit]).logits
        expected = (clean[at, first] - clean[at, second]) - (edited[at, first] - edited[at, second])
        assert np.abs(values - expected.numpy()).max() < 1e-10
    assert found.baseline["logit_diff"] == pytest.approx(float((clean[at, first] - clean[at, second]).mean()))


def test_positive_means_that_the_unit_supports_the_behaviour():
    """Head (0, 0) alone writes the logits, 0.75 and -0.75 times a brightness: its effect is 1.5 times that."""
    model = mechvis.load(testing.hand_wired_vit(), preprocess=testing.tiny_preprocess())
    images, brightness = testing.hand_wired_images(24)
    found = quiet(model, images, units="heads", metric=["logit_diff", "accuracy"])
    values = dict(zip(found.rows()["unit"], found.values["logit_diff"], strict=True))
    assert (found.top(1)["unit"][0], found.top(1)["significant"][0]) == ("L0H0", True)
    assert np.abs(values.pop("L0H0") - 1.5 * brightness[:, 4].abs().numpy()).max() < 0.02
    assert max(np.abs(others).max() for others in values.values()) < 0.02
    wrong = replace(image_set(24), labels=(brightness[:, 4] > 0).long().numpy(), read=images_of(images), class_names=())
    against = quiet(model, wrong, units="heads", metric="logit_diff").table.row(0, named=True)
    assert against["unit"] == "L0H0" and against["effect"] < -0.1, "it works against the wrong class"


def images_of(pixels):
    """Uint8 images that the preprocessing turns into these pixels, nearly."""
    raw = ((pixels * 0.5 + 0.5).clamp(0, 1) * 255).round().byte().movedim(1, -1).numpy()
    return lambda row: raw[row]


def test_classes_are_fixed_by_the_clean_run(model, pixels):
    """A head whose removal changes the winner is measured against the clean winner, not the new one."""
    found = quiet(model, pixels, units="attn_out", metric=["logit_diff", "logit"])
    clean = model.run(pixels).logits
    first, second = clean.topk(2).indices.T
    changed = 0
    for row, unit in enumerate(found.rows("logit")["unit"]):
        edited = model.run(pixels, edits=[mechvis.edits.zero(f"blocks.{unit[1]}.hook_attn_out")]).logits
        changed += int((edited.argmax(-1) != first).sum())
        at = torch.arange(N)
        assert np.abs(found.values["logit"][row] - (clean - edited)[at, first].numpy()).max() < 1e-10
        difference = (clean - edited)[at, first] - (clean - edited)[at, second]
        assert np.abs(found.values["logit_diff"][row] - difference.numpy()).max() < 1e-10
    assert changed > 0


def test_labels_are_used_where_they_are_known(model):
    images = image_set()
    logits = model.run(images).logits
    given = quiet(model, images, metric="logit")
    target = torch.arange(N) % 8
    assert given.baseline["logit"] == pytest.approx(float(logits[torch.arange(N), target].mean()))
    assert given.images["label"].to_list() == [*"abcdefgh", "a"]
    predicted = quiet(model, images, metric="logit", labels="predicted")
    assert predicted.baseline["logit"] == pytest.approx(float(logits.max(-1).values.mean()))
    unlabelled = quiet(model, image_set(labels=False), metric="logit")
    assert np.array_equal(unlabelled.values["logit"], predicted.values["logit"])


def test_labels_that_the_head_does_not_have(model):
    images = replace(image_set(), labels=np.full(N, 8), class_names=())
    with pytest.raises(OutOfRange, match="label 8 is outside the head's 8 classes"):
        quiet(model, images)


def test_mean_ablation_uses_the_means_of_the_reference(model, pixels):
    reference = testing.tiny_input("vit", n=6, seed=4, dtype=torch.float64)
    found = quiet(model, pixels, edit="mean_positional", reference=reference, metric="logit")
    known = means(model, reference, "blocks.*.attn.hook_z")
    again = quiet(model, pixels, edit="mean_positional", reference=known, metric="logit")
    assert np.array_equal(found.values["logit"], again.values["logit"])
    edit = mechvis.edits.mean_positional("blocks.1.attn.hook_z", known, heads=[2])
    clean, edited = model.run(pixels).logits, model.run(pixels, edits=[edit]).logits
    expected = (clean - edited)[torch.arange(N), clean.argmax(-1)]
    row = found.table["unit"].to_list().index("L1H2")
    assert np.abs(found.values["logit"][row] - expected.numpy()).max() < 1e-10


def test_mean_is_over_tokens_too(model, pixels):
    reference = testing.tiny_input("vit", n=6, seed=4, dtype=torch.float64)
    found = quiet(model, pixels, edit="mean", reference=reference, metric="logit")
    z = model.run(reference, capture="blocks.2.attn.hook_z").cache["blocks.2.attn.hook_z"].mean((0, 1))

    def put(given):
        return z[3].expand_as(given)

    edit = mechvis.edits.call("blocks.2.attn.hook_z", lambda given: z[[3]].expand_as(given), heads=[3])
    clean, edited = model.run(pixels).logits, model.run(pixels, edits=[edit]).logits
    expected = (clean - edited)[torch.arange(N), clean.argmax(-1)]
    assert np.abs(found.values["logit"][-1] - expected.numpy()).max() < 1e-10


def test_reference_images_are_set_aside(model):
    images = image_set(12)
    found = quiet(model, images, edit="mean_positional", seed=3)
    kept = set(found.images["id"])
    assert len(kept) == 8 and kept < set(images.ids)
    assert found.values["logit_diff"].shape == (12, 8)
    assert found.provenance["sweep"]["reference_images"] == 4
    again = quiet(model, images, edit="mean_positional", seed=3)
    assert np.array_equal(found.values["logit_diff"], again.values["logit_diff"])
    assert set(quiet(model, images, edit="mean_positional", seed=4).images["id"]) != kept
    rest = np.array([name not in kept for name in images.ids])
    explicit = quiet(model, images[~rest], edit="mean_positional", reference=images[rest], seed=3)
    assert np.array_equal(found.values["logit_diff"], explicit.values["logit_diff"])


def test_overlap_is_refused(model, pixels):
    images = image_set(6)
    known = means(model, images[:2], "blocks.*.attn.hook_z")
    for reference in (images[4:], known):
        with pytest.raises(SplitOverlap, match="allow_overlap=True"):
            quiet(model, images, edit="mean", reference=reference)
        assert quiet(model, images, edit="mean", reference=reference, allow_overlap=True).table.height == 12
    with pytest.raises(SplitOverlap, match="1 in both"):
        quiet(model, pixels[:5], edit="mean", reference=pixels[4:])
    with pytest.raises(BadData, match="too few to set some aside"):
        quiet(model, images[:2], edit="mean")


@pytest.mark.parametrize("n", [2, 3, 10, 101])
def test_resampling_gives_every_image_another_one_once(n):
    marks = torch.arange(float(n))[:, None, None, None]
    for seed in range(5):
        source = _sources(None, "resample", marks, None, seed)
        other = source(range(n)).flatten().long()
        assert sorted(other.tolist()) == list(range(n))
        assert (other != torch.arange(n)).all()
        assert torch.equal(torch.cat([source(range(0, n // 2)), source(range(n // 2, n))]).flatten().long(), other)


def test_resampling_needs_two_images_and_depends_on_the_seed_only(model, pixels):
    one = quiet(model, pixels, edit="resample", seed=1).values["logit_diff"]
    assert np.abs(one - quiet(model, pixels, edit="resample", seed=1, budget=10**5).values["logit_diff"]).max() < 1e-10
    assert not np.allclose(one, quiet(model, pixels, edit="resample", seed=2).values["logit_diff"])
    with pytest.raises(BadData, match="at least two images"):
        quiet(model, pixels[:1], edit="resample")


def test_patching_from_itself_changes_nothing_and_from_a_pair_it_does(model, pixels):
    same = quiet(model, pixels, edit="patch", source=pixels, metric="logit")
    assert np.abs(same.values["logit"]).max() < 1e-12
    source = pixels.flip(0).contiguous()
    found = quiet(model, pixels, edit="patch", source=source, metric="logit", units="attn_out")
    patch = mechvis.edits.patch("blocks.1.hook_attn_out", model.run(source, capture="blocks.1.hook_attn_out").cache)
    clean, edited = model.run(pixels).logits, model.run(pixels, edits=[patch]).logits
    assert np.abs(found.values["logit"][1] - (clean - edited)[torch.arange(N), clean.argmax(-1)].numpy()).max() < 1e-10
    for wrong in (None, pixels[:3]):
        with pytest.raises(ShapeMismatch, match="aligned one to one"):
            quiet(model, pixels, edit="patch", source=wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_activations_that_are_put_in_are_counted(model, pixels, kind):
    listed = units_of(model, kind)
    cache = model.run(pixels, capture=sorted({unit.site for unit in listed})).cache
    assert _captured_bytes(model, listed) * N == sum(value.nbytes for value in cache.values())


def test_units_in_any_order_and_layers(model, pixels):
    all_heads = quiet(model, pixels)
    some = quiet(model, pixels, units=head_units([(2, 3), (0, 1), (1, 0)]))
    assert some.table["unit"].to_list() == ["L0H1", "L1H0", "L2H3"]
    rows = [all_heads.table["unit"].to_list().index(name) for name in some.table["unit"]]
    assert np.abs(some.values["logit_diff"] - all_heads.values["logit_diff"][rows]).max() < 1e-12
    last = quiet(model, pixels, layers=[-1])
    assert np.abs(last.values["logit_diff"] - all_heads.values["logit_diff"][8:]).max() < 1e-12
    mixed = quiet(model, pixels, units=[Unit(1, "mlp_out"), Unit(1, "heads", 0), Unit(0, "tokens", 3)])
    assert np.abs(mixed.rows()["effect"].to_numpy()).min() > 0
    assert sorted(mixed.table["unit"]) == ["L0 token 3", "L1 mlp_out", "L1H0"]


def test_a_zero_shot_classifier():
    class Words:
        def encode(self, text):
            return [2 + sum(map(ord, word)) % 40 for word in text.split()]

        def __call__(self, texts, **settings):
            rows = [[*self.encode(text), 49] for text in texts]
            return {"input_ids": torch.tensor([row + [1] * (12 - len(row)) for row in rows])}

    clip = mechvis.load(testing.tiny("clip"), preprocess=testing.tiny_preprocess(), tokenizer=Words())
    with pytest.raises(BadData, match=r"no head. For CLIP: clip.classifier"):
        quiet(clip.vision, testing.tiny_input("clip"))
    model = clip.classifier(["circle", "star", "blue square"])
    images = testing.tiny_input("clip", n=4)
    fast, slow = (quiet(model, images, engine=engine, metric="log_odds") for engine in ("wave", "plain"))
    size = np.abs(slow.values["log_odds"]).max()
    assert np.abs(fast.values["log_odds"] - slow.values["log_odds"]).max() < 1e-4 * size


def test_a_metric_of_ones_own(model, pixels):
    def confusion(logits, target, contrast, clean):
        return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)

    found = quiet(model, pixels, metric=["logit", confusion])
    assert found.metrics == ["logit", "confusion"]
    assert found.values["confusion"].shape == (12, N)


def test_one_image_has_no_interval(model, pixels):
    found = quiet(model, pixels[:1])
    assert found.table["n"].to_list() == [1] * 12
    assert found.table["low"].null_count() == 12


def test_bfloat16_pixels_have_an_identity():
    model = mechvis.load(testing.tiny("vit", dtype=torch.bfloat16), preprocess=testing.tiny_preprocess())
    pixels = testing.tiny_input("vit", n=4, dtype=torch.bfloat16)
    assert quiet(model, pixels, edit="patch", source=pixels.flip(0)).table.height == 12


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"edit": "zeros"}, UnknownName, "unknown edit 'zeros'. Nearest: zero"),
        ({"metric": "logits"}, UnknownName, "unknown metric 'logits'"),
        ({"units": "head"}, UnknownName, "unknown unit kind 'head'"),
        ({"engine": "quick"}, UnknownName, "unknown engine 'quick'"),
        ({"labels": "true"}, UnknownName, "unknown labels 'true'"),
        ({"labels": "given"}, BadData, "the images have no labels"),
        ({"layers": [7]}, OutOfRange, "layer 7 does not exist"),
        ({"budget": "lots"}, BadData, "is not a size"),
        ({"metric": []}, BadData, "metric"),
    ],
)
def test_bad_settings(model, pixels, settings, error, text):
    with pytest.raises(error, match=text):
        quiet(model, pixels, **settings)


def test_bad_images(model, pixels):
    with pytest.raises(BadData, match="images must be an ImageSet or pixels"):
        quiet(model, [pixels])
    for bad in (pixels[:, :1], pixels[..., :8], pixels * float("nan"), pixels[:0]):
        with pytest.raises(MechvisError):
            quiet(model, bad)


def test_an_output_folder_that_cannot_be_written(model, pixels, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputNotWritable):
        quiet(model, pixels, out=tmp_path / "file")


def test_model_and_images_are_left_as_found(model, pixels):
    before = pixels.clone()
    for edit in EDITS:
        with testing.assert_untouched(model):
            quiet(model, pixels, edit=edit, source=pixels.flip(0) if edit == "patch" else None)
    assert torch.equal(before, pixels)


def test_the_same_call_goes_on_and_another_is_refused(model, pixels, tmp_path):
    settings = {"out": tmp_path, "budget": pieces_of(model, "heads")}
    first = quiet(model, pixels, **settings)
    second = quiet(model, pixels, out=tmp_path)
    assert first.table.equals(second.table)
    assert np.array_equal(first.values["logit_diff"], second.values["logit_diff"])
    assert mechvis.Result.load(tmp_path).table.equals(first.table)
    other = mechvis.load(testing.tiny("vit", seed=1, dtype=torch.float64), preprocess=testing.tiny_preprocess())
    changed = pixels.clone()
    changed[0, 0, 0, 0] += 1
    for named, call in {
        "model": lambda: quiet(other, pixels, out=tmp_path),
        "data": lambda: quiet(model, changed, out=tmp_path),
        "edit": lambda: quiet(model, pixels, out=tmp_path, edit="resample"),
        "metrics": lambda: quiet(model, pixels, out=tmp_path, metric="logit"),
        "units": lambda: quiet(model, pixels, out=tmp_path, units="attn_out"),
        "seed": lambda: quiet(model, pixels, out=tmp_path, seed=1),
        "engine": lambda: quiet(model, pixels, out=tmp_path, engine="plain"),
    }.items():
        with pytest.raises(ResultMismatch, match=f"differs in: {named}"):
            call()
    with pytest.raises(ResultMismatch, match=r"differs in: (n, data|data, n)"):
        quiet(model, pixels[:5], out=tmp_path)


def test_a_result_and_head_sweep_do_not_share_a_folder(model, pixels, tmp_path):
    """Units of both kinds have the same names."""
    quiet(model, pixels, out=tmp_path, units="heads")
    with pytest.raises(ResultMismatch, match="differs in: units"):
        quiet(model, pixels, out=tmp_path, units="result")


def test_a_metric_whose_code_has_changed_is_another_metric(model, pixels, tmp_path):
    def make(factor):
        scope = {}
        exec(f"def mine(logits, target, contrast, clean): return {factor} * logits.sum(-1)", scope)
        return scope["mine"]

    quiet(model, pixels, out=tmp_path, metric=make(2))
    quiet(model, pixels, out=tmp_path, metric=make(2))
    with pytest.raises(ResultMismatch, match="differs in: metrics"):
        quiet(model, pixels, out=tmp_path, metric=make(3))


def test_interrupt_leaves_a_usable_folder(model, pixels, tmp_path, monkeypatch):
    from mechvis import engine

    expected = quiet(model, pixels, budget=pieces_of(model, "heads"))
    compute, calls = engine._compute, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 11:
            raise KeyboardInterrupt
        return compute(*arguments)

    monkeypatch.setattr(engine, "_compute", interrupted)
    with testing.assert_untouched(model), pytest.raises(KeyboardInterrupt):
        quiet(model, pixels, out=tmp_path, budget=pieces_of(model, "heads"))
    assert not (tmp_path / "result.json").exists()
    found = quiet(model, pixels, out=tmp_path)
    assert len(calls) == 1 + N * 6
    assert found.table.equals(expected.table)


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
import mechvis
from mechvis import testing
from mechvis.sweep import sweep
from mechvis.wave import bytes_per_row

model = mechvis.load(testing.tiny("vit"), preprocess=testing.tiny_preprocess())
pixels = testing.tiny_input("vit", n=18)
folder = Path(sys.argv[1])

def work(out):
    budget = 4 * sum(bytes_per_row(model.parts, 4))
    return sweep(model, pixels, edit="resample", metric=["logit_diff", "js"], budget=budget, out=out, progress=False)

def pieces():
    return len(list((folder / "killed" / "pieces").glob("*.json"))) - 1

random.seed(0)
kills, goal = 0, 0
while kills < 4:
    goal = max(goal, pieces()) + random.randint(3, 10)
    child = os.fork()
    if child == 0:
        try:
            work(folder / "killed")
        finally:
            os._exit(0)
    while pieces() < goal and os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.0005)
    time.sleep(random.random() * 0.01)  # anywhere in the next piece, the write of it included
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "finished before it was killed"
    kills += 1
assert 0 < pieces() < 72, pieces()
before = {path.name: path.stat().st_mtime_ns for path in (folder / "killed" / "pieces").glob("*.safetensors")}
resumed, whole = work(folder / "killed"), work(folder / "whole")
after = {path.name: path.stat().st_mtime_ns for path in (folder / "killed" / "pieces").glob("*.safetensors")}
assert resumed.table.equals(whole.table) and resumed.table.height == 24
for name in whole.values:
    assert np.array_equal(resumed.values[name], whole.values[name])
assert len(after) == 72 and {p.name for p in (folder / "whole" / "pieces").glob("*.safetensors")} == set(after)
again = sum(after[name] != when for name, when in before.items())
print("kept", len(before) - again, "again", again)
assert again <= 1  # only a piece whose check had not been written
same = ("table.parquet", "values.safetensors", "images.parquet")
assert all((folder / "killed" / name).read_bytes() == (folder / "whole" / name).read_bytes() for name in same)
"""


def test_kill_9_and_the_same_call_again(tmp_path):
    """Killed four times at random instants, the sweep ends with the files of one that was left alone."""
    script = tmp_path / "killed.py"
    script.write_text(textwrap.dedent(KILLED))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), str(tmp_path)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "kept" in done.stdout


# several targets from one sweep


def counted(model, monkeypatch):
    """Calls of attention from here on, one entry each."""
    from mechvis.wave import front as waves

    calls, heads = [], waves.plain.heads
    monkeypatch.setattr(waves.plain, "heads", lambda *arguments: calls.append(1) or heads(*arguments))
    return calls


def test_several_targets_cost_no_extra_forward(model, pixels, monkeypatch):
    calls = counted(model, monkeypatch)
    quiet(model, pixels, metric="logit", targets=2)
    one = len(calls)
    calls.clear()
    found = quiet(model, pixels, metric=["logit", "logit_diff", "prob", "kl"], targets=[2, 5, (5, 0)])
    assert len(calls) == one
    names = [f"{metric}[{target}]" for metric in ("logit", "logit_diff", "prob") for target in ("2", "5", "5 vs 0")]
    assert [name.replace("LABEL_", "") for name in found.metrics] == [*names, "kl"]
    assert found.table["target"].null_count() == 12


def test_targets_are_what_two_runs_give(model, pixels):
    found = quiet(model, pixels, units="attn_out", metric=["logit", "logit_diff"], targets=[2, (5, 0)])
    clean = model.run(pixels).logits
    edited = model.run(pixels, edits=[mechvis.edits.zero("blocks.1.hook_attn_out")]).logits
    runner_up = clean.index_fill(1, torch.tensor([2]), float("-inf")).argmax(1, keepdim=True)
    change = clean - edited
    expected = {
        "logit[2]": change[:, 2],
        "logit[5 vs 0]": change[:, 5],
        "logit_diff[2]": change[:, 2] - change.gather(1, runner_up)[:, 0],
        "logit_diff[5 vs 0]": change[:, 5] - change[:, 0],
    }
    for name, values in zip(found.metrics, expected.values(), strict=True):
        assert np.abs(found.values[name][1] - values.numpy()).max() < 1e-10
    assert found.baseline[found.metrics[0]] == pytest.approx(float(clean[:, 2].mean()))
    slow = quiet(model, pixels, units="attn_out", metric=["logit", "logit_diff"], targets=[2, (5, 0)], engine="plain")
    assert np.abs(found.values[found.metrics[3]] - slow.values[found.metrics[3]]).max() < 1e-10


def test_prompts_of_a_zero_shot_head_as_targets():
    clip = mechvis.load(testing.tiny("clip"), preprocess=testing.tiny_preprocess(), tokenizer=testing.Words())
    model = clip.classifier(["circle", "star", "blue square"])
    images = testing.tiny_input("clip", n=4)
    found = quiet(model, images, metric=["logit", "prob"], targets=["star", ("circle", "blue square")])
    assert found.metrics == ["logit[star]", "logit[circle vs blue square]", "prob[star]", "prob[circle vs blue square]"]
    assert found.rows("prob[star]")["target"].unique().to_list() == ["star"]
    again = quiet(model, images, metric="logit", targets="star")
    assert np.array_equal(again.values["logit[star]"], found.values["logit[star]"])
    with pytest.raises(UnknownName, match=r"unknown class 'sta'. Nearest: star"):
        quiet(model, images, targets=["sta"])


def test_targets_survive_saving_and_identify_the_job(model, pixels, tmp_path):
    found = quiet(model, pixels, metric="logit", targets=[1, 2], out=tmp_path)
    assert mechvis.Result.load(tmp_path).table.equals(found.table)
    with pytest.raises(ResultMismatch, match="differs in: metrics"):
        quiet(model, pixels, metric="logit", targets=[1, 3], out=tmp_path)


@pytest.mark.parametrize(
    ("targets", "error", "text"),
    [
        ([], BadData, "names no class"),
        ([8], OutOfRange, "class 8 does not exist: the head has 8"),
        ([-1], OutOfRange, "class -1 does not exist"),
        ([float("nan")], BadData, "name or index of a class"),
        ([True], BadData, "name or index of a class"),
        (["circle"], UnknownName, "unknown class 'circle'"),
        ([1, 1], BadData, "listed twice"),
        ([(1, 1)], BadData, "the same class"),
        ([(1, 2, 3)], BadData, "Put several in a list"),
    ],
)
def test_bad_targets(model, pixels, targets, error, text):
    with pytest.raises(error, match=text):
        quiet(model, pixels, targets=targets)


def test_targets_and_labels_are_two_answers(model, pixels):
    with pytest.raises(BadData, match="pass one of them"):
        quiet(model, pixels, targets=[1], labels="predicted")
