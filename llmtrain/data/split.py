"""Which documents are held out for validation: decided by content and seed, not by file order."""

from dataclasses import dataclass

import xxhash

from llmtrain.data.corpus import Corpus
from llmtrain.errors import DataError

MUCH_MORE = 2
"""Times data.val_ratio from which on validation's share is worth a note."""


@dataclass(frozen=True)
class Split:
    """Numbers of the documents on each side."""

    train: list[int]
    validation: list[int]
    note: str = ""
    """What the report should say about how it was done."""
    cut: int | None = None
    """A corpus of one text: the character at which validation starts. It is on neither side."""


def split_corpus(corpus: Corpus, val_ratio: float, seed: int) -> Split:
    """Hold out about `val_ratio` of the bytes, whole documents, at least one on each side.

    Documents are ranked by their content hash under `seed`, and taken from the top while that
    brings validation nearer to its share; so one huge document never swallows the split. Equal
    texts stay on one side. A corpus of one text is to be cut near its tail: see `Split.cut`.

    Raises:
        DataError: the corpus is empty or one character long.
    """
    sizes = corpus.sizes()
    same: dict[bytes, list[int]] = {}
    for number in range(len(corpus)):
        same.setdefault(corpus.digest(number), []).append(number)
    if len(same) < 2:
        return _split_tail(corpus, val_ratio)
    ranked = sorted(same, key=lambda digest: (xxhash.xxh3_64_intdigest(digest, seed), digest))
    size_of = {digest: int(sum(sizes[n] for n in same[digest])) for digest in ranked}
    target = val_ratio * float(sizes.sum())
    held: list[bytes] = []
    taken = 0
    for digest in ranked:
        if taken >= target or len(held) == len(ranked) - 1:
            break
        if size_of[digest] <= 2 * (target - taken):  # else it misses by more than leaving it out
            held.append(digest)
            taken += size_of[digest]
    if not held:
        held = [min(ranked, key=lambda digest: size_of[digest])]
    taken = sum(size_of[digest] for digest in held)
    inside = set(held)
    train = [n for digest in ranked if digest not in inside for n in same[digest]]
    validation = sorted(n for digest in held for n in same[digest])
    return Split(sorted(train), validation, _share_note(taken / float(sizes.sum()), val_ratio))


def _share_note(share: float, val_ratio: float) -> str:
    """Return what to say where whole documents make validation far larger than asked for."""
    if share <= MUCH_MORE * val_ratio:
        return ""
    return (
        f"validation takes {share:.0%} of the text, where data.val_ratio={val_ratio:g} asks for "
        f"{100 * val_ratio:.3g}%: documents are held out whole, and these are few. Cut them "
        "into smaller ones, or join them into one file, whose end is then held out"
    )


def _split_tail(corpus: Corpus, val_ratio: float) -> Split:
    if not len(corpus):
        raise DataError("The corpus is empty: there is no document to split.")
    text = corpus.text(0)
    if len(text) < 2:
        raise DataError("The corpus is one character long: that is too little to split.")
    cut = find_cut(text, val_ratio)
    note = f"one document only: its last {len(text) - cut} characters are the validation split"
    return Split([], [], note, cut)


def find_cut(text: str, val_ratio: float) -> int:
    """Return where the last `val_ratio` of `text` starts: at a line, else at a word, else there.

    The cut is the nearest line start within half of the tail's length; both sides have at least
    one character.
    """
    wanted = min(max(1, round(len(text) * (1 - val_ratio))), len(text) - 1)
    reach = max(1, (len(text) - wanted) // 2)
    low, high = max(0, wanted - reach), min(len(text) - 1, wanted + reach)
    for mark in ("\n", " "):
        before = text.rfind(mark, low, wanted) + 1
        after = text.find(mark, wanted, high) + 1
        near = [cut for cut in (before, after) if 0 < cut < len(text)]
        if near:
            return min(near, key=lambda cut: abs(cut - wanted))
    return wanted
