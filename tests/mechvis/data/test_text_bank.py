"""Text banks: made of words, read from files, turned into directions."""

import json
import re

import numpy as np
import pytest

import mechvis
from mechvis.data.scene_factors import BACKGROUNDS, COLOURS, SHAPES
from mechvis.data.text_bank import SCENE_PROMPTS, TextBank, load_bank, text_bank
from mechvis.data.text_encoding import directions, encode_bank, unit
from mechvis.errors import BadData, MechvisWarning, NotFinite, ShapeMismatch, StoreCorrupt, UnknownName


@pytest.fixture(scope="module")
def clip():
    return mechvis.load("scenes-clip")


def test_the_general_bank_is_large_and_always_the_same():
    bank = text_bank()
    assert len(bank) >= 3000 and len(set(bank.texts)) == len(bank)
    wanted = {"colour", "texture", "shape", "count", "place", "material", "weather", "animal", "object", "scene"}
    assert wanted | {"size", "position", "lighting"} <= set(bank.property_names)
    assert all(bank.properties) and all(bank.words)
    assert bank.fingerprint == "ce831dadaa9412f1"
    assert text_bank("general") is bank


def test_every_text_holds_its_words_and_reads_like_english():
    bank = text_bank()
    for text, words in zip(bank.texts, bank.words, strict=True):
        assert all(word in text for word in words.split()), (text, words)
        assert "{" not in text and text == text.strip() and "  " not in text
        assert not re.search(r"\ba (?=[aeio])(?!one )", text), text
    assert "a photo of an ant" in bank.texts and "a person wearing a uniform" in bank.texts


def test_each_property_has_enough_texts():
    bank = text_bank()
    counts = {name: int(bank.about(name).sum()) for name in bank.property_names}
    assert min(counts.values()) >= 39 and max(counts.values()) < 0.12 * len(bank)
    assert len(bank.values("colour")["red"]) == 5


def test_the_scenes_bank_uses_the_words_of_the_bundled_clip(clip):
    from mechvis.models.training.clip import PROMPTS

    assert SCENE_PROMPTS == PROMPTS
    bank = text_bank("scenes")
    assert {name: len(bank.values(name)) for name in bank.property_names} == {
        "shape": len(SHAPES), "colour": len(COLOURS), "background": len(BACKGROUNDS),
    }  # fmt: skip
    unknown = clip.tokenizer.unk_token_id
    assert not (clip.tokenize(list(bank.texts)) == unknown).any()


def test_a_choice_of_texts_keeps_their_properties():
    bank = text_bank("scenes")
    some = bank[bank.about("colour")]
    assert some.property_names == ("colour",) and tuple(some.values("colour")) == COLOURS
    assert bank[[3, 1]].texts == (bank.texts[3], bank.texts[1])
    assert "shape 32" in repr(bank) and some.fingerprint != bank.fingerprint


def test_files(tmp_path):
    (tmp_path / "a.txt").write_text("a red thing\na blue thing\n")
    plain = load_bank(tmp_path / "a.txt")
    assert plain.texts == ("a red thing", "a blue thing") and plain.properties == ("", "") and plain.name == "a"
    assert plain.property_names == () and plain.words == plain.texts
    (tmp_path / "b.json").write_text(json.dumps(["one", "two"]))
    assert text_bank(tmp_path / "b.json").texts == ("one", "two")
    (tmp_path / "c.json").write_text(json.dumps({"colour": ["red one", "blue one"], "shape": ["square"]}))
    assert load_bank(tmp_path / "c.json").properties == ("colour", "colour", "shape")
    (tmp_path / "d.csv").write_text('\ufefftext,kind,word\nred one,colour,red\n"a, b",,\n', encoding="utf-8")
    table = load_bank(tmp_path / "d.csv", property_column="kind")
    assert table.texts == ("red one", "a, b") and table.properties == ("colour", "") and table.words == ("red", "a, b")
    (tmp_path / "e.json").write_text(json.dumps([{"text": "red one", "property": "colour"}]))
    assert load_bank(tmp_path / "e.json").properties == ("colour",)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "one\n\ntwo\n", "text 2 of the text bank 'a' is empty"),
        ("a.txt", "", "holds no text"),
        ("a.txt", "one\ntwo\none\n", "1 texts of the text bank 'a' occur more than once \\('one'\\)"),
        ("a.json", "[1, 2]", "text 1 of the text bank 'a' is empty or no text: 1"),
        ("a.json", '{"colour": "red"}', "no text: None"),
        ("a.json", "3", "a list of texts, a list of objects"),
        ("a.json", "[", "cannot be read"),
        ("a.csv", "word\nred\n", "no column 'text'; its columns are word"),
        ("a.csv", "text\n", "holds no text"),
        ("a.md", "one", "a .txt, .json or .csv file, not 'a.md'"),
    ],
)
def test_files_that_are_no_banks(tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(BadData, match=said):
        load_bank(tmp_path / name)


def test_bad_input():
    with pytest.raises(BadData, match="no text bank 'generl': give one of general, scenes"):
        text_bank("generl")
    with pytest.raises(UnknownName, match=r"unknown property 'color'\. Nearest: colour"):
        text_bank("scenes").about("color")
    with pytest.raises(BadData, match="2 texts but 1 words"):
        TextBank(name="x", texts=("a", "b"), properties=("", ""), words=("a",))


def test_embeddings_are_those_of_the_model_and_are_kept(clip, tmp_path):
    bank = text_bank("scenes")
    found = encode_bank(clip, bank, cache=tmp_path)
    np.testing.assert_allclose(found, clip.encode_text(list(bank.texts)).numpy(), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)

    class Deaf:
        """Would fail if the texts were encoded again."""

        text = clip.text

        def encode_text(self, *args, **kwargs):
            raise AssertionError

    np.testing.assert_array_equal(encode_bank(Deaf(), bank, cache=tmp_path), found)
    place = next(tmp_path.glob("*/texts.npy"))
    place.write_bytes(place.read_bytes()[:-8])
    with pytest.raises(StoreCorrupt, match=r"texts\.npy"):
        encode_bank(clip, bank, cache=tmp_path)


def test_words_that_the_model_never_read_are_refused(clip):
    with pytest.raises(BadData, match=r"cannot tell .* of the .* texts of 'general' from another one"):
        encode_bank(clip, "general")
    bank = TextBank(name="x", texts=("a dog", "a cat", *SHAPES), properties=("",) * 10, words=tuple("0123456789"))
    with pytest.warns(MechvisWarning, match="cannot tell 2 of the 10"):
        encode_bank(clip, bank, most_alike=0.2)


def test_classes_are_means_of_unit_embeddings(clip):
    bank = text_bank("scenes")
    found = encode_bank(clip, bank)
    names, classes = directions(bank, found, "colour")
    assert names == COLOURS
    np.testing.assert_allclose(classes, clip.prompts(COLOURS, SCENE_PROMPTS["colour"]).numpy(), atol=1e-6)
    with pytest.raises(ShapeMismatch, match="88 texts, but embeddings"):
        directions(bank, found[:3], "colour")
    with pytest.raises(NotFinite, match="length zero"):
        unit(np.zeros((1, 3)))


def test_a_model_without_a_text_tower_is_refused():
    with pytest.raises(BadData, match="has no text tower"):
        encode_bank(mechvis.load("scenes-vit"), "scenes")
    with pytest.raises(BadData, match="a share from 0 to 1"):
        encode_bank(mechvis.load("scenes-clip"), "scenes", most_alike=3)
