"""Files that the real libraries wrote: what is loaded gives the library's own codes and output.

`make_fixtures.py` made them; `fixtures/versions.json` says with which versions.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mechvis.errors import RefusedMethod
from sae.formats import load, save

HERE = Path(__file__).parent / "fixtures"
TOLD = {
    "overcomplete/sae": {"architecture": "relu"},
    "overcomplete/sae_bn": {"architecture": "relu"},
    "overcomplete/topk": {"k": 3},
    "overcomplete/topk_multiplier": {"k": 3},
    "overcomplete/ra": {"k": 3},
    "overcomplete/mp": {"k": 3},
}
"""What the files do not say."""
KIND = {
    "saelens/standard": "relu",
    "saelens/gated": "gated",
    "saelens/jumprelu": "jumprelu",
    "saelens/batchtopk_as_jumprelu": "jumprelu",
    "saelens/topk": "topk",
    "saelens/abstopk": "signed_topk",
    "saelens/matching_pursuit": "fixed_pursuit",
    "saelens/transcoder": "relu",
    "sparsify/transcoder": "topk",
    "dictionary_learning/BatchTopKSAE": "batch_topk",
    "dictionary_learning/MatryoshkaBatchTopKSAE": "batch_topk",
    "dictionary_learning/JumpReluAutoEncoder": "jumprelu",
    "overcomplete/jump": "jumprelu",
    "overcomplete/batch_topk": "batch_topk",
    "overcomplete/mp": "fixed_pursuit",
}
"""The rule that each becomes."""


def fixtures(*libraries: str) -> list[str]:
    return sorted(
        f"{library}/{place.name}" for library in libraries for place in (HERE / library).iterdir() if place.is_dir()
    )


ALL = fixtures("saelens", "dictionary_learning", "sparsify", "overcomplete")


def close(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.detach() - want).abs().max() / want.abs().max())


def test_there_is_a_fixture_of_every_architecture_of_every_library():
    assert len(ALL) == 33
    assert set(json.loads((HERE / "versions.json").read_text())) >= {"sae-lens", "dictionary-learning", "overcomplete"}


@pytest.mark.parametrize("name", ALL)
def test_codes_and_output_are_those_of_the_library(name):
    d, expected = load(HERE / name, **TOLD.get(name, {})), load_file(HERE / name / "expected.safetensors")
    assert d.provenance["format"] == name.split("/")[0]
    assert close(d.encode(expected["x"]), expected["codes"]) < 1e-5
    assert close(d(expected["x"]), expected["y"]) < 1e-5
    assert close(d.decode(expected["codes"], like=expected["x"]), expected["y"]) < 1e-5
    assert KIND.get(name, d.architecture.NAME) == d.architecture.NAME


@pytest.mark.parametrize("name", fixtures("saelens", "dictionary_learning", "sparsify"))
def test_written_again_it_still_gives_the_same(name, tmp_path):
    library = name.split("/")[0]
    expected = load_file(HERE / name / "expected.safetensors")
    again = load(save(load(HERE / name), tmp_path / "again", format=library), library)
    assert close(again.encode(expected["x"]), expected["codes"]) < 1e-5
    assert close(again(expected["x"]), expected["y"]) < 1e-5


@pytest.mark.parametrize("name", [n for n in fixtures("overcomplete") if not n.endswith("mp")])
def test_overcomplete_written_again_says_its_rule_itself(name, tmp_path):
    expected = load_file(HERE / name / "expected.safetensors")
    if name.endswith("/ra"):  # mixtures of data points have several norms, and TopK ranks by codes as they are
        with pytest.raises(RefusedMethod, match="atoms of one norm"):
            save(load(HERE / name, k=3), tmp_path / "again", format="overcomplete")
        return
    again = load(save(load(HERE / name, **TOLD.get(name, {})), tmp_path / "again", format="overcomplete"))
    assert close(again(expected["x"]), expected["y"]) < 1e-5


@pytest.mark.parametrize("name", ALL)
def test_in_our_own_layout_it_still_gives_the_same(name, tmp_path):
    expected = load_file(HERE / name / "expected.safetensors")
    d = load(save(load(HERE / name, **TOLD.get(name, {})), tmp_path / "own", format="mechvis"))
    assert close(d.encode(expected["x"]), expected["codes"]) < 1e-5
    assert close(d(expected["x"]), expected["y"]) < 1e-5


@pytest.mark.parametrize("name", ALL)
def test_a_fixture_can_fail(name):
    """One number changed shows in codes or output."""
    d, expected = load(HERE / name, **TOLD.get(name, {})), load_file(HERE / name / "expected.safetensors")
    used = int(expected["codes"].abs().sum(0).argmax())
    with torch.no_grad():
        d.W_dec[used] += 0.1
    assert close(d(expected["x"]), expected["y"]) > 1e-4


def test_the_site_and_where_it_is_from_are_kept():
    d = load(HERE / "saelens" / "topk")
    assert list(d.ends.reads) == ["blocks.2.hook_resid_post"]
    assert d.provenance["config"]["k"] == 3
    assert load(HERE / "saelens" / "transcoder").ends.transcodes
    assert load(HERE / "dictionary_learning" / "AutoEncoderTopK").provenance["threshold"] == pytest.approx(0.4)
    whole = load(HERE / "overcomplete" / "topk_module")
    assert whole.provenance["class"] == "TopKSAE" and whole.architecture.k == 3
