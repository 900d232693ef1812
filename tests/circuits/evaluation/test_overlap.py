"""A circuit is not judged on the images that it was found on."""

from dataclasses import replace

import pytest

from circuits.circuit import Circuit
from circuits.evaluation.image_hashes import image_hashes
from circuits.evaluation.overlap import check_overlap
from circuits.task import task
from mechvis.errors import SplitOverlap
from mechvis.testing.planted import cue_images, cue_pairs


@pytest.fixture(scope="module")
def other(cue_model, pairs_of):
    return task(cue_model, pairs_of(cue_pairs("all", 12, seed=77)))


def found_on(task, circuit, **facts):
    provenance = task.provenance()
    provenance["task"] |= facts
    if not facts:
        provenance["task"].pop("image_hashes", None)
    return Circuit(graph=circuit.graph, kept=circuit.kept, provenance=provenance)


def test_same_images_are_refused_under_any_metric(cue, cue_circuit, other):
    circuit = found_on(cue, cue_circuit)
    for changed in (cue, cue.with_metric("prob"), replace(cue, ablation="zero", corrupt=None)):
        # Under zero the corrupt half is gone, and with it the way to make the old fingerprint again.
        if changed.corrupt is None:
            assert "as a whole only" in check_overlap(circuit, changed)
            continue
        with pytest.raises(SplitOverlap, match=r"by heart\. Find it on one half.*task\.halves"):
            check_overlap(circuit, changed)
    assert "as a whole only" in check_overlap(circuit, other)
    assert check_overlap(circuit, cue, allow_overlap=True) == "the images are those that the circuit was found on"


@pytest.mark.parametrize("ablation", ["zero", "resample"])
def test_same_images_are_refused_under_another_ablation(cue_model, cue_circuit, ablation):
    pixels = cue_images(6, seed=4)[0]
    first = task(cue_model, pixels, ablation=ablation, seed=2)
    circuit = found_on(first, cue_circuit)
    second = task(cue_model, pixels, ablation={"zero": "resample", "resample": "zero"}[ablation], seed=8, metric="prob")
    with pytest.raises(SplitOverlap, match="the images are those that the circuit was found on"):
        check_overlap(circuit, second)


def test_single_shared_images_are_found_by_their_hashes(cue, cue_circuit, other):
    circuit = found_on(cue, cue_circuit, image_hashes=list(image_hashes(cue.clean[:5])))
    with pytest.raises(SplitOverlap, match=r"5 of 12 images .* \(cue-lookup, all 0, cue-lookup, all 1, .*\.\.\.\)"):
        check_overlap(circuit, cue)
    renamed = replace(cue, ids=tuple(f"new {i}" for i in range(12)))
    with pytest.raises(SplitOverlap, match="5 of 12 images"):
        check_overlap(circuit, renamed)
    assert check_overlap(circuit, cue[5:]) == "" == check_overlap(circuit, other)
    assert "5 of 12 images" in check_overlap(circuit, cue, allow_overlap=True)


def test_a_circuit_without_a_past(cue, cue_circuit):
    assert check_overlap(cue_circuit, cue) == "it is not known which images the circuit was found on"
