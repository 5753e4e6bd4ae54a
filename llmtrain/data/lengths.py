"""How long documents are: a summary, and a histogram of powers of two."""

from typing import Any

import numpy as np
import numpy.typing as npt


def describe_lengths(lengths: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Return the summary of `lengths`, shape (documents,), ready for JSON.

    `median` and `p95` are lengths that a document has: half of all, 95 of 100, are no longer. A bin
    of the histogram counts the lengths from `from` up to, not including, `to`.
    """
    if not len(lengths):
        return {"documents": 0, "histogram": []}
    ranked = np.quantile(lengths, [0.5, 0.95], method="inverted_cdf")
    return {
        "documents": len(lengths),
        "min": int(lengths.min()),
        "median": int(ranked[0]),
        "mean": round(float(lengths.mean()), 1),
        "p95": int(ranked[1]),
        "max": int(lengths.max()),
        "histogram": _histogram(lengths),
    }


def _histogram(lengths: npt.NDArray[np.int64]) -> list[dict[str, int]]:
    """Return the bins [0, 1), [1, 2), [2, 4), [4, 8) ... from the shortest to the longest."""
    # frexp is exact where a logarithm rounds: x = m 2^e with 0.5 <= m < 1.
    bins = np.frexp(lengths.astype(np.float64))[1].astype(np.int64)
    counts = np.bincount(bins)
    return [
        {"from": 0 if bin == 0 else 1 << (bin - 1), "to": 1 << bin, "documents": int(counts[bin])}
        for bin in range(int(bins.min()), len(counts))
    ]
