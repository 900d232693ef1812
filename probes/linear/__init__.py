"""Linear probes: what can be read from every layer, with the controls that say how far that is evidence.

* `probe_model`: a model and images to probes of all its layers, baselines included.
* `probe_layers`: the same from features: intervals, control tasks, code lengths, several capacities.
* `probe_patches`: one probe on every patch: which patches say the class.
* `erase`: take away what a probe reads and look at the model's own output.
* `ClassProbe`, `LabelsProbe`, `NumbersProbe`: the estimators, with scikit-learn's habits; in memory or streaming.
* `online_code`, `control_labels`, `random_copy`, `pixel_features`, `split_images`: the pieces, for use by themselves.
"""

from typing import TYPE_CHECKING

from mechvis.lazy import publish

__all__ = publish(
    __name__,
    {
        "probe_model": "probes.linear.model",
        "probe_layers": "probes.linear.layers",
        "LinearProbes": "probes.linear.record",
        "probe_patches": "probes.linear.patches",
        "PatchProbe": "probes.linear.patches",
        "erase": "probes.linear.erasing",
        "Erasure": "probes.linear.erasure",
        "Eraser": "probes.linear.erasers",
        "leace": "probes.linear.erasers",
        "project_out": "probes.linear.erasers",
        "inlp": "probes.linear.erasers",
        "LinearProbe": "probes.linear.base",
        "NotFitted": "probes.linear.base",
        "ClassProbe": "probes.linear.estimators",
        "LabelsProbe": "probes.linear.estimators",
        "NumbersProbe": "probes.linear.estimators",
        "probe_for": "probes.linear.estimators",
        "OnlineCode": "probes.linear.online_code",
        "online_code": "probes.linear.online_code",
        "control_labels": "probes.linear.control",
        "random_copy": "mechvis.models.random_copy",
        "pixel_features": "probes.linear.baselines",
        "Split": "probes.linear.split",
        "split_images": "probes.linear.split",
        "one_pass_against_many": "probes.linear.speed",
    },
)

if TYPE_CHECKING:  # for editors and type checkers
    from mechvis.models.random_copy import random_copy
    from probes.linear.base import LinearProbe, NotFitted
    from probes.linear.baselines import pixel_features
    from probes.linear.control import control_labels
    from probes.linear.erasers import Eraser, inlp, leace, project_out
    from probes.linear.erasing import erase
    from probes.linear.erasure import Erasure
    from probes.linear.estimators import ClassProbe, LabelsProbe, NumbersProbe, probe_for
    from probes.linear.layers import probe_layers
    from probes.linear.model import probe_model
    from probes.linear.online_code import OnlineCode, online_code
    from probes.linear.patches import PatchProbe, probe_patches
    from probes.linear.record import LinearProbes
    from probes.linear.speed import one_pass_against_many
    from probes.linear.split import Split, split_images
