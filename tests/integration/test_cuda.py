"""Training on a GPU: the CPU's numbers, its own bits after a stop, and bf16."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.processes import workers
from tests.support.runs import (
    SYNTHETIC,
    TINY,
    environment,
    metric_lines,
    train_command,
    train_to_end,
    validation_losses,
)
from tests.support.waiting import eventually

pytestmark = [
    pytest.mark.integration,
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available(),
        reason="NO GPU: torch sees no CUDA device, so nothing of what runs on one is tested",
    ),
]

GPU, CPU = "train.device=cuda", "train.device=cpu"
BASE = (*TINY, *SYNTHETIC, "train.steps=12")
STEADY = ("scheduler=constant", "scheduler.warmup_steps=3")
"""Learning rates that do not depend on the length of the run."""
DEADLINE_S = 140.0
EQUAL = 1e-9
"""fp64: sums in another order are 1e-16 off, which AdamW divides by its epsilon of 1e-8 where a
gradient is nearly 0 (a key's bias): 1e-8 of the learning rate of 1e-3, through 12 steps."""
HALF = 0.005
"""Of the loss, in every step: bf16 keeps 8 bits, and a mean over a batch's tokens evens their
errors out. Measured on a CPU: 8e-4 after 60 steps."""


def command(run_dir: Path, *words: str) -> list[str]:
    return train_command(run_dir, BASE, words)


def train(run_dir: Path, *words: str) -> Path:
    """Train to the end; return the run directory."""
    return train_to_end(run_dir, BASE, words, DEADLINE_S)


def llmtrain(*words: str) -> str:
    """Run a command; return what it answers."""
    done = subprocess.run(
        [sys.executable, "-m", "llmtrain", *words], env=environment(), capture_output=True,
        text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def newest(run_dir: Path) -> Path:
    """Return the newest checkpoint."""
    return max(run_dir.glob("checkpoints/step_????????"))


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(newest(run_dir).glob("*.safetensors")):
        tensors |= {n: t for n, t in load_file(file).items() if n.startswith("model.")}
    assert tensors
    return tensors


def numbers(run_dir: Path) -> list[list[float]]:
    keys = ("step", "loss", "grad_norm", "lr", "tokens")
    return [[line[key] for key in keys] for line in metric_lines(run_dir)]


def losses(run_dir: Path) -> list[float]:
    return [line["loss"] for line in metric_lines(run_dir)]


def assert_close(run_dir: Path, other: Path) -> None:
    """Two fp64 runs computed the same but for rounding."""
    for ours, theirs in zip(numbers(run_dir), numbers(other), strict=True):
        assert ours == pytest.approx(theirs, rel=EQUAL)
    ours, theirs = (
        [loss for _, loss, _ in validation_losses(folder)] for folder in (run_dir, other)
    )
    assert ours == pytest.approx(theirs, rel=EQUAL)
    torch.testing.assert_close(weights(run_dir), weights(other), rtol=EQUAL, atol=EQUAL)


def assert_equal(run_dir: Path, other: Path) -> None:
    """Two runs computed the same bits."""
    assert numbers(run_dir) == numbers(other)
    torch.testing.assert_close(weights(run_dir), weights(other), rtol=0.0, atol=0.0)


needs_compiler = pytest.mark.skipif(
    not any(os.access(f"{folder}/{name}", os.X_OK)
            for folder in os.environ["PATH"].split(os.pathsep) for name in ("cc", "gcc", "clang")),
    reason="NO C COMPILER: Triton needs one, so torch.compile is not tested on the GPU",
)  # fmt: skip


@pytest.mark.parametrize(
    ("words", "on_gpu"),
    [
        pytest.param("model.dropout=0", "", id="gpt"),
        pytest.param("model.dropout=0.1 train.micro_batch_size=4", "", id="gpt, dropout"),
        pytest.param("model=llama_tiny model.n_kv_heads=2 model.dropout=0.1", "", id="llama"),
        pytest.param(
            "model=llama_tiny model.n_kv_heads=2 model.dropout=0.1 data.samples=packed "
            "data.documents=200 data.words_per_document=6", "", id="packed",
        ),
        pytest.param("optimizer=muon", "", id="muon"),
        pytest.param("optimizer=adafactor train.label_smoothing=0.1", "", id="adafactor"),
        pytest.param("optimizer=momentum", "", id="momentum"),
        pytest.param("model.dropout=0.1", "train.compile=true", id="compiled",
                     marks=needs_compiler),
    ],
)  # fmt: skip
def test_fp64_on_a_gpu_is_fp64_on_a_cpu(words: str, on_gpu: str, tmp_path: Path) -> None:
    cpu = train(tmp_path / "cpu", *words.split(), CPU)
    gpu = train(tmp_path / "gpu", *words.split(), *on_gpu.split(), GPU)
    assert_close(gpu, cpu)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds workers through /proc")
@pytest.mark.parametrize(
    ("sent", "precision"),
    [
        (signal.SIGTERM, "fp64"),
        (signal.SIGKILL, "fp64"),
        # Of so short sequences attention's backward adds nothing up in the order of chance.
        (signal.SIGTERM, "bf16"),
    ],
)
def test_a_stopped_run_goes_on_bit_for_bit(
    sent: signal.Signals, precision: str, tmp_path: Path
) -> None:
    words = (*STEADY, GPU, f"train.precision={precision}", "model.dropout=0.1",
             "checkpoint.every_steps=20")  # fmt: skip
    cut, straight = tmp_path / "cut", tmp_path / "straight"
    launcher = subprocess.Popen(
        command(cut, *words, "train.steps=1000000"), env=environment(), stderr=subprocess.DEVNULL
    )
    assert eventually((cut / "checkpoints" / "step_00000020").is_dir, DEADLINE_S)
    os.kill(launcher.pid if sent == signal.SIGTERM else workers(cut)[-1], sent)
    assert launcher.wait(DEADLINE_S) == (143 if sent == signal.SIGTERM else 1)
    assert eventually(lambda: not workers(cut), DEADLINE_S)
    steps = int(newest(cut).name.removeprefix("step_")) + 5
    for folder in (cut, straight):
        train(folder, *words, f"train.steps={steps}")
    assert len(numbers(straight)) == steps
    assert_equal(cut, straight)


@pytest.mark.parametrize("devices", [(GPU, CPU), (CPU, GPU)], ids=["to the cpu", "to the gpu"])
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_checkpoint_goes_on_on_the_other_device(
    devices: tuple[str, str], optimizer: str, tmp_path: Path
) -> None:
    words = (*STEADY, f"optimizer={optimizer}")
    straight, moved = tmp_path / "straight", tmp_path / "moved"
    train(straight, *words, CPU)
    train(moved, *words, devices[0], "train.steps=6")
    train(moved, *words, devices[1])
    torch.testing.assert_close(weights(moved), weights(straight), rtol=EQUAL, atol=EQUAL)
    assert losses(moved) == pytest.approx(losses(straight), rel=EQUAL)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param("model=gpt_tiny", id="eager"),
        pytest.param("model=llama_tiny", id="llama"),
        pytest.param("model=gpt_tiny train.compile=true", id="compiled", marks=needs_compiler),
    ],
)
def test_bf16_learns_as_fp32_does(words: str, tmp_path: Path) -> None:
    common = (*STEADY, "train.steps=60", "optimizer.lr=0.003", GPU)
    family = words.split()[0]
    full = losses(train(tmp_path / "fp32", *common, family, "train.precision=fp32"))
    half = losses(train(tmp_path / "bf16", *common, *words.split(), "train.precision=bf16"))
    assert half[-1] < half[0] - 1.0
    assert half != full
    assert half == pytest.approx(full, rel=HALF)


@pytest.mark.parametrize("precision", ["fp64", "bf16"])
def test_activation_checkpointing_changes_no_bit(precision: str, tmp_path: Path) -> None:
    words = (GPU, f"train.precision={precision}", "model.dropout=0.1")
    runs = [
        train(tmp_path / kind, *words, f"train.activation_checkpointing={kind}")
        for kind in ("none", "selective", "full")
    ]
    for run_dir in runs[1:]:
        assert_equal(run_dir, runs[0])


SERVED = {
    "diloco": "sync=diloco sync.sync_every_steps=2",
    "async_ps": "sync=async_ps sync.compensation=dc_asgd_adaptive",
    "easgd": "sync=easgd sync.sync_every_steps=2",
}


@pytest.mark.parametrize("mode", SERVED)
def test_virtual_replicas_on_a_gpu_are_those_on_a_cpu(mode: str, tmp_path: Path) -> None:
    words = (*SERVED[mode].split(), "sync.simulate.workers=2")
    cpu, gpu = train(tmp_path / "cpu", *words, CPU), train(tmp_path / "gpu", *words, GPU)
    assert_close(gpu, cpu)


@pytest.mark.parametrize(
    "words",
    [
        "sync=async_local_sgd sync.sync_every_steps=3 sync.outer_momentum=0.5",
        "sync=easgd sync.sync_every_steps=3",
        "sync=async_ps",
    ],
)
def test_a_replica_on_a_gpu_and_its_server(words: str, tmp_path: Path) -> None:
    """One replica, so that nothing depends on who comes first; with a restart in the middle."""
    given = (*words.split(), *STEADY, "strategy=data", "launcher.nproc_per_node=1")
    cpu, gpu = tmp_path / "cpu", tmp_path / "gpu"
    train(cpu, *given, CPU)
    train(gpu, *given, GPU, "train.steps=6")
    train(gpu, *given, GPU)
    torch.testing.assert_close(weights(gpu), weights(cpu), rtol=EQUAL, atol=EQUAL)


def test_evaluate_and_generate(tmp_path: Path) -> None:
    run_dir = train(tmp_path / "run", GPU, "train.steps=30", "optimizer.lr=0.01")
    ((_, logged, _),) = validation_losses(run_dir)
    texts = []
    for device in ("cuda", "cpu"):
        given = (f"run={run_dir}", f"device={device}", "--json")
        answer: dict[str, Any] = json.loads(llmtrain("evaluate", *given, "tokens=512"))
        assert answer["loss"] == pytest.approx(logged, rel=EQUAL)
        for temperature in (0.0, 0.8):
            told = llmtrain("generate", *given, "max_new_tokens=40", f"temperature={temperature}")
            texts.append(json.loads(told)["texts"])
    assert texts[:2] == texts[2:]
    assert texts[0] != texts[1]


def test_auto_takes_the_gpu_and_says_what_it_holds(tmp_path: Path) -> None:
    words = ("train.precision=bf16", "metrics.peak_tflops=null", "train.sample_tokens=20")
    done = subprocess.run(
        command(tmp_path / "run", *words, "metrics.trace=true"), env=environment(),
        capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no sample" not in done.stderr
    line = metric_lines(tmp_path / "run")[-1]
    # The allocator's bytes, workspaces of cuBLAS among them; resident are a process's gigabytes.
    assert 2**18 < line["memory_bytes"] < 2**28
    assert 0 < line["mfu"] < 0.1
    timeline = json.loads((tmp_path / "run" / "profile" / "timeline.json").read_text())
    for step in timeline["ranks"]:
        assert 0 < step["compute_s"] < step["wall_s"]
        assert step["communication_s"] == 0


def test_doctor_names_the_gpu() -> None:
    found = {f["name"]: f for f in json.loads(llmtrain("doctor", "--json"))["findings"]}
    assert torch.cuda.get_device_name(0) in found["gpus"]["value"]
    assert found["gpus"]["status"] == "ok" and found["nccl"]["value"] == "available"


def test_more_processes_than_gpus_are_refused_or_use_the_cpu(tmp_path: Path) -> None:
    wanted = torch.cuda.device_count() + 1
    layout = ("strategy=hybrid", "strategy.tp=1", "strategy.zero=3", f"strategy.dp_shard={wanted}",
              f"train.global_batch_size={4 * wanted}")  # fmt: skip
    done = subprocess.run(
        command(tmp_path / "run", *layout), env=environment(), capture_output=True, text=True,
        timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    words = re.sub(r"[\s│]+", " ", done.stderr)
    assert done.returncode == 2, done.stderr
    assert f"launcher.nproc_per_node={wanted} processes need a GPU each" in words
    assert "train.device=cpu" in words
    train(tmp_path / "run", *layout, CPU)


def test_a_gradient_that_is_not_finite_reaches_no_checkpoint(tmp_path: Path) -> None:
    """It is looked at a step late, but before anything is kept."""
    words = ("optimizer=sgd", "optimizer.lr=1e200", "scheduler=constant",
             "scheduler.warmup_steps=0", "train.log_every_steps=1000")  # fmt: skip
    for number, every in enumerate((1, 12)):
        run_dir = tmp_path / str(number)
        done = subprocess.run(
            command(run_dir, *words, GPU, f"checkpoint.every_steps={every}"), env=environment(),
            capture_output=True, text=True, timeout=DEADLINE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert "the gradient norm of step 2 is nan" in re.sub(r"[\s│]+", " ", done.stderr)
        kept = [path.name for path in run_dir.glob("checkpoints/step_*")]
        assert kept == (["step_00000001"] if every == 1 else [])
