"""The command line: what it says, with which exit code, and that its flags are parameters of public functions."""

import importlib
import inspect
import json
import os
import subprocess
import sys
import time
import warnings
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from mechvis import cli, commands
from mechvis.errors import BadData

GOLDEN = Path(__file__).with_name("cli_flags.txt")
ABOUT_PLACES = {"model", "images", "out", "save_model", "folder", "name", "top", "certified"}
"""Flags of the command line alone: which model and images, where outputs go, how many rows to print, and which of two
functions is called."""


def functions() -> dict[str, object]:
    found = {}
    for name, point in cli.commands().items():
        if point.dist is not None and point.dist.name != "mechvis":
            continue
        found |= cli.flatten(name, point.load())
    return found


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    from mechvis.testing import tiny, tiny_preprocess

    folder = tmp_path_factory.mktemp("models") / "tiny-vit"
    tiny("vit").save_pretrained(folder)
    tiny_preprocess().processor.save_pretrained(folder)
    return str(folder)


# the list of commands and flags


def test_flags_are_frozen():
    lines = []
    for name, function in sorted(functions().items()):
        for parameter in inspect.signature(function).parameters.values():
            positional = parameter.kind is inspect.Parameter.POSITIONAL_ONLY
            flag = parameter.name.upper() if positional else "--" + parameter.name.replace("_", "-")
            default = "" if parameter.default is inspect.Parameter.empty else f" = {parameter.default!r}"
            lines.append(f"mechvis {name} {flag}{default}")
        if not inspect.signature(function).parameters:
            lines.append(f"mechvis {name}")
    text = "\n".join(lines) + "\n"
    assert text == GOLDEN.read_text(encoding="utf-8"), (
        "the command line has changed, and scripts depend on it. If the change is meant, note it in CHANGELOG.md "
        f"and write this into {GOLDEN.name}:\n{text}"
    )


@pytest.mark.parametrize("name", sorted(functions()))
def test_every_flag_is_a_parameter_of_a_public_function(name):
    function = functions()[name]
    known = set(ABOUT_PLACES)
    for called in function.calls:
        module, path = called.split(":")
        thing = importlib.import_module(module)
        for word in path.split("."):
            thing = getattr(thing, word)
        known |= set(inspect.signature(thing).parameters)
    own = {"match"} if name == "sites" else set()  # HookGraph.match(patterns) is the function itself
    assert not set(inspect.signature(function).parameters) - known - own


@pytest.mark.parametrize("name", sorted(functions()))
def test_help_of_every_command(name, capsys):
    assert cli.main([*name.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert f"mechvis {name}" in text
    assert (functions()[name].__doc__ or "").strip().split("\n")[0][:40] in text


def test_defaults_equal_those_of_the_function():
    from circuits.cigma import cigma as study_of
    from mechvis.sweep import sweep as run

    for command, function in (("sweep", run), ("cigma", study_of)):
        theirs = inspect.signature(function).parameters
        for name, parameter in inspect.signature(functions()[command]).parameters.items():
            if name in theirs and inspect.Parameter.empty not in (theirs[name].default, parameter.default):
                expected = theirs[name].default
                given = parameter.default[0] if name == "metric" else parameter.default
                assert given == expected, f"{command} --{name}: {given!r}, the function has {expected!r}"


# help is light


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys, time; started = time.perf_counter(); from mechvis.cli import main; code = main(['--help']); "
        "heavy = {'torch', 'numpy', 'transformers', 'transformer_lens', 'matplotlib', 'polars'} & set(sys.modules); "
        "sys.stderr.write(f'{code} {sorted(heavy)} {time.perf_counter() - started}')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    code, heavy, seconds = done.stderr.split(" ", 2)
    assert code == "0", done.stderr
    assert heavy == "[]", done.stderr
    assert float(seconds) < 2, "mechvis --help should answer at once"
    assert all(f"  {name.split()[0]}" in done.stdout for name in functions())
    assert "cannot be loaded" not in done.stdout


def test_sweep_help_does_not_import_torch():
    code = "import sys; from mechvis.cli import main; main(['sweep', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_python_dash_m():
    done = subprocess.run([sys.executable, "-m", "mechvis", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "mechvis 0.1.0")


# wrong command lines


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sweeep"], "Nearest: sweep"),
        (["data", "exprot"], "Nearest: data export"),
        (["zoo", "trian", "scenes-vit"], "Nearest: zoo train"),
        (["sweep", "--model", "x", "--images", "y", "--unit", "heads"], "--units"),
        (["sweep", "--model", "x", "--images", "y", "--units", "head"], "heads"),
        (["sweep", "--model", "x"], "--images"),
        (["data", "export", "sceens", "x"], "scenes"),
        (["sites"], "MODEL"),
        (["cigma", "--model", "x", "--k", "many"], "auto"),
    ],
)
def test_wrong_command_line(words, expected, capsys):
    assert cli.main(words) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sites", "scenes-vti"], "Nearest: scenes-vit"),
        (["report", "no-such-folder"], "no-such-folder is not a folder"),
        (["sweep", "--model", "scenes-vit", "--images", "no-such-folder"], "scenes[:n[:seed]]"),
        (["sweep", "--model", "scenes-vit", "--images", "scenes:0"], "empty"),
        (["cigma", "--model", "scenes-vit"], "--images"),
    ],
)
def test_errors_are_one_message_without_traceback(words, expected, capsys):
    assert cli.main(words) == 1
    err = capsys.readouterr().err
    assert expected in err
    assert err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in err


def test_debug_shows_the_traceback():
    with pytest.raises(BadData):
        cli.main(["--debug", "report", "no-such-folder"])


def test_bugs_are_not_hidden(monkeypatch):
    def broken() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(commands, "models", broken)
    with pytest.raises(ZeroDivisionError):
        cli.main(["models"])


@pytest.mark.parametrize(
    ("words", "expected"), [([], "Nothing was kept"), (["--out", "x"], "the same command continues")]
)
def test_interrupt(monkeypatch, capsys, words, expected):
    def interrupted(*, out: str = "") -> None:
        """Stop."""
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "models", interrupted)
    assert cli.main(["models", *words]) == 130
    assert expected in capsys.readouterr().err


def test_warnings_are_lines_and_the_process_is_left_alone(monkeypatch, capsys):
    def warns() -> int:
        """Warn."""
        warnings.warn("odd mask", UserWarning, stacklevel=1)
        return 7

    monkeypatch.setattr(commands, "models", warns)
    before = (warnings.showwarning, list(warnings.filters), dict(os.environ))
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        assert cli.main(["models"]) == 7
    assert capsys.readouterr().err == "warning: odd mask\n"
    assert (warnings.showwarning, list(warnings.filters), dict(os.environ)) == before


def test_a_package_of_the_same_name_is_noticed(tmp_path):
    (tmp_path / "circuits").mkdir()
    (tmp_path / "circuits" / "__init__.py").write_text("raise SystemExit('not ours')\n")
    done = subprocess.run(
        [sys.executable, "-m", "mechvis", "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,  # python -m looks here first
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "circuits") in done.stderr
    assert "cigma" not in done.stdout
    assert "sweep" in done.stdout


def test_a_broken_add_on_does_not_take_the_help_away(monkeypatch, capsys):
    from importlib.metadata import EntryPoint

    points = [EntryPoint("other", "no_such_module:command", cli.GROUP), *entry_points(group=cli.GROUP)]
    monkeypatch.setattr(cli, "entry_points", lambda group: points)
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "cannot be loaded: ModuleNotFoundError" in text
    assert "  sweep " in text


# commands on real input


def test_sites(tiny_folder, capsys):
    assert cli.main(["sites", tiny_folder, "--match", "blocks.1.attn.hook_z", "hook_log*"]) == 0
    text = capsys.readouterr().out
    assert "parity with the bare model (float32): bitwise equal" in text
    assert "[row token=10 head=4 d_head=4]" in text
    assert "attn.hook_pattern, attn.hook_v" in text
    assert "hook_resid_pre" not in text


def test_sites_says_what_is_near(tiny_folder, capsys):
    assert cli.main(["sites", tiny_folder, "--match", "blocks.1.atn.hook_z"]) == 1
    assert "blocks.1.attn.hook_z" in capsys.readouterr().err


def test_sites_of_a_two_tower_model(tmp_path, capsys):
    from mechvis.testing import tiny, tiny_preprocess

    tiny("clip").save_pretrained(tmp_path)
    tiny_preprocess().processor.save_pretrained(tmp_path)
    assert cli.main(["sites", str(tmp_path), "--match", "vision.blocks.0.attn.hook_z"]) == 0
    text = capsys.readouterr().out
    assert text.count("blocks.0.attn.hook_z") == 1
    assert cli.main(["sites", str(tmp_path), "--match", "blocks.0.attn.hook_z"]) == 0
    assert capsys.readouterr().out.count("blocks.0.attn.hook_z") == 2


def test_export_then_sweep_then_report(tiny_folder, tmp_path, capsys):
    images, out = tmp_path / "scenes", tmp_path / "runs"
    assert cli.main(["data", "export", "scenes", str(images), "--n", "18", "--seed", "4"]) == 0
    assert (images / "metadata.csv").is_file()
    assert (images / "masks").is_dir()
    assert cli.main(["data", "export", "scenes", str(images), "--n", "18"]) == 1
    assert "overwrite" in capsys.readouterr().err

    words = ["sweep", "--model", tiny_folder, "--images", str(images), "--edit", "mean_positional", "--top", "3"]
    words += ["--metric", "logit_diff", "accuracy", "--out", str(out), "--no-progress"]
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert "effect on logit_diff" in text
    assert "effect on accuracy" in text
    assert "3 of 12 units" in text
    assert (out / "report.html").is_file()

    page = tmp_path / "again.html"
    assert cli.main(["report", str(out), "--out", str(page)]) == 0
    assert "<html" in page.read_text(encoding="utf-8")

    from mechvis.results import Result
    from mechvis.sweep import sweep

    loaded = Result.load(out)
    found = commands.read_images(str(images))
    direct = sweep(
        commands.read_model(tiny_folder, found),
        found,
        units="heads",
        edit="mean_positional",
        metric=["logit_diff", "accuracy"],
        progress=False,
    )
    assert loaded.table.equals(direct.table), "the command and the function must give the same table"


def test_report_of_an_unknown_format(tmp_path, capsys):
    (tmp_path / "thing.json").write_text(json.dumps({"format": "elsewhere.study"}))
    assert cli.main(["report", str(tmp_path)]) == 1
    assert "elsewhere.study, for which no reader is installed" in capsys.readouterr().err


# what words on the command line mean


def test_scenes_by_number_and_seed():
    assert commands.read_images("scenes:5:9").ids == tuple(f"scenes/9/{i:06d}" for i in range(5))
    assert len(commands.read_images("scenes:5")) == 5
    assert commands.read_images("scenes").ids[0] == f"scenes/{commands.SCENES_SEED}/000000"
    for wrong in ("scenes:x", "scenes:5:9:1", "scenes:-3"):
        with pytest.raises(BadData, match="no images at"):
            commands.read_images(wrong)


def test_columns():
    assert cli.columns([("a", 1, 0.5), ("bbb", 20, 10.25)], ("x", "number", "y")) == (
        "x    number      y\na         1    0.5\nbbb      20  10.25"
    )
    assert cli.columns([], ("x", "y")) == "x  y"


# the self-test


def test_selftest_passes_and_is_quick(capsys):
    started = time.perf_counter()
    assert cli.main(["selftest"]) == 0
    assert time.perf_counter() - started < 120
    text = capsys.readouterr().out
    assert "hand-wired ViT: effect of the planted head" in text
    assert "ShortcutViT" in text
    assert "class_specific" in text  # the table of methods on planted evidence
    assert "FAILED" not in text


def test_selftest_fails_when_a_check_fails(monkeypatch, capsys):
    from mechvis import selftest

    def wrong(seed: int) -> list:
        raise RuntimeError("planted failure")

    for name in ("parity", "planted_head", "planted_evidence"):
        monkeypatch.setattr(selftest, name, lambda seed: [])
    monkeypatch.setattr(selftest, "twins", wrong)
    monkeypatch.setattr(selftest, "entry_points", lambda group: [])
    assert cli.main(["selftest"]) == 1
    text = capsys.readouterr().out
    assert "RuntimeError: planted failure" in text
    assert "0 of 1 checks passed" in text
