"""open_clip models: the wrapped model is the bare one, over every option that open_clip's classes have.

Where nothing is masked, open_clip's `torch.nn.MultiheadAttention` takes a native path without a graph that rounds
differently. With a graph, or with that path switched off, everything is bitwise equal.
"""

import json
import warnings

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip import factory
from open_clip.coca_model import CoCa
from open_clip.hf_model import HFTextEncoder
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.timm_model import TimmModel
from safetensors.torch import save_file
from torch import nn
from transformers import RobertaConfig

import mechvis
from mechvis.clip import HookedCLIP
from mechvis.decompose import terms
from mechvis.errors import (
    BadData,
    BadImages,
    DefaultPreprocessing,
    MechvisWarning,
    RefusedMethod,
    UnknownName,
    UnsupportedModel,
)
from mechvis.hooked import HookedViT
from mechvis.models import open_clip as maps
from mechvis.models.load import wrap
from mechvis.models.torch_attention import attention
from mechvis.testing import assert_close, assert_untouched, check_family
from mechvis.testing.tiny import randomise

VISION = {"image_size": 12, "patch_size": 4, "width": 16, "head_width": 4, "layers": 3, "mlp_ratio": 2.0}
TEXT = {"context_length": 10, "vocab_size": 50, "width": 16, "heads": 4, "layers": 2, "mlp_ratio": 2.0}
POOL = {"attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 2}
DECODER = {"context_length": 10, "vocab_size": 50, "width": 16, "heads": 4, "layers": 1}
SIGMOID = {"init_logit_bias": -10.0}
DTYPES = (torch.float32, torch.float64)

# name -> class, more of the vision tower, more of the text tower, more of the model
MODELS = {
    "CLIP": (CLIP, {}, {}, {}),
    "CLIP with QuickGELU": (CLIP, {}, {}, {"quick_gelu": True}),
    "mean": (CLIP, {"pool_type": "avg"}, {"pool_type": "last"}, {}),
    "CLIPA": (
        CLIP,
        {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
        {"pool_type": "last", "no_causal_mask": True},
        {},
    ),
    "norm after the token": (CLIP, {"final_ln_after_pool": True}, {"pool_type": "eos", "eos_id": 7}, {}),
    "LayerScale": (CLIP, {"ls_init_value": 0.1}, {"ls_init_value": 0.1}, {}),
    "fixed positions, patch dropout": (CLIP, {"pos_embed_type": "sin_cos_2d", "patch_dropout": 0.5}, {}, {}),
    "oblong": (CLIP, {"image_size": (8, 16), "patch_size": (4, 2)}, {}, {}),
    "text tower apart": (CustomTextCLIP, {"output_tokens": True}, {"output_tokens": True}, {}),
    "text with a linear projection": (
        CustomTextCLIP,
        {},
        {"no_causal_mask": True, "pool_type": "last", "proj_bias": True, "norm_kwargs": {"eps": 1e-3}},
        SIGMOID,
    ),
    "text without a projection": (
        CustomTextCLIP,
        {},
        {"no_causal_mask": True, "pool_type": "first", "proj_type": "none", "width": 8, "heads": 2},
        {**SIGMOID, "nonscalar_logit_scale": True},
    ),
    "query-key norm": (CLIP, {"qk_norm": True}, {"qk_norm": True}, {}),
    "gains of heads": (CLIP, {"scale_heads": True}, {"scale_heads": True}, {}),
    "norm before the output": (CLIP, {"scale_attn_inner": True}, {"scale_attn_inner": True}, {}),
    "norm after attention": (CLIP, {"scale_attn": True}, {"scale_attn": True}, {}),
    "norm in the MLP": (CLIP, {"scale_fc": True}, {"scale_fc": True}, {}),
    "own attention, nothing more": (CLIP, {"block_type": "custom"}, {"block_type": "custom"}, {}),
    "everything inside": (
        CLIP,
        {k: True for k in ("qk_norm", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc")}
        | {"ls_init_value": 0.1},
        {"qk_norm": True, "scale_heads": True, "scale_attn_inner": True, "scale_attn": True, "ls_init_value": 0.1},
        {},
    ),
    "CoCa": (
        CoCa,
        {**POOL, "output_tokens": True},
        {"embed_cls": True, "output_tokens": True},
        {"multimodal_cfg": DECODER},
    ),
    "attention pooling": (CLIP, POOL, {}, {"embed_dim": 16}),
    "attention pooling, mean of the latents": (CLIP, {**POOL, "pool_type": "avg"}, {}, {}),
}


def make(name, dtype=torch.float32):
    cls, vision, text, more = MODELS[name]
    more = {"embed_dim": 8, **more}
    return dressed(cls(vision_cfg={**VISION, **vision}, text_cfg={**TEXT, **text}, **more)).to(dtype)


def dressed(model):
    """Nothing left at a value that hides a mistake."""
    randomise(model, 0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("gamma", "head_scale")):
                parameter.copy_(0.7 + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def quiet(model, **more):
    """Wrapped without a word about default preprocessing or a tower that is left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DefaultPreprocessing)
        warnings.simplefilter("ignore", MechvisWarning)
        return wrap(model, **more)


def towers(model):
    return (model.vision, model.text) if isinstance(model, HookedCLIP) else (model,)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:CoCa. only the vision tower")
def test_family(name, dtype, families_table):
    bare = make(name, dtype)
    measured = check_family(bare)
    for found in measured:
        assert found.gradients == 0, "bitwise with a graph"
        assert found.outputs <= (1e-6 if dtype == torch.float32 else 1e-14)
    if dtype == torch.float32:
        families_table.setdefault("open_clip", {})[f"{type(bare).__name__} ({name})"] = measured


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_bitwise_but_for_the_native_path(name, dtype, no_native_path):
    bare = make(name, dtype)
    with assert_untouched(bare):
        for tower in towers(quiet(bare)):
            assert tower.parity.plain == 0
            inputs = tower.parts.example_batch(bare, torch.Generator().manual_seed(3))
            with torch.no_grad():
                assert torch.equal(tower(inputs), tower.parts.reference(inputs))
                hooked = tower.run(inputs, capture=["*hook_z", "*hook_resid_post"])
                assert torch.equal(hooked.output, tower.parts.reference(inputs))


@pytest.mark.parametrize("name", ["CLIP", "everything inside", "attention pooling"])
def test_in_bfloat16(name):
    # precision="pure_bf16"
    for found in check_family(make(name, torch.bfloat16)):
        assert found.gradients == 0


def test_weights_and_activations_are_read_live():
    bare = make("CLIP")
    model = quiet(bare)
    pixels = model.vision.parts.example_batch(bare, torch.Generator().manual_seed(3)).requires_grad_()
    block = bare.visual.transformer.resblocks[1]
    with torch.no_grad():
        block.attn.in_proj_weight[16:32] *= 2
        block.attn.out_proj.bias += 1
        bare.visual.proj *= 1.5
        bare.visual.positional_embedding += 0.1
    assert torch.equal(model.vision(pixels), bare.visual(pixels))
    block.mlp.gelu.forward = torch.relu
    assert torch.equal(model.vision(pixels), bare.visual(pixels))
    assert torch.equal(model.vision.W_O[1].flatten(0, 1).T, block.attn.out_proj.weight)
    assert torch.equal(model.vision.W_K[1], block.attn.in_proj_weight[16:32].unflatten(0, (4, 4)).transpose(1, 2))


def test_towers_alone():
    bare = make("text with a linear projection")
    model = quiet(bare)
    for alone, tower in ((bare.visual, model.vision), (bare.text, model.text)):
        found = check_family(alone)[0]
        assert found.gradients == 0
        inputs = tower.parts.example_batch(bare, torch.Generator().manual_seed(3))
        assert torch.equal(quiet(alone)(inputs), tower(inputs))


def test_shorter_texts_read_alike_where_attention_is_causal():
    # Upstream refuses them; causal attention cannot see what is missing.
    model = quiet(make("CLIP", torch.float64)).text
    ids = model.parts.example_batch(model.bare, torch.Generator().manual_seed(3))
    assert_close(model.run(ids[:, :7]).output, model.run(ids).output, 1e-14)


# timm trunks

TRUNKS = {
    "SigLIP": ("vit_base_patch16_siglip_224", {"pool": "map", "proj": "none"}, {}),
    "EVA": ("eva02_base_patch16_clip_224", {"pool": "token", "proj": "linear"}, {}),
    "mean, bias": ("vit_base_patch16_224", {"pool": "avg", "proj": "linear", "proj_bias": True}, {}),
    "MLP": ("vit_base_patch16_224", {"pool": "avg", "proj": "mlp", "drop": 0.3}, {}),
    "the trunk's own head": ("vit_base_patch16_224", {"pool": "token", "proj": ""}, {}),
    "any size": ("vit_base_patch16_siglip_224", {"pool": "map", "proj": "none"}, {"dynamic_img_size": True}),
}


def with_trunk(name, monkeypatch, dtype=torch.float32):
    architecture, settings, more = TRUNKS[name]
    create, small = timm.create_model, {"img_size": 32, "embed_dim": 24, "depth": 3, "num_heads": 3, **more}
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **given: create(name, **given, **small))
    model = CustomTextCLIP(embed_dim=24, vision_cfg=VISION, text_cfg=TEXT, **SIGMOID)
    model.visual = TimmModel(architecture, embed_dim=24, image_size=32, **settings)
    return dressed(model).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", TRUNKS)
def test_timm_trunks(name, dtype, monkeypatch, families_table):
    bare = with_trunk(name, monkeypatch, dtype)
    vision, text = measured = check_family(bare)
    if dtype == torch.float32:
        families_table.setdefault("open_clip", {})[f"CustomTextCLIP (timm trunk: {name})"] = measured
    assert vision.outputs == 0 == text.gradients  # timm calls fused attention, always
    assert (vision.other_size is not None) == (name == "any size")
    clip = quiet(bare)
    assert clip.vision.output_site == ("hook_pooled" if TRUNKS[name][1]["proj"] == "none" else "hook_embedding")
    assert check_family(bare.visual)[0].outputs == 0  # the tower alone


# what has no map


def replaced(model, path, module):
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, name, module)
    return model.eval()


def text_of_hugging_face():
    config = RobertaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    return HFTextEncoder("", 8, config=config, pooler_type="mean_pooler", proj_type="linear", pretrained=False)


class Adapter(nn.Module):
    """As adapters do it: a module of another class around the attention."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **settings):
        return self.inner(*args, **settings)


def changed(cls=CLIP, vision=None, text=None, **more):
    return cls(embed_dim=8, vision_cfg={**VISION, **(vision or {})}, text_cfg={**TEXT, **(text or {})}, **more).eval()


def mixed():
    model = make("CLIP")
    open_clip.model.convert_weights_to_lp(model, torch.bfloat16)
    return model


NO_MAP = {
    "a ResNet": (lambda: changed(vision={"layers": (1, 1, 1, 1), "head_width": 8}), "ModifiedResNet is no transformer"),
    "all tokens": (lambda: changed(vision={"pool_type": "none"}), "'none' returns all its tokens"),
    "two poolers": (
        lambda: changed(vision={**POOL, "attentional_pool": "parallel"}),
        "two attention poolers.*parallel",
    ),
    "cosine attention": (lambda: changed(vision={"scaled_cosine_attn": True}), "scaled cosine attention"),
    "mixed types": (mixed, r"mixes types \(torch.bfloat16 products, torch.float32 else\).*pure_bf16"),
    "an adapter": (
        lambda: replaced(make("CLIP"), "visual.transformer.resblocks.1.attn", Adapter(nn.MultiheadAttention(16, 4))),
        r"Adapter stands where torch.nn.MultiheadAttention is expected",
    ),
    "an unknown block": (
        lambda: replaced(make("CLIP"), "visual.transformer.resblocks.1", nn.Identity()),
        r"visual.transformer.resblocks.1 is a Identity, which has no map",
    ),
}


@pytest.mark.parametrize("name", NO_MAP)
def test_no_map(name):
    build, words = NO_MAP[name]
    with pytest.raises(UnsupportedModel, match=words):
        quiet(build())


def test_no_map_of_a_trunk(monkeypatch):
    bare = with_trunk("SigLIP", monkeypatch)
    pooled = replaced(bare, "visual.head", nn.Sequential())
    pooled.visual.head.add_module("pool", nn.Identity())
    with pytest.raises(UnsupportedModel, match="pooling Identity over a timm trunk"):
        quiet(pooled)
    with pytest.raises(UnsupportedModel, match="timm trunk Identity is no vision transformer"):
        quiet(replaced(bare, "visual.trunk", nn.Identity()))


TEXTS_WITHOUT_MAP = {
    "Hugging Face": (
        lambda: replaced(changed(CustomTextCLIP), "text", text_of_hugging_face()),
        "the text tower HFTextEncoder has no map",
    ),
    "CoCa": (lambda: make("CoCa"), "appended class token"),
    "padding": (lambda: masked(), "use_pad_mask"),
    "all tokens": (lambda: changed(CustomTextCLIP, text={"pool_type": "none"}), "'none' returns all its tokens"),
}


def masked():
    model = changed(CustomTextCLIP, text={"no_causal_mask": True})
    model.text.use_pad_mask = True
    return model


@pytest.mark.parametrize("name", TEXTS_WITHOUT_MAP)
def test_a_text_tower_without_a_map_leaves_the_vision_tower(name):
    build, words = TEXTS_WITHOUT_MAP[name]
    bare = build()
    with pytest.warns(MechvisWarning, match=f"only the vision tower is wrapped.*{words}"), warnings.catch_warnings():
        warnings.simplefilter("ignore", DefaultPreprocessing)
        model = mechvis.load(bare)
    assert isinstance(model, HookedViT) and model.parts.modality == "image"
    with pytest.raises(UnsupportedModel, match=words):
        quiet(bare.text)


def test_attention_that_has_keys_of_no_token():
    for more in ({"add_bias_kv": True}, {"add_zero_attn": True}):
        with pytest.raises(UnsupportedModel, match="keys of no token"):
            attention(nn.MultiheadAttention(8, 2, **more))


def test_scaled_cosine_attention_fails_upstream_too():
    # Once it does not, it deserves a map.
    bare = changed(vision={"scaled_cosine_attn": True})
    with pytest.raises(RuntimeError, match="batch1 must be a 3D tensor"):
        bare.visual(torch.zeros(1, 3, 12, 12))


# both towers together


def with_words(name, dtype=torch.float64):
    """A model with open_clip's real vocabulary, and its tokenizer."""
    cls, vision, text, more = MODELS[name]
    text = {**TEXT, **text, "vocab_size": 49408}
    bare = dressed(cls(vision_cfg={**VISION, **vision}, text_cfg=text, **{"embed_dim": 8, **more})).to(dtype)
    return quiet(bare, tokenizer=open_clip.SimpleTokenizer(context_length=10))


NAMES = ["tench", "goldfish", "great white shark", "tiger shark", "hammerhead"]


@pytest.mark.parametrize(
    "name", ["CLIP", "norm after the token", "text with a linear projection", "text without a projection"]
)
def test_similarity_is_upstreams(name):
    clip = with_words(name)
    clip.bare.text_eos_id = 49407
    pixels, texts = torch.randn(4, 3, 12, 12, dtype=torch.float64), ["a photo of a tench", "goldfish", "!"]
    with assert_untouched(clip), torch.no_grad():
        expected, _ = clip.bare.get_logits(pixels, clip.tokenizer(texts))
        found = clip.similarity(pixels, texts)
        assert_close(found, expected, 1e-13)
        features, *_ = clip.bare(image=pixels)
        assert_close(clip.encode_image(pixels), features, 1e-13)
    assert_close(clip.probabilities(found), expected.sigmoid() if "text w" in name else expected.softmax(1), 1e-12)


@pytest.mark.parametrize("name", ["CLIP", "text with a linear projection"])
def test_a_classifier_is_open_clips_zero_shot_classifier(name):
    clip = with_words(name)
    templates = open_clip.OPENAI_IMAGENET_TEMPLATES
    with pytest.warns(MechvisWarning, match="longer than the 10 tokens"):  # "a cropped photo of the hammerhead shark"
        model = clip.classifier([*NAMES, "yet another kind of shark that is hard to name"], templates[:8], batch_size=5)
    with torch.no_grad():
        upstream = open_clip.build_zero_shot_classifier(
            clip.bare, clip.tokenizer, [*NAMES, "yet another kind of shark that is hard to name"], templates[:8]
        )
    pixels = torch.randn(4, 3, 12, 12, dtype=torch.float64)
    expected = clip.encode_image(pixels) @ upstream * clip.logit_scale.detach()
    expected = expected if clip.logit_bias is None else expected + clip.logit_bias.detach()
    assert_close(model.run(pixels).logits, expected, 1e-12)


def test_open_clips_own_tokenizer_and_a_hugging_face_one():
    clip = with_words("CLIP")
    longest = " ".join(["shark"] * 8)  # with start and end of text: 10 tokens
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids = clip.tokenize([longest, "tench !!!!!"])
    assert torch.equal(ids, clip.tokenizer([longest, "tench !!!!!"]))
    with pytest.warns(MechvisWarning, match=r"2 of 3 texts are longer than the 10 tokens.*'shark shark"):
        clip.tokenize([longest + " shark", "shark", "one two three four five six seven eight nine"])

    def hugging_face(texts, *, padding, truncation, max_length=None, return_tensors=None):
        rows = [[49406, *clip.tokenizer.encode(text), 49407] for text in texts]
        if padding:
            assert padding == "max_length" and truncation
            rows = [row + [49407] * (max_length - len(row)) for row in rows]
        return {"input_ids": torch.tensor(rows) if return_tensors else rows}

    other = quiet(clip.bare, tokenizer=hugging_face)
    assert_close(other.encode_text(NAMES), clip.encode_text(NAMES), 1e-14)  # causal: padding is not seen


@pytest.mark.parametrize("name", ["CLIP", "text with a linear projection", "everything inside", "attention pooling"])
def test_a_sweep_of_a_classifier(name):
    model = with_words(name).classifier(NAMES)
    pixels = torch.randn(4, 3, 12, 12, dtype=torch.float64)
    for edit in ("zero", "resample"):
        fast, slow = (
            mechvis.sweep(model, pixels, edit=edit, metric="logit_diff", engine=engine, progress=False)
            for engine in ("wave", "plain")
        )
        size = np.abs(slow.values["logit_diff"]).max()
        assert size > 0 and np.abs(fast.values["logit_diff"] - slow.values["logit_diff"]).max() < 1e-11 * size


# names

SMALL = {"embed_dim": 8, "vision_cfg": VISION, "text_cfg": {**TEXT, "vocab_size": 49408}}


@pytest.fixture
def small(monkeypatch, tmp_path):
    """An architecture of open_clip's under the name `small`, and a file with weights for it."""
    monkeypatch.setitem(factory._MODEL_CONFIGS, "small", SMALL)
    torch.manual_seed(0)
    bare = dressed(CLIP(**SMALL))
    save_file(bare.state_dict(), tmp_path / "small.safetensors")
    return bare, tmp_path / "small.safetensors"


def tag(monkeypatch, file, **settings):
    known = {"mine": {"file": str(file), "hf_hub": "", "url": "", **settings}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "small", known)


def test_a_file(small):
    bare, file = small
    clip = mechvis.load(f"open_clip:small/{file}")
    pixels = torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        assert_close(clip.vision(pixels), bare.visual(pixels), 1e-6)
    assert clip.preprocess.source == "open_clip" and clip.tokenizer(["a"]).shape == (1, 10)
    assert clip.classifier(NAMES).run(pixels).logits.shape == (2, 5)
    assert isinstance(clip.tokenizer, open_clip.SimpleTokenizer)


def test_a_file_at_another_size(small):
    _, file = small
    clip = mechvis.load(f"open_clip:small/{file}", image_size=20)
    assert clip.vision.parts.grid == (5, 5) and clip.preprocess.height == 20
    model = open_clip.create_model("small", pretrained=str(file), force_image_size=20, weights_only=True).eval()
    pixels = torch.randn(2, 3, 20, 20)
    with torch.no_grad():
        assert_close(clip.vision(pixels), model.visual(pixels), 1e-6)
    with pytest.raises(BadImages, match="expected images of 20 x 20"):
        clip.vision.run(pixels[..., :12, :12])


def test_a_tag_brings_its_preprocessing(small, monkeypatch):
    _, file = small
    tag(monkeypatch, file, mean=(0.5, 0.5, 0.5), std=(0.25, 0.5, 0.5), resize_mode="squash", interpolation="bilinear")
    clip = mechvis.load("open_clip:small/mine")
    assert clip.preprocess.mean == (0.5, 0.5, 0.5) and clip.preprocess.std == (0.25, 0.5, 0.5)
    model, _, transform = open_clip.create_model_and_transforms("small", pretrained="mine")
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, (31, 20, 3), dtype=np.uint8)
    assert torch.equal(clip.preprocess([image])[0], transform(Image.fromarray(image)))
    # A model of open_clip's factory carries its preprocessing with it.
    again = mechvis.load(model.eval())
    assert again.preprocess.source == "open_clip"
    assert again.preprocess.fingerprint == clip.preprocess.fingerprint


def test_the_warning_about_quick_gelu_is_passed_on(small, monkeypatch):
    _, file = small
    tag(monkeypatch, file, quick_gelu=True)
    with pytest.warns(UserWarning, match="QuickGELU mismatch"):
        mechvis.load("open_clip:small/mine")


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".npz"])
def test_pickled_files_are_refused_unread(small, monkeypatch, suffix):
    _, file = small
    pickled = file.with_suffix(suffix)
    pickled.write_bytes(b"whatever this is, nobody may read it")
    words = rf"open_clip would read small\{suffix}; weights are read as safetensors only"
    with pytest.raises(BadData, match=words):
        mechvis.load(f"open_clip:small/{pickled}")
    tag(monkeypatch, pickled)
    with pytest.raises(BadData, match=words):
        mechvis.load("open_clip:small/mine")


def test_a_folder_of_open_clips(small, tmp_path):
    bare, file = small
    folder = tmp_path / "saved"
    folder.mkdir()
    settings = {"model_cfg": SMALL, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}
    (folder / "open_clip_config.json").write_text(json.dumps(settings))
    with pytest.raises(BadData, match="safetensors only"):
        mechvis.load(f"open_clip:local-dir:{folder}")  # no weights in it
    file.rename(folder / "open_clip_model.safetensors")
    clip = mechvis.load(f"open_clip:local-dir:{folder}")
    assert clip.preprocess.mean == (0.5, 0.5, 0.5)
    assert torch.equal(clip.bare.visual.proj, bare.visual.proj)
    (folder / "open_clip_model.safetensors").rename(folder / "open_clip_pytorch_model.bin")
    with pytest.raises(BadData, match=r"read open_clip_pytorch_model\.bin;"):
        mechvis.load(f"open_clip:local-dir:{folder}")


def test_names_that_name_nothing(small, monkeypatch, tmp_path):
    tag(monkeypatch, small[1])
    with pytest.raises(UnknownName, match=r"architecture of open_clip 'ViT-B-31'.*ViT-B-32"):
        mechvis.load("open_clip:ViT-B-31/openai")
    with pytest.raises(UnknownName, match=r"tag of open_clip's small 'mein'\. Nearest: mine"):
        mechvis.load("open_clip:small/mein")
    with pytest.raises(BadData, match=r"names no weights.*tags are mine.*create_model\('small'\)\.eval\(\)"):
        mechvis.load("open_clip:small")
    with pytest.raises(BadData, match="there is no file"):
        mechvis.load(f"open_clip:small/{tmp_path}/none.safetensors")

    def offline(*args, **kwargs):
        raise FileNotFoundError("no network")

    monkeypatch.setattr(factory, "download_pretrained", offline)
    monkeypatch.setattr(factory, "download_pretrained_from_hf", offline)
    for name in ("small/mine", "hf-hub:somebody/model"):
        with pytest.raises(BadData, match=rf"open_clip:{name}: the weights cannot be fetched \(no network\)"):
            mechvis.load(f"open_clip:{name}")


def test_family_of_strangers():
    assert maps.family_of(nn.Linear(2, 2)) is None and maps.two_towers(nn.Linear(2, 2)) is None


# models of real size, with random weights


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B-16-SigLIP", "coca_ViT-B-32"])
def test_real_size(name):
    torch.manual_seed(0)
    bare = open_clip.create_model(name).eval()
    model = quiet(bare)
    for tower in towers(model):
        assert tower.parity.plain < 1e-5 and tower.parity.hooked < 1e-5
        inputs = tower.parts.example_batch(bare, torch.Generator().manual_seed(3))
        assert_close(tower(inputs).detach(), tower.parts.reference(inputs).detach(), 0)  # with a graph: bitwise
    if isinstance(model, HookedCLIP):
        clip = quiet(bare, tokenizer=open_clip.SimpleTokenizer(context_length=model.text.parts.n_tokens))
        if name == "ViT-B-32":
            pixels = torch.randn(2, 3, 224, 224)
            with torch.no_grad():
                expected, _ = bare.get_logits(pixels, clip.tokenizer(NAMES))
            assert_close(clip.similarity(pixels, NAMES), expected, 1e-5)


NO_SUM = {
    "norm after attention": ("image text", "norm after the sub-layers"),
    "everything inside": ("image text", "norm after the sub-layers"),
    # Their attention pooling has a norm behind it, inside the pooling.
    "CoCa": ("image", "no fixed mixture of tokens"),
    "attention pooling": ("image", "no fixed mixture of tokens"),
    "attention pooling, mean of the latents": ("image", "no fixed mixture of tokens"),
}
"""Towers whose output is no sum of what the blocks write, and what is said."""


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore:CoCa. only the vision tower")
def test_parts_add_up_to_the_output_or_are_refused(name):
    for tower in towers(quiet(make(name, torch.float64))):
        x = tower.parts.example_batch(tower.bare, torch.Generator().manual_seed(0))
        where, said = NO_SUM.get(name, ("", ""))
        if tower.parts.modality in where.split():
            with pytest.raises((RefusedMethod, UnsupportedModel), match=said):
                terms(tower, x)
            continue
        for convention in ("linear", "even_split"):
            found = terms(tower, x, convention=convention)
            torch.testing.assert_close(found.values.sum(1), tower.run(x).output, atol=1e-10, rtol=0)
