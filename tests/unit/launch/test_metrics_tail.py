"""metrics.jsonl as it grows."""

from pathlib import Path, PosixPath
from typing import Any

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


class Replaced(PosixPath):
    """A file that is replaced by the one beside it just when it has been opened."""

    def open(self, *args: Any, **kwargs: Any) -> Any:
        stream = super().open(*args, **kwargs)
        if (new := self.with_name("new")).exists():
            new.replace(self)
        return stream


def test_a_file_that_is_replaced_while_it_is_read(tmp_path: Path) -> None:
    path = Replaced(tmp_path / "metrics.jsonl")
    tail = MetricsTail(path)
    path.write_text('{"step": 1}\n')
    assert tail.lines() == [{"step": 1}]
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 2}\n')
    (tmp_path / "new").write_text('{"step": 1}\n{"step": 20}\n{"step": 30}\n')
    assert tail.lines() == [{"step": 2}]  # of the old file, and once
    assert tail.lines() == [{"step": 1}, {"step": 20}, {"step": 30}]
