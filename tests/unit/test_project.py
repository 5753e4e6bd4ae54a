"""The house rules, held by machine."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmtrain.commands.compose import composer
from llmtrain.commands.groups import groups
from llmtrain.commands.settings import field_docs
from llmtrain.config.groups.inference import FromRunConfig
from llmtrain.config.groups.sweep import SweepConfig
from llmtrain.config.plan import make_plan
from llmtrain.config.schema import RunConfig
from llmtrain.config.store import PLAIN_SCHEMAS, ROOTS, SCHEMAS, from_dict, load_run_config, save

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "llmtrain").rglob("*.py"))
MOST_LINES_IN_A_FILE = 400
MOST_LINES_IN_A_FUNCTION = 60
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MOST_LINES_IN_A_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= MOST_LINES_IN_A_FUNCTION, f"{node.name} has {lines} lines"


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_every_file_is_one_noun_with_a_docstring(path: Path) -> None:
    assert path.stem not in FORBIDDEN_NAMES
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "no module docstring"
    if path.name == "__init__.py" and path.parent != ROOT / "llmtrain":
        assert len(tree.body) == 1, "__init__.py is a docstring"


def test_floors() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    checked = subprocess.run([tool], cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    "module", ["llmtrain.cli", "llmtrain.start", "llmtrain.launch.local", "llmtrain.commands.sweep"]
)
def test_the_launching_tower_runs_without_torch(module: str) -> None:
    code = f"import sys, {module}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_training_tower_runs_without_hydra() -> None:
    code = "import sys, llmtrain.worker, llmtrain.agent, llmtrain.tasks.train\n"
    code += "assert 'hydra' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_frozen_run_is_started_without_hydra_and_torch() -> None:
    code = "import sys, llmtrain.start, llmtrain.commands.train\n"
    code += "assert not {'hydra', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def schemas() -> Iterator[type]:
    yield from ROOTS.values()
    yield from PLAIN_SCHEMAS.values()
    for choices in SCHEMAS.values():
        yield from choices.values()
    yield SweepConfig


@pytest.mark.parametrize("schema", schemas(), ids=lambda schema: schema.__name__)
def test_every_setting_has_a_docstring(schema: type) -> None:
    docs = field_docs(schema)
    assert schema.__doc__
    for name in schema.__dataclass_fields__:
        group = name in SCHEMAS or name in PLAIN_SCHEMAS
        assert docs.get(name) or group, f"{schema.__name__}.{name}"


def choices() -> Iterator[tuple[str, str, str]]:
    for command in ROOTS:
        for group in groups(command).values():
            for choice in group.choices:
                yield command, group.name, choice


NEEDED = {
    ("data", "text"): ["data.path=x.txt"],
    ("data", "jsonl"): ["data.path=x.jsonl"],
    ("data", "csv"): ["data.path=x.csv"],
    ("data", "parquet"): ["data.path=x.parquet"],
    ("data", "huggingface"): ["data.path=owner/name"],
    ("tokenizer", "pretrained"): ["tokenizer.path=tokenizer.json"],
    ("tokenizer", "gpt2"): ["tokenizer.path=gpt2"],
    ("sweep", "optimizers"): [],
    ("sweep", "learning_rate"): [],
}
"""What a choice cannot do without."""


@pytest.mark.parametrize(("command", "group", "choice"), choices(), ids="-".join)
def test_every_yaml_composes_plans_and_is_read_back(
    command: str, group: str, choice: str, tmp_path: Path
) -> None:
    overrides = [f"{group}={choice}", *NEEDED.get((group, choice), [])]
    with composer(command) as hydra:
        config = hydra.compose(overrides).config
    if command == "train":
        assert make_plan(config, gpus=0).world_size >= 1
        assert make_plan(config, gpus=8).world_size >= 1
        save(config, tmp_path / "config.yaml")
        assert load_run_config(tmp_path / "config.yaml") == config


@pytest.mark.parametrize("command", ROOTS)
def test_every_root_composes(command: str) -> None:
    run = ["run=somewhere"] if issubclass(ROOTS[command], FromRunConfig) else []
    if command in ("samples", "replay"):
        run = ["run=somewhere", "step=1..2"]
    if command == "checkpoint_command":
        run = ["action=list", "run=somewhere"]
    with composer(command) as hydra:
        config = hydra.compose(run).config
    # How it is swept is no run's matter.
    root = RunConfig if command == "train" else ROOTS[command]
    assert type(config) is root
    import dataclasses

    assert from_dict(root, dataclasses.asdict(config), "test") == config


@pytest.mark.parametrize("path", sorted((ROOT / "conf").rglob("*.yaml")), ids=relative)
def test_every_yaml_says_what_it_is(path: Path) -> None:
    from llmtrain.commands.groups import first_comment

    assert first_comment(path), "the first comment line is what --help shows"


def test_nothing_points_at_one_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout: which files belong to the project is not known")
    for name in listed.stdout.split("\n"):
        path = ROOT / name
        named = path.name in {"Makefile", "Dockerfile", "run"}
        if path.suffix in {".py", ".yaml", ".toml", ".md"} or named:
            if not path.is_file() or path == Path(__file__):
                continue
            found = re.findall(r"/work/\w+|/opt/\w+|\.\./shared", path.read_text())
            assert not found, f"{name}: {found}"


def test_ci_runs_the_readmes_test_command() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    commands = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert commands[0] == "set -euo pipefail"
    assert commands[-1] == "make test"


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_help_names_every_target() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("help", "setup", "train", "test", "check", "format", "bench", "clean"):
        assert f"make {target} " in shown.stdout


def test_constraints_pin_every_dependency() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["dev"], *extras["tensorboard"]]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    for requirement in wanted:
        name = re.match(r"[\w.-]+", requirement)
        assert name and name.group().lower().replace("_", "-") in pinned, requirement
    assert not [line for line in lines if "+" in line.partition("#")[0]], "no local labels"


PACKAGES = {"hydra": "hydra-core", "yaml": "pyyaml", "phonenumbers": "phonenumberslite"}
"""Import name -> package, where they differ."""

OPTIONAL = {"optuna", "wandb", "tensorboard", "ftfy", "phonenumbers", "regex", "resiliparse"}
"""Of the extras; looked for before anything starts."""


def test_every_import_is_a_declared_dependency() -> None:
    """What happens to be installed beside us may not be there on a fresh machine."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {re.split(r"[^\w.-]", line)[0] for line in project["dependencies"]}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                top = name.partition(".")[0]
                if top in sys.stdlib_module_names or top in OPTIONAL or top == "llmtrain":
                    continue
                assert PACKAGES.get(top, top) in declared, f"{relative(path)} imports {top}"
    extras = {
        re.split(r"[^\w.-]", line)[0]
        for lines in project["optional-dependencies"].values()
        for line in lines
    }
    assert {PACKAGES.get(name, name) for name in OPTIONAL} <= extras
    # torch writes our checkpoints with it, and does not depend on it.
    assert "safetensors" in declared
