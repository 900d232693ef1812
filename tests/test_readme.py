"""The README's code runs, and what it names exists."""

import re
from pathlib import Path

import pytest

from mechvis import cli

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "notebooks/README.md", "tests/SKIPS.md")
PAGES += (
    "docs/attribution.md",
    "docs/cards.md",
    "docs/planted_suites.md",
    "docs/families.md",
    "docs/interop.md",
    "docs/formats.md",
    "docs/scale.md",
    "docs/sweeps.md",
    "docs/certified.md",
    "docs/kernels.md",
    "docs/store.md",
    "docs/circuits.md",
    "docs/dictionaries.md",
    "docs/readouts.md",
    "docs/scenes_circuit.md",
    "docs/scenes_crosscoder.md",
    "docs/scenes_dictionaries.md",
    "docs/scenes_readouts.md",
    "benchmarks/comparison.md",
    "benchmarks/decomposition.md",
    "benchmarks/edges.md",
    "benchmarks/planted_circuits.md",
    "benchmarks/loading.md",
    "benchmarks/results.md",
)


def test_python_example_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    assert (tmp_path / "runs" / "heads.html").is_file()
    assert names["run"].logits.shape == (64, 8)
    assert "survive FDR" in capsys.readouterr().out


def test_the_page_on_readouts_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "readouts.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "readouts.md", "exec"), names)
    assert abs(names["parts"].table["share"].sum() - 1) < 1e-4
    assert names["linear"].pick(features="blocks.1.hook_resid_post:cls")["score"] > 0.9
    assert names["lens"].pick(layer=3)["agreement"] == 1
    assert "Decision timeline" in capsys.readouterr().out


def test_the_page_on_circuits_runs(tmp_path, monkeypatch, capsys):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "circuits.md").read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(code, "circuits.md", "exec"), names)
    assert (tmp_path / "circuit.svg").is_file()
    assert names["scores"].provenance["agreement"]["spearman"] > 0.8
    assert names["judged"].measure("faithfulness")["value"] > 0.2
    assert "faithfulness" in capsys.readouterr().out


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)\)", text):
        assert target.startswith("https://") or ((ROOT / page).parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_targets_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", text, re.MULTILINE))
    assert named <= targets, f"{page} names make targets that do not exist: {sorted(named - targets)}"
    commands = set(cli.commands())
    named = set(re.findall(r"(?:^|`)mechvis ([a-z][a-z-]*)", text, re.MULTILINE))
    assert named <= commands, f"{page} names commands that do not exist: {sorted(named - commands)}"


def test_every_flag_in_a_shell_example_exists():
    known = (ROOT / "tests" / "mechvis" / "cli_flags.txt").read_text(encoding="utf-8")
    for page in PAGES:
        for line in re.findall(r"^mechvis .*--.*$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE):
            words = line.split()
            command = words[1] if words[2].startswith("-") else f"{words[1]} {words[2]}"
            given = re.findall(r" (--[a-z-]+)", line)
            for flag in given:
                assert f"mechvis {command} {flag}" in known, f"{page}: {command} has no {flag}"
            lines = (entry for entry in known.splitlines() if entry.startswith(f"mechvis {command} --"))
            needed = {entry.split()[-1] for entry in lines if "=" not in entry}
            assert needed <= set(given), f"{page}: {command} needs {needed - set(given)}"
