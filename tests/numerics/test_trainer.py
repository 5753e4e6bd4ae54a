"""What the loop does when: lengths, early stop, evaluation, and what it tells."""

import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from llmtrain.config import paths
from llmtrain.train.loss import IGNORED, token_loss_sum
from tests.support.runs import metric_lines, tiny_run, train_frozen

KEYS = {
    "step", "loss", "grad_norm", "lr", "tokens", "tokens_per_s", "tokens_per_s_per_device", "mfu",
    "step_time_s", "data_time_s", "sync_time_s", "comm_bytes", "memory_bytes", "time",
}  # fmt: skip


def evaluations(run_dir: Path) -> list[dict[str, float]]:
    lines = map(json.loads, (run_dir / paths.METRICS).read_text().splitlines())
    return [line for line in lines if "val_loss" in line]


def plan(run_dir: Path) -> dict[str, float]:
    return json.loads((run_dir / paths.PLAN).read_text())


def test_a_line_of_metrics_has_every_key_of_the_contract(tmp_path: Path) -> None:
    run_dir = tiny_run(
        tmp_path / "run", "train.steps=4", "train.log_every_steps=2", "train.eval_tokens=160"
    )
    train_frozen(run_dir)
    lines = metric_lines(run_dir)
    assert [line["step"] for line in lines] == [2, 4]
    assert all(set(line) == KEYS for line in lines)
    assert lines[1]["tokens"] == 4 * 8 * 16
    assert lines[0]["memory_bytes"] > 2**20
    assert lines[1]["tokens_per_s"] * lines[1]["step_time_s"] == pytest.approx(8 * 16)
    # metrics.peak_tflops=1.0 in the tests: mfu is the arithmetic of the other columns.
    flops = plan(run_dir)["flops_per_token"] * lines[1]["tokens_per_s_per_device"]
    assert lines[1]["mfu"] == pytest.approx(flops / 1e12)
    (evaluation,) = evaluations(run_dir)
    assert evaluation["val_ppl"] == pytest.approx(math.exp(evaluation["val_loss"]))
    assert evaluation["val_tokens"] == 160


def test_the_step_at_which_a_run_stops_is_logged(tmp_path: Path) -> None:
    run_dir = tiny_run(tmp_path / "run", "train.steps=20", "train.log_every_steps=10")
    train_frozen(run_dir, stop_after=13)
    (folder,) = (run_dir / paths.CHECKPOINTS).glob("step_*")
    assert metric_lines(run_dir)[-1]["step"] == int(folder.name.removeprefix("step_")) < 20


@pytest.mark.parametrize(
    ("length", "steps"),
    [("train.steps=7", 7), ("train.tokens=1000", 8), ("train.epochs=0.5", None)],
)
def test_lengths(length: str, steps: int | None, tmp_path: Path) -> None:
    run_dir = tiny_run(tmp_path / "run", "train.steps=null", length)
    train_frozen(run_dir)
    if steps is None:
        from llmtrain.config.store import load_run_config
        from llmtrain.data.dataset import TokenDataset
        from llmtrain.data.prepare import prepare

        run = load_run_config(run_dir / paths.CONFIG)
        samples = TokenDataset(prepare(run.data, run.tokenizer), "train").n_samples(16)
        steps = math.ceil(0.5 * samples / 8)
    assert metric_lines(run_dir)[-1]["step"] == steps == plan(run_dir)["steps"]


def test_an_epoch_of_packed_rows_counts_its_labels(tmp_path: Path) -> None:
    """All tokens but the first of each document: neither padding nor what crosses is counted."""
    from llmtrain.config.store import load_run_config
    from llmtrain.data.dataset import TokenDataset
    from llmtrain.data.prepare import prepare

    run_dir = tiny_run(
        tmp_path / "run", "train.steps=null", "train.epochs=1", "data=synthetic_uneven",
        "data.samples=packed", "model.seq_len=40", "train.global_batch_size=1",
        "train.log_every_steps=10", "train.eval_tokens=null",
    )  # fmt: skip
    train_frozen(run_dir)
    run = load_run_config(run_dir / paths.CONFIG)
    folder = prepare(run.data, run.tokenizer)
    train, validation = TokenDataset(folder, "train"), TokenDataset(folder, "validation")
    rows, labels = train.n_samples(40, "packed"), train.n_tokens - train.n_documents
    assert plan(run_dir)["steps"] == rows
    assert metric_lines(run_dir)[-1]["tokens"] == labels < rows * 40
    val_labels = validation.n_tokens - validation.n_documents
    assert evaluations(run_dir)[-1]["val_tokens"] == val_labels


def test_early_stop_counts_evaluations_without_a_new_best(tmp_path: Path) -> None:
    run_dir = tiny_run(
        tmp_path / "run", "train.steps=60", "train.eval_every_steps=2", "train.early_stop_evals=3",
        "optimizer=sgd", "optimizer.lr=4", "train.max_grad_norm=0", "scheduler=constant",
    )  # fmt: skip
    train_frozen(run_dir)
    losses = [line["val_loss"] for line in evaluations(run_dir)]
    best = losses.index(min(losses))
    assert len(losses) == best + 1 + 3 < 30
    step = metric_lines(run_dir)[-1]["step"]
    train_frozen(run_dir)
    assert metric_lines(run_dir)[-1]["step"] == step, "a stopped run stays stopped"


def test_learning_rate_is_the_schedules(tmp_path: Path) -> None:
    run_dir = tiny_run(
        tmp_path / "run", "train.steps=8", "scheduler=linear", "scheduler.warmup_steps=4",
        "optimizer.lr=0.8",
    )  # fmt: skip
    train_frozen(run_dir)
    expected = [0.2, 0.4, 0.6, 0.8, 0.8, 0.6, 0.4, 0.2]
    assert [line["lr"] for line in metric_lines(run_dir)] == pytest.approx(expected)


def test_a_gradient_that_is_not_finite_reaches_nothing(tmp_path: Path) -> None:
    run_dir = tiny_run(
        tmp_path / "run", "train.steps=200", "optimizer=sgd", "optimizer.lr=1e12",
        "train.max_grad_norm=0", "train.precision=fp32", "scheduler=constant",
        "checkpoint.every_steps=1", "checkpoint.save_best=false", "train.log_every_steps=50",
    )  # fmt: skip
    with pytest.raises(FloatingPointError, match="Lower optimizer"):
        train_frozen(run_dir)
    folders = sorted((run_dir / "checkpoints").glob("step_*"))
    assert folders
    for folder in folders:
        for file in folder.glob("*.safetensors"):
            for name, value in load_file(file).items():
                assert value.isfinite().all(), f"{name} in {folder.name}"


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_dir = tiny_run(tmp_path / "run", "train.steps=5", "metrics.tensorboard=true")
    train_frozen(run_dir)
    events = EventAccumulator(str(run_dir / paths.TENSORBOARD))
    events.Reload()
    logged = [(event.step, event.value) for event in events.Scalars("loss")]
    expected = [(line["step"], line["loss"]) for line in metric_lines(run_dir)]
    assert logged == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in expected]
    assert len(events.Scalars("val_loss")) == 1


def test_loss_counts_tokens_and_smooths_as_published() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 5, dtype=torch.float64, generator=generator)
    labels = torch.tensor([[1, IGNORED, 4], [0, 2, IGNORED]])
    logp = F.log_softmax(logits, -1)
    expected = smoothed = 0.0
    for b, t in ((0, 0), (0, 2), (1, 0), (1, 1)):
        expected -= logp[b, t, labels[b, t]].item()
        # q = (1 - e) one-hot + e / V (arXiv:1512.00567, section 7), e = 0.1.
        target = torch.full((5,), 0.1 / 5, dtype=torch.float64)
        target[labels[b, t]] += 0.9
        smoothed -= (target * logp[b, t]).sum().item()
    assert token_loss_sum(logits, labels).item() == pytest.approx(expected, rel=1e-12)
    assert token_loss_sum(logits, labels, 0.1).item() == pytest.approx(smoothed, rel=1e-12)
    assert token_loss_sum(logits.bfloat16(), labels).dtype == torch.float32


def test_bf16_keeps_weights_and_optimizer_in_fp32(tmp_path: Path) -> None:
    fp32 = tiny_run(tmp_path / "fp32", "train.steps=30", "train.precision=fp32")
    bf16 = tiny_run(tmp_path / "bf16", "train.steps=30", "train.precision=bf16")
    exact = [line["loss"] for line in (train_frozen(fp32), metric_lines(fp32))[1]]
    weights = train_frozen(bf16)
    assert {w.dtype for w in weights.values()} == {torch.float32}
    rounded = [line["loss"] for line in metric_lines(bf16)]
    # bf16 keeps 8 bits: 2^-8 relative a product, and losses near 5.
    assert rounded == pytest.approx(exact, rel=2**-6)
    assert rounded != exact
