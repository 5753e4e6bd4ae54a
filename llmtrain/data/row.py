"""The text in one row of a source that has named fields."""

from typing import Any

from llmtrain.data.decode import decode_bytes, mend_text
from llmtrain.errors import DataError, did_you_mean


def text_at(row: dict[str, Any], key: str, where: str, *, strict: bool) -> tuple[str, int]:
    """Return the text of `row` under `key` and its replaced characters; null is no text.

    Raises:
        DataError: `row` has no such key, or what is there is no text.
    """
    if key not in row:
        raise DataError(missing_key(where, "field", key, list(row)))
    value = row[key]
    if value is None:
        return "", 0
    if isinstance(value, bytes):
        return decode_bytes(value, where, strict=strict)
    if not isinstance(value, str):
        raise DataError(f"{where}: '{key}' holds {type(value).__name__}, not text.")
    return mend_text(value, where, strict=strict)


def missing_key(where: str, kind: str, key: str, known: list[str]) -> str:
    """Return the message for a field or column that is not there; names those that are."""
    return (
        f"{where} has no {kind} '{key}'.{did_you_mean(key, known)} It has: "
        f"{', '.join(map(str, known)) or 'none'}. Set data.text_key."
    )
