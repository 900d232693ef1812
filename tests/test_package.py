"""What the packages promise as packages: a light import without side effects, documented names, nothing that runs code
from data."""

import ast
import importlib
import inspect
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("mechvis", "circuits", "probes", "sae")
HEAVY = ("transformers", "transformer_lens", "nnsight", "matplotlib", "sklearn", "scipy", "datasets", "wandb", "pandas")
PUBLIC = (
    "mechvis",
    "mechvis.attribution",
    "mechvis.cards",
    "mechvis.data",
    "mechvis.decompose",
    "mechvis.explorer",
    "mechvis.faithfulness",
    "mechvis.plots",
    "mechvis.removal",
    "mechvis.report",
    "mechvis.store",
    "mechvis.testing",
    "mechvis.testing.evidence",
    "mechvis.testing.planted",
    "mechvis.testing.trained",
    "mechvis.visualise",
    "circuits",
    "circuits.causal_paths",
    "circuits.comparison",
    "circuits.contextual",
    "circuits.drawing",
    "circuits.editing",
    "circuits.evaluation",
    "circuits.pairs",
    "circuits.patching",
    "circuits.subspace",
    "circuits.weights",
    "probes",
    "probes.bcos",
    "probes.bottleneck",
    "probes.cards",
    "probes.codes",
    "probes.concept_scope",
    "probes.concept_tests",
    "probes.concepts",
    "probes.lenses",
    "probes.linear",
    "probes.null_space",
    "probes.registers",
    "probes.repair",
    "probes.second_order",
    "probes.surf",
    "probes.textspan",
    "probes.timeline",
    "probes.unit_labels",
    "sae",
    "sae.architectures",
    "sae.attribution",
    "sae.baselines",
    "sae.dashboards",
    "sae.data",
    "sae.diffing",
    "sae.evaluation",
    "sae.flow",
    "sae.formats",
    "sae.parallel",
    "sae.splicing",
    "sae.steering",
    "sae.training",
)

_IMPORT = """
import json, sys, time
started = time.perf_counter(); import torch; torch_seconds = time.perf_counter() - started
import logging, warnings
before = (list(logging.root.handlers), list(warnings.filters), torch.get_default_dtype(), torch.get_num_threads(),
          torch.is_grad_enabled(), torch.random.get_rng_state().sum().item())
held = set(sys.modules)
started = time.perf_counter()
import mechvis, circuits, probes, sae
seconds = time.perf_counter() - started
after = (list(logging.root.handlers), list(warnings.filters), torch.get_default_dtype(), torch.get_num_threads(),
         torch.is_grad_enabled(), torch.random.get_rng_state().sum().item())
print(json.dumps({"torch": torch_seconds, "ours": seconds, "same": before == after,
                  "new": sorted({name.split(".")[0] for name in set(sys.modules) - held})}))
"""


def _modules() -> list[str]:
    return [
        found.name
        for package in PACKAGES
        for found in pkgutil.walk_packages([str(ROOT / package)], prefix=f"{package}.")
        if not found.name.endswith("__main__")
    ]


def test_import_is_light_and_leaves_the_process_alone():
    done = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1, f"importing printed something: {done.stdout}"
    assert not done.stderr, f"importing complained: {done.stderr}"
    found = json.loads(done.stdout)
    assert found["same"], "importing changed handlers, filters, torch settings or the random state"
    assert not set(HEAVY) & set(found["new"]), f"importing pulled in {sorted(set(HEAVY) & set(found['new']))}"
    # The promise is half a second beside torch's four; a ratio does not depend on how busy the machine is.
    assert found["ours"] <= max(0.5, 0.25 * found["torch"]), found


@pytest.mark.parametrize("name", _modules())
def test_every_module_imports_and_says_what_it_is_for(name):
    module = importlib.import_module(name)
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert not source.strip() or (ast.get_docstring(ast.parse(source)) or "").strip(), f"{name} has no docstring"


@pytest.mark.parametrize("home", PUBLIC)
def test_public_names_exist_and_are_documented(home):
    module = importlib.import_module(home)
    assert (module.__doc__ or "").strip(), f"{home} has no docstring"
    for name in getattr(module, "__all__", ()):
        thing = getattr(module, name)
        if inspect.ismodule(thing) or inspect.isfunction(thing) or inspect.isclass(thing):
            assert (thing.__doc__ or "").strip(), f"{home}.{name} has no docstring"


def test_public_functions_stay_functions_whatever_was_imported_before():
    # `mechvis.sweep` is a function that lives in a module of the same name; importing the module must not hide it.
    code = (
        "import mechvis.sweep, mechvis.means, circuits.cigma, circuits.prune, mechvis, circuits; "
        "print(all(map(inspect.isfunction, (mechvis.sweep, mechvis.means, circuits.cigma, circuits.prune))))"
    )
    done = subprocess.run([sys.executable, "-c", f"import inspect; {code}"], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "True", done.stdout + done.stderr


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_that_runs_code_from_data(package):
    found = []
    for file in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if complaint := _dangerous(node):
                found.append(f"{file.relative_to(ROOT)}:{node.lineno}: {complaint}")
    assert not found, "\n".join(found)


def _dangerous(node: ast.AST) -> str | None:
    banned = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
    if isinstance(node, ast.Import):
        return next((f"imports {alias.name}" for alias in node.names if alias.name.split(".")[0] in banned), None)
    if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").split(".")[0] in banned:
        return f"imports {node.module}"
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        if name in ("eval", "exec", "torch.load", "torch.hub.load", "os.system") or name.endswith(
            ".load_state_dict_from_url"
        ):
            return f"calls {name}"
        for keyword in node.keywords:
            allowing = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
            if allowing and keyword.arg in ("trust_remote_code", "allow_pickle", "shell"):
                return f"passes {keyword.arg}=True"
    return None


def test_the_check_for_dangerous_calls_sees_them():
    for code in ("import pickle", "from dill import loads", "torch.load(p)", "f(trust_remote_code=True)", "eval('1')"):
        assert any(_dangerous(node) for node in ast.walk(ast.parse(code))), code
    for code in ("model.eval()", "f(trust_remote_code=False)", "safetensors.torch.load(p)"):
        assert not any(_dangerous(node) for node in ast.walk(ast.parse(code))), code
