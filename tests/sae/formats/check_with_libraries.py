"""Our exports, loaded by the real libraries: their codes and output against ours, and their files loaded here.

    PYTHONPATH=. python tests/sae/formats/check_with_libraries.py

in an environment with sae-lens, dictionary-learning, overcomplete and eai-sparsify (see `make_fixtures.py`) beside
what mechvis needs. Prints a table; ends with an error if anything is off by more than 1e-5 of the largest number.
"""

import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from make_fixtures import D, K, N, bypass_overcomplete, rows

import sae
from sae.architectures import named
from sae.formats import save

TOLERANCE = 1e-5


def dictionary(name: str, *, writes: int | None = None, centred: bool = True, **settings) -> sae.Dictionary:
    """An untrained dictionary with something in every parameter."""
    site = {"blocks.2.hook_resid_post": rows()}
    if writes:
        site["written"] = rows()[:, :writes] * 2
    d = sae.start(
        named(name)(n_latents=N, **settings),
        site,
        reads="blocks.2.hook_resid_post",
        writes="written" if writes else None,
    )
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, p in d.named_parameters():
            if key not in ("W_dec",) or d.architecture.decoder == "free":
                p.add_(0.2 * torch.randn(p.shape, generator=g))
        if not centred:
            d.b_dec.zero_()
        if "threshold" in d.state_dict():
            d.threshold.copy_(d.threshold.abs() if d.threshold.ndim else torch.tensor(0.3))
    return d


def with_saelens(place: Path):
    """Load with SAELens."""
    from sae_lens import SAE

    found = SAE.load_from_disk(place)
    return found.encode, found


def with_dictionary_learning(place: Path):
    """Load with dictionary_learning."""
    from dictionary_learning.utils import load_dictionary

    found, config = load_dictionary(str(place), "cpu")
    if config["trainer"]["dict_class"] == "AutoEncoder":  # whose loader would fold the rows
        found = type(found).from_pretrained(place / "ae.pt", normalize_decoder=False)
    return found.encode, found


def with_sparsify(place: Path):
    """Load with sparsify."""
    from sparsify import SparseCoder

    found = SparseCoder.load_from_disk(place)

    def encode(x):
        got = found.encode(x)
        return torch.zeros(len(x), N).scatter_(1, got.top_indices, got.top_acts)

    return encode, lambda x: found(x).sae_out


def with_overcomplete(place: Path):
    """Load with overcomplete."""
    import json

    import overcomplete.sae as o

    known = json.loads(place.with_suffix(".json").read_text())
    options = {"top_k": known["top_k"]} if known["class"] == "TopKSAE" else {}
    found = getattr(o, known["class"])(D, N, **options)
    found.load_state_dict(torch.load(place, weights_only=True))
    if "running_threshold" in known:
        found.running_threshold = torch.tensor(known["running_threshold"])
    found.eval()
    return lambda x: found(x)[1], lambda x: found(x)[2]


def main() -> None:
    """Every architecture in every format that has it."""
    bypass_overcomplete()
    loaders = {
        "saelens": with_saelens,
        "dictionary_learning": with_dictionary_learning,
        "sparsify": with_sparsify,
        "overcomplete": with_overcomplete,
    }
    cases = [
        ("saelens", "relu", {}),
        ("saelens", "relu", {"decoder": "free", "normalise": "mean_norm"}),
        ("saelens", "relu", {"normalise": "layer_norm"}),
        ("saelens", "relu", {"normalise": "token_norm"}),
        ("saelens", "gated", {}),
        ("saelens", "jumprelu", {"l0": 4.0}),
        ("saelens", "jumprelu", {"l0": 4.0, "centre": True, "decoder": "free"}),
        ("saelens", "topk", {"k": K}),
        ("saelens", "topk", {"k": K, "decoder": "free"}),
        ("saelens", "batch_topk", {"k": K, "normalise": "mean_square", "decoder": "free"}),
        ("saelens", "batch_topk", {"k": K}),
        ("saelens", "matching_pursuit", {"k": K, "normalise": "none"}),
        ("saelens", "relu", {"writes": 6}),
        ("saelens", "relu", {"writes": 6, "skip": True}),
        ("saelens", "jumprelu", {"writes": 6, "l0": 4.0}),
        ("dictionary_learning", "relu", {}),
        ("dictionary_learning", "relu", {"decoder": "free"}),
        ("dictionary_learning", "gated", {}),
        ("dictionary_learning", "jumprelu", {"l0": 4.0}),
        ("dictionary_learning", "topk", {"k": K}),
        ("dictionary_learning", "batch_topk", {"k": K, "normalise": "mean_square", "decoder": "free"}),
        ("dictionary_learning", "matryoshka", {"k": K, "normalise": "mean_square", "groups": (0.25, 0.75)}),
        ("sparsify", "topk", {"k": K}),
        ("sparsify", "topk", {"k": K, "decoder": "free"}),
        ("sparsify", "topk", {"k": K, "writes": D}),
        ("sparsify", "topk", {"k": K, "writes": D, "skip": True}),
        ("overcomplete", "relu", {"centred": False}),
        ("overcomplete", "relu", {"centred": False, "decoder": "free"}),
        ("overcomplete", "jumprelu", {"centred": False, "l0": 4.0}),
        ("overcomplete", "topk", {"centred": False, "k": K}),
        ("overcomplete", "batch_topk", {"centred": False, "k": K, "normalise": "mean_square"}),
    ]
    worst = 0.0
    for form, name, settings in cases:
        d = dictionary(name, **settings)
        encode, forward = loaders[form](save(d, Path(tempfile.mkdtemp()) / "out", format=form))
        x = rows()
        with torch.no_grad():
            wanted = [d.encode(x), d.folded().encode(x)]
            codes, y = encode(x), forward(x)
            off = min(float((codes - want).abs().max() / want.abs().max()) for want in wanted)
            out = float((y - d(x)).abs().max() / d(x).abs().max())
        worst = max(worst, off, out)
        print(f"{form:20} {name:16} {settings!s:70} codes {off:.1e}  output {out:.1e}")
    print(f"worst {worst:.1e}, asked {TOLERANCE:.0e}")
    if worst > TOLERANCE:
        raise SystemExit("a library reads something else than was written")


if __name__ == "__main__":
    main()
