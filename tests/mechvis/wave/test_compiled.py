"""Compiled blocks say what blocks say, in every shape; what cannot be compiled is an error with a way out."""

import shutil

import pytest
import torch

import mechvis
from mechvis import testing
from mechvis.errors import FailedCheck, UnsupportedModel
from mechvis.units import units_of
from mechvis.wave import halves
from mechvis.wave.halves import CompiledHalves

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="compiling on a CPU needs a C++ compiler"),
]


def sweep(model, engine, **settings):
    pixels = testing.tiny_input("vit", n=5, dtype=model.dtype)
    return (
        mechvis.sweep(model, pixels, metric="logit", engine=engine, progress=False, **settings).values["logit"].copy()
    )


def wrapped(family):
    return mechvis.load(testing.tiny(family, dtype=torch.float32), preprocess=testing.tiny_preprocess())


@pytest.mark.parametrize("family", ["vit", "siglip-classifier"])
def test_compiled_blocks_are_the_blocks(family):
    model = wrapped(family)
    units = sorted([*units_of(model, "heads"), *units_of(model, "mlp_out")])
    made = []

    class Watched(CompiledHalves):
        def __init__(self):
            super().__init__()
            made.append(self._made)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mechvis.engine.CompiledHalves", Watched)
        found = sweep(model, "compiled", units=units)
    assert len(made[0]) >= 5  # two halves of three blocks, the last one's attention is cut
    testing.assert_close(torch.from_numpy(found), torch.from_numpy(sweep(model, "wave", units=units)), 1e-5)


def test_low_precision():
    model = wrapped("vit")
    found = sweep(model, "compiled", screen="bf16", recheck=12)
    testing.assert_close(torch.from_numpy(found), torch.from_numpy(sweep(model, "wave")), 1e-5)


def test_a_compiled_half_that_deviates_is_refused(monkeypatch):
    real = halves._compiled

    def wrong(half, number):
        def off(*arguments):
            first, write = real(half, number)(*arguments)
            return first, write * 1.001

        return off

    monkeypatch.setattr(halves, "_compiled", wrong)
    with pytest.raises(FailedCheck, match=r"deviates by 1\.0e-03"):
        sweep(wrapped("vit"), "compiled")


def test_what_cannot_be_compiled_says_so(monkeypatch):
    def refuse(half, number):
        def run(*arguments):
            raise RuntimeError("no compiler\nand more")

        return run

    monkeypatch.setattr(halves, "_compiled", refuse)
    with pytest.raises(UnsupportedModel, match="could not be compiled: no compiler engine='wave'"):
        sweep(wrapped("vit"), "compiled")
