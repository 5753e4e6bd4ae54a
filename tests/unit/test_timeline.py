"""What is read out of Chrome traces, on traces small enough to add up by hand."""

import gzip
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from llmtrain.train.drawing import draw
from llmtrain.train.timeline import StepTimeline, measured_bubble, read_trace

BASE_S = 1_700_000_000


def write(folder: Path, rank: int, *spans: tuple[str, str, float, float]) -> Path:
    """Write a trace of (category, name, begin, end) in microseconds."""
    events = [
        {"ph": "X", "cat": cat, "name": name, "ts": begin, "dur": end - begin, "pid": 1, "tid": 1}
        for cat, name, begin, end in spans
    ]
    path = folder / f"rank_{rank}.json.gz"
    with gzip.open(path, "wt") as stream:
        json.dump({"baseTimeNanoseconds": BASE_S * 10**9, "traceEvents": events}, stream)
    return path


def us(step: StepTimeline) -> dict[str, float]:
    return {name: round(s * 1e6) for name, s in step.seconds().items()}


def test_a_cpu_step_is_computing_waiting_for_collectives_or_idle(tmp_path: Path) -> None:
    trace = write(
        tmp_path, 3,
        ("user_annotation", "step 7", 100, 200),
        ("cpu_op", "aten::mm", 90, 120),  # began before the step
        ("cpu_op", "aten::linear", 110, 130),  # overlaps
        ("user_annotation", "gloo:all_reduce", 125, 150),  # 5 hidden by computing, 20 not
        ("cpu_op", "aten::add", 160, 180),
        ("cpu_op", "_c10d_functional::wait_tensor", 165, 170),  # inside the operator: a wait
        ("user_annotation", "gloo:recv", 180, 195),  # of a neighbour: idle
        ("cpu_op", "c10d::send", 195, 197),
    )  # fmt: skip
    (step,) = read_trace(trace)
    assert (step.rank, step.step) == (3, 7)
    assert step.at[0] == pytest.approx(BASE_S + 100e-6, abs=1e-6)
    assert us(step) == {"wall_s": 100, "compute_s": 45, "communication_s": 25, "idle_s": 30}


def test_on_a_gpu_only_what_ran_there_counts(tmp_path: Path) -> None:
    trace = write(
        tmp_path, 0,
        ("user_annotation", "step 1", 0, 100),
        ("cpu_op", "aten::mm", 0, 90),
        ("user_annotation", "pipeline 0F0", 0, 5),
        ("gpu_user_annotation", "pipeline 0F0", 10, 40),
        ("kernel", "ampere_sgemm", 10, 40),
        ("user_annotation", "nccl:all_reduce", 5, 9),  # its launch
        ("kernel", "ncclDevKernel_AllReduce_Sum", 30, 60),
        ("kernel", "ncclDevKernel_SendRecv", 60, 70),
    )  # fmt: skip
    (step,) = read_trace(trace)
    assert us(step) == {"wall_s": 100, "compute_s": 30, "communication_s": 20, "idle_s": 50}
    assert [round((a.at[1] - a.at[0]) * 1e6) for a in step.actions] == [30]


def pipeline(folder: Path, faster: float = 0.0) -> list[StepTimeline]:
    """Two stages, two micro-batches, GPipe with forwards of 10 and backwards of 20.

    `faster` is what the first stage's backwards take less.
    """
    spans = {
        0: [("0F0", 10, 20), ("0F1", 20, 30), ("0B0", 60, 80 - faster), ("0B1", 80 + faster, 100)],
        1: [("1F0", 20, 30), ("1F1", 30, 40), ("1B0", 40, 60), ("1B1", 60, 80)],
    }
    steps = []
    for rank, own in spans.items():
        named = [("user_annotation", f"pipeline {name}", a, b) for name, a, b in own]
        # The optimizer, from 100 on, is no part of the bubble.
        steps += read_trace(write(folder, rank, ("user_annotation", "step 4", 0, 150), *named))
    return steps


def test_the_bubble_of_a_perfect_gpipe_is_the_textbooks(tmp_path: Path) -> None:
    bubble = measured_bubble(pipeline(tmp_path))
    assert (bubble.waiting, bubble.imbalance) == pytest.approx((1 / 3, 0.0), abs=1e-2)


def test_stages_of_uneven_time_are_told_from_the_bubble(tmp_path: Path) -> None:
    bubble = measured_bubble(pipeline(tmp_path, faster=5.0))
    assert (bubble.waiting, bubble.imbalance) == pytest.approx((1 / 3, 10 / 90 / 2), abs=1e-2)


def test_the_drawing_has_a_block_for_each_computation_where_it_was(tmp_path: Path) -> None:
    root = ElementTree.fromstring(draw(pipeline(tmp_path), "step 4 <1F1B>"))
    blocks = [e for e in root.iter() if e.tag.endswith("rect") and len(e)]
    assert len(blocks) == 8
    widths = [float(b.attrib["width"]) for b in blocks]
    assert max(widths) == pytest.approx(2 * min(widths), rel=0.1)
    titles = [e.text for block in blocks for e in block]
    assert "forward, stage 1, micro-batch 0, 0.01 ms" in titles
