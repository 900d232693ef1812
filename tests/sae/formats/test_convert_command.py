"""`mechvis sae convert`, and the Hub with a stand-in that keeps files in a folder."""

import shutil
from pathlib import Path

import pytest
import torch

import sae
from mechvis.errors import BadData, RefusedMethod, StoreCorrupt, UnknownName
from sae.commands.convert import convert
from sae.formats import FORMATS, card, load, pull, push
from sae.formats import convert as run

HERE = Path(__file__).parent / "fixtures"


def rows() -> torch.Tensor:
    return torch.randn(100, 8, generator=torch.Generator().manual_seed(0)) + 0.3


def dictionary(**settings) -> sae.Dictionary:
    return sae.start(sae.TopK(n_latents=16, k=3, **settings), {"blocks.2.hook_resid_post": rows()})


def test_it_says_what_was_read_and_written(tmp_path, capsys):
    convert(HERE / "saelens/topk", out=tmp_path / "sp", to="sparsify")
    said = capsys.readouterr().out
    assert "saelens format, topk autoencoder of blocks.2.hook_resid_post: 16 latents of 8" in said
    assert "sparsify format, read back and compared" in said
    assert torch.allclose(load(tmp_path / "sp")(rows()), load(HERE / "saelens/topk")(rows()), atol=1e-5)


def test_it_offers_every_format():
    import typing

    known = typing.get_type_hints(convert)["to"]
    assert typing.get_args(known) == tuple(FORMATS)


def test_it_refuses(tmp_path):
    with pytest.raises(RefusedMethod, match="no place for 'relu'"):
        convert(HERE / "saelens/standard", out=tmp_path, to="sparsify")
    with pytest.raises(UnknownName, match="saelens"):
        run(HERE / "saelens/topk", tmp_path, to="saelense")
    with pytest.raises(BadData, match="which rule finds codes"):
        convert(HERE / "overcomplete/topk", out=tmp_path)
    convert(HERE / "overcomplete/topk", out=tmp_path / "own", k=3)
    assert run(tmp_path / "own", tmp_path / "dl", to="dictionary_learning").source == "mechvis"
    assert run(HERE / "overcomplete/topk", tmp_path / "b", k=3).source == "overcomplete"


# -- the Hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """`huggingface_hub` with a folder in place of the network; what it was asked for."""
    import huggingface_hub

    store, asked = tmp_path / "hub", []

    class HfApi:
        def __init__(self, token=None):
            asked.append(("token", token))

        def create_repo(self, *, repo_id, private, exist_ok):
            assert exist_ok
            asked.append(("create", repo_id, private))
            (store / repo_id).mkdir(parents=True, exist_ok=True)

        def upload_folder(self, *, repo_id, folder_path, path_in_repo, commit_message):
            asked.append(("upload", repo_id, path_in_repo, commit_message))
            shutil.copytree(folder_path, store / repo_id / path_in_repo, dirs_exist_ok=True)
            return f"https://hub/{repo_id}/tree/main/{path_in_repo}"

    def snapshot_download(*, repo_id, revision, allow_patterns, ignore_patterns, token):
        assert ignore_patterns and "*" in ignore_patterns[0]
        asked.append(("download", repo_id, revision, allow_patterns))
        return str(store / repo_id)

    monkeypatch.setattr(huggingface_hub, "HfApi", HfApi)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return store, asked


@pytest.mark.parametrize("form", ["mechvis", "saelens"])
@pytest.mark.parametrize("folder", ["", "layer_2/topk"])
def test_pushed_and_pulled_it_is_the_same(hub, form, folder):
    d = dictionary(normalise="token_norm")
    store, asked = hub
    place = push(d, "me/my-sae", folder=folder, format=form, text="Trained on nothing.")
    assert place.startswith("https://hub/me/my-sae")
    assert ("create", "me/my-sae", True) in asked
    again = pull("me/my-sae", folder=folder, revision="abc")
    assert torch.allclose(again(rows()), d(rows()), atol=1e-5)
    assert again.provenance["hub"] == "me/my-sae" and again.provenance["revision"] == "abc"
    names = {file.name for file in (store / "me/my-sae" / folder).iterdir()}
    assert "README.md" in names and not any(name.endswith((".pt", ".bin", ".pkl")) for name in names)
    patterns = next(entry for entry in asked if entry[0] == "download")[3]
    assert all(pattern.startswith(folder) for pattern in patterns) and not any("*.py" in p for p in patterns)


def test_the_card_says_what_it_is(hub):
    d = dictionary()
    d.provenance["model"] = "scenes-vit"
    push(d, "me/my-sae", text="Trained on nothing.")
    text = (hub[0] / "me/my-sae/README.md").read_text()
    assert text == card(d, "me/my-sae", text="Trained on nothing.")
    assert text.startswith("---\nlibrary_name: mechvis\n")
    for part in (
        "# topk autoencoder, 16 latents",
        "Reads `blocks.2.hook_resid_post` (8 columns).",
        "normalise='mean_square'",
        'd = sae.formats.pull("me/my-sae")',
        "| k | `3` |",
        "Trained on nothing.",
        "| model | `scenes-vit` |",
        d.fingerprint,
        "is not said here",
    ):
        assert part in text, part


def test_bad_places_on_the_hub(hub):
    for repo in ("my-sae", "me/", "/x", "a/b/c"):
        with pytest.raises(BadData, match="is not owner/name"):
            push(dictionary(), repo)
        with pytest.raises(BadData, match="is not owner/name"):
            pull(repo)
    with pytest.raises(BadData, match="inside the repository"):
        pull("me/x", folder="../../etc")
    (hub[0] / "me/x").mkdir(parents=True)
    with pytest.raises(StoreCorrupt, match="no folder 'deep'"):
        pull("me/x", folder="deep")
    with pytest.raises(BadData, match="of no format that is known"):
        pull("me/x")
    assert not (hub[0] / "me/my-sae").exists()
