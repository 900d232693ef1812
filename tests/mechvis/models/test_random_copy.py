"""Random copies: of all weights or of some, wrapped again, the model itself untouched."""

import pytest
import torch

from mechvis.errors import BadData, UnknownName
from mechvis.models.load import load
from mechvis.models.random_copy import random_copy
from mechvis.testing import assert_untouched, tiny, tiny_preprocess


def test_only_some_weights_change():
    model = load(tiny("vit"), preprocess=tiny_preprocess())
    with assert_untouched(model.bare):
        head = random_copy(model, seed=1, only=lambda name: name.startswith("classifier"))
        whole = random_copy(model, seed=1)
    old = dict(model.bare.named_parameters())
    changed = {name for name, value in head.bare.named_parameters() if not torch.equal(value, old[name])}
    assert changed and all(name.startswith("classifier") for name in changed)
    assert len({name for name, value in whole.bare.named_parameters() if not torch.equal(value, old[name])}) > 20


def test_a_tower_comes_back_as_a_tower():
    clip = load(tiny("clip"), preprocess=tiny_preprocess())
    other = random_copy(clip.vision, seed=0)
    assert other.parts.head is None and other.fingerprint != clip.vision.fingerprint
    assert other.graph.names == clip.vision.graph.names


def test_wrong_words_are_refused():
    model = load(tiny("vit"), preprocess=tiny_preprocess())
    with pytest.raises(BadData, match="chooses none"):
        random_copy(model, only=lambda name: False)
    with pytest.raises(UnknownName, match="init"):
        random_copy(model, how="initial")
