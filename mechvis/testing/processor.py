"""The image processor of planted models: pixels from 0 to 255 become -1 to 1, nothing else."""

from typing import Any


def processor_config(size: int) -> dict[str, Any]:
    """What `preprocessor_config.json` holds for square images of `size` pixels.

    Example:
        >>> processor_config(32)["size"]
        {'height': 32, 'width': 32}
    """
    return {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": size, "width": size},
        "do_resize": True,
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_convert_rgb": True,
    }
