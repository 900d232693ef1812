"""The recipe on scenes: two minutes of one core make a student of scenes-vit that mostly says what it says."""

import pytest

import mechvis
from probes.bcos import align, contributions, convert, measure_student


@pytest.mark.slow
def test_student_of_scenes_vit():
    teacher = mechvis.load("scenes-vit")
    train = mechvis.data.scenes(n=800, seed=5)
    other = mechvis.data.scenes(n=200, seed=6, correlation=0.5)
    student = convert(teacher, train[:64])
    untrained = contributions(student, other[:32].pixels_for(teacher.preprocess))
    found = measure_student(align(student, teacher, train, steps=160, progress=False), teacher, other)
    assert found.facts["completeness"] <= 1e-5 and untrained.error <= 1e-5
    answers = {(row["what"], row["group"]): row for row in found.tables["answers"].iter_rows(named=True)}
    assert answers["agreement with the teacher", "all"]["low"] > 0.65
    assert answers["agreement with the teacher", "consistent"]["value"] > 0.95
    maps = {(row["map"], row["measure"]): row for row in found.tables["maps"].iter_rows(named=True)}
    # Better than nothing: the object is 15 % of the image.
    assert maps["contributions", "energy"]["low"] > maps["uniform", "energy"]["value"] + 0.1
    assert maps["contributions", "auroc"]["low"] > maps["gradient x input, teacher", "auroc"]["value"]
    assert maps["uniform", "auroc"]["value"] == 0.5
    assert found.facts["share_of_special"] < 0.5
