"""Circuit methods on a spliced model, from user code that imports both packages."""

import numpy as np
import pytest
import torch

import circuits
import mechvis
import sae
from mechvis.units import Unit
from sae.splicing import splice

SITE = "blocks.2.hook_resid_post"


@pytest.mark.filterwarnings("ignore::mechvis.errors.EffectlessEdit")
def test_activation_patching_of_latents():
    model = mechvis.load("scenes-vit")
    pairs = circuits.pairs.scene_swap(model, n=6, change="background", seed=0)
    x = model.run(mechvis.data.scenes(16, seed=3), capture=[SITE]).cache[SITE]
    d = sae.start(sae.TopK(n_latents=64, k=8), {SITE: x.flatten(0, 1)})
    spliced = splice(model, d)
    units = [Unit(2, "latents", i, at=SITE) for i in (3, 9, 30)] + [Unit(2, "errors", at=SITE), Unit(3, "heads", 1)]
    settings = {"units": units, "metric": "logprob", "max_undistinguished": 1.0, "progress": False}
    fast, slow = (circuits.patch(spliced, pairs, engine=engine, **settings) for engine in ("wave", "plain"))
    for name in fast.metrics:
        assert np.abs(np.nan_to_num(fast.values[name]) - np.nan_to_num(slow.values[name])).max() < 1e-3
    own = circuits.patch(
        model, pairs, units=[Unit(3, "heads", 1)], metric="logprob", max_undistinguished=1.0, progress=False
    )
    heads = fast.table.filter(fast.table["unit"] == "L3H1")["effect"].to_numpy()
    assert np.allclose(heads, own.table["effect"].to_numpy(), atol=1e-5), "other units are the model's own"
    assert torch.equal(spliced.run(pairs.clean).output, model.run(pairs.clean).output)
