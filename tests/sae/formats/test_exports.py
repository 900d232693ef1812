"""What a format cannot say is refused with the reason; what it can is folded by rule; bad files are named."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sae
from mechvis.errors import (
    BadData,
    FailedCheck,
    MechvisError,
    MechvisWarning,
    NotFinite,
    RefusedMethod,
    ShapeMismatch,
    StoreCorrupt,
    UnknownName,
)
from sae.architectures import named
from sae.formats import FORMATS, load, save, unscaled
from sae.formats.convert import _module

HERE = Path(__file__).parent / "fixtures"
D, N, K = 8, 16, 3


def rows(scale: float = 3.0) -> torch.Tensor:
    return scale * (torch.randn(300, D, generator=torch.Generator().manual_seed(0)) + 0.3)


def dictionary(name: str = "topk", **settings) -> sae.Dictionary:
    """Untrained, with something in every parameter."""
    settings = {"k": K} | settings if name in ("topk", "batch_topk") else settings
    d = sae.start(named(name)(n_latents=N, **settings), {"blocks.1.hook_resid_post": rows()})
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, p in d.named_parameters():
            if key != "W_dec" or d.architecture.decoder == "free":
                p.add_(0.3 * torch.randn(p.shape, generator=g))
        if name == "batch_topk":
            d.threshold.fill_(0.6)
        if name == "jumprelu" and not d.architecture.log_threshold:
            d.threshold.abs_()
    return d


@pytest.fixture
def copied(tmp_path):
    def copy(name: str) -> Path:
        return Path(shutil.copytree(HERE / name, tmp_path / name.replace("/", "_")))

    return copy


# -- constant scales: the four rules -----------------------------------------------------------------------


@pytest.mark.parametrize("decoder", ["unit", "free"])
@pytest.mark.parametrize("name", ["relu", "gated", "jumprelu", "topk", "batch_topk"])
@pytest.mark.parametrize("normalise", ["mean_square", "mean_norm"])
def test_a_constant_scale_goes_into_the_weights(name, decoder, normalise):
    settings = {"l0": 4.0} if name == "jumprelu" else {}
    d = dictionary(name, decoder=decoder, normalise=normalise, **settings)
    c = float(d.scale_in[0])
    assert c > 2
    e = unscaled(d)
    assert torch.allclose(e.encode(rows()), d.encode(rows()), atol=1e-5)
    assert torch.allclose(e(rows()), d(rows()), atol=1e-4)
    assert torch.allclose(e.W_enc, d.W_enc / c) and torch.allclose(e.W_dec, d.W_dec * c)
    assert torch.allclose(e.b_dec, d.b_dec * c)
    if hasattr(d, "b_enc"):
        assert torch.equal(e.b_enc, d.b_enc)


def test_saelens_763_a_threshold_over_norms_moves_with_the_scale():
    """Rule 4: without it the folded dictionary has another L0."""
    d = dictionary("batch_topk", decoder="free", normalise="mean_square")
    e, c = unscaled(d), float(d.scale_in[0])
    assert float(e.threshold) == pytest.approx(0.6 * c, rel=1e-6)
    wanted = float((d.encode(rows()) > 0).sum(1).float().mean())
    assert float((e.encode(rows()) > 0).sum(1).float().mean()) == pytest.approx(wanted, abs=1e-6)
    with torch.no_grad():
        e.threshold.fill_(0.6)  # the defect
    assert float((e.encode(rows()) > 0).sum(1).float().mean()) > wanted + 0.5


def test_a_threshold_of_latents_stays():
    d = dictionary("jumprelu", l0=4.0, log_threshold=False)
    assert torch.equal(unscaled(d).threshold, d.threshold)
    untrained = dictionary("batch_topk", decoder="free", normalise="mean_square")
    with torch.no_grad():
        untrained.threshold.fill_(-1)
    assert float(unscaled(untrained).threshold) == -1


def test_a_transcoder_has_two_scales():
    site = {"a": rows(), "b": 5 * rows()[:, :6]}
    d = sae.start(named("topk")(n_latents=N, k=K, skip=True, decoder="free"), site, reads="a", writes="b")
    with torch.no_grad():
        for p in d.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)))
    e = unscaled(d)
    assert torch.allclose(e(rows()), d(rows()), atol=1e-4, rtol=1e-4)
    assert float(d.scale_in[0]) != pytest.approx(float(d.scale_out[0]), rel=0.1)


def test_a_scale_of_each_row_cannot_be_folded():
    with pytest.raises(RefusedMethod, match="every row by its own norm; that cannot be folded"):
        unscaled(dictionary(normalise="token_norm"))
    with pytest.raises(RefusedMethod, match="cannot be folded into its weights"):
        unscaled(sae.start(named("crosscoder")(n_latents=N), {"a": rows(), "b": rows()}))


def test_a_pursuit_comes_out_in_the_units_of_rows(tmp_path):
    d = dictionary("matching_pursuit", k=K, normalise="mean_square")
    e = load(save(d, tmp_path / "mp", format="saelens"))
    assert torch.allclose(e(rows()), d(rows()), atol=1e-4)
    assert torch.allclose(e.encode(rows()), d.encode(rows()) * d.scale_in[0], atol=1e-3)


# -- what formats cannot say -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["sparsify", "dictionary_learning", "visaebench", "overcomplete"])
def test_token_norm_is_refused_with_the_reason(form, tmp_path):
    with pytest.raises(RefusedMethod, match=rf"own norm. {form} has no such scale.*would mean something else"):
        save(dictionary(normalise="token_norm"), tmp_path / "x", format=form)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["relu", "jumprelu", "gated", "batch_topk"])
def test_sparsify_is_topk_alone(name, tmp_path):
    settings = {"l0": 4.0} if name == "jumprelu" else {}
    with pytest.raises(RefusedMethod, match=f"no place for '{name}'; it holds TopK"):
        save(dictionary(name, normalise="mean_square", **settings), tmp_path, format="sparsify")


def test_other_refusals_say_what_is_missing(tmp_path):
    with pytest.raises(RefusedMethod, match="no bias of the decoder"):
        save(dictionary(), tmp_path, format="overcomplete")
    with pytest.raises(BadData, match="no threshold yet, which saelens needs"):
        d = dictionary("batch_topk")
        d.threshold.fill_(-1)
        save(d, tmp_path, format="saelens")
    with pytest.raises(RefusedMethod, match="crosscoder of a, b"):
        d = sae.start(named("topk")(n_latents=N, k=K), {"a": rows(), "b": rows()})
        save(d, tmp_path, format="saelens")
    transcoder = sae.start(named("topk")(n_latents=N, k=K), {"a": rows(), "b": rows()}, reads="a", writes="b")
    with pytest.raises(RefusedMethod, match="no transcoders; this writes b"):
        save(transcoder, tmp_path, format="dictionary_learning")
    with pytest.raises(RefusedMethod, match="ReLU and JumpReLU transcoders"):
        save(transcoder, tmp_path, format="saelens")
    with pytest.raises(RefusedMethod, match="holds transcoders"):
        save(dictionary("relu"), tmp_path, format="circuit_tracer")
    with pytest.raises(RefusedMethod, match="no place for 'crosscoder'"):
        save(sae.start(named("crosscoder")(n_latents=N), {"a": rows(), "b": rows()}), tmp_path, format="prisma")


def test_thresholds_below_zero_are_refused_unless_by_a_hair(tmp_path):
    d = dictionary("jumprelu", l0=4.0, log_threshold=False)
    with torch.no_grad():
        d.threshold[2] = -0.0005
    assert float(load(save(d, tmp_path / "a", format="saelens")).threshold.detach().min()) == 0
    with torch.no_grad():
        d.threshold[2] = -0.5
    with pytest.raises(RefusedMethod, match="1 thresholds are below zero, so codes can be negative"):
        save(d, tmp_path / "b", format="saelens")


def test_a_dictionary_with_nan_is_not_written(tmp_path):
    d = dictionary()
    with torch.no_grad():
        d.W_dec[3, 2] = float("nan")
    for form in ("saelens", "sparsify", "dictionary_learning", "prisma", "mechvis"):
        with pytest.raises(NotFinite, match="not saved"):
            save(d, tmp_path / form, format=form)


def test_what_was_written_is_read_back_and_compared(tmp_path, monkeypatch):
    from sae.formats import saelens

    right = saelens.write

    def wrong(d, path):
        place = right(d, path)
        tensors = load_file(place / "sae_weights.safetensors")
        save_file({**tensors, "W_dec": tensors["W_dec"] * 1.1}, place / "sae_weights.safetensors")
        return place

    monkeypatch.setattr(saelens, "write", wrong)
    with pytest.raises(FailedCheck, match="another output"):
        save(dictionary(), tmp_path / "a", format="saelens")
    save(dictionary(), tmp_path / "a", format="saelens", check=False)


# -- bad files ---------------------------------------------------------------------------------------------------------


def test_unknown_formats_and_places(tmp_path):
    with pytest.raises(UnknownName, match="saelens"):
        load(HERE / "saelens/topk", "sealens")
    with pytest.raises(UnknownName, match="Valid: mechvis"):
        save(dictionary(), tmp_path, format="npz")
    with pytest.raises(StoreCorrupt, match="nothing at"):
        load(tmp_path / "missing")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(BadData, match=r"no format that is known.*notes.txt.*Known: mechvis, saelens"):
        load(tmp_path)
    with pytest.raises(StoreCorrupt, match=r"has no sae.safetensors"):
        load(HERE / "saelens/topk", "sparsify")


@pytest.mark.parametrize(
    "options", [{"k": 0}, {"threshold": -1.0}, {"architecture": "gated"}, {"k": 2, "architecture": "relu"}]
)
def test_what_is_told_is_checked(options):
    with pytest.raises(BadData):
        load(HERE / "overcomplete/topk", **options)


def test_overcomplete_asks_for_its_rule():
    with pytest.raises(BadData, match=r"k=\.\.\. for a TopKSAE, threshold=\.\.\. for a BatchTopKSAE"):
        load(HERE / "overcomplete/topk")
    assert load(HERE / "overcomplete/topk", threshold=0.2).architecture.NAME == "batch_topk"


def changed(folder: Path, file: str, change) -> Path:
    place = folder / file
    tensors = load_file(place)
    save_file({k: v.contiguous() for k, v in change(tensors).items()}, place)
    return folder


def test_a_decoder_that_lies_the_other_way_is_seen(copied):
    """SAELens reads sparsify's W_dec transposed; we say that a file's is."""
    for name, file in (("sparsify/sae", "sae.safetensors"), ("saelens/topk", "sae_weights.safetensors")):
        folder = changed(copied(name), file, lambda t: {**t, "W_dec": t["W_dec"].T})
        with pytest.raises(ShapeMismatch, match=r"W_dec .* is \[8, 16\], not \[16, 8\]. It looks transposed"):
            load(folder)
    assert load(HERE / "sparsify/sae").W_dec.shape == (16, 8)


@pytest.mark.parametrize("name", ["sparsify/sae", "saelens/jumprelu"])
def test_nan_in_a_file_is_seen(name, copied):
    def spoil(tensors):
        tensors["W_dec"][0, 0] = float("inf")
        return tensors

    file = "sae.safetensors" if "sparsify" in name else "sae_weights.safetensors"
    with pytest.raises(NotFinite, match=r"W_dec .* holds 1 NaN or Inf. It is not loaded"):
        load(changed(copied(name), file, spoil))


def test_a_missing_tensor_is_named_with_those_that_are_there(copied):
    def drop(tensors):
        return {k: v for k, v in tensors.items() if k != "threshold"}

    with pytest.raises(BadData, match=r"no tensor 'threshold'; it has W_dec, W_enc, b_dec, b_enc"):
        load(changed(copied("saelens/jumprelu"), "sae_weights.safetensors", drop))


def test_truncated_files_are_named(copied):
    folder = copied("saelens/topk")
    data = (folder / "sae_weights.safetensors").read_bytes()
    (folder / "sae_weights.safetensors").write_bytes(data[:100])
    with pytest.raises(StoreCorrupt, match="no safetensors file, or is truncated"):
        load(folder)
    folder = copied("dictionary_learning/BatchTopKSAE")
    (folder / "ae.pt").write_bytes((folder / "ae.pt").read_bytes()[:500])
    with pytest.raises(StoreCorrupt, match="truncated"):
        load(folder)


def config_of(folder: Path, name: str = "cfg.json", **changes) -> Path:
    place = folder / name
    known = json.loads(place.read_text()) | changes
    place.write_text(json.dumps({k: v for k, v in known.items() if v != "drop"}))
    return folder


def test_saelens_scales_that_are_outside_the_file(copied):
    folder = config_of(copied("saelens/standard"), normalize_activations="expected_average_only_in")
    with pytest.raises(BadData, match=r"mean norm √d.*save_inference_model"):
        load(folder)
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": 0.25}))
    d, plain = load(folder), load(HERE / "saelens/standard")
    assert d.architecture.normalise == "mean_norm"
    assert torch.allclose(d.encode(rows()), plain.encode(0.25 * rows()), atol=1e-5)
    assert torch.allclose(d(rows()), plain(0.25 * rows()) / 0.25, atol=1e-4)
    with pytest.raises(RefusedMethod, match="covariance_whitening"):
        load(config_of(folder, normalize_activations="covariance_whitening"))


def test_saelens_5_settings(copied):
    folder = copied("saelens/topk")
    old = {
        "architecture": "standard",
        "d_in": D,
        "d_sae": N,
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": K},
        "hook_point": "blocks.5.hook_mlp_out",
        "normalize_activations": False,
    }
    (folder / "cfg.json").write_text(json.dumps(old))
    d, expected = load(folder), load_file(folder / "expected.safetensors")
    assert d.architecture.k == K and list(d.ends.reads) == ["blocks.5.hook_mlp_out"]
    assert torch.allclose(d.encode(expected["x"]), expected["codes"], atol=1e-5)
    with pytest.raises(RefusedMethod, match="finetuning_scaling_factor"):
        load(config_of(folder, finetuning_scaling_factor=True))
    with pytest.raises(RefusedMethod, match="activation_fn 'tanh-relu' is not read"):
        load(config_of(folder, finetuning_scaling_factor=False, activation_fn_str="tanh-relu"))


def test_a_batch_topk_that_was_never_trained_says_so_when_used(copied):
    folder = copied("dictionary_learning/BatchTopKSAE")
    state = torch.load(folder / "ae.pt", weights_only=True)
    torch.save(state | {"threshold": torch.tensor(-1.0)}, folder / "ae.pt")
    with pytest.raises(BadData, match="no threshold yet"):
        load(folder).encode(rows())


def test_other_kinds_are_refused_by_name(copied):
    with pytest.raises(RefusedMethod, match="'temporal' is not read"):
        load(config_of(copied("saelens/standard"), architecture="temporal"))
    with pytest.raises(RefusedMethod, match="a transcoder that scales what it reads"):
        load(config_of(copied("saelens/transcoder"), normalize_activations="layer_norm"))
    with pytest.raises(RefusedMethod, match="groupmax"):
        load(config_of(copied("sparsify/sae"), activation="groupmax"))
    with pytest.raises(RefusedMethod, match="IdentityDict"):
        folder = copied("dictionary_learning/AutoEncoder")
        load(config_of(folder, "config.json", trainer={"dict_class": "IdentityDict"}))
    with pytest.raises(BadData, match=r"k=17 in .* which has 16 latents"):
        load(config_of(copied("saelens/topk"), k=17))


def test_rules_of_other_libraries_are_used_not_trained():
    for name in ("saelens/abstopk", "saelens/matching_pursuit"):
        d = load(HERE / name)
        with pytest.raises(RefusedMethod, match="used, not trained here"):
            d.architecture.loss(d, rows(), rows(), None)


STRANGE = (
    None,
    -1,
    0,
    3,
    10**12,
    2.5,
    1e308,
    "",
    "relu",
    "topk",
    True,
    False,
    [],
    [1],
    {},
    {"k": 2},
    "√",
    "\x00",
    [[[]]],
)


@pytest.mark.parametrize(
    "name", ["saelens/topk", "saelens/skip_transcoder", "sparsify/skip", "dictionary_learning/BatchTopKSAE"]
)
@pytest.mark.filterwarnings("ignore::mechvis.errors.MechvisWarning")
def test_strange_settings_give_our_errors_and_no_others(name, copied):
    """Some hundred mutated configurations: loaded, or one of our errors."""
    folder = copied(name)
    file = "config.json" if "dictionary" in name else "cfg.json"
    known = json.loads((folder / file).read_text())
    rng = random.Random(0)
    loaded = 0
    for _ in range(120):
        bad = json.loads(json.dumps(known))
        inner = bad["trainer"] if "dictionary" in name and rng.random() < 0.9 else bad
        for _ in range(rng.randint(1, 3)):
            key = rng.choice([*inner, "new", "hook_name"])
            if rng.random() < 0.2:
                inner.pop(key, None)
            else:
                inner[key] = rng.choice(STRANGE)
        text = json.dumps(bad)
        if rng.random() < 0.1:
            text = text[: rng.randrange(len(text))]
        (folder / file).write_text(text)
        try:
            load(folder)
            loaded += 1
        except MechvisError as error:
            assert str(error)
    assert 0 < loaded < 120


@pytest.mark.parametrize("name", ["saelens/gated", "sparsify/skip"])
def test_strange_tensors_give_our_errors_and_no_others(name, copied):
    """Shapes, types and names changed at random: loaded, or one of our errors."""
    folder = copied(name)
    file = "sae.safetensors" if "sparsify" in name else "sae_weights.safetensors"
    known, rng, loaded = load_file(folder / file), random.Random(0), 0
    for _ in range(100):
        tensors = {k: v.clone() for k, v in known.items()}
        key = rng.choice(list(tensors))
        change = rng.randrange(6)
        if change == 0:
            del tensors[key]
        elif change == 1:
            tensors[key] = torch.zeros([rng.randrange(20) for _ in range(rng.randrange(4))])
        elif change == 2:
            tensors[key] = tensors[key].to(rng.choice([torch.float16, torch.bfloat16, torch.float64, torch.int32]))
        elif change == 3:
            tensors[key + "x"] = tensors.pop(key)
        elif change == 4:
            tensors[key].view(-1)[0] = float(rng.choice(["nan", "inf"]))
        else:
            tensors[key] = tensors[key].reshape(-1)
        save_file(tensors, folder / file)
        try:
            assert torch.isfinite(load(folder)(rows())).all()
            loaded += 1
        except MechvisError as error:
            assert key in str(error)
    assert 0 < loaded < 100


def test_a_file_of_a_folder_means_the_folder():
    """Alone, SAELens' weights would pass for those of a transcoder of circuit-tracer."""
    d = load(HERE / "saelens/standard/sae_weights.safetensors")
    assert d.provenance["format"] == "saelens" and not d.ends.transcodes
    assert load(HERE / "dictionary_learning/AutoEncoder/ae.pt").provenance["format"] == "dictionary_learning"


def test_tensors_that_nobody_knows_are_warned_about(copied):
    folder = changed(
        copied("saelens/standard"), "sae_weights.safetensors", lambda t: {**t, "scaling_factor": torch.ones(N)}
    )
    with pytest.warns(MechvisWarning, match=r"also has scaling_factor.*It is read without"):
        load(folder)


def test_of_several_files_none_is_taken_unasked(tmp_path, copied):
    folder = copied("overcomplete/topk")
    shutil.copy(folder / "sae.pt", folder / "other.pt")
    with pytest.raises(BadData, match=r"has 2 files \*.pt \(other.pt, sae.pt\); say which one"):
        load(folder, k=3)
    assert load(folder / "other.pt", k=3).architecture.k == 3


def test_every_format_has_a_reader_a_writer_and_a_text():
    for name in FORMATS:
        module = _module(name)
        assert callable(module.fits) and callable(module.read) and callable(module.write)
        assert len(module.__doc__) > 100 or name == "mechvis"
