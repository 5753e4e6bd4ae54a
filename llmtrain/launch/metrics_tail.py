"""metrics.jsonl of a run that another process writes, as it grows."""

import json
import os
from pathlib import Path
from typing import Any


class MetricsTail:
    """Reads what has been added since it last looked."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._file: int | None = None
        """Its inode: a run that goes on replaces the file by one without what it does again."""

    def lines(self) -> list[dict[str, Any]]:
        """Return the whole lines that are new, or all of a file that has been replaced."""
        try:
            with self._path.open("rb") as stream:
                found = os.fstat(stream.fileno())  # of this file, should the path have another
                if found.st_ino != self._file or found.st_size < self._offset:
                    self._file, self._offset = found.st_ino, 0
                stream.seek(self._offset)
                text = stream.read()
        except OSError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        lines = []
        for line in whole.splitlines():
            try:
                lines.append(dict(json.loads(line)))
            except (ValueError, TypeError):
                continue
        return lines
