"""Whole documents in rows of seq_len positions: best-fit decreasing, computed from lengths alone.

A document of L tokens, its separator counted, has L - 1 positions: the label of each is the token
after it, that of the last one the separator. A document of more than seq_len positions is cut into
pieces of seq_len and a rest; rests and shorter documents are then packed as in Ding et al. 2024
("Fewer Truncations Improve Language Modeling", arXiv:2404.10830, section 3): longest first, each
into the fullest row that has room for it. Pieces of equal length and rows of equal room are handled
together, so the loop is over lengths, not over documents.
"""

from bisect import bisect_left, insort

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]

NOWHERE = -1
"""Place of a position that holds no token."""


class Packing:
    """Which piece of which document lies where: every piece in exactly one row.

    A row that one piece fills comes where its document comes, another one where the longest
    document in it comes: so the first rows are no selection by length. Memory is two numbers a
    document and at most as many again a row that is packed.
    """

    def __init__(self, starts: Ids, seq_len: int) -> None:
        """Pack the documents of a split.

        Args:
            starts: Where each starts, in tokens of the split, and where the last ends,
                (documents + 1,).
            seq_len: Positions in a row, T.
        """
        self._starts = starts
        self._seq_len = seq_len
        rows, rest = np.divmod(np.diff(starts) - 1, seq_len)
        documents = np.flatnonzero(rest)
        order, edges = best_fit(rest[documents], seq_len)
        openers = documents[order[edges[:-1]]]
        rank = np.argsort(openers)
        counts = np.diff(edges)[rank]
        self._packed = documents[order[np.repeat(edges[:-1][rank], counts) + _count_up(counts)]]
        self._edges = _edges(counts)
        self._openers = openers[rank]
        rows[openers] += 1
        self._first_row = _edges(rows)
        self.n_rows = int(self._first_row[-1])
        """How many rows there are."""
        self.n_positions = int(starts[-1] - starts[0]) - (len(starts) - 1)
        """How many of their positions hold a token."""

    @property
    def padding_ratio(self) -> float:
        """The share, 0-1, of positions that hold no token."""
        return 1.0 - self.n_positions / max(1, self.n_rows * self._seq_len)

    def places(self, rows: Ids) -> tuple[Ids, Ids]:
        """Return what the positions of `rows`, (B,), hold, as two arrays (B, T).

        The first is the place of each token in the split, the second its position in its piece;
        where there is none, `NOWHERE` and 0. A row that does not exist has none.
        """
        place = np.full((len(rows), self._seq_len), NOWHERE, dtype=np.int64)
        position = np.zeros_like(place)
        known = np.flatnonzero((rows >= 0) & (rows < self.n_rows))
        counts, starts, lengths = self._pieces(rows[known])
        # The pieces of a row stand one behind the other from its start.
        before = _edges(lengths)[:-1]
        column = before - np.repeat(before[_edges(counts)[:-1]], counts)
        first = np.repeat(known, counts) * self._seq_len + column
        within = _count_up(lengths)
        target = np.repeat(first, lengths) + within
        place.reshape(-1)[target] = np.repeat(starts, lengths) + within
        position.reshape(-1)[target] = within
        return place, position

    def _pieces(self, rows: Ids) -> tuple[Ids, Ids, Ids]:
        """Return the pieces in each of `rows`; of each piece, in order, its place and length."""
        document = np.searchsorted(self._first_row, rows, side="right") - 1
        number = rows - self._first_row[document]
        is_packed = number == self._positions(document) // self._seq_len
        slot = np.searchsorted(self._openers, document[is_packed])
        counts = np.ones_like(rows)
        counts[is_packed] = self._edges[slot + 1] - self._edges[slot]
        owner, number = np.repeat(document, counts), np.repeat(number, counts)
        several = np.repeat(is_packed, counts)
        packed = counts[is_packed]
        owner[several] = self._packed[np.repeat(self._edges[slot], packed) + _count_up(packed)]
        positions = self._positions(owner)
        number[several] = positions[several] // self._seq_len
        offset = number * self._seq_len
        return counts, self._starts[owner] + offset, np.minimum(positions - offset, self._seq_len)

    def _positions(self, documents: Ids) -> Ids:
        return self._starts[documents + 1] - self._starts[documents] - 1


def best_fit(lengths: Ids, capacity: int) -> tuple[Ids, Ids]:
    """Pack items into rows by best-fit decreasing.

    A group of equally full rows that is used up keeps less than half of its room, and an item's
    length makes two groups more at most: with D different lengths that is O(D log capacity) turns.

    Args:
        lengths: Of the items, each 1 to `capacity`.
        capacity: Of a row.

    Returns:
        The items row by row, in each longest first, (items,); and where in them each row starts
        and the last one ends, (rows + 1,).
    """
    # Small integers are sorted by radix.
    order = np.argsort((capacity - lengths).astype(np.min_scalar_type(capacity)), kind="stable")
    row = np.empty(len(lengths), dtype=np.int64)
    groups: dict[int, list[Ids]] = {}
    rooms: list[int] = []  # keys of `groups`, ascending

    def put(rows: Ids, room: int) -> None:
        if room and len(rows):
            if room not in groups:
                insort(rooms, room)
            groups.setdefault(room, []).append(rows)

    done = n_rows = 0
    counts = np.bincount(lengths, minlength=1)
    for length in np.flatnonzero(counts)[::-1].tolist():
        end = done + int(counts[length])
        while done < end:
            at = bisect_left(rooms, length)
            room = rooms[at] if at < len(rooms) else capacity
            each = room // length  # best fit goes on with a row until it has no room for another
            if at < len(rooms):
                rows = groups[room].pop()
                if not groups[room]:
                    del groups[rooms.pop(at)]
            else:
                rows = np.arange(n_rows, n_rows + -(-(end - done) // each))
                n_rows += len(rows)
            taken = min(end - done, len(rows) * each)
            whole, some = divmod(taken, each)
            used = whole + (some > 0)
            row[done : done + taken] = np.repeat(rows[:used], each)[:taken]
            put(rows[:whole], room - each * length)
            put(rows[whole:used], room - some * length)
            put(rows[used:], room)
            done += taken
    by_row = np.argsort(row, kind="stable")
    return order[by_row], _edges(np.bincount(row, minlength=n_rows))


def _edges(counts: Ids) -> Ids:
    """Return where each of consecutive groups starts, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _count_up(counts: Ids) -> Ids:
    """Return 0, 1, ... count - 1 for each count, one behind the other."""
    return np.arange(int(counts.sum())) - np.repeat(_edges(counts)[:-1], counts)
