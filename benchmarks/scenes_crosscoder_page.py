"""The page of `benchmarks.scenes_crosscoder`: figures measured, in tables, with what they do not show."""

from collections.abc import Iterator
from typing import Any

import polars as pl


def page(found: dict[str, Any], settings: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Lines of Markdown, and the numbers as plain JSON.

    Args:
        found: what `crosscoder()` and `transcoder()` returned.
        settings: of the run.
    """
    crosscoder, transcoder = found["crosscoder"], found["transcoder"]
    lines = [*_models(crosscoder, settings), *_latents(crosscoder, settings), *_ablated(crosscoder, settings)]
    lines += [*_swapped(crosscoder), *_transcoder(transcoder)]
    diff, control = crosscoder["diff"], crosscoder["control"]
    numbers = {
        "settings": settings, "accuracy": crosscoder["plain"], "variance_shares": crosscoder["shares"],
        "classes": diff.tables["classes"].to_dicts(), "control": control.tables["classes"].to_dicts(),
        "models": diff.tables["models"].to_dicts(), "facts": diff.facts, "groups": crosscoder["groups"],
        "latents": _table(crosscoder).to_dicts(), "ablated": crosscoder["ablated"], "swapped": crosscoder["swap"],
        "transcoder": transcoder,
    }  # fmt: skip
    return lines, numbers


def _models(found: dict[str, Any], settings: dict[str, Any]) -> Iterator[str]:
    yield "# What a crosscoder finds between a model with and one without a shortcut"
    yield ""
    yield (
        "`python -m benchmarks.scenes_crosscoder`. Scenes are made on the spot; scenes that judge are none that models "
        "or dictionaries learn from, nor any that latents are chosen on. Intervals are 95 % over images."
    )
    yield ""
    yield "## The two models"
    yield ""
    yield (
        f"The backbone of `scenes-vit` with a new classifier, all of it trained for {settings['steps']} steps of "
        f"{settings['batch']} images (AdamW, {settings['rate']:g}), the same for both but for the scenes: *without*, "
        "backgrounds are independent of the shape; *with*, they agree with it in 95 % of scenes. The bundled backbone "
        "itself knows shape and background, so it is the common ancestor. Measured apart, not by this script: a model "
        "that was trained on independent scenes first (100 steps), then on correlated ones (30 steps), did not take "
        "up the shortcut (98 % of 300 conflicting scenes right): it had forgotten the background. So the two are "
        "branches, not one after the other."
    )
    yield ""
    yield "| model | conflicting scenes | agreeing scenes | variance of the class token: background | shape | colour |"
    yield "|---|---:|---:|---:|---:|---:|"
    for model, shares in found["shares"].items():
        cells = [_interval(found["plain"][f"{model}, {kind}"]) for kind in ("conflicting", "agreeing")]
        cells += [f"{shares[name]:.3f}" for name in ("background", "shape", "colour")]
        yield f"| {model} | " + " | ".join(cells) + " |"
    n = found["plain"]["with, conflicting"]["n"], found["plain"]["with, agreeing"]["n"]
    yield ""
    yield f"Accuracy on {n[0]} and {n[1]} scenes. Variance: share that the label explains, after the last block."
    yield ""


def _latents(found: dict[str, Any], settings: dict[str, Any]) -> Iterator[str]:
    diff, control = found["diff"], found["control"]
    yield "## Latents"
    yield ""
    yield (
        f"BatchTopK crosscoder of {settings['latents']} latents, k = {settings['k']}, on the class tokens of "
        f"{settings['rows']:,} scenes with independent backgrounds ({settings['tokens']:,} rows with repetition), "
        f"judged on {diff.facts['rows']:,} others. Classes by latent scaling; the control is a crosscoder with twice "
        "the latents and k on shuffled pairs, which have nothing in common."
    )
    yield ""
    yield "| class | latents | by decoder norm alone | shuffled pairs |"
    yield "|---|---:|---:|---:|"
    other = {row["class"]: row["latents"] for row in control.tables["classes"].iter_rows(named=True)}
    for row in diff.tables["classes"].iter_rows(named=True):
        yield f"| {row['class']} | {row['latents']} | {row['by_norm']} | {other[row['class']]} |"
    yield ""
    fvu = ", ".join(
        f"{row['model']} {row['fvu']:.3f} [{row['fvu_low']:.3f}, {row['fvu_high']:.3f}]"
        for row in diff.tables["models"].iter_rows(named=True)
    )
    yield f"FVU on other scenes: {fvu}. False exclusives (by norm, not by scaling): {diff.facts['false_exclusives']}."
    yield ""
    share = control.facts["shared_share"]
    yield (
        f"On shuffled pairs {share:.0%} of the latents look shared: these class tokens have few dimensions, and a "
        "latent may stand for a pair of things that have nothing to do with each other. So the class `shared` says "
        "little here, and the ablation and the exchange below count for more."
        if share > 0.1
        else f"On shuffled pairs {share:.0%} of the latents look shared."
    )
    if not len(diff.latents("only with")):
        left = found["shares"]["without"]["background"]
        yield (
            f"No latent is exclusive to *with*: in *without*, the background still explains {left:.1%} of the "
            "variance, so its latents are weaker there and not absent. ν says how much weaker."
        )
    yield ""
    yield "![Relative decoder norm of the latents, by what they are about](scenes_crosscoder.svg)"
    yield ""
    table = _table(found)
    yield "What latents are about (the label that explains most of their variance, 10 % at least), and where they are:"
    yield ""
    yield "| about | latents | only without | only with | shared | median Δ | median ν | found with another seed |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for name in ("background", "shape", "colour", "nothing named"):
        some = table.filter((pl.col("about") == name) & (pl.col("class") != "rare"))
        if some.height:
            counts = [int((some["class"] == kind).sum()) for kind in ("only without", "only with", "shared")]
            yield (
                f"| {name} | {some.height} | {counts[0]} | {counts[1]} | {counts[2]} | "
                f"{some['relative_norm'].median():.2f} | {some['ratio_error'].median():.2f} | "
                f"{(some['match'] > 0.7).mean():.0%} |"
            )
    yield ""
    yield (
        "Δ: 0 only *without*, 1 only *with*. ν: how much of the latent the model with less of it has. Found: cosine "
        "above 0.7 with its partner in a second crosscoder."
    )
    yield ""


def _ablated(found: dict[str, Any], settings: dict[str, Any]) -> Iterator[str]:
    yield "## Taken out"
    yield ""
    yield (
        "What the latents write is subtracted from the class token of *with* after the last block; the rest, also what "
        f"the crosscoder does not explain, stays. Random: mean (and range) of {settings['draws']} groups of as many "
        "latents of similar activity. The last column takes the same latents out of *without*."
    )
    yield ""
    yield "| scenes | latents | how many | accuracy | nothing taken out | random | in *without* |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for row in found["ablated"]:
        whole = found["plain"][f"with, {row['scenes']}"]["value"]
        yield (
            f"| {row['scenes']} | {row['latents']} | {row['count']} | {_interval(row)} | {whole:.3f} | "
            f"{row['random']:.3f} ({row['random_low']:.3f} to {row['random_high']:.3f}) | "
            f"{row['same_in_without']:.3f} |"
        )
    yield ""


def _swapped(found: dict[str, Any]) -> Iterator[str]:
    yield "## Exchanged"
    yield ""
    yield (
        "Pairs of scenes that differ in the background alone: latents get the values of the partner. Moved: how far "
        "the logits go from the one scene's to the other's, 0 to 1."
    )
    yield ""
    yield "| latents | model | moved | random (largest) | pairs |"
    yield "|---|---|---:|---:|---:|"
    for row in found["swap"]:
        yield (
            f"| {row['group']} | {row['model']} | {row['moved']:.2f} "
            f"[{row['moved_low']:.2f}, {row['moved_high']:.2f}] | "
            f"{row['random']:.2f} ({row['random_most']:.2f}) | {row['n']} |"
        )
    yield ""


def _transcoder(found: dict[str, Any]) -> Iterator[str]:
    yield "## A transcoder in place of an MLP"
    yield ""
    yield (
        f"The MLP of block 2 of the bundled `scenes-vit`: 512 latents (TopK), trained on {found['rows']:,} tokens "
        f"of 1000 scenes, judged on {found['judged']} others. The whole MLP output is replaced, at all 65 tokens."
    )
    yield ""
    yield "| in its place | FVU | L0 | accuracy |"
    yield "|---|---:|---:|---:|"
    for row in found["lines"]:
        l0 = "" if row["l0"] is None else f"{row['l0']:.1f}"
        yield f"| {row['in_its_place']} | {row['fvu']:.3f} | {l0} | {_interval(row)} |"
    yield ""


def _table(found: dict[str, Any]) -> pl.DataFrame:
    """Latents with what they are about."""
    more = [pl.Series("about", found["about"]), *(pl.Series(f"explained_{n}", v) for n, v in found["eta"].items())]
    return found["diff"].table.with_columns(*more)


def _interval(row: dict[str, Any]) -> str:
    return f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
