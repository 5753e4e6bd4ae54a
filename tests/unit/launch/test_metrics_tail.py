"""metrics.jsonl as it grows."""

from pathlib import Path

from llmtrain.launch.metrics_tail import MetricsTail


def test_whole_lines_once_and_anew_where_the_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert tail.lines() == []  # the run has not begun
    path.write_text('{"step": 1}\n{"st')
    assert tail.lines() == [{"step": 1}]
    assert tail.lines() == []
    with path.open("a") as stream:
        stream.write('ep": 2}\nbroken\n{"step": 3}\n')
    assert tail.lines() == [{"step": 2}, {"step": 3}]
    # A run that goes on from step 1 drops the later lines.
    (tmp_path / "new").write_text('{"step": 1}\n')
    (tmp_path / "new").replace(path)
    assert tail.lines() == [{"step": 1}]
