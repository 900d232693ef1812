"""Train `scenes-clip`: an image tower and a text tower that agree on what a scene shows.

1. The image tower is CLIP's, of the backbone's size; whatever the two architectures share starts from the backbone's
   weights (CLIP has a layernorm before its first layer and no biases in its embeddings; those start afresh).
2. The text tower (2 causal layers) reads captions through a word-level tokenizer of the captions' few dozen words.
3. Both are trained with CLIP's symmetric contrastive loss on fresh uncorrelated scenes. A batch holds many captions
   twice, so the target spreads evenly over all captions that fit the image.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, PreTrainedTokenizerFast, ViTModel

from mechvis.data.scenes import BACKGROUNDS, COLOURS, IMAGE_SIZE, SHAPES, TEMPLATES, captions, render, sample_factors
from mechvis.models.training.backbone import PATCH, to_pixels
from mechvis.models.training.loop import StepLoss

CONTEXT = 16
"""Longest caption in tokens, with both end tokens."""

PROMPTS = {
    "shape": ("a photo of a {}", "a picture of a {}", "a {} on a background", "a {}"),
    "colour": ("a photo of a {} shape", "a picture of a {} shape", "a {} shape on a background", "a {} shape"),
    "background": (
        "a photo of a shape on a {} background",
        "a picture of a shape in front of a {} background",
        "a {} background with a shape",
        "a shape on a {} background",
    ),
}
"""Zero-shot prompts of each factor; the text embeddings of a factor's templates are averaged."""


_SPECIAL = ("<|pad|>", "<|unknown|>", "<|startoftext|>", "<|endoftext|>")


def vocabulary() -> dict[str, int]:
    """Word to token id: four special tokens, then the words of all captions and prompts in alphabetical order."""
    texts = [*TEMPLATES, *(prompt for prompts in PROMPTS.values() for prompt in prompts)]
    words = {word for text in texts for word in text.split() if "{" not in word} | {*SHAPES, *BACKGROUNDS, *COLOURS}
    return {word: number for number, word in enumerate((*_SPECIAL, *sorted(words)))}


def clip_tokenizer() -> PreTrainedTokenizerFast:
    """The word-level tokenizer of the captions: lower-cases, splits at blanks and punctuation, adds both end tokens."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = vocabulary()
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=_SPECIAL[1]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_SPECIAL[2]} $A {_SPECIAL[3]}",
        special_tokens=[(token, words[token]) for token in _SPECIAL[2:]],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_SPECIAL[0],
        unk_token=_SPECIAL[1],
        bos_token=_SPECIAL[2],
        eos_token=_SPECIAL[3],
        model_max_length=CONTEXT,
        model_input_names=["input_ids", "attention_mask"],
    )


def clip_config() -> CLIPConfig:
    """Two small towers: 4 layers of 4 heads of 32 for images, 2 layers of 4 heads of 32 for text, joint space of 64."""
    words = vocabulary()
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        projection_dim=64,
    )
    text = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        hidden_act="gelu",
        layer_norm_eps=1e-6,
        projection_dim=64,
        pad_token_id=words[_SPECIAL[0]],
        bos_token_id=words[_SPECIAL[2]],
        eos_token_id=words[_SPECIAL[3]],
    )
    return CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64)


def start_from_backbone(model: CLIPModel, backbone: ViTModel) -> None:
    """Copy into CLIP's image tower, in place, every weight that it shares with the backbone.

    The pre-layernorm keeps its own start, so the first features differ from the backbone's until trained.
    """
    source = backbone.state_dict()
    names = {
        "attention.q_proj": "self_attn.q_proj",
        "attention.k_proj": "self_attn.k_proj",
        "attention.v_proj": "self_attn.v_proj",
        "attention.o_proj": "self_attn.out_proj",
        "layernorm_before": "layer_norm1",
        "layernorm_after": "layer_norm2",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    target = {
        "embeddings.class_embedding": source["embeddings.cls_token"][0, 0],
        "embeddings.patch_embedding.weight": source["embeddings.patch_embeddings.projection.weight"],
        "post_layernorm.weight": source["layernorm.weight"],
        "post_layernorm.bias": source["layernorm.bias"],
    }
    # the patch embedding's bias, which CLIP lacks, goes into the position embeddings of the patches
    positions = source["embeddings.position_embeddings"][0].clone()
    positions[1:] += source["embeddings.patch_embeddings.projection.bias"]
    target["embeddings.position_embedding.weight"] = positions
    for layer in range(len(backbone.layers)):
        for ours, theirs in names.items():
            for kind in ("weight", "bias"):
                target[f"encoder.layers.{layer}.{theirs}.{kind}"] = source[f"layers.{layer}.{ours}.{kind}"]
    missing = model.vision_model.load_state_dict(target, strict=False)
    if missing.unexpected_keys:
        raise RuntimeError(f"CLIP's image tower has no parameters {missing.unexpected_keys}")


def encode(texts: list[str], words: dict[str, int], device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """Token ids and attention mask as the tokenizer gives them, padded to `CONTEXT`, without its overhead."""
    start, end = words[_SPECIAL[2]], words[_SPECIAL[3]]
    rows = [[start, *(words[word] for word in text.split()), end] for text in texts]
    ids = torch.tensor([row + [words[_SPECIAL[0]]] * (CONTEXT - len(row)) for row in rows], device=device)
    return {"input_ids": ids, "attention_mask": (ids != words[_SPECIAL[0]]).long()}


def contrastive_loss(seed: int, batch: int, device: str | torch.device) -> StepLoss:
    """The loss of step ``k`` on images ``k * batch ..`` of data set `seed`: nats, mean of both directions.

    In every second step the captions are full sentences naming all three factors; in the others each names one factor
    only, in the words of the zero-shot prompts, as captions in the wild rarely tell all.
    """
    words = vocabulary()
    names = {"shape": SHAPES, "colour": COLOURS, "background": BACKGROUNDS}

    def loss(module: nn.Module, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        factors = sample_factors(batch, seed=seed, start=step * batch, training=True)
        pixels = to_pixels(render(factors)[0]).to(device)
        tell = np.ones((batch, 3), dtype=bool)
        if step % 2 == 0:
            texts = list(captions(factors))
        else:
            # which factor an image's caption tells follows from its number, as does the template
            told = (np.arange(batch) + step // 2) % 3
            tell = told[:, None] == np.arange(3)
            texts = []
            for row, factor in enumerate(told):
                name = tuple(names)[factor]
                value = names[name][getattr(factors, name)[row]]
                texts.append(PROMPTS[name][factors.template[row] % len(PROMPTS[name])].format(value))
        values = np.stack([getattr(factors, name) for name in names], axis=1)
        # image i fits caption j if every factor that j tells has i's value
        fits = ((values[:, None] == values[None]) | ~tell[None]).all(-1)
        target = torch.from_numpy(fits).to(device, torch.float32)
        output = module(pixel_values=pixels, **encode(texts, words, device))
        logits = output.logits_per_image.float()
        by_image = -(target / target.sum(1, keepdim=True) * F.log_softmax(logits, 1)).sum(1).mean()
        by_text = -(target / target.sum(0, keepdim=True) * F.log_softmax(logits, 0)).sum(0).mean()
        hit = target[torch.arange(batch, device=device), logits.argmax(1)].mean()
        value = (by_image + by_text) / 2
        return value, {"loss": value.detach(), "hit": hit}

    return loss


@torch.no_grad()
def zero_shot(model: CLIPModel, n: int, *, seed: int, device: str | torch.device = "cpu") -> dict[str, float]:
    """Zero-shot accuracy (fraction of `n` uncorrelated scenes) for shape, colour and background.

    Example:
        >>> zero_shot(CLIPModel(clip_config()).eval(), 8, seed=0).keys()
        dict_keys(['shape', 'colour', 'background'])
    """
    names = {"shape": SHAPES, "colour": COLOURS, "background": BACKGROUNDS}
    words = vocabulary()
    factors = sample_factors(n, seed=seed)
    parts = to_pixels(render(factors)[0]).to(device).split(256)
    images = torch.cat([model.get_image_features(pixel_values=part).pooler_output.cpu() for part in parts])
    accuracy = {}
    for name, values in names.items():
        texts = [prompt.format(value) for value in values for prompt in PROMPTS[name]]
        features = F.normalize(model.get_text_features(**encode(texts, words, device)).pooler_output.cpu(), dim=-1)
        classes = F.normalize(features.unflatten(0, (len(values), -1)).mean(1), dim=-1)
        accuracy[name] = float(((images @ classes.T).argmax(1).numpy() == getattr(factors, name)).mean())
    return accuracy
