"""What `load` accepts and refuses, and what it says."""

import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import ViTForImageClassification

import mechvis
from mechvis.clip import HookedCLIP
from mechvis.data.preprocess import Preprocess
from mechvis.errors import (
    BadData,
    BadImages,
    DefaultPreprocessing,
    MechvisError,
    MechvisWarning,
    ParityError,
    TrainMode,
    UnknownName,
    UnsupportedModel,
)
from mechvis.hooked import HookedViT
from mechvis.models.load import check_parity, wrap
from mechvis.testing import (
    ShortcutViT,
    assert_close,
    assert_untouched,
    check_family,
    shortcut_images,
    shortcut_parts,
    shortcut_preprocess,
    tiny,
    tiny_families,
    tiny_input,
    tiny_preprocess,
)


@pytest.mark.parametrize("family", tiny_families())
def test_wrapping_and_running_leaves_the_module_untouched(family):
    bare = tiny(family)
    with assert_untouched(bare):
        model = mechvis.load(bare, preprocess=tiny_preprocess())
        two = family in ("clip", "siglip")
        assert isinstance(model, HookedCLIP if two else HookedViT)
        for tower in (model.vision, model.text) if two else (model,):
            inputs = tower.parts.example_batch(bare, torch.Generator().manual_seed(4))
            tower.run(inputs, capture="*")
            tower.run_with_cache(inputs)
            assert tower.parity.plain == 0 and tower.parity.hooked < 1e-5
            assert "bitwise equal" in repr(tower)


def test_wrapped_model_keeps_the_module_out_of_reach():
    bare = tiny("vit")
    model = wrap(bare, preprocess=tiny_preprocess())
    names = [name for name, _ in model.named_modules()]
    assert not any("vit" in name or "classifier" in name for name in names)
    assert not hasattr(bare.vit.layers[0], "name")
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in bare.named_parameters()]
    assert model.state_dict().keys() == bare.state_dict().keys()


def test_to_and_train_reach_the_users_module():
    model = wrap(tiny("vit"), preprocess=tiny_preprocess())
    assert model.to(torch.float64) is model
    assert model.dtype == model.bare.dtype == model.cfg.dtype == torch.float64
    assert model.run(tiny_input("vit", dtype=torch.float64)).logits.dtype == torch.float64
    assert model.train().training and model.bare.training
    assert not model.eval().training and not model.bare.vit.layers[0].training


def test_unknown_name():
    with pytest.raises(UnknownName, match=r"unknown model 'scenes-vot'.*Nearest: .*scenes-vit"):
        mechvis.load("scenes-vot")


def test_unsupported_module_names_its_children():
    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.mixer = nn.Conv2d(3, 4, 1), nn.Linear(4, 4)

    with pytest.raises(
        UnsupportedModel, match=r"Strange.*stem: Conv2d, mixer: Linear.*wrap\(module, family=my_parts\)"
    ):
        mechvis.load(Strange().eval())


def test_bare_linear_has_no_children_to_name():
    with pytest.raises(UnsupportedModel, match="children are: none"):
        mechvis.load(nn.Linear(2, 2).eval())


@pytest.mark.parametrize("family", ["vit", "clip"])
def test_train_mode_is_refused_at_load(family):
    bare = tiny(family).train()
    with assert_untouched(bare), pytest.raises(TrainMode, match=r"train mode.*model\.eval\(\)"):
        mechvis.load(bare, preprocess=tiny_preprocess())


def test_processor_of_the_wrong_size():
    with pytest.raises(BadData, match=r"makes 16 x 16 pixels, the model takes 12 x 12"):
        mechvis.load(tiny("vit"), preprocess=tiny_preprocess(16).processor)


def test_preprocess_object_of_the_wrong_size():
    with pytest.raises(BadData, match=r"makes 16 x 16 pixels, the model takes 12 x 12"):
        mechvis.load(tiny("vit"), preprocess=tiny_preprocess(16))


def test_missing_processor_warns_and_uses_the_default_of_the_family():
    with pytest.warns(DefaultPreprocessing, match="default of Hugging Face ViT"):
        model = mechvis.load(tiny("vit"))
    assert isinstance(model.preprocess, Preprocess) and (model.preprocess.height, model.preprocess.width) == (12, 12)


@pytest.mark.parametrize("family", ["deit", "clip"])
def test_default_processor_fits_each_family(family):
    with pytest.warns(DefaultPreprocessing):
        model = mechvis.load(tiny(family))
    assert (model.preprocess.height, model.preprocess.width) == (12, 12)


def test_text_tower_needs_no_image_processor():
    assert mechvis.load(tiny("clip-text")).preprocess is None


def test_device_and_dtype_are_for_models_from_disk():
    with pytest.raises(BadData, match="move your module yourself"):
        mechvis.load(tiny("vit"), dtype=torch.float64)


@pytest.mark.parametrize("family", ["vit", "clip"])
def test_folder_round_trip(tmp_path, family):
    bare = tiny(family)
    bare.save_pretrained(tmp_path)
    tiny_preprocess().processor.save_pretrained(tmp_path)
    model = mechvis.load(tmp_path)
    tower = model.vision if family == "clip" else model
    assert tower.preprocess.source == "folder"
    expected = mechvis.load(bare, preprocess=tiny_preprocess())
    expected = expected.vision if family == "clip" else expected
    assert torch.equal(tower.run(tiny_input("vit")).output, expected.run(tiny_input("vit")).output)
    assert tower.fingerprint == expected.fingerprint
    assert mechvis.load(f"hf:{tmp_path}", dtype=torch.float64) is not None


class _Doubled(nn.Module):
    """As an adapter would be: acts on the weight."""

    def forward(self, weight):
        return weight + 0.1 * weight.mean()


def test_parametrised_linears_take_part():
    bare = tiny("vit")
    for layer in bare.vit.layers:
        parametrize.register_parametrization(layer.attention.o_proj, "weight", _Doubled())
        parametrize.register_parametrization(layer.mlp.fc1, "weight", _Doubled())
    bare.eval()
    model, pixels = wrap(bare, preprocess=tiny_preprocess()), tiny_input("vit")
    with torch.no_grad():
        assert torch.equal(model.run(pixels, capture="*resid_post").logits, bare(pixels).logits)
        run = model.run(pixels, capture=["*hook_result", "*hook_attn_out"])
        total = run.cache["result", 1].sum(2) + model.blocks[1].attn.b_O
        assert_close(total, run.cache["attn_out", 1], 1e-5)


class _LowRank(nn.Module):
    """A linear layer wrapped the way LoRA wraps it, without peft."""

    def __init__(self, base: nn.Linear, rank: int = 2):
        super().__init__()
        self.base = base
        generator = torch.Generator().manual_seed(3)
        self.down = nn.Parameter(torch.randn(rank, base.in_features, generator=generator).to(base.weight) * 0.3)
        self.up = nn.Parameter(torch.randn(base.out_features, rank, generator=generator).to(base.weight) * 0.3)

    @property
    def weight(self):
        return self.base.weight + self.up @ self.down

    @property
    def bias(self):
        return self.base.bias

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


def test_wrapped_linears_take_part_and_get_gradients():
    bare = tiny("vit", dtype=torch.float64)
    for layer in bare.vit.layers:
        layer.attention.o_proj = _LowRank(layer.attention.o_proj)
        layer.attention.v_proj = _LowRank(layer.attention.v_proj)
    bare.eval()
    model, pixels = wrap(bare, preprocess=tiny_preprocess()), tiny_input("vit", dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(model(pixels), bare(pixels).logits)
        run = model.run(pixels, capture=["*hook_result", "*hook_attn_out"])
        for layer in range(3):
            total = run.cache["result", layer].sum(2) + model.blocks[layer].attn.b_O
            assert_close(total, run.cache["attn_out", layer], 1e-12)
    model.run(pixels, grad=True).logits.sum().backward()
    assert bare.vit.layers[0].attention.o_proj.up.grad.abs().sum() > 0


class _Shifted(ViTForImageClassification):
    def forward(self, pixel_values, **kwargs):
        output = super().forward(pixel_values, **kwargs)
        output.logits = output.logits * 1.01
        return output


def test_changed_forward_is_found_by_the_parity_check():
    bare = tiny("vit")
    bare.__class__ = _Shifted
    with (
        assert_untouched(bare),
        pytest.raises(ParityError, match=r"_Shifted does not reproduce the bare one.*allowed 1e-05"),
    ):
        mechvis.load(bare, preprocess=tiny_preprocess())


def test_changed_block_is_found_by_the_parity_check():
    bare = tiny("vit")
    bare.vit.layers[1].forward = lambda x, *args, **kwargs: x
    with pytest.raises(ParityError, match="family's map is wrong"):
        mechvis.load(bare, preprocess=tiny_preprocess())


def test_external_family():
    bare = ShortcutViT()
    with assert_untouched(bare), warnings.catch_warnings():
        model = wrap(bare, family=shortcut_parts, preprocess=shortcut_preprocess())
        assert model.parity.plain == 0 and model.parity.hooked == 0
        images = shortcut_images(7)
        assert torch.equal(model.run(images.pixels, capture="*").logits, bare(images.pixels).detach())
    with pytest.raises(UnsupportedModel, match="ShortcutViT"):
        mechvis.load(ShortcutViT())


def test_parity_can_be_checked_again_after_the_weights_changed():
    model = wrap(tiny("vit"), preprocess=tiny_preprocess())
    model.bare.vit.layers[0].attention.o_proj.weight.data.mul_(2)
    assert check_parity(model, seed=5).plain == 0
    assert "float32" in str(model.parity)


def test_every_load_error_is_ours():
    for bad in ("nothing-here", nn.Identity().eval()):
        with pytest.raises(MechvisError):
            mechvis.load(bad)


def _install(folder, value, code):
    """A package that offers a family, as pip would leave it."""
    (folder / "other_vit.py").write_text(code)
    info = folder / "other_vit-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-vit\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[mechvis.families]\nshortcut = {value}\n")


def test_family_of_an_installed_package(tmp_path, monkeypatch):
    code = (
        "from mechvis.testing import ShortcutViT, shortcut_parts\n"
        "FAMILY = (lambda module: isinstance(module, ShortcutViT), shortcut_parts)\n"
    )
    _install(tmp_path, "other_vit:FAMILY", code)
    monkeypatch.syspath_prepend(tmp_path)
    model = mechvis.load(ShortcutViT(), preprocess=shortcut_preprocess())
    assert model.parity.plain == 0 and model.family is shortcut_parts
    assert mechvis.load(tiny("vit"), preprocess=tiny_preprocess()).parts.family == "Hugging Face ViT"
    check_family(ShortcutViT(), preprocess=shortcut_preprocess())


def test_family_that_cannot_be_imported_is_named(tmp_path, monkeypatch):
    _install(tmp_path, "other_vit:GONE", "")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnsupportedModel, match=r"'shortcut' that the package other-vit offers under 'other_vit:GONE'"):
        mechvis.load(ShortcutViT())
    assert mechvis.load(tiny("vit"), preprocess=tiny_preprocess()).parity.plain == 0  # ours need no other package


def test_package_has_its_say_about_its_own_subclass(tmp_path, monkeypatch):
    bare = tiny("vit")
    bare.__class__ = _Shifted
    code = (
        "from dataclasses import replace\n"
        "from mechvis.models.transformers.vit import vit\n"
        "def parts(module):\n"
        "    found = vit(module)\n"
        "    return replace(found, head=lambda x: found.head(x) * 1.01)\n"
        "FAMILY = (lambda module: type(module).__name__ == '_Shifted', parts)\n"
    )
    _install(tmp_path, "other_vit:FAMILY", code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "other_vit", raising=False)
    assert mechvis.load(bare, preprocess=tiny_preprocess()).parity.plain < 1e-6


def test_wrapping_twice_is_refused():
    model = wrap(tiny("vit"), preprocess=tiny_preprocess())
    with pytest.raises(BadData, match="wrapped already"):
        mechvis.load(model)


@pytest.mark.parametrize("size", [20, (16, 24)])
def test_other_image_size_with_its_processor(size):
    high, wide = (size, size) if isinstance(size, int) else size
    bare = tiny("vit")
    with assert_untouched(bare):
        model = mechvis.load(bare, preprocess=tiny_preprocess(), image_size=size)
        assert (model.preprocess.height, model.preprocess.width) == (high, wide) == model.parts.image_size
        assert model.graph["hook_embed"].sizes[1] == (high // 4) * (wide // 4) + 1
        images = [np.full((30, 40, 3), 90, np.uint8)]
        pixels = model.preprocess(images)
        assert pixels.shape[2:] == (high, wide)
        assert torch.equal(model.run(pixels).logits, bare(pixels, interpolate_pos_encoding=True).logits)
    with pytest.raises(BadImages, match=r"expected images of .* pixels"):
        model.run(tiny_input("vit"))


def test_size_that_makes_no_patch():
    with pytest.raises(BadData, match="smaller than one patch"):
        mechvis.load(tiny("vit"), preprocess=tiny_preprocess(), image_size=3)


def test_folder_without_a_model(tmp_path):
    with pytest.raises(BadData, match="cannot be read"):
        mechvis.load(tmp_path)
    bare = tiny("vit")
    bare.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(BadData, match=r"the weights of .* cannot be read"):
        mechvis.load(tmp_path)


def test_weights_that_are_missing_are_named(tmp_path):
    bare = tiny("vit")
    bare.vit.save_pretrained(tmp_path)
    bare.config.architectures = ["ViTForImageClassification"]
    bare.config.save_pretrained(tmp_path)
    with pytest.warns(
        MechvisWarning, match=r"lacks 2 of the weights .* random now: classifier.bias, classifier.weight"
    ):
        mechvis.load(tmp_path, preprocess=tiny_preprocess())


@pytest.mark.parametrize("family", tiny_families())
def test_every_family_is_read_from_its_folder(tmp_path, family):
    bare = tiny(family)
    bare.save_pretrained(tmp_path)
    tiny_preprocess().processor.save_pretrained(tmp_path)
    found, expected = mechvis.load(tmp_path), mechvis.load(bare, preprocess=tiny_preprocess())
    for name in ("vision", "text") if hasattr(found, "vision") else ("",):
        one, other = (getattr(model, name) if name else model for model in (found, expected))
        x = one.parts.example_batch(bare, torch.Generator().manual_seed(1))
        assert torch.equal(one.run(x).output, other.run(x).output)
        assert one.fingerprint == other.fingerprint
