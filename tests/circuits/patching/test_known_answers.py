"""Models whose answer is known: gates, the hand-wired ViT, and the two shortcuts of F2."""

import numpy as np
import pytest
import torch

import mechvis
from circuits.pairs import aligned
from circuits.patching import patch
from mechvis import testing
from mechvis.models.load import wrap

pytestmark = pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")


def effects(model, pairs, **more):
    found = patch(model, pairs, progress=False, **more)
    return {
        way: dict(
            zip(found.rows(f"logit_diff[{way}]")["unit"], found.rows(f"logit_diff[{way}]")["effect"], strict=True)
        )
        for way in ("noise", "denoise")
    }, found


@pytest.mark.parametrize("engine", ["wave", "plain"])
@pytest.mark.parametrize("word,noise,denoise", [("OR", 0.0, 1.0), ("AND", 1.0, 0.0)])
def test_gates(gate, word, noise, denoise, engine):
    """Either of two heads suffices (OR): taking one away finds nothing. Both are needed (AND): bringing one back finds
    nothing. Their layer, their values and the neurons after them are found in both directions."""
    model = gate(word)
    on, off = torch.zeros(3, 1, 2, 2).double(), torch.zeros(3, 1, 2, 2).double()
    on[:, 0, 0] = 1  # both bits
    on[:, 0, 1] = torch.rand(3, 2).double()  # what nobody reads
    off[:, 0, 1] = on[:, 0, 1]
    pairs = aligned(model, on, off, name=word)
    found, _ = effects(model, pairs, units=["heads", "q", "k", "v", "attn_out", "mlp_out", "neurons"], engine=engine)
    for head in ("L0H0", "L0H1"):
        assert found["noise"][head] == pytest.approx(noise, abs=1e-9)
        assert found["denoise"][head] == pytest.approx(denoise, abs=1e-9)
        assert found["noise"][f"{head}.v"] == pytest.approx(noise, abs=1e-9)
        assert found["denoise"][f"{head}.v"] == pytest.approx(denoise, abs=1e-9)
        for part in ("q", "k"):  # positions answer, and they are the same in both halves
            assert found["noise"][f"{head}.{part}"] == pytest.approx(0, abs=1e-9)
            assert found["denoise"][f"{head}.{part}"] == pytest.approx(0, abs=1e-9)
    for way in ("noise", "denoise"):
        # All that the bits do to the read-out goes through the attention, and all of that through the neurons.
        assert found[way]["L0 attn_out"] == pytest.approx(1, abs=1e-9)
        assert found[way]["L0MLP"] == pytest.approx(1, abs=1e-9)


def test_the_planted_head_of_the_hand_wired_model():
    """Only head (0, 0) writes what is read; the other heads of its layer write five times as loudly to nowhere."""
    model = mechvis.load(testing.hand_wired_vit(dtype=torch.float64), preprocess=testing.tiny_preprocess())
    images, others = (testing.hand_wired_images(24, seed=seed, dtype=torch.float64)[0] for seed in (0, 1))
    pairs = aligned(model, images, others)
    # Brightness is never negative, so class 0 is predicted for every image.
    found, _ = effects(model, pairs, units=["heads", "v", "pattern"], max_undistinguished=1)
    for way in ("noise", "denoise"):
        assert found[way].pop("L0H0") == pytest.approx(1, abs=0.02)
        assert found[way].pop("L0H0.v") == pytest.approx(1, abs=0.02)
        assert max(map(abs, found[way].values())) < 0.02


@pytest.fixture(scope="module", params=["as published", "without mixtures"])
def shortcut(request):
    """F2 with the tolerance of its small random mixtures, or without these and exact; images whose object and context
    are of two classes, and the third class for swaps."""
    model, tolerance = testing.ShortcutViT(), 0.06
    if request.param == "without mixtures":
        tolerance = 1e-6
        with torch.no_grad():
            model.layers[0].v_proj.weight[12:] = 0
            model.layers[1].v_proj.weight[8:12] = 0
    wrapped = wrap(model, family=testing.shortcut_parts, preprocess=testing.shortcut_preprocess(), title="F2")
    made = testing.shortcut_images(120, seed=4)
    chosen = (made.labels != made.contexts).nonzero().flatten()
    return wrapped, made, 3 - made.labels - made.contexts, chosen, tolerance


def recoloured(made, chosen, classes, where):
    """The images with the evidence of one region exchanged for that of other classes."""
    pixels = made.pixels[chosen].clone()
    evidence = torch.eye(3, dtype=torch.float64)[classes][:, :, None, None].expand(-1, -1, 4, 4)
    pixels[:, 2:] = torch.where(where[chosen][:, None], evidence, pixels[:, 2:])
    return pixels


def test_f2_object_swap(shortcut):
    """Object evidence goes through the collapse head and the object head, not through the shortcut head."""
    model, made, third, chosen, tolerance = shortcut
    labels, others, masks = made.labels[chosen], third[chosen], made.masks[chosen]
    corrupt = recoloured(made, chosen, others, made.masks)
    pairs = aligned(
        model, made.pixels[chosen], corrupt, name="object swap", clean_labels=labels, corrupt_labels=others,
        masks=masks, corrupt_masks=masks,
    )  # fmt: skip
    # The shortcut decides, so the prediction does not follow the object.
    found, result = effects(model, pairs, units=["heads", "v", "q", "k"], max_undistinguished=1)
    for way in ("noise", "denoise"):
        assert found[way]["L1H0"] == pytest.approx(1, abs=tolerance)
        assert found[way]["L0H0"] == pytest.approx(1, abs=tolerance)
        assert found[way]["L1H0.v"] == pytest.approx(found[way]["L1H0"], abs=1e-9), "its pattern follows the markers"
        assert found[way]["L1H1"] == pytest.approx(0, abs=tolerance)
        for inert in ("L0H1", "L0H2", "L1H3", "L1H0.q", "L1H0.k"):
            assert found[way][inert] == pytest.approx(0, abs=1e-12)
    raw = result.rows("logit_diff[noise]")
    # Two logits more for the one class, two less for the other, in both halves.
    assert raw.filter(raw["unit"] == "L1H0")["raw"][0] == pytest.approx(4, abs=4 * tolerance)
    tokens, _ = effects(model, pairs, units="patches", groups="object", max_undistinguished=1)
    for way in ("noise", "denoise"):
        assert tokens[way]["L0 object"] == pytest.approx(1, abs=1e-9), "nothing else differs"
        assert tokens[way]["L0 background"] == pytest.approx(0, abs=1e-12)
        assert tokens[way]["L1 object"] == pytest.approx(1, abs=tolerance)
        assert tokens[way]["L1 background"] == pytest.approx(0, abs=tolerance)
        for layer in (0, 1):  # the CLS token reads in the last block
            assert tokens[way][f"L{layer} prefix"] == pytest.approx(0, abs=tolerance)


def test_f2_background_swap(shortcut):
    """Context evidence goes through the collapse head and the shortcut head, not through the object head."""
    model, made, third, chosen, tolerance = shortcut
    corrupt = recoloured(made, chosen, third[chosen], ~made.masks)
    pairs = aligned(
        model, made.pixels[chosen], corrupt, name="background swap", clean_labels=made.contexts[chosen],
        corrupt_labels=third[chosen],
    )  # fmt: skip
    found, result = effects(model, pairs)
    for way in ("noise", "denoise"):
        assert found[way]["L1H1"] == pytest.approx(1, abs=tolerance)
        assert found[way]["L0H0"] == pytest.approx(1, abs=tolerance)
        assert found[way]["L1H0"] == pytest.approx(0, abs=tolerance)
    raw = result.rows("logit_diff[denoise]")
    assert raw.filter(raw["unit"] == "L1H1")["raw"][0] == pytest.approx(6, abs=6 * tolerance)


def test_maps_find_the_object():
    """`scenes-vit`, object swap: before block 0 only patches that show one of the two objects carry anything."""
    from circuits.pairs import scene_swap
    from mechvis.patches import patch_maps

    model = mechvis.load("scenes-vit")
    pairs = scene_swap(model, n=6, change="object", seed=12)
    found = patch(model, pairs, units="tokens", layers=[0], progress=False, max_undistinguished=1)
    shows = torch.stack([pairs.masks, pairs.corrupt_masks]).any(0)
    cells = shows.unfold(1, 8, 8).unfold(2, 8, 8).any(-1).any(-1).numpy()
    for way in ("noise", "denoise"):
        maps = patch_maps(found, f"logit_diff[{way}]")[:, 0]
        assert np.abs(maps[~cells]).max() < 1e-6
        assert np.abs(maps[cells]).mean() > 0.01
