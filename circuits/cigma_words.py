"""A CIGMA study in words: the summary that is printed, and the verdict that heads its report."""

from typing import TYPE_CHECKING

import numpy as np

from circuits.certified import statement

if TYPE_CHECKING:
    from circuits.study import Study

MOST_ROWS = 16
"""Heads that the summary lists."""


def summary(study: "Study") -> str:
    """What was found, in a few lines."""
    lines = [verdict(study), "", *_first_heads(study)]
    lines += ["", f"{'evaluation images':<28}{'before':>9}{'after':>9}{'change':>9}   95 % interval"]
    for row in study.evaluation.iter_rows(named=True):
        interval = "" if row["low"] is None else f"[{row['low']:+.3f}, {row['high']:+.3f}]"
        lines.append(
            f"  {row['measure']:<26}{row['before']:>9.3f}{row['after']:>9.3f}{row['change']:>+9.3f}   {interval}"
            f" n={row['n']}"
        )
    if study.has_control:
        for measure in ("BIR", "worst group"):
            control = study.against_random(measure)
            lines.append(
                f"random heads, {measure}: {control['low']:.3f} to {control['high']:.3f} in 95 % of "
                f"{control['draws']:.0f} draws ({control['different']:.0f} different); these heads: "
                f"{control['observed']:.3f} (p = {control['p']:.3f})"
            )
    return "\n".join(lines)


def _first_heads(study: "Study") -> list[str]:
    rank, total = study.scores.metrics[0], study.scores.rows().height
    facts = study.certificate
    names = study.ranking[: 5 if facts is None else facts["top"]][:MOST_ROWS]
    rows = {row["unit"]: row for row in study.scores.rows().iter_rows(named=True)}
    n = f"{rows[names[0]]['n']} selection images, nats" if facts is None else f"nats; the top {facts['top']} of {total}"
    lines = [f"heads by {rank} score ({n}):"]
    for name in names:
        row = rows[name]
        lines.append(
            f"  {name:<8} {row['effect']:+.4f}  [{row['low']:+.4f}, {row['high']:+.4f}]"
            f"{'' if facts is None else '  n=' + str(row['n'])}{'  recommended' if name in study.recommended else ''}"
        )
    said = statement(study.scores)
    return lines if said is None else [*lines, "", *said.splitlines()]


def verdict(study: "Study") -> str:
    """What was found, and what follows from it."""
    facts = study.certificate
    if facts is not None and len(study.recommended) == facts["top"]:
        more = f" All of the top {facts['top']} heads are recommended, so there may be more: raise top."
        return _verdict(study) + more
    return _verdict(study)


def _verdict(study: "Study") -> str:
    forced = study.settings.get("k") != "auto"
    if not study.recommended and (forced or not study.chosen):
        facts = study.certificate
        whose = "no head's" if facts is None else f"none of the top {facts['top']} heads' (the others were not judged)"
        text = (
            f"CIGMA: no head is recommended for removal: {whose} guarded score is reliably above zero. The context "
            "may be carried by many heads, by heads that stand in for each other, or by MLPs, or there may be no "
            "shortcut."
        )
        return text + (f" {_effect(study)}, as k={study.settings['k']} asked." if study.chosen else "")
    if not study.chosen:
        why = (
            "k=0 was asked for"
            if forced
            else "no set of them is validated: none is reliably good on the validation images, or all cost too much"
        )
        return (
            f"CIGMA: {len(study.recommended)} head(s) carry context ({', '.join(study.recommended[:5])}), but {why}. "
            "Nothing is removed."
        )
    strangers = [name for name in study.chosen if name not in study.recommended]
    text = f"CIGMA: {_effect(study)}"
    if study.has_control:
        control = study.against_random("BIR")
        text += f"; that is {'outside' if control['observed'] < control['low'] else 'inside'} what random heads do"
    if not strangers:
        return text + "."
    if forced:
        return f"{text}. Not recommended, but asked for: {', '.join(strangers)}."
    return f"{text}. {', '.join(strangers)}: not reliable alone, but the set is, on the validation images."


def _effect(study: "Study") -> str:
    """`removing L1H1 lowers the background influence ratio from ... to ...`, as far as it does, and its price."""
    bir, accuracy = study.measure("BIR"), study.measure("accuracy")
    before, after = bir["before"], bir["after"]
    heads = f"removing {', '.join(study.chosen)}"
    if not (np.isfinite(before) and np.isfinite(after)):
        return f"{heads} leaves no influence of object or context to compare"
    word = "lowers" if after < before else "does not lower"
    share = f" ({after / before - 1:+.0%})" if before > 0 else ""
    price = f", and accuracy falls from {accuracy['before']:.1%} to {accuracy['after']:.1%}"
    lost = accuracy["change"] < 0 and (accuracy["high"] or 0) < 0
    return f"{heads} {word} the background influence ratio: {before:.3f} before, {after:.3f} after{share}" + (
        price if lost else ""
    )
