"""Write a trained model as an ordinary Hugging Face folder that plain `transformers` opens."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from mechvis.data.scenes import IMAGE_SIZE

_COMMON = {
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "do_convert_rgb": True,
    "do_resize": True,
    "resample": 2,
}


def save_model(model: PreTrainedModel, folder: Path, *, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    """Write config, float32 weights (safetensors), image preprocessing and, if given, the tokenizer.

    Args:
        model: A Hugging Face model.
        folder: Made if need be; files of the same names are replaced.
        tokenizer: Saved beside the model.

    Returns:
        The folder.

    Example:
        >>> save_model(model, Path("runs/scenes-vit"))
        PosixPath('runs/scenes-vit')
    """
    folder.mkdir(parents=True, exist_ok=True)
    model.float().save_pretrained(folder, safe_serialization=True)
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    own: dict[str, Any] = {"image_processor_type": "ViTImageProcessor", "size": side}
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
        crop = {"do_center_crop": True, "crop_size": side}
        own = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": IMAGE_SIZE}, **crop}
    text = json.dumps({**own, **_COMMON}, indent=2) + "\n"
    (folder / "preprocessor_config.json").write_text(text, encoding="utf-8")
    # transformers writes weights readable by their owner only; a package is read by others
    (folder / "model.safetensors").chmod(0o644)
    return folder
