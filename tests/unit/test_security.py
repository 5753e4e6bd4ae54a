"""What foreign files, configurations and peers cannot do (docs/security.md)."""

import ast
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from llmtrain.checkpoint.manifest import Manifest, file_record, verify
from llmtrain.commands.compose import composer
from llmtrain.data.manifest import FileCheck, load_manifest, verify_files
from llmtrain.durable import hash_file, inside
from llmtrain.errors import CheckpointError, ConfigError, DataError
from llmtrain.log import setup_log
from llmtrain.secret import masked
from llmtrain.tasks.result import RunResult

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "llmtrain").rglob("*.py"))

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {
    "eval": "runs text", "exec": "runs text", "compile": "makes code of text",
    "__import__": "imports what data names", "torch.load": "unpickles",
    "torch.package.PackageImporter": "runs what it imports", "os.system": "starts a shell",
    "os.popen": "starts a shell", "yaml.unsafe_load": "builds any object",
    "yaml.full_load": "builds objects", "hydra.utils.instantiate": "runs what a YAML names",
    "hydra.utils.get_class": "imports what a YAML names", "tempfile.mktemp": "races",
    "zipfile.ZipFile.extractall": "writes anywhere", "tarfile.open": "writes anywhere",
    "shutil.unpack_archive": "writes anywhere",
}  # fmt: skip
FORBIDDEN_METHODS = {"extractall", "instantiate", "recv_object_list", "send_object_list"}
FORBIDDEN_ARGUMENTS = {
    ("shell", True), ("allow_pickle", True), ("trust_remote_code", True), ("weights_only", False),
}  # fmt: skip
UNPICKLES_PEERS = {"all_gather_object", "broadcast_object_list", "gather_object"}
PEERS_ARE_TRUSTED = {"llmtrain/checkpoint/manager.py", "llmtrain/train/diagnosis.py"}
"""Ranks of one run unpickle what its other ranks send; torch.distributed.checkpoint does so too."""


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def offences(source: str, name: str = "?") -> list[str]:
    """Return what in a source file must not be there."""
    found = []
    for node in ast.walk(ast.parse(source)):
        imported: list[str] = []
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported = [node.module or ""]
        found += [m for m in imported if m.partition(".")[0] in FORBIDDEN_MODULES]
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        method = called.rpartition(".")[2]
        if called in FORBIDDEN_CALLS or (method in FORBIDDEN_METHODS and "." in called):
            found.append(called)
        if method in UNPICKLES_PEERS and name not in PEERS_ARE_TRUSTED:
            found.append(called)
        if method == "import_module" and not isinstance(node.args[0], ast.Constant):
            found.append(f"{called} of what is no constant")
        if called == "yaml.load" and "Safe" not in source:
            found.append(called)
        for word in node.keywords:
            value = word.value.value if isinstance(word.value, ast.Constant) else None
            if (word.arg, value) in FORBIDDEN_ARGUMENTS:
                found.append(f"{word.arg}={value}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_source_runs_what_it_is_given(path: Path) -> None:
    assert offences(path.read_text(), str(path.relative_to(ROOT))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import loads", "import torch\ntorch.load('x')",
        "eval('1')", "f(shell=True)", "np.load('x', allow_pickle=True)", "z.extractall()",
        "importlib.import_module(name)", "dist.all_gather_object(a, b)", "yaml.load(text)",
        "load_dataset('x', trust_remote_code=True)",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_is_for(source: str) -> None:
    assert offences(source)


# Configuration.


def config_dir(folder: Path, text: str) -> Path:
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "foreign.yaml").write_text("# @package _global_\n" + text)
    return folder


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("model:\n  _target_: os.system\n", True),
        ("_target_: os.system\n", True),
        ("train: !!python/object/apply:os.system ['touch {mark}']\n", True),
        ("defaults:\n  - override /hydra/launcher: submitit_local\n", True),
        ("hydra:\n  searchpath: ['pkg://this']\n", True),
        ("hydra:\n  callbacks:\n    a:\n      _target_: os.system\n      command: touch {mark}\n",
         False),
    ],
)  # fmt: skip
def test_a_foreign_yaml_runs_nothing(text: str, refused: bool, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    folder = config_dir(tmp_path / "conf", text.replace("{mark}", str(mark)))
    with composer("train", [folder]) as hydra:
        if refused:
            with pytest.raises(ConfigError):
                hydra.compose(["experiment=foreign"])
        else:
            hydra.compose(["experiment=foreign"])
    assert not mark.exists() and "this" not in sys.modules


@pytest.mark.parametrize(
    "word",
    ["hydra/launcher=basic", "hydra.searchpath=[pkg://os]", "+hydra.callbacks.a._target_=os.system",
     "+model._target_=os.system"],
)  # fmt: skip
def test_hydras_own_settings_are_refused(word: str) -> None:
    asked = subprocess.run(
        [sys.executable, "-m", "llmtrain", "train", word, "--dry-run"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert asked.returncode == 2 and "Traceback" not in asked.stderr


# Secrets.

SECRET = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    "word",
    [
        "metrics.wandb_project=${oc.env:WANDB_API_KEY}",
        f"metrics.wandb_project=x-{SECRET}",
        "train.sample_prompt=hf_" + "a" * 34,
        "run_dir=s3://me:hidden-word@bucket/run",
    ],
)
def test_a_secret_in_the_configuration_is_refused(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    with composer("train") as hydra, pytest.raises(ConfigError) as error:
        hydra.compose([word])
    told = str(error.value)
    assert word.partition("=")[0] in told and "environment" in told
    assert SECRET not in told and "hidden-word" not in told and "a" * 34 not in told


@pytest.mark.parametrize(
    "word",
    ["metrics.wandb_project=my-project", "experiment_name=wandb_api_key",
     "run_dir=" + "f" * 40, "train.sample_prompt=http://host:80/path@x"],
)  # fmt: skip
def test_what_only_resembles_a_secret_passes(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHORT_TOKEN", "project")  # any text may hold a word
    with composer("train") as hydra:
        assert hydra.compose([word])


def test_secrets_are_masked_wherever_a_run_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "something")
    assert masked(f"a {SECRET} b, something") == "a *** b, something"
    before = logging.root.handlers[:]
    try:
        setup_log(tmp_path / "logs" / "rank_0.log", 0)
        try:
            raise OSError(f"401 for Bearer {SECRET}")
        except OSError:
            logging.exception("asked with %s", SECRET)
        logging.root.handlers[0].close()
    finally:
        logging.root.handlers = before
    RunResult(status="failed", error=f"OSError: {SECRET}").save(tmp_path)
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 2 and all("***" in text and SECRET not in text for text in written)


# Paths in manifests.

OUTSIDE = ["../secret", "/etc/hostname", "a/b", "..", ".", "", "..\\secret", "C:\\secret", "C:x",
           "a\0b"]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leaves_its_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not the name"):
        inside(tmp_path, name)


def test_links_stay_inside(tmp_path: Path) -> None:
    folder, linked = tmp_path / "folder", tmp_path / "linked"
    folder.mkdir()
    linked.symlink_to(folder)
    (tmp_path / "secret").write_text("x")
    (folder / "file").write_text("x")
    (folder / "out").symlink_to("../secret")
    (folder / "deep").symlink_to(folder / "out")
    (folder / "in").symlink_to("file")
    for base in (folder, linked):
        assert inside(base, "file") and inside(base, "in")
        for name in ("out", "deep"):
            with pytest.raises(ValueError, match="link to a file outside"):
                inside(base, name)


def test_a_checkpoint_cannot_name_files_outside(tmp_path: Path) -> None:
    secret = tmp_path / "secret.safetensors"
    secret.write_text("x")
    folder = tmp_path / "step_00000001"
    folder.mkdir()
    (folder / "link.safetensors").symlink_to(secret)
    for name in ("../secret.safetensors", str(secret), "link.safetensors"):
        manifest = Manifest(
            step=1, train_state={}, val_loss=None, model={}, optimizer="", tokenizer="",
            tokenizer_hash="", data="", files={name: file_record(secret)},
        )  # fmt: skip
        (folder / "manifest.json").write_text(manifest.to_json())
        with pytest.raises(CheckpointError, match="outside"):
            verify(folder)


def test_prepared_data_cannot_name_files_outside(tmp_path: Path) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"xx")
    folder = tmp_path / "prepared"
    folder.mkdir()
    with pytest.raises(DataError, match="cannot be used"):
        verify_files(folder, {"../secret.bin": FileCheck(2, hash_file(secret))})
    manifest = {
        "format": "llmtrain-tokens", "version": 1, "dtype": "uint16", "settings_hash": "",
        "tokenizer": {"name": "byte", "hash": "", "vocab_size": 257, "separator_id": 256},
        "splits": {"train": {"shards": [{"name": "../secret", "tokens": 1, "documents": 1}]}},
        "files": {},
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="not the name"):
        load_manifest(folder)


# Interfaces.


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/net")
def test_the_store_listens_on_the_loopback_alone() -> None:
    from llmtrain.distributed.loopback import LoopbackRendezvous

    rendezvous = LoopbackRendezvous()
    info = rendezvous.next_rendezvous().bootstrap_store_info
    assert info is not None
    assert listening(info.master_port) == {"0100007F"}  # 127.0.0.1
    # The next attempt finds nothing of the processes that have died.
    again = rendezvous.next_rendezvous().bootstrap_store_info
    assert again is not None and again.master_port != info.master_port
    assert listening(info.master_port) == set()


def listening(port: int) -> set[str]:
    """Return the addresses, in hexadecimal, at which `port` takes connections."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                found.add(local.rpartition(":")[0])
    return found
