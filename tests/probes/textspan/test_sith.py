"""Heads read off their weights: planted maps give their texts, with both signs; edits change single directions."""

import numpy as np
import pytest
import torch

import mechvis
from mechvis import testing
from mechvis.data.scene_factors import BACKGROUNDS, SHAPES
from mechvis.errors import BadData, OutOfRange, RefusedMethod, ShapeMismatch, UnknownName
from mechvis.models.load import wrap
from probes.textspan.coherent import coherent_omp
from probes.textspan.sith import centred, head_map, rescaled, sith
from probes.textspan.sith_edit import direction_edits, property_directions, random_directions


@pytest.fixture
def clip():
    return wrap(testing.tiny("clip", dtype=torch.float64), preprocess=testing.tiny_preprocess())


def plant(clip, layer, head, writes, reads, sigmas):
    """Give a head `W_V W_O` of rank two: in its folded form, sum of sigma * read' write."""
    parts = clip.vision.parts
    block, bare = parts.blocks[layer], clip.bare.vision_model.encoder.layers[layer].self_attn
    gain_in, gain_out = block.ln1.weight.double(), parts.ln_final.weight.double()
    at = slice(head * block.attn.d_head, (head + 1) * block.attn.d_head)
    with torch.no_grad():
        bare.v_proj.weight[at] = 0
        bare.out_proj.weight[:, at] = 0
        for k, (write, read, sigma) in enumerate(zip(writes, reads, sigmas, strict=True)):
            bare.v_proj.weight[at.start + k] = sigma * read / gain_in
            bare.out_proj.weight[:, at.start + k] = write / gain_out


def two_directions(d, gain, seed=0):
    """Orthonormal pairs; writes such that undoing the gain leaves a mean of zero, which the norm then keeps."""
    generator = torch.Generator().manual_seed(seed)
    normal = (1 / gain.detach()).double()
    normal = normal / normal.norm()
    raw = torch.randn(d, 3, generator=generator, dtype=torch.float64)
    writes = torch.linalg.qr(torch.cat([normal[:, None], raw], dim=1))[0][:, 1:3].T
    ones = torch.ones(d, 1, dtype=torch.float64)
    reads = torch.linalg.qr(torch.cat([ones, torch.randn(d, 2, generator=generator, dtype=torch.float64)], dim=1))[0]
    return writes, reads[:, 1:3].T


def test_two_planted_maps_give_their_texts(clip):
    tower = clip.vision
    writes, reads = two_directions(tower.parts.d_model, tower.parts.ln_final.weight)
    plant(clip, 1, 2, writes, reads, (3.0, 1.5))
    found = head_map(tower, 1, 2)
    assert found.sigma[:2].tolist() == pytest.approx([3.0, 1.5]) and float(found.sigma[2:].max()) < 1e-9
    assert abs(float(found.write[0] @ writes[0])) == pytest.approx(1) and abs(float(found.read[1] @ reads[1])) > 0.999
    # The texts: the two writes as the projection maps them, at known places of a random pool.
    weight = clip.bare.visual_projection.weight.double()
    pool = np.random.default_rng(1).normal(size=(40, weight.shape[0]))
    pool[[7, 23]] = (writes @ weight.T).detach().numpy()
    for rank, text in ((0, 7), (1, 23)):
        direction = found.embedded[rank].detach().numpy()
        codes = [coherent_omp(sign * direction, pool, k=1) for sign in (1, -1)]
        best = max(codes, key=lambda code: code.fit)
        assert best.picks.tolist() == [text] and best.fit == pytest.approx(1)
        # The other sign is another text: a singular pair has no sign of its own.
        assert min(codes, key=lambda code: code.fit).picks.tolist() != [text]


def test_without_folding_the_directions_are_distorted(clip):
    tower = clip.vision
    writes, reads = two_directions(tower.parts.d_model, tower.parts.ln_final.weight)
    plant(clip, 1, 2, writes, reads, (3.0, 1.5))
    bare = head_map(tower, 1, 2, fold=False)
    assert abs(float(bare.write[0] @ writes[0])) < 0.99


def test_the_map_is_the_product_of_what_surrounds_the_head(clip):
    tower = clip.vision
    parts, block = tower.parts, tower.parts.blocks[2]
    found = head_map(tower, 2, 1)
    d = parts.d_model
    centre = torch.eye(d, dtype=torch.float64) - 1 / d
    product = centre @ torch.diag(block.ln1.weight) @ tower.W_V[2, 1] @ tower.W_O[2, 1] @ centre
    product = product @ torch.diag(parts.ln_final.weight)
    rebuilt = found.read.T @ torch.diag(found.sigma) @ found.write
    torch.testing.assert_close(rebuilt, product)
    torch.testing.assert_close(found.write @ found.write.T, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(found.embedded, found.write @ clip.bare.visual_projection.weight.T)


def test_rescaling_changes_one_direction_of_what_is_written(clip):
    tower = clip.vision
    pixels = testing.tiny_input("clip", dtype=torch.float64)
    found = head_map(tower, 2, 1)
    site = "blocks.2.attn.hook_z"
    clean = tower.run(pixels, capture=[site]).cache[site][:, :, 1]
    bias = tower.parts.blocks[2].attn.in_biases()[2][1]
    edit = rescaled(tower, 2, 1, {0: 0.0, 2: 2.0})
    edited = tower.run(pixels, edits=[edit], capture=[site]).cache[site][:, :, 1]
    before, after = ((z - bias) @ found.out @ found.write.T for z in (clean, edited))
    torch.testing.assert_close(after, before * torch.tensor([0.0, 1.0, 2.0, 1.0], dtype=torch.float64))
    same = tower.run(pixels, edits=[rescaled(tower, 2, 1, [1 + 1e-9] * 4)]).output
    torch.testing.assert_close(same, tower.run(pixels).output)


def test_all_directions_at_zero_is_the_value_bias_alone(clip):
    tower = clip.vision
    pixels = testing.tiny_input("clip", dtype=torch.float64)
    edit = rescaled(tower, 2, 1, [0.0] * 4)
    cache = tower.run(pixels, edits=[edit], capture=["blocks.2.attn.hook_z"]).cache
    bias = tower.parts.blocks[2].attn.in_biases()[2][1]
    torch.testing.assert_close(cache["blocks.2.attn.hook_z"][:, :, 1], bias.expand(3, 10, -1))


def test_heads_of_the_bundled_clip():
    clip = mechvis.load("scenes-clip")
    table = sith(clip, "scenes", layers=[1], directions=2).table
    assert table.height == 4 * 2 * 2
    colour = table.filter(head="L1H0")
    assert all(names[0] == "colour" for names in colour["properties"])
    assert colour["fit"].min() > 0.85


def test_directions_about_a_cue_are_taken_out_and_random_ones_do_less():
    """A classifier with a shortcut: its prompts name the partner background too."""
    clip = mechvis.load("scenes-clip")
    images = mechvis.data.scenes(96, seed=38, group="conflicting")
    texts = [f"a photo of a {shape} on a {other} background" for shape, other in zip(SHAPES, BACKGROUNDS, strict=True)]
    prompts, pixels = clip.encode_text(texts), images.pixels_for(clip.preprocess)

    def accuracy(edits):
        output = clip.vision.run(pixels, edits=edits).output
        return float(((output @ prompts.T).argmax(1).numpy() == images.labels).mean())

    chosen = property_directions(clip, "scenes", ["L0H0", "L0H1", "L0H2", "L0H3", "L1H2"], "background")
    assert all(3 <= len(ranks) <= 12 for ranks in chosen.values())
    drawn = random_directions(chosen)
    assert {head: len(ranks) for head, ranks in drawn.items()} == {head: len(ranks) for head, ranks in chosen.items()}
    clean, without, random = (accuracy(direction_edits(clip, each)) for each in ({}, chosen, drawn))
    assert clean < 0.5 and without > clean + 0.3 and without > random + 0.1
    assert clean < accuracy(direction_edits(clip, chosen, factor=0.5)) < without


# coherent matching pursuit


def test_non_negative_sums_are_found():
    rng = np.random.default_rng(2)
    atoms = rng.normal(size=(50, 40))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    target = 3 * atoms[4] + 2 * atoms[30]
    code = coherent_omp(target, atoms, k=2, lam=0.0)
    assert set(code.picks.tolist()) == {4, 30} and code.fit == pytest.approx(1)
    assert (code.weights > 0).all()
    assert 4 not in coherent_omp(-target, atoms, k=3, lam=0.0).picks


def test_coherence_prefers_texts_that_go_together():
    """Of two texts that explain what is left almost equally well, the one that is like the first is taken."""
    atoms = np.array([[1, 0, 0], [0.5, 0.75**0.5, 0], [0, 0, 1]])
    target = np.array([1.0, 0.5, 0.45])
    assert coherent_omp(target, atoms, k=2, lam=0.0).picks.tolist() == [0, 2]
    assert coherent_omp(target, atoms, k=2).picks.tolist() == [0, 1]


def test_without_coherence_it_agrees_with_orthogonal_matching_pursuit():
    from sklearn.linear_model import OrthogonalMatchingPursuit

    rng = np.random.default_rng(3)
    atoms = rng.normal(size=(30, 20))
    atoms /= np.linalg.norm(atoms, axis=1, keepdims=True)
    target = atoms[[2, 11, 25]].T @ [1.0, 0.8, 0.6]
    target /= np.linalg.norm(target)
    reference = OrthogonalMatchingPursuit(n_nonzero_coefs=3, fit_intercept=False).fit(atoms.T, target)
    code = coherent_omp(target, atoms, k=3, lam=0.0)
    assert sorted(code.picks.tolist()) == np.flatnonzero(reference.coef_).tolist()
    np.testing.assert_allclose(code.weights[np.argsort(code.picks)], reference.coef_[np.flatnonzero(reference.coef_)])


def test_bad_input(clip):
    with pytest.raises(OutOfRange, match="L9H0 does not exist: 3 layers of 4"):
        head_map(clip.vision, 9, 0)
    with pytest.raises(RefusedMethod, match="attention pooling, no"):
        head_map(wrap(testing.tiny("siglip"), preprocess=testing.tiny_preprocess()).vision, 0, 0)
    with pytest.raises(OutOfRange, match="ranks 0 to 3"):
        rescaled(clip.vision, 0, 0, {4: 0.0})
    with pytest.raises(BadData, match="no text tower"):
        sith(mechvis.load("scenes-vit"), "scenes")
    with pytest.raises(OutOfRange, match="directions=0"):
        sith(clip, "scenes", directions=0)
    bundled = mechvis.load("scenes-clip")
    with pytest.raises(UnknownName, match="unknown head 'L9H0'"):
        property_directions(bundled, "scenes", ["L9H0"], "colour")
    with pytest.raises(UnknownName, match="unknown property 'size'"):
        property_directions(bundled, "scenes", ["L1H0"], "size")
    with pytest.raises(BadData, match="no head was named"):
        property_directions(bundled, "scenes", [], "colour")
    with pytest.raises(BadData, match="none of the first 1 directions of L1H0 is about 'background'"):
        property_directions(bundled, "scenes", ["L1H0"], "background", directions=1)
    with pytest.raises(UnknownName, match="unknown head 'L9H0'"):
        direction_edits(bundled, {"L9H0": [0]})
    with pytest.raises(OutOfRange, match="only 2 to draw from"):
        random_directions({"L1H0": [0, 1, 2]}, directions=2)
    with pytest.raises(BadData, match="leaves nothing"):
        centred(np.ones((1, 3)))
    with pytest.raises(ShapeMismatch, match="do not fit"):
        coherent_omp(np.ones(3), np.ones((2, 4)))
    with pytest.raises(OutOfRange, match="k=0"):
        coherent_omp(np.ones(3), np.eye(3), k=0)
    assert len(coherent_omp(-np.ones(3), np.eye(3)).picks) == 0
