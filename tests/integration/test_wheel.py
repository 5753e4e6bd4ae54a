"""The wheel alone, installed into a fresh environment, trains in an empty folder."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout."""
    out = tmp_path_factory.mktemp("dist")
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), "."],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; its dependencies are lent by this one's folder."""
    folder = tmp_path_factory.mktemp("env")
    venv.create(folder, with_pip=False, symlinks=True)
    scheme = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", vars=scheme))
    # Behind the wheel's own files on sys.path. As a plain path, so that the .pth file of the
    # editable installation in there stays unread.
    (site / "lent.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
         "--target", str(site), str(wheel)],
        check=True,
    )  # fmt: skip
    return folder


def test_the_wheel_holds_the_yaml_and_the_corpus(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"llmtrain/conf/{path.relative_to(ROOT / 'conf').as_posix()}" in names
    assert any(name.startswith("llmtrain/data/corpus/") for name in names)
    assert not any(name.startswith("tests/") for name in names)


def test_it_trains_in_an_empty_folder(environment: Path, tmp_path: Path) -> None:
    python = environment / "bin" / "python"
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env["LLMTRAIN_CACHE"] = str(tmp_path / "cache")
    empty = tmp_path / "empty"
    empty.mkdir()
    where = subprocess.run(
        [python, "-c", "import llmtrain; print(llmtrain.__file__)"],
        cwd=empty, env=env, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert Path(where.strip()).is_relative_to(environment), "it is not the wheel that is tested"
    script = "import sys; from llmtrain.cli import main; sys.exit(main())"
    ended = subprocess.run(
        [python, "-c", script, "train", "train=smoke", "train.steps=3", "scheduler.warmup_steps=1",
         "model.n_layers=1", "model.seq_len=32", "tokenizer=byte", "train.sample_tokens=5",
         "train.eval_tokens=256", "run_dir=run"],
        cwd=empty, env=env, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    result = json.loads((empty / "run" / "result.json").read_text())
    assert result["status"] == "completed" and result["step"] == 3
