"""Documents as rows, one each: what becomes of those that are longer than a row."""

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


class DocumentRows:
    """Which tokens of which document a row holds, at most T + 1 for T = seq_len positions.

    prompt_start  a prompt loses its start, but for its last token, so that all of the target fits;
                  a target that does not fit even so, and a document without a prompt, loses its end
    end           a document loses its end; it is left out where no target would be left
    drop          a document that is longer is left out
    """

    def __init__(self, starts: Ids, targets: Ids | None, seq_len: int, truncate: str) -> None:
        """Lay out the documents of a split.

        Args:
            starts: Where each starts, in tokens of the split, and where the last ends,
                (documents + 1,).
            targets: Where the target of each starts, (documents,); None: no document has a prompt.
            seq_len: Positions in a row, T.
            truncate: data.truncate.
        """
        self._starts = starts
        self._targets = targets
        self._seq_len = seq_len
        self._moves_start = truncate == "prompt_start" and targets is not None
        lengths = np.diff(starts)
        stays = np.ones(len(lengths), dtype=bool)
        if truncate == "drop":
            stays = lengths <= seq_len + 1
        elif truncate == "end" and targets is not None:
            stays = targets - starts[:-1] <= seq_len
        kept = np.flatnonzero(stays)
        self._kept = None if len(kept) == len(lengths) else kept
        self.n_rows = len(kept)
        """How many documents have a row."""
        self.n_left_out = len(lengths) - len(kept)
        """How many have none."""
        self.n_cut = int((lengths[kept] > seq_len + 1).sum())
        """How many of them are not whole."""
        self.n_counted = self._count()
        """How many labels of all rows are counted in the loss."""

    def spans(self, rows: Ids) -> tuple[Ids, Ids]:
        """Return where the tokens of `rows`, shape (B,), start, and where their documents end.

        A row holds the first T + 1 of them at most; one that does not exist has none.
        """
        known = (rows >= 0) & (rows < self.n_rows)
        document = np.where(known, rows, 0)
        if self._kept is not None:
            document = self._kept[document]
        start, end = self._starts[document], self._starts[document + 1]
        if self._moves_start and self._targets is not None:
            last_prompt = self._targets[document] - 1
            start = np.maximum(start, np.minimum(end - self._seq_len - 1, last_prompt))
        return start, np.where(known, end, start)

    def _count(self) -> int:
        start, end = self.spans(np.arange(self.n_rows))
        first = start + 1  # what has nothing before it in its row is no label
        if self._targets is not None:
            targets = self._targets if self._kept is None else self._targets[self._kept]
            first = np.maximum(first, targets)
        return int(np.maximum(0, np.minimum(end, start + self._seq_len + 1) - first).sum())
