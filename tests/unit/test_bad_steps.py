"""What is refused of train.on_bad_step and its bounds, before anything starts."""

import json
import re
from pathlib import Path

import pytest

from llmtrain.config.plan import make_plan
from llmtrain.errors import ConfigError
from llmtrain.train.audit import AuditLog, read_events
from llmtrain.train.metrics import JsonlWriter
from llmtrain.train.state import TrainState
from tests.support.runs import compose_run

TWO = ("strategy=data", "launcher.nproc_per_node=2")
POWERSGD = ("sync.compression=powersgd", "sync.powersgd_start_step=9")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train.on_bad_step=skpi",), "train.on_bad_step=skpi"),
        (("train.spike_factor=1",), "train.spike_factor=1.0 must be more than 1"),
        (("train.bad_step_lr_ratio=1",), "train.bad_step_lr_ratio=1.0 must be between 0 and 1"),
        (("train.max_bad_steps=0",), "train.max_bad_steps=0 must be positive"),
        (("train.max_bad_steps_in_row=0",), "train.max_bad_steps_in_row=0 must be positive"),
        (("train.max_rollbacks=0",), "train.max_rollbacks=0 must be positive"),
        (
            (*TWO, "train.on_bad_step=skip", "sync=local_sgd"),
            "under sync=local_sgd replicas step apart",
        ),
        ((*TWO, "train.on_bad_step=rollback", "sync=ssp"), "under sync=ssp replicas step apart"),
        ((*TWO, "train.spike_factor=2", "sync=gossip"), "train.spike_factor=2 is one decision"),
        (
            ("train.on_bad_step=skip", "sync=async_ps", "sync.simulate.workers=2"),
            "replicas step apart",
        ),
        (
            (*TWO, "train.on_bad_step=lower_lr", *POWERSGD),
            "use train.on_bad_step=rollback",
        ),
        (
            ("train.on_bad_step=rollback", "checkpoint.every_steps=null"),
            "set checkpoint.every_steps=500",
        ),
    ],
)
def test_what_cannot_be_kept_to_is_refused(words: tuple[str, ...], said: str) -> None:
    # A group's own checks speak through Hydra's error when it is composed here.
    with pytest.raises(Exception, match=re.escape(said)):
        make_plan(compose_run(*words), gpus=0)


@pytest.mark.parametrize(
    "words",
    [
        (*TWO, "sync=local_sgd"),
        (*TWO, "train.on_bad_step=rollback", *POWERSGD),
        (*TWO, "train.on_bad_step=skip", "sync.compression=fp16"),
        ("train.on_bad_step=lower_lr", "checkpoint.every_steps=null"),
    ],
)
def test_what_can_is_taken(words: tuple[str, ...]) -> None:
    try:
        make_plan(compose_run(*words), gpus=0)
    except ConfigError as error:  # pragma: no cover - says why
        pytest.fail(str(error))


def test_an_audit_log_forgets_what_comes_again_and_no_stop(tmp_path: Path) -> None:
    path = tmp_path / "bad_steps.jsonl"
    log = AuditLog(path)
    for step, action in ((3, "skipped"), (5, "stopped"), (7, "skipped"), (9, "rolled back")):
        log.add({"step": step, "action": action, "loss": float("nan")})
    with path.open("a") as stream:
        stream.write('{"step": 11, "act')
    log.resume(1)
    assert [event["step"] for event in read_events(path)] == [3, 5]
    assert all(event["loss"] is None for event in read_events(path))
    assert len(path.read_text().splitlines()) == 2


def test_metrics_are_rewound_and_stay_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path, after_step=0, evaluated_step=0)
    for step in range(1, 6):
        writer.write({"step": step, "loss": float("nan") if step == 3 else 1.0})
        writer.write({"step": step, "val_loss": 2.0})
    writer.rewind(after_step=3, evaluated_step=2)
    writer.write({"step": 4, "loss": 7.0})
    writer.close()

    def refused(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    lines = [json.loads(line, parse_constant=refused) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if "val_loss" in line] == [1, 2]
    assert lines[-1]["loss"] == 7.0


def test_a_state_of_before_there_were_policies_is_read() -> None:
    old = TrainState(step=7).to_dict()
    del old["bad"]
    assert TrainState.from_dict(old) == TrainState(step=7)
    state = TrainState(step=7)
    state.bad.lr_ratio, state.bad.loss_mean = 0.1 + 0.2, 1 / 3
    assert TrainState.from_dict(json.loads(json.dumps(state.to_dict()))) == state
