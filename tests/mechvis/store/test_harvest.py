"""Harvesting: what is written, what is refused, and what is kept when it ends too early."""

import importlib
import shutil
import subprocess
import sys
from collections import namedtuple

import numpy as np
import pytest
import torch

import mechvis
from mechvis import files
from mechvis.errors import BadData, BadImages, NotFinite, OutOfMemory, OutputNotWritable, ResultMismatch, StoreCorrupt
from mechvis.store import rows as rows_module
from mechvis.store.forward import Forward
from mechvis.store.shard import Writer
from mechvis.store.tokens import Tokens
from mechvis.testing import assert_untouched, tiny, tiny_input, tiny_preprocess

module = importlib.import_module("mechvis.store.harvest")  # the package's name is the function's

SITE, LATE = "blocks.0.hook_resid_post", "blocks.2.mlp.hook_post"
EACH = 10 * 16 * 4
"""Bytes of an image's rows at SITE."""


def harvest(model, images, out, sites=SITE, **more):
    return mechvis.harvest(model, images, sites, out=out, **{"shard": 8 * EACH, "progress": False, **more})


def content(store):
    return {path.relative_to(store.folder): path.read_bytes() for path in store.paths()}


# what is written


def test_equal_to_runs_of_the_same_batches_bit_by_bit(model, pixels, tmp_path):
    store = harvest(model, pixels, tmp_path / "acts", [SITE, LATE])
    assert store.manifest.batch == 4, "files of 4 images: the wider site decides"
    for start in range(0, 90, 4):
        cache = model.run(pixels[start : start + 4], capture=[SITE, LATE]).cache
        for site in (SITE, LATE):
            read = store[site].of_images(np.arange(start, min(start + 4, 90)))
            assert torch.equal(read, cache[site]), (site, start)


def test_an_image_set_goes_through_the_models_preprocessing(model, tmp_path):
    images = mechvis.data.scenes(n=12, seed=3)
    store = harvest(model, images, tmp_path / "acts")
    value = model.run(images[:8].pixels_for(model.preprocess), capture=SITE).cache[SITE]
    assert torch.equal(store[SITE].of_images(range(8)), value)
    assert store.images["id"].to_list() == list(images.ids)
    assert store.images["label"].to_list() == [images.class_names[i] for i in images.labels]
    assert store.manifest.plan["preprocess"] == model.preprocess.fingerprint
    assert store.provenance["data"]["fingerprint"] == images.fingerprint


def test_the_model_is_left_as_it_was(model, pixels, tmp_path):
    with assert_untouched(model):
        harvest(model, pixels, tmp_path / "acts")


def test_opened_again_it_is_the_same(model, pixels, tmp_path):
    made = harvest(model, pixels, tmp_path / "acts", [SITE, LATE], tokens="cls,patches:2")
    store = mechvis.store.open(tmp_path / "acts")
    assert store.fingerprint == made.fingerprint and list(store) == [SITE, LATE] and store.n_images == 90
    assert store.manifest == made.manifest
    assert repr(store) == repr(made) and "270 rows of [d_model=16], float32" in repr(store)
    assert store.n_bytes == sum(path.stat().st_size for path in store.paths())
    store.verify()


def test_the_size_that_is_said_is_the_size(model, pixels, tmp_path, caplog):
    with caplog.at_level("INFO", logger="mechvis"):
        store = harvest(model, pixels, tmp_path / "acts", [SITE, LATE])
    assert f"2 site(s), {store.n_bytes / 1e6:,.1f} MB in {len(store.paths())} file(s)" in caplog.text


@pytest.mark.parametrize("shard", [1, EACH, 3 * EACH, "1GB", None])
def test_rows_do_not_depend_on_how_files_are_cut(model, pixels, tmp_path, shard):
    """Up to rounding: files of other sizes have other batches."""
    store = harvest(model, pixels, tmp_path / "acts", [SITE, LATE], shard=shard, tokens="patches:3")
    for site in (SITE, LATE):
        image, token = (torch.from_numpy(of) for of in store[site].where(slice(None)))
        value = model.run(pixels, capture=site).cache[site]
        assert torch.allclose(store[site][:], value[image, token], atol=1e-5)


def test_reading_ahead_and_behind_changes_nothing(model, pixels, tmp_path, monkeypatch):
    """The twin reads and writes when it is told to, in one thread."""

    class Now:
        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def shutdown(self, **_):
            pass

        def submit(self, function, *arguments):
            from concurrent.futures import Future

            done = Future()
            done.set_result(function(*arguments))
            return done

    fast = harvest(model, pixels, tmp_path / "fast", [SITE, LATE])
    monkeypatch.setattr(module, "ThreadPoolExecutor", Now)
    monkeypatch.setattr("mechvis.store.piece.ThreadPoolExecutor", Now)
    assert content(harvest(model, pixels, tmp_path / "slow", [SITE, LATE])) == content(fast)


def test_no_more_than_two_batches_are_in_memory(model, tmp_path, monkeypatch):
    """However large a file is: batches are written as they come."""
    images, alive, most = tiny_input("vit", n=64), [], 0
    inner = module.Forward.rows

    def counted(self, which, pixels=None, **more):
        nonlocal most
        import weakref

        found = inner(self, which, pixels, **more)
        alive.append(weakref.ref(found[SITE]))
        most = max(most, sum(ref() is not None for ref in alive))
        return found

    monkeypatch.setattr(module.Forward, "rows", counted)
    monkeypatch.setattr(module, "images_at_once", lambda *_: 2)
    store = harvest(model, images, tmp_path / "acts", shard="1GB")
    assert len(store.paths()) == 1 and len(alive) == 32 and most <= 3


@pytest.mark.parametrize(
    ("n", "tokens", "batch", "each"),
    [
        (90, 197, 4, 4),  # small: batches are not cut
        (1_000, 197, 4, 32),  # at least 32 pieces
        (1_000, 197, 256, 256),  # but whole batches
        (1_000_000, 197, 256, 768),  # 256 MB
        (1_000_000, 1, 256, 8192),  # not for hours
        (1_000, 1, 4, 32),
    ],
)
def test_how_large_a_piece_is(n, tokens, batch, each):
    """A site of width 768 in bfloat16."""
    block = 1 << ((max(1, min(2**20 // (tokens * 1536), n // 64))).bit_length() - 1)
    site = rows_module.SiteRows(
        name="x", axes=("token", "d_model"), sizes=(197, 768), dtype="bfloat16", available=tuple(range(197)),
        tokens=Tokens(((tuple(range(tokens)), tokens),)), images_per_block=block,
    )  # fmt: skip
    assert module._cut([site], n, None, batch) == (each, min(batch, each))
    assert each % block == 0


# what is refused


def test_one_image_that_does_not_fit_the_budget(model, pixels, tmp_path):
    with pytest.raises(OutOfMemory, match=r"one image needs about .* MiB .* Raise budget="):
        harvest(model, pixels, tmp_path / "acts", budget=1000)


@pytest.mark.parametrize(("more", "text"), [({"shard": "big"}, "shard='big' is not a size"), ({"shard": 0}, "shard=0")])
def test_sizes_that_are_none(model, pixels, tmp_path, more, text):
    with pytest.raises(BadData, match=text):
        harvest(model, pixels, tmp_path / "acts", **more)


def test_no_images(model, pixels, tmp_path):
    with pytest.raises(BadImages, match="there are no images"):
        harvest(model, pixels[:0], tmp_path / "acts")
    with pytest.raises(BadData, match="images must be an ImageSet or pixels"):
        harvest(model, [1, 2], tmp_path / "acts")


def test_nan_names_site_and_image(tmp_path):
    bare = tiny("vit")
    model = mechvis.load(bare, preprocess=tiny_preprocess())
    images = mechvis.data.scenes(n=20, seed=3)
    inner = bare.vit.layers[1].mlp.fc2.forward
    seen = []

    def poisoned(x):
        out, first = inner(x).clone(), sum(seen)
        seen.append(len(x))
        if first <= 13 + 1 < first + len(x):  # one image was run before, alone
            out[13 + 1 - first, 4] = float("nan")
        return out

    bare.vit.layers[1].mlp.fc2.forward = poisoned
    with pytest.raises(NotFinite, match=r"blocks\.1\.hook_mlp_out: NaN or Inf at image 13 \(scenes/3/000013\)"):
        harvest(model, images, tmp_path / "acts", ["blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out"])
    assert not (tmp_path / "acts" / "store.json").exists()
    assert list((tmp_path / "acts").rglob("*.tmp")) == [] and list((tmp_path / "acts").rglob("*.claim")) == []


def test_a_type_that_cannot_hold_the_numbers(tmp_path):
    bare = tiny("vit")
    with torch.no_grad():
        bare.vit.layers[0].mlp.fc2.bias[3] = 1e5
    model, pixels = mechvis.load(bare, preprocess=tiny_preprocess()), tiny_input("vit", n=4)
    with pytest.raises(NotFinite, match=r"image 0\. float16 cannot hold 1e\+05, .* Use dtype='bfloat16'"):
        harvest(model, pixels, tmp_path / "a", dtype="float16")
    harvest(model, pixels, tmp_path / "b", dtype="bfloat16").verify()


def test_images_of_two_sizes(tmp_path):
    model = mechvis.load(tiny("dinov2"), preprocess=tiny_preprocess())
    pixels = torch.randn(4, 3, 16, 12)
    store = harvest(model, pixels, tmp_path / "a", tokens="patches")
    assert store[SITE].shape == (4 * 12, 16) and store.manifest.grid == (4, 3)

    first = rows_module.one_image(model, pixels)
    (site,) = rows_module.rows_at(model, first, SITE, n_images=2, tokens="all", dtype=None, seed=0)
    larger = Forward(model=model, read=lambda _: torch.randn(1, 3, 20, 20), sites={SITE: site}, describe=str)
    with pytest.raises(BadData, match=r"is \[26, 16\] per image here and \[13, 16\] at the first image"):
        larger.rows(np.array([1]))


OTHERS = {
    "another model": lambda m, p: (mechvis.load(tiny("vit", seed=9), preprocess=tiny_preprocess()), p, {}),
    "other images": lambda m, p: (m, p + 1e-6, {}),
    "fewer images": lambda m, p: (m, p[:-1], {}),
    "another site": lambda m, p: (m, p, {"sites": LATE}),
    "other tokens": lambda m, p: (m, p, {"tokens": "cls"}),
    "another type": lambda m, p: (m, p, {"dtype": "bfloat16"}),
    "another seed": lambda m, p: (m, p, {"seed": 1}),
}
DIFFERS = {
    "another model": "model", "other images": "images", "fewer images": "n_images", "another site": "sites",
    "other tokens": "tokens", "another type": "dtype", "another seed": "seed",
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
def test_something_else_in_the_same_folder(model, pixels, tmp_path, what):
    store = harvest(model, pixels[:20], tmp_path / "acts")
    before = content(store)
    other, images, more = OTHERS[what](model, pixels[:20])
    with pytest.raises(ResultMismatch, match=rf"holds another job; it differs in: [a-z_, ]*\b{DIFFERS[what]}\b"):
        harvest(other, images, tmp_path / "acts", **more)
    assert content(store) == before


def test_other_preprocessing_is_refused(model, tmp_path):
    images = mechvis.data.scenes(n=6, seed=3)
    harvest(model, images, tmp_path / "acts")
    other = mechvis.load(tiny("vit"), preprocess=tiny_preprocess())
    other.preprocess.processor.image_mean = [0.4] * 3
    other.__dict__["preprocess"] = type(other.preprocess).of_processor(other.preprocess.processor)
    with pytest.raises(ResultMismatch, match="differs in: preprocess"):
        harvest(other, images, tmp_path / "acts")


def test_the_folder_of_a_sweep_is_refused(model, pixels, tmp_path):
    mechvis.sweep(model, pixels[:4], out=tmp_path / "acts", metric="logit", progress=False)
    with pytest.raises(ResultMismatch, match="holds another job"):
        harvest(model, pixels[:4], tmp_path / "acts")


# what is kept


def test_the_same_call_continues(model, pixels, tmp_path, monkeypatch):
    whole = content(harvest(model, pixels, tmp_path / "whole", [SITE, LATE]))
    computed, inner = [], module.Forward.rows

    def stopping(self, images, *rest, **more):
        computed.append(int(images[0]))
        if len(computed) == 9:
            raise KeyboardInterrupt
        return inner(self, images, *rest, **more)

    monkeypatch.setattr(module.Forward, "rows", stopping)
    with pytest.raises(KeyboardInterrupt):
        harvest(model, pixels, tmp_path / "acts", [SITE, LATE])
    with pytest.raises(BadData, match="is not finished: the same harvest"):
        mechvis.store.open(tmp_path / "acts")
    assert not list((tmp_path / "acts").rglob("*.tmp")) and not list((tmp_path / "acts").rglob("*.claim"))
    store = harvest(model, pixels, tmp_path / "acts", [SITE, LATE])
    assert content(store) == whole
    assert sorted(computed) == sorted([*range(0, 90, 4), 32]), "one piece was computed twice, none of the finished ones"
    computed.clear()
    harvest(model, pixels, tmp_path / "acts", [SITE, LATE])
    assert computed == [], "a finished store is not computed again"


def test_the_cut_is_that_of_the_first_call(model, pixels, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(module, "_work", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            harvest(model, pixels, tmp_path / "acts", shard=3 * EACH)
    store = harvest(model, pixels, tmp_path / "acts", shard="1GB", budget="10GB")
    assert store.manifest.images_each == 3 and len(store.paths()) == 30


def test_a_disk_without_room(model, pixels, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 50_000))
    with pytest.raises(
        OutputNotWritable, match=r"0\.1 MB are still to be written and 0\.1 MB are free\. Use another disk"
    ):
        harvest(model, pixels, tmp_path / "acts")
    assert not list((tmp_path / "acts").rglob("images-*"))


def test_a_disk_that_fills_up(model, pixels, tmp_path, monkeypatch):
    whole = content(harvest(model, pixels, tmp_path / "whole", [SITE, LATE]))
    inner, written = Writer.write, []

    def full(self, rows):
        written.append(self.shard.path)
        if len(written) == 11:
            raise OSError(28, "No space left on device")
        return inner(self, rows)

    monkeypatch.setattr(Writer, "write", full)
    with pytest.raises(OutputNotWritable) as caught:
        harvest(model, pixels, tmp_path / "acts", [SITE, LATE])
    assert str(written[10]) in str(caught.value) and "No space left on device" in str(caught.value)
    assert "5 of 23 pieces are finished and kept; the same command continues." in str(caught.value)
    assert not list((tmp_path / "acts").rglob("*.tmp"))
    monkeypatch.setattr(Writer, "write", inner)
    assert content(harvest(model, pixels, tmp_path / "acts", [SITE, LATE])) == whole


def test_a_folder_that_cannot_be_written(model, pixels, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputNotWritable, match="cannot write into"):
        harvest(model, pixels, tmp_path / "file" / "acts")


def test_half_written_files_of_the_dead_are_removed(model, pixels, tmp_path, monkeypatch):
    """A process is killed while it writes; the next one removes what it left, and nothing of those who live."""
    code = f"""
import importlib, os, mechvis, torch
module = importlib.import_module("mechvis.store.harvest")
from mechvis.testing import tiny, tiny_input, tiny_preprocess
torch.set_num_threads(1)
model = mechvis.load(tiny("vit"), preprocess=tiny_preprocess())
inner = module.Forward.rows
def dying(self, images, *rest, **more):
    if images[0] >= 20:
        os.kill(os.getpid(), 9)
    return inner(self, images, *rest, **more)
module.Forward.rows = dying
module.images_at_once = lambda *_: 2
out = {str(tmp_path / "acts")!r}
mechvis.harvest(model, tiny_input("vit", n=90), {SITE!r}, out=out, shard={8 * EACH}, progress=False)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    (left,) = (tmp_path / "acts").rglob("*.tmp")
    alive = left.with_name(".images-00000080-00000088.safetensors.0123456789ab.tmp")
    alive.write_bytes(b"somebody writes here")
    piece = "images-00000080-00000088-units-000000-000001"
    with mechvis.parallel.claims.Claims(tmp_path / "acts" / "pieces") as others:
        assert others.take(piece)
        pieces = module.cut(90, 1, 8, 1)
        module._sweep(tmp_path / "acts", pieces, others)
        assert not left.exists() and alive.exists()
    # As in the process that died: batches of two.
    monkeypatch.setattr(module, "images_at_once", lambda *_: 2)
    store = harvest(model, pixels, tmp_path / "acts")
    assert content(store) == content(harvest(model, pixels, tmp_path / "whole"))
    assert not alive.exists() and not list((tmp_path / "acts").rglob("*.claim"))


def test_overtaken_while_asleep(model, pixels, tmp_path, monkeypatch):
    """A process whose unfinished file was swept away takes what the one that overtook it has finished."""
    harvest(model, pixels, tmp_path / "other")
    inner, once = files.replacing, []

    from contextlib import contextmanager

    @contextmanager
    def swept(path):
        with inner(path) as file:
            yield file
            if path.name.startswith("images-00000016") and not once:
                once.append(path)
                place = tmp_path / "acts"
                name = "images-00000016-00000024"
                shutil.copy(tmp_path / "other" / path.relative_to(place), path)
                for kind in ("safetensors", "json"):
                    part = f"pieces/{name}-units-000000-000001.{kind}"
                    shutil.copy(tmp_path / "other" / part, place / part)
                for left in path.parent.glob(f".{name}*.tmp"):
                    left.unlink()

    monkeypatch.setattr(files, "replacing", swept)
    store = harvest(model, pixels, tmp_path / "acts")
    assert once and content(store) == content(mechvis.store.open(tmp_path / "other"))


def test_finished_files_that_are_gone_are_missed(model, pixels, tmp_path):
    store = harvest(model, pixels, tmp_path / "acts")
    path = store.paths()[4]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreCorrupt, match=rf"1 file\(s\) .*{path.name}\. .*repair"):
        harvest(model, pixels, tmp_path / "acts")


# what opens


def test_nothing_there(tmp_path):
    with pytest.raises(BadData, match="holds no store of activations"):
        mechvis.store.open(tmp_path)


def test_a_changed_manifest(whole, tmp_path):
    shutil.copytree(whole.folder, tmp_path / "acts")
    manifest = tmp_path / "acts" / "store.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"batch": ', '"batch": 1'))
    with pytest.raises(StoreCorrupt, match="was changed after it was written"):
        mechvis.store.open(tmp_path / "acts")
    manifest.write_text(text.replace('"version": 1', '"version": 2'))
    with pytest.raises(BadData, match="this store has version 2"):
        mechvis.store.open(tmp_path / "acts")
    manifest.write_text(text.replace("mechvis.store", "mechvis.other"))
    with pytest.raises(StoreCorrupt, match=r"manifest of 'mechvis\.other'"):
        mechvis.store.open(tmp_path / "acts")
