"""`mechvis card`: make faithfulness cards, check them, compare them."""

from pathlib import Path
from typing import Any, Literal

from mechvis.cli import say
from mechvis.commands.words import calls, read_images, read_model


@calls(
    "mechvis.cards.of_attribution:attribution_card",
    "mechvis.cards.data:CardData",
    "mechvis.models.load:load",
    "mechvis.clip:HookedCLIP.classifier",
)
def make(
    of: str,
    /,
    *,
    model: str,
    images: str,
    level: Literal["smoke", "standard", "full"] = "smoke",
    target: str = "predicted",
    reference: str | None = None,
    out: Path | None = None,
    seed: int = 0,
    device: str | None = None,
    templates: tuple[str, ...] = (),
) -> None:
    """How far to believe an explanation: gates, measures beside controls, planted suites, scope.

    Args:
        of: a folder that holds a saved explanation (maps, a ranking, probes, concepts, texts of heads), or the name of
            an attribution method.
        model: the model that it explains: a bundled name, a folder, or hf:<folder or hub id>.
        images: images that chose nothing: a folder, or scenes[:n[:seed]]; for saved maps those that they are of.
        level: smoke (64 images), standard (512) or full (2048).
        target: what is explained, for a method: predicted, true, or a class.
        reference: other images, for means; default: a third of --images is set aside where they are needed.
        out: folder for the card, card.md and card.html.
        seed: of everything that is drawn.
        device: where to put the model, e.g. cuda.
        templates: for CLIP: prompts with {} for the class name; default: "a photo of a {}".
    """
    from mechvis.cards import CardData

    found = read_images(images)
    loaded: Any = read_model(model, found, device=device, templates=templates)
    others = None if reference is None else read_images(reference)
    extra = None
    explained = _opened(of)
    if explained is not None and getattr(explained, "kind", "") == "text_span":
        import mechvis

        extra = mechvis.load(model, device=device)
    data = CardData(model=loaded, images=found, reference=others, extra=extra)
    if explained is None:
        from mechvis.attribution.names import method
        from mechvis.cards.of_attribution import attribution_card

        card = attribution_card(method(of)(), data, level=level, seed=seed, target=target)
    else:
        card = explained.card(data, level=level, seed=seed)
    say(repr(card))
    if out is None:
        say("\nnothing was saved; --out FOLDER keeps the card.")
        return
    from mechvis.files import write_text

    card.save(out)
    write_text(out / "card.md", card.markdown())
    card.report(out / "card.html")
    say(f"\nsaved in {out}: card.json, examples.parquet, card.md, card.html")


@calls("mechvis.cards.verify:verify", "mechvis.models.load:load")
def verify(folder: Path, /, *, model: str | None = None, images: str | None = None, device: str | None = None) -> None:
    """Is a card what it says? Hashes, means, intervals and gates, computed again from what is stored.

    Args:
        folder: the card.
        model: also compare the weights with this model's.
        images: also compare the images.
        device: where to put the model, e.g. cuda.
    """
    from mechvis.cards import FaithfulnessCard

    found = None if images is None else read_images(images)
    loaded = None
    if model is not None:
        import mechvis

        loaded = mechvis.load(model, device=device)
        loaded = getattr(loaded, "vision", loaded)
    card = FaithfulnessCard.load(folder).verify(loaded, found)
    say(
        f"{folder}: {len(card.measures)} measures and {len(card.gates)} gates follow from what is stored\n{card.sha256}"
    )


@calls("mechvis.cards.compare:compare")
def compare(first: Path, second: Path, /, *, out: Path | None = None) -> None:
    """Two cards of one kind, model and data: paired differences of their measures.

    Args:
        first: a card.
        second: another one.
        out: folder for the comparison.
    """
    from mechvis.cards import FaithfulnessCard

    found = FaithfulnessCard.load(first).compare(FaithfulnessCard.load(second))
    say(repr(found))
    if out is not None:
        found.save(out)
        found.report(out / "report.html")


card = {"make": make, "verify": verify, "compare": compare}
"""What `mechvis card` offers."""


def _opened(of: str) -> Any:
    """What a folder holds, if it is something that can make a card; None for a word that is no folder.

    Raises:
        BadData: it holds something else.
    """
    from mechvis.commands.saved import load_saved
    from mechvis.errors import BadData

    if not Path(of).is_dir():
        return None
    found = load_saved(of)
    if not hasattr(found, "card"):
        raise BadData(f"{of} holds a {type(found).__name__}, of which there is no card yet.")
    return found
