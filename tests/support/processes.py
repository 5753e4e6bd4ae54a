"""Processes of a run, found by their command lines (Linux)."""

from pathlib import Path


def workers(run_dir: Path) -> list[int]:
    """Return the process ids of the run's workers, lowest first."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except (OSError, NotADirectoryError):
            continue
        if b"llmtrain.worker" in words and str(run_dir).encode() in words:
            found.append(int(entry.name))
    return sorted(found)
