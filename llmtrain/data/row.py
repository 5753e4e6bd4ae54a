"""The document in one row of a source that has named fields."""

import json
from decimal import Decimal
from typing import Any

from llmtrain.config.groups.data import RowDataConfig
from llmtrain.config.template import parse_template, template_fields
from llmtrain.data.decode import decode_bytes, mend_text
from llmtrain.data.document import Document, Pair, Pieces
from llmtrain.data.skip import RecordError
from llmtrain.errors import did_you_mean


def fields_read(config: RowDataConfig) -> dict[str, str]:
    """Return the names of the fields that are read of a row, and the setting that names each."""
    if config.target is None:
        return {config.text_key: "data.text_key"}
    prompt = template_fields("data.prompt", config.prompt or "")
    target = template_fields("data.target", config.target)
    return dict.fromkeys(prompt, "data.prompt") | dict.fromkeys(target, "data.target")


def document_of(
    row: dict[str, Any], where: str, config: RowDataConfig, replaced: int = 0
) -> Document:
    """Return the document in `row`; a field that is null is no text.

    Args:
        row: By field; others than `fields_read` may be missing.
        where: The id of the document.
        config: The source.
        replaced: Characters that were replaced in `row` already.

    Raises:
        RecordError: a field is missing, holds no text, or too much of it.
    """
    values: dict[str, str] = {}
    for name, setting in fields_read(config).items():
        if name not in row:
            message = missing_key(where, "field", name, list(row), setting)
            raise RecordError("no such field", where, message)
        value = row[name] if config.target is None else _spell(row[name])
        values[name], mended = _text(value, name, where, config)
        replaced += mended
    if config.target is None:
        return Document(where, values[config.text_key], replaced)
    prompt = _fill("data.prompt", config.prompt or "", values)
    for name in template_fields("data.target", config.target) if config.label_names else ():
        values[name] = _label(values[name], name, where, config)
    pair = Pair(prompt, _fill("data.target", config.target, values))
    text = "".join(pair.texts())
    _check_size(text, where, config)
    return Document(where, text, replaced, pair)


def missing_key(
    where: str, kind: str, key: str, known: list[str], setting: str = "data.text_key"
) -> str:
    """Return the message for a field or column that is not there; names those that are."""
    return (
        f"{where} has no {kind} '{key}'.{did_you_mean(key, known)} It has: "
        f"{', '.join(map(str, known)) or 'none'}. Set {setting}."
    )


def too_long(where: str, size: int, limit: int) -> RecordError:
    """Return what is wrong with a document of `size` bytes where `limit` are allowed."""
    return RecordError(
        "too long",
        where,
        f"{where} has {size} bytes, more than data.max_document_bytes={limit}. Raise it, or cut "
        "the document.",
    )


def _text(value: Any, key: str, where: str, config: RowDataConfig) -> tuple[str, int]:
    """Return the text `value` of the field `key` and its replaced characters."""
    if value is None:
        return "", 0
    if not isinstance(value, str | bytes):
        kind = type(value).__name__
        raise RecordError("not text", where, f"{where}: '{key}' holds {kind}, not text.")
    _check_size(value, where, config)
    strict = config.errors == "strict"
    if isinstance(value, bytes):
        return decode_bytes(value, where, strict=strict)
    return mend_text(value, where, strict=strict)


def _check_size(value: str | bytes, where: str, config: RowDataConfig) -> None:
    size = len(value)
    if isinstance(value, str) and size <= config.max_document_bytes < 4 * size:
        size = len(value.encode("utf-8", "replace"))
    if size > config.max_document_bytes:
        raise too_long(where, size, config.max_document_bytes)


def _spell(value: Any) -> Any:
    """Return a number or a truth value as JSON spells it, and anything else as it is."""
    if isinstance(value, Decimal):
        return str(value)
    return json.dumps(value) if isinstance(value, bool | int | float) else value


def _label(value: str, name: str, where: str, config: RowDataConfig) -> str:
    """Return what data.label_names calls `value`; no label has no name."""
    names = config.label_names or []
    number = value.strip()
    if not number:
        return ""
    if number.isascii() and number.isdigit() and int(number) < len(names):
        return names[int(number)]
    raise RecordError(
        "no such label",
        where,
        f"{where}: '{name}' holds {value[:40]!r}, and data.label_names has names for 0 to "
        f"{len(names) - 1}.",
    )


def _fill(key: str, template: str, values: dict[str, str]) -> Pieces:
    return tuple(
        (own, "" if name is None else values[name]) for own, name in parse_template(key, template)
    )
