"""The bundled planted models: they open everywhere, hold their gates again, and their twins do not."""

import json
from functools import cache

import pytest
import torch

import mechvis
from mechvis.errors import FailedCheck, StoreCorrupt, UnknownName
from mechvis.testing.trained import TASKS, Subject, certify, folder_of, gates, load, planted_models
from mechvis.testing.trained.gates import Gate, require

NAMES = [name for name in planted_models() if not name.endswith("-twin")]
EACH = pytest.mark.parametrize("name", NAMES)
MEASURED = pytest.mark.parametrize(
    "name", [name if name.endswith("-0") else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)


def opened(name, **more):
    task, _, seed = name.rpartition("-")
    return load(task, int(seed), **more)


@cache
def measured(name, twin=False):
    """Figures of a model or twin on a few images, measured once."""
    return opened(name, twin=twin).certify(n=300, seed=77, thorough=False)


def test_every_task_has_a_model_and_every_model_a_twin():
    assert {name.rpartition("-")[0] for name in NAMES} == set(TASKS)
    assert set(planted_models()) == set(NAMES) | {f"{name}-twin" for name in NAMES}


@pytest.mark.parametrize("name", planted_models())
def test_a_folder_is_small_and_opens_with_plain_transformers(name):
    import transformers

    task, _, seed = name.removesuffix("-twin").rpartition("-")
    folder = folder_of(task, int(seed), twin=name.endswith("-twin"))
    assert sum(file.stat().st_size for file in folder.iterdir()) < 500_000
    assert all(file.stat().st_mode & 0o044 for file in folder.iterdir())
    config = json.loads((folder / "config.json").read_text())
    bare = getattr(transformers, config["architectures"][0]).from_pretrained(folder).eval()
    assert sum(parameter.numel() for parameter in bare.parameters()) < 50_000
    wrapped = mechvis.load(str(folder))
    images = TASKS[task].render(TASKS[task].scenes(4, seed=0))
    with torch.no_grad():
        assert torch.allclose(bare(images).logits, wrapped.run(images).logits, atol=1e-5)
    # Bytes go through the stored preprocessing to the pixels that were drawn.
    bytes_ = ((images + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert torch.allclose(wrapped.preprocess(list(bytes_)), images, atol=1e-5)


@EACH
def test_the_places_are_those_of_the_seed(name):
    planted, twin = opened(name), opened(name, twin=True)
    assert planted.placement == planted.task.placement(planted.placement.seed) == twin.placement
    assert planted.planted and not twin.planted
    assert planted.model.parts.class_names == planted.task.classes


@EACH
def test_stored_gates_hold_and_are_those_of_the_stored_figures(name):
    record = opened(name).certificate
    again = [gate.to_json() for gate in gates(record["figures"], decoys=bool(opened(name).placement.decoys))]
    assert again == record["gates"] and all(row["holds"] for row in again)
    assert len(again) >= 8 and record["figures"]["worst subset"]["subsets"] >= 63


@MEASURED
def test_the_main_gates_hold_again_on_other_images(name):
    missed = [gate for gate in gates(measured(name), decoys=bool(opened(name).placement.decoys)) if not gate.holds]
    assert not missed


@MEASURED
def test_exact_patching_finds_what_was_planted_and_no_more(name):
    assert measured(name)["exact"] == {"nodes": 1.0, "edges": 1.0}


@MEASURED
def test_the_twin_answers_as_well_and_holds_nothing(name):
    figures = measured(name, twin=True)
    assert figures["accuracy"] >= 0.98
    assert min(row["accuracy"] for row in figures["interchange"].values()) < 0.5
    assert figures["outside at once"] < 0.75 and figures["random subsets"] < 0.9
    with pytest.raises(FailedCheck, match=f"{name}-twin does not pass its certificate:\n  .*does not hold"):
        require(gates(figures, decoys=True), f"{name}-twin")


@MEASURED
def test_other_places_in_the_planted_model_do_not_hold(name):
    planted = opened(name)
    wrong = next(
        placement
        for placement in map(planted.task.placement, range(1, 50))
        if not set(placement.planted_nodes) - {"L1MLP"} & set(planted.placement.planted_nodes)
    )
    figures = certify(Subject(parts=planted.model.parts, task=planted.task, placement=wrong), n=200, thorough=False)
    assert figures["outside at once"] < 0.8 and not all(gate.holds for gate in gates(figures, decoys=True))


@EACH
def test_nothing_that_should_be_silent_speaks_in_nuisance_pairs(name):
    families = opened(name).certificate["figures"]["families"]
    active = [row["noising"] for row in families["all"]["nodes"].values() if row["grade"] == "active"]
    for kind in ("nodes", "edges"):
        rows = families["nuisance"][kind].values()
        assert max(abs(row["noising"]) for row in rows if row["grade"] == "out") < 0.05 * min(active)


def test_an_exclusive_or_hides_from_denoising():
    table = load("same-different").certificate["figures"]["families"]["all"]["nodes"]
    inputs = [row for node, row in table.items() if row["grade"] == "active" and node != "L1MLP"]
    assert len(inputs) == 3
    assert all(row["noising"] > 3 * abs(row["denoising"]) for row in inputs)
    assert table["L1MLP"]["denoising"] > 0.8 * table["L1MLP"]["noising"]


def test_gates_name_what_they_miss():
    low, infinite = Gate(name="a", value=0.5, low=0.9), Gate(name="b", value=None, high=0.1)
    assert not low.holds and not infinite.holds and Gate(name="c", value=0.5, low=0.3, high=0.8).holds
    with pytest.raises(FailedCheck, match=r"m does not pass.*\n  a: 0\.500 \(>= 0\.9\).*\n  b: infinite \(<= 0\.1\)"):
        require([low, infinite, Gate(name="c", value=1.0, low=0.9)], "m")


def test_bad_input(tmp_path):
    with pytest.raises(UnknownName, match=r"unknown planted model 'colour-if-shape-99'.*colour-if-shape-0"):
        load("colour-if-shape", 99)
    with pytest.raises(UnknownName, match="unknown planted task 'shape'"):
        load("shape")
    with pytest.raises(StoreCorrupt, match=r"truth\.json cannot be read"):
        load("colour-if-shape", folder=tmp_path)
    with pytest.raises(StoreCorrupt, match="holds the task 'colour-if-shape', not 'same-different'"):
        load("same-different", folder=folder_of("colour-if-shape"))
