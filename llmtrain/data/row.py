"""The text in one row of a source that has named fields."""

from typing import Any

from llmtrain.config.groups.data import DataConfig
from llmtrain.data.decode import decode_bytes, mend_text
from llmtrain.data.skip import RecordError
from llmtrain.errors import did_you_mean


def text_at(row: dict[str, Any], key: str, where: str, config: DataConfig) -> tuple[str, int]:
    """Return the text of `row` under `key` and its replaced characters; null is no text.

    Raises:
        RecordError: `row` has no such key, or what is there is no text, or too much of it.
    """
    if key not in row:
        raise RecordError("no such field", where, missing_key(where, "field", key, list(row)))
    value = row[key]
    if value is None:
        return "", 0
    if not isinstance(value, str | bytes):
        kind = type(value).__name__
        raise RecordError("not text", where, f"{where}: '{key}' holds {kind}, not text.")
    size = len(value)
    if isinstance(value, str) and size <= config.max_document_bytes < 4 * size:
        size = len(value.encode("utf-8", "replace"))
    if size > config.max_document_bytes:
        raise too_long(where, size, config.max_document_bytes)
    strict = config.errors == "strict"
    if isinstance(value, bytes):
        return decode_bytes(value, where, strict=strict)
    return mend_text(value, where, strict=strict)


def missing_key(where: str, kind: str, key: str, known: list[str]) -> str:
    """Return the message for a field or column that is not there; names those that are."""
    return (
        f"{where} has no {kind} '{key}'.{did_you_mean(key, known)} It has: "
        f"{', '.join(map(str, known)) or 'none'}. Set data.text_key."
    )


def too_long(where: str, size: int, limit: int) -> RecordError:
    """Return what is wrong with a document of `size` bytes where `limit` are allowed."""
    return RecordError(
        "too long",
        where,
        f"{where} has {size} bytes, more than data.max_document_bytes={limit}. Raise it, or cut "
        "the document.",
    )
