"""For machines where torchvision's wheel does not match the build of torch (a CUDA wheel beside a CPU torch).

Its compiled operators then cannot load: `import torchvision` raises "operator torchvision::nms does not exist", and
timm, open_clip and transformers fail with it (pytorch/vision #9085, #9077). Declaring the schemas of two operators
before the first import is enough for everything but detection models. Where torchvision works, nothing is done.
"""

import importlib.machinery
import importlib.util

import torch

_DECLARED: list[torch.library.Library] = []


def declare_torchvision_operators() -> bool:
    """Make `import torchvision` possible beside a torch that its compiled part does not fit.

    Returns:
        whether it was needed: False where torchvision is missing or its operators load.

    Example:
        >>> declare_torchvision_operators() in (True, False)
        True
    """
    if _DECLARED or importlib.util.find_spec("torchvision") is None or _loads():
        return bool(_DECLARED)
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _DECLARED.append(library)  # the schemas live as long as this object
    return True


def _loads() -> bool:
    """Can the compiled part be loaded? Asked without importing the package, which would fail for good."""
    folder = next(iter(importlib.util.find_spec("torchvision").submodule_search_locations))
    finder = importlib.machinery.FileFinder(folder, (importlib.machinery.ExtensionFileLoader, [".so", ".pyd"]))
    compiled = finder.find_spec("_C")
    if compiled is None:
        return False
    try:
        torch.ops.load_library(compiled.origin)
    except (OSError, ImportError):
        return False
    return True
