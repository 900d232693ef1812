"""HookedCLIP: similarities are upstream's, prompts are what was asked for, the zero-shot head is a head like any other.

Here on Hugging Face CLIP and SigLIP; tests/towers/test_open_clip.py does the same on open_clip.
"""

import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import mechvis
from mechvis.clip import TEMPLATES, ZeroShotHead
from mechvis.errors import BadData, MechvisError, MechvisWarning
from mechvis.testing import Words, assert_close, assert_untouched, check_family, tiny, tiny_input, tiny_preprocess

NAMES = ["circle", "star", "blue square", "hexagon"]
DTYPES = (torch.float32, torch.float64)


def word_tokenizer():
    """A real Hugging Face tokenizer without files: one id per word, end of text 49, padding 1."""
    words = ["a", "photo", "of", "the", "circle", "star", "blue", "square", "hexagon", "big", "on", "very", "more"]
    vocabulary = {"<unk>": 0, "<pad>": 1, **{word: 2 + i for i, word in enumerate(words)}, "<end>": 49}
    found = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", 49)])
    return PreTrainedTokenizerFast(tokenizer_object=found, pad_token="<pad>", eos_token="<end>", unk_token="<unk>")


def wrapped(family="clip", tokenizer=None, **options):
    bare = tiny(family, **options)
    tokenizer = tokenizer or word_tokenizer()
    return mechvis.load(bare, preprocess=tiny_preprocess(), tokenizer=tokenizer)


def upstream(bare, texts, pixels):
    """Logits per image of the bare model, with its own way of padding."""
    padding = "max_length" if "Siglip" in type(bare).__name__ else True
    given = word_tokenizer()(texts, padding=padding, truncation=True, max_length=12, return_tensors="pt")
    with torch.no_grad():
        return bare(input_ids=given["input_ids"], pixel_values=pixels).logits_per_image


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_similarity_is_upstreams_logits_per_image(family, dtype):
    clip = wrapped(family, dtype=dtype)
    texts = ["a photo of a circle", "star", "the big blue square on grass"]
    pixels = tiny_input(family, n=5, dtype=dtype)
    with assert_untouched(clip):
        found = clip.similarity(pixels, texts)
    expected = upstream(clip.bare, texts, pixels)
    assert found.shape == (5, 3) and not found.requires_grad
    assert_close(found, expected, 1e-6 if dtype == torch.float32 else 1e-14)
    # All at once or two by two: the same up to rounding.
    assert_close(clip.similarity(pixels, texts, batch_size=2), expected, 1e-6 if dtype == torch.float32 else 1e-14)


def test_a_bias_belongs_to_sigmoid_models():
    clip, siglip = wrapped("clip"), wrapped("siglip")
    assert clip.logit_bias is None and siglip.logit_bias.shape == () and siglip.logit_bias != 0
    logits = torch.tensor([[1.0, 2.0, -1.0]])
    assert torch.equal(clip.probabilities(logits), logits.softmax(-1))
    assert torch.equal(siglip.probabilities(logits), logits.sigmoid())
    assert "trained with a softmax" in repr(clip)
    assert "bias" in repr(siglip) and "trained with a sigmoid" in repr(siglip)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_classifier_logits_are_similarities_with_the_prompts(family):
    clip = wrapped(family, dtype=torch.float64)
    pixels = tiny_input(family, dtype=torch.float64)
    model = clip.classifier(NAMES)
    assert model.parts.class_names == tuple(NAMES)
    expected = upstream(clip.bare, [TEMPLATES[0].format(name) for name in NAMES], pixels)
    assert_close(model.run(pixels).logits, expected, 1e-14)
    # Several templates: the mean of unit-length embeddings, of unit length again.
    templates = ["a photo of a {}", "the {} on grass", lambda name: f"a small {name}"]
    texts = [[t(name) if callable(t) else t.format(name) for t in templates] for name in NAMES]
    mean = torch.stack([clip.encode_text(some).mean(0) for some in texts])
    expected = clip.encode_image(pixels) @ (mean / mean.norm(dim=1, keepdim=True)).T * clip.logit_scale.detach()
    expected = expected if clip.logit_bias is None else expected + clip.logit_bias.detach()
    assert_close(clip.classifier(NAMES, templates).run(pixels).logits, expected, 1e-13)
    for batch_size in (1, 2, 3, 7):
        few = clip.classifier(NAMES, templates, batch_size=batch_size)
        assert_close(few.run(pixels).logits, expected, 1e-13)


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_text_batches_are_as_large_as_asked(family):
    clip, seen = wrapped(family), []
    run = clip.text.run
    clip.text.__dict__["run"] = lambda ids: seen.append(len(ids)) or run(ids)
    clip.prompts([f"{a} {b}" for a in NAMES for b in NAMES], ["a {}", "the {}", "big {}"], batch_size=10)
    assert max(seen) <= 10 and sum(seen) == 48
    seen.clear()
    clip.prompts(NAMES, [f"{'very ' * i}{{}}" for i in range(7)], batch_size=3)
    assert max(seen) <= 3 and sum(seen) == 28


@pytest.mark.parametrize("edit", ["zero", "resample"])
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_sweep_of_a_classifier(family, edit):
    model, pixels = wrapped(family).classifier(NAMES), tiny_input(family, n=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast, slow = (
            mechvis.sweep(model, pixels, edit=edit, metric="logit_diff", engine=engine, progress=False)
            for engine in ("wave", "plain")
        )
    size = np.abs(slow.values["logit_diff"]).max()
    # Rounding is relative to the logits: those of a SigLIP lie near their bias, far from zero beside the effects.
    scale = max(size, float(model.run(pixels).logits.abs().max()))
    assert size > 1e-2 and np.abs(fast.values["logit_diff"] - slow.values["logit_diff"]).max() < 1e-5 * scale


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_classifier_is_a_family_of_its_own(family):
    model = wrapped(family, dtype=torch.float64).classifier(NAMES)
    (found,) = check_family(model.bare, family=model.family, preprocess=tiny_preprocess())
    assert found.outputs < 1e-14


def test_a_classifier_at_another_size_is_found_again_at_that_size():
    clip = mechvis.load(tiny("clip"), preprocess=tiny_preprocess(), tokenizer=Words(), image_size=20)
    model = clip.classifier(NAMES)
    assert model.family(model.bare).image_size == model.parts.image_size == (20, 20)


# the head


def test_the_head_follows_the_model_and_stays_as_it_was():
    clip = wrapped("siglip", dtype=torch.float64)
    model, pixels = clip.classifier(NAMES), tiny_input("siglip")
    head = model.parts.head
    before, prompts = head.fingerprint, head.prompts.clone()
    for move in (model, clip):
        move.to(torch.float32)
        logits = model.run(pixels).logits
        assert logits.dtype == torch.float32
        move.to(torch.float64)
        again = model.run(pixels.double()).logits
        assert again.dtype == torch.float64
        assert_close(logits.double(), again, 1e-5)
    assert torch.equal(head.prompts, prompts) and head.prompts.dtype == torch.float64
    assert head.fingerprint == before
    clip.to(torch.bfloat16)
    assert model.run(pixels.bfloat16()).logits.dtype == torch.bfloat16 == clip.encode_text("star").dtype


def test_the_head_is_part_of_the_fingerprint():
    prompts, scale, bias = torch.eye(3, dtype=torch.float64), torch.tensor(10.0), torch.tensor(-2.0)
    heads = [
        ZeroShotHead(prompts, scale),
        ZeroShotHead(prompts, scale, bias),
        ZeroShotHead(prompts, scale + 1),
        ZeroShotHead(prompts + 1e-12, scale),  # smaller than float32 can tell
        ZeroShotHead(prompts.float(), scale),
    ]
    assert len({head.fingerprint for head in heads}) == len(heads)
    assert ZeroShotHead(prompts.clone(), scale.clone()).fingerprint == heads[0].fingerprint
    clip = wrapped()
    one, same, other = (clip.classifier(names) for names in (NAMES, NAMES, NAMES[::-1]))
    assert one.fingerprint == same.fingerprint != other.fingerprint != clip.vision.fingerprint


# names and templates

BAD_NAMES = {
    "none": ([], "at least one class name"),
    "one text": ("star", r"class_names is one text \('star'\)"),
    "twice": (["star", "circle", "star"], "class names repeat: star"),
    "a number": (["star", 3], r"class names are texts, got 3|\['star', 3\]"),  # or said by run-time type checks
    "blank": (["star", "  "], "class names are texts"),
}
BAD_TEMPLATES = {
    "none": ([], "at least one class name and one template"),
    "no place": (["a photo of a {}", "a photo"], r"'a photo' gives the same prompt .* as 'a photo of a \{\}' does"),
    "no place, alone": ("a photo", "gives the same prompt"),
    "a function without the name": (lambda name: "a photo", "gives the same prompt"),
    "another place": ("a photo of a {c}", r"'a photo of a \{c\}' cannot be filled with 'circle' \(KeyError"),
    "two places": ("{} and {}", "cannot be filled"),
    "an open brace": ("a {photo of a {}", "cannot be filled"),
    "no text": (lambda name: len(name), "makes int of 'circle', not a text"),
}


@pytest.mark.parametrize("case", BAD_NAMES)
def test_class_names(case):
    names, words = BAD_NAMES[case]
    with pytest.raises((BadData, TypeError), match=words):
        wrapped().classifier(names)


@pytest.mark.parametrize("case", BAD_TEMPLATES)
def test_templates(case):
    templates, words = BAD_TEMPLATES[case]
    with pytest.raises(BadData, match=words):
        wrapped().classifier(NAMES, templates)


def test_templates_that_are_fine():
    clip = wrapped()
    one = clip.prompts(NAMES, "a photo of a {}")
    assert torch.equal(one, clip.prompts(NAMES)) and torch.equal(
        one, clip.prompts(NAMES, lambda c: f"a photo of a {c}")
    )
    assert torch.equal(one, clip.prompts(NAMES, ["a photo of a {0}"]))
    assert clip.prompts(["star"], "a {}").shape == (1, 8)
    assert clip.prompts(["st{ar}"], "a {}").shape == (1, 8)  # braces in a name are letters
    with pytest.raises(BadData, match="gives the same prompt"):
        clip.prompts(["star"], "a photo")  # one class cannot show it, the template does


# texts and tokenizers


def test_texts():
    clip = wrapped()
    assert torch.equal(clip.encode_text("star"), clip.encode_text(["star"]))  # not one text per letter
    wrong = r"texts are strings, got int.*clip.text.run|\['star', 3\]"  # or said by run-time type checks
    for texts, words in (([], "no texts given"), (["star", 3], wrong)):
        with pytest.raises((BadData, TypeError), match=words):
            clip.encode_text(texts)
    with pytest.raises(BadData, match="batch_size=0"):
        clip.encode_text(["star"], batch_size=0)
    with pytest.raises(MechvisError, match="batch is empty"):
        clip.encode_image(torch.zeros(0, 3, 12, 12))


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_text_that_is_cut_is_named(family):
    clip = wrapped(family)
    longest = " ".join(["very"] * 11)  # with the end of text: 12 tokens, which is what the model reads
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip.encode_text([longest, "star"])
    long, longer = "the " + longest, "more " * 90
    with pytest.warns(MechvisWarning, match=r"2 of 3 texts are longer than the 12 tokens.*'the very.*'more more"):
        ids = clip.tokenize(["star", long, longer])
    assert ids.shape == (3, 12)
    with pytest.warns(MechvisWarning, match=r"4 of 4 texts"):
        clip.classifier(NAMES, f"a {{}} and {longest}")


def test_a_text_that_is_cut_is_named_where_padding_is_the_end_of_text():
    # As the tokenizers of CLIP's first models have it.
    tokenizer = word_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    clip = wrapped(tokenizer=tokenizer)
    fits = ["star", " ".join(["very"] * 10), " ".join(["very"] * 11)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip.tokenize(fits)
    with pytest.warns(MechvisWarning, match=r"1 of 4 texts"):
        clip.tokenize([*fits, " ".join(["very"] * 12)])


def test_texts_are_measured_as_they_are_encoded():
    # SigLIP's are put in lower case first, and another case has other tokens.
    clip = wrapped("siglip")
    clip.towers = replace(clip.towers, encode_ids=lambda *args: shortened(*args))

    def shortened(tokenizer, texts, longest):
        ids = [tokenizer(text.split(" | ")[0], padding="max_length", max_length=longest) for text in texts]
        return torch.tensor([found["input_ids"] for found in ids])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip.tokenize(["star | " + "very " * 50])


def test_kinds_of_tokenizers():
    texts, real = ["a photo of a star", "circle"], word_tokenizer()

    class Callable:
        """As open_clip's: no settings but the context length, padded with zeros."""

        def __call__(self, texts, context_length=None):
            rows = [real(text)["input_ids"][:context_length] for text in texts]
            return torch.tensor([row + [0] * (context_length - len(row)) for row in rows])

    def function(texts):
        return real(texts, padding=True)["input_ids"]

    expected = wrapped(tokenizer=real).encode_text(texts)
    given = [Callable(), function, lambda: real, partial(word_tokenizer), partial(function), lambda: Callable()]
    for tokenizer in given:
        clip = wrapped(tokenizer=tokenizer)
        assert_close(clip.encode_text(texts), expected, 1e-6)
        assert clip.tokenizer is clip.tokenizer  # made once
    with pytest.raises(BadData, match="without a tokenizer"):
        wrapped(tokenizer=lambda: None).encode_text(texts)


def test_what_an_open_clip_tokenizer_cuts_is_found():
    real = word_tokenizer()

    class Cutting:
        """Cuts without a word, ends with the end of text, pads with an id that ordinary text has too."""

        def __call__(self, texts, context_length=12):
            rows = [real(text)["input_ids"] for text in texts]
            rows = [row if len(row) <= context_length else [*row[: context_length - 1], 49] for row in rows]
            return torch.tensor([row + [0] * (context_length - len(row)) for row in rows])

    clip = wrapped(tokenizer=Cutting())
    fits = [" ".join(["very"] * n) for n in (1, 10, 11)] + ["unknown words here"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip.encode_text(fits)
    with pytest.warns(MechvisWarning, match="3 of 5 texts"):
        clip.encode_text([*fits[1:3], *(" ".join(["very"] * n) for n in (12, 13, 300))])
