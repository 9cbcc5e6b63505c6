import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vitcls.__main__ import VERBS

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "vitcls").rglob("*.py"))
# From the bottom up; a module imports from its own layer and those before it. vitcls/README.md draws this.
LAYERS = (
    (
        "vitcls",
        "vitcls.errors",
        "vitcls.types",
        "vitcls.input_spec",
        "vitcls.manifest",
        "vitcls.resizing",
        "vitcls.input_pixels",
        "vitcls.decisions",
        "vitcls.processes",
        "vitcls.runs",
        "vitcls.run_config",
        "vitcls.checkpoints",
        "vitcls.together",
        "vitcls.outputs",
        "vitcls.pictures",
        "vitcls.drawing",
        "vitcls.left_out",
        "vitcls.calibration",
    ),
    ("vitcls.data", "vitcls.metrics", "vitcls.optim", "vitcls.predictions", "vitcls.inference"),
    ("vitcls.models",),
    ("vitcls.callbacks",),
    (
        "vitcls.records",
        "vitcls.wording",
        "vitcls.trainer_options",
        "vitcls.checkpoint_options",
        "vitcls.rate_finding",
        "vitcls.tracking",
        "vitcls.attached",
        "vitcls.machine",
        "vitcls.report",
        "vitcls.answers",
        "vitcls.sessions",
        "vitcls.run_record",
    ),
    (
        "vitcls.cli",
        "vitcls.check",
        "vitcls.methods",
        "vitcls.overview",
        "vitcls.soup",
        "vitcls.bench",
        "vitcls.export",
        "vitcls.serve",
    ),
    ("vitcls.__main__",),
)


def layer_of(module: str) -> int:
    fits = [
        (len(prefix), depth)
        for depth, layer in enumerate(LAYERS)
        for prefix in layer
        if module == prefix or (prefix != "vitcls" and module.startswith(f"{prefix}."))
    ]
    return max(fits)[1]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vitcls"):
            deeper = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name_of(other) for other in MODULES}
            found |= {name if name in modules else node.module for name in deeper}
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("vitcls")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_imports_upward(path):
    here = layer_of(name_of(path))
    assert [name for name in imports_of(path) if layer_of(name) > here] == []


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout


def test_help_shows_every_verb_and_imports_nothing_heavy():
    code = "import sys, json; from vitcls.__main__ import main; status = main(['--help'])"
    out = python(f"{code}; print(json.dumps([status, sorted(sys.modules)]))")
    status, modules = json.loads(out.splitlines()[-1])
    assert status == 0
    assert not {"torch", "lightning", "transformers", "datasets", "jsonargparse", "numpy"} & set(modules)
    for verb in VERBS:
        assert re.search(rf"^  {verb} ", out, re.MULTILINE)


def test_runs_are_listed_without_torch(tmp_path):
    """What took half a second would take six."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("data: {dataset: digits}")
    code = f"import sys, json; from vitcls.__main__ import main; status = main(['runs', {str(tmp_path)!r}])"
    out = python(f"{code}; print(json.dumps([status, sorted(sys.modules)]))")
    status, modules = json.loads(out.splitlines()[-1])
    assert status == 0
    assert "digits" in out
    assert not {"torch", "lightning", "transformers", "datasets", "numpy"} & set(modules)


def test_one_batch_is_not_taken_for_all_batches():
    """A whole number of batches and a share of them share an option: the whole number must be tried first."""
    code = "from vitcls.cli import VitclsCLI, Trainer; import inspect"
    annotation = python(f"{code}; print(inspect.signature(Trainer).parameters['limit_test_batches'].annotation)")
    assert annotation.index("int") < annotation.index("float")


def test_the_console_script_and_the_module_are_the_same_program(vitcls):
    script = Path(sys.executable).parent / "vitcls"
    said = [
        subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60).stdout
        for command in ([script], [sys.executable, "-m", "vitcls"])
    ]
    assert said[0] == said[1]
    assert said[0].startswith("vitcls 0.")


def test_the_classes_are_at_hand_in_python():
    out = python(
        "import vitcls; print(vitcls.ViTClassifier.__name__, vitcls.ImageDataModule.__name__, vitcls.LoRA().r)"
    )
    assert out.split() == ["ViTClassifier", "ImageDataModule", "16"]


def test_the_top_level_holds_what_was_agreed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    if listed.returncode:
        pytest.skip("not a git checkout")
    tops = {line.split("/")[0] for line in listed.stdout.splitlines()}
    agreed = {"pyproject.toml", "README.md", "README.zh.md", "LICENSE", "vitcls", "configs", "tests", "checkpoints"}
    assert {top for top in tops if not top.startswith(".")} <= agreed


def test_every_dependency_says_why_its_bound_is_there():
    text = (ROOT / "pyproject.toml").read_text()
    bounds = re.findall(r'^  "[\w\[\]-]+[<>=].*$', text, re.MULTILINE)
    assert len(bounds) > 15
    assert [line for line in bounds if "#" not in line] == []
