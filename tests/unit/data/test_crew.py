"""Units of work shared through a folder, and the records that they leave."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmtrain.data.crew import Crew, FinishedError, until_finished, work_folder
from llmtrain.data.record import Record, RecordReader, Shelf, is_whole
from llmtrain.errors import DataError


def numbered(number: int) -> Record:
    return Record({"number": number}, {"squares": np.arange(number, dtype=np.int64) ** 2})


def test_a_record_comes_back_whole_and_in_parts(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {
        "bytes": np.frombuffer(b"abcdef", dtype=np.uint8),
        "wide": np.array([[1, 2], [3, 70_000]], dtype=np.uint32),
        "short": np.array([65_535], dtype=np.uint16),
        "none": np.zeros((0, 16), dtype=np.uint8),
    }
    Record({"name": "世界", "counts": [1, None]}, arrays).save(tmp_path / "one")
    reader = RecordReader(tmp_path / "one")
    assert reader.facts == {"name": "世界", "counts": [1, None]}
    for name, array in arrays.items():
        found = reader.array(name)
        assert found.dtype == array.dtype and found.shape == array.shape
        assert (found == array).all()
    assert reader.part("bytes", 2, 4).tobytes() == b"cd"
    assert reader.part("bytes", 6, 6).tobytes() == reader.part("none", 0, 0).tobytes() == b""
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_any_damage_to_a_record_is_found(tmp_path: Path) -> None:
    path = tmp_path / "one"
    numbered(40).save(path)
    whole = path.read_bytes()
    assert is_whole(path)
    for place in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[place] ^= 0x10
        path.write_bytes(flipped)
        assert not is_whole(path), place
    for size in (0, 1, 8, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert not is_whole(path), size
    path.write_bytes(whole + b"x")
    assert not is_whole(path)
    path.unlink()
    assert not is_whole(path)


def test_a_shelf_opens_more_records_than_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmtrain.data.record.OPEN_FILES", 3)
    paths = [tmp_path / str(number) for number in range(9)]
    for number, path in enumerate(paths):
        numbered(number).save(path)
    shelf = Shelf(paths)
    for number in (0, 8, 3, 1, 2, 0, 7, 8):
        assert shelf[number].facts == {"number": number}


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    done: list[int] = []
    stops = [3]

    def work(number: int) -> Record:
        if number in stops:
            stops.clear()
            raise KeyboardInterrupt
        done.append(number)
        return numbered(number)

    with pytest.raises(KeyboardInterrupt), Crew(tmp_path / "made") as crew:
        crew.each("read", 6, work)
    with Crew(tmp_path / "made") as crew:
        told: list[int] = []
        paths = crew.each("read", 6, work, lambda units: told.append(len(units)))
        assert [RecordReader(path).facts["number"] for path in paths] == list(range(6))
    assert done == [0, 1, 2, 3, 4, 5]
    assert told[-1] == 6


def _work_with_others(folder: Path, go: Any, out: Any) -> None:
    go.wait()
    own: list[int] = []

    def work(number: int) -> Record:
        own.append(number)
        return numbered(number)

    with Crew(folder) as crew:
        crew.each("read", 200, work)
    out.put(own)


def test_every_unit_is_done_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    go, out = context.Event(), context.Queue()
    processes = [
        context.Process(target=_work_with_others, args=(tmp_path / "made", go, out))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    go.set()
    found = [out.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(number for own in found for number in own) == list(range(200))


def _refuse(_: int) -> Record:
    raise DataError("broken")


def _be_present(folder: Path, there: Any, leave: Any, clears: bool) -> None:
    with Crew(folder) as crew:
        there.set()
        leave.wait()
        if clears:
            crew.clear()


@contextmanager
def another_one(folder: Path, *, clears: bool = False) -> Iterator[Callable[[], None]]:
    """Let another process be of the crew; give what lets it leave, and clear before if it does."""
    context = multiprocessing.get_context("spawn")
    there, leave = context.Event(), context.Event()
    other = context.Process(target=_be_present, args=(folder, there, leave, clears))
    other.start()
    assert there.wait(60)

    def go() -> None:
        leave.set()
        other.join()

    try:
        yield go
    finally:
        go()


def test_after_a_refusal_the_last_one_takes_the_work_along(tmp_path: Path) -> None:
    made = tmp_path / "made"
    with another_one(made):
        with pytest.raises(DataError, match="broken"), Crew(made) as crew:
            crew.each("read", 2, _refuse)
        assert work_folder(made).exists()
    with pytest.raises(DataError, match="broken"), Crew(made) as crew:
        crew.each("read", 2, _refuse)
    assert not work_folder(made).exists()


def test_an_input_that_could_not_be_read_keeps_the_work(tmp_path: Path) -> None:
    def work(number: int) -> Record:
        if number:
            raise DataError("cannot be read") from OSError(5, "Input/output error")
        return numbered(number)

    with pytest.raises(DataError), Crew(tmp_path / "made") as crew:
        crew.each("read", 2, work)
    assert (work_folder(tmp_path / "made") / "read" / "00000000").exists()


def test_work_on_other_files_is_made_again(tmp_path: Path) -> None:
    done: list[int] = []

    def work(number: int) -> Record:
        done.append(number)
        return numbered(number)

    for key, expected in (("one", 2), ("one", 2), ("two", 4), ("two", 4)):
        with Crew(tmp_path / "made", key=key) as crew:
            crew.each("read", 2, work)
        assert len(done) == expected


def test_behind_a_torn_tokenizer_all_is_made_again(tmp_path: Path) -> None:
    done: list[str] = []

    def stages() -> None:
        with Crew(tmp_path / "made") as crew:
            for stage in ("read", "tokenizer", "encode"):
                crew.each(stage, 2, lambda number, stage=stage: done.append(stage) or numbered(1))

    stages()
    both = ["tokenizer", "tokenizer", "encode", "encode"]
    for torn, again in (("read", ["read"]), ("tokenizer", both)):
        done.clear()
        (work_folder(tmp_path / "made") / torn / "00000000").write_bytes(b"torn")
        stages()
        assert done == again


def test_who_joins_while_the_folder_is_cleared_joins_the_next(tmp_path: Path) -> None:
    made = tmp_path / "made"
    with another_one(made, clears=True) as go, Crew(made) as late:
        go()
        assert not late._is_current()  # it had come before; what it does is lost with the folder
    with Crew(made) as next_one:
        assert next_one._is_current()
        next_one.each("read", 3, numbered)


def test_who_comes_late_finds_it_finished(tmp_path: Path) -> None:
    made = tmp_path / "made"
    with Crew(made, helps=True) as crew:
        made.mkdir()
        with pytest.raises(FinishedError):
            crew.each("read", 2, numbered)
        with pytest.raises(FinishedError):
            crew.once("choose", lambda: numbered(1))
        with until_finished(crew):
            RecordReader(crew.folder / "read" / "cleared")
    assert not work_folder(made).exists()
    with Crew(tmp_path / "other") as crew, pytest.raises(FileNotFoundError), until_finished(crew):
        RecordReader(crew.folder / "read" / "missing")


def test_a_record_whose_files_are_gone_is_made_again(tmp_path: Path) -> None:
    def work(number: int) -> Record:
        (crew.out / "a.bin").write_bytes(b"four")
        return Record({"files": {"a.bin": {"bytes": 4, "xxh3_128": ""}}})

    for damage in (lambda path: path.unlink(), lambda path: path.write_bytes(b"5")):
        with Crew(tmp_path / "made") as crew:
            crew.each("shard", 1, work)
        damage(crew.out / "a.bin")
        with Crew(tmp_path / "made") as crew:
            crew.each("shard", 1, work)
            assert (crew.out / "a.bin").read_bytes() == b"four"
