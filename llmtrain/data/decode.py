"""Bytes to text under the policy `data.errors`."""

from llmtrain.data.skip import RecordError

REPLACEMENT = "\ufffd"

UTF8_MARK = b"\xef\xbb\xbf"

UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def decode_bytes(raw: bytes, where: str, *, strict: bool, offset: int = 0) -> tuple[str, int]:
    """Decode UTF-8, without a byte order mark.

    Args:
        raw: The bytes.
        where: What a message names: a file, or file:line.
        strict: Refuse what is no UTF-8 instead of replacing it.
        offset: Where `raw` starts in its file, in bytes.

    Returns:
        The text, and how many U+FFFD stand for bytes that are no UTF-8.

    Raises:
        RecordError: NUL bytes, or no UTF-8 under `strict`.
    """
    if raw.startswith(UTF16_MARKS) and b"\0" in raw:
        raise RecordError(
            "UTF-16",
            where,
            f"{where} looks like UTF-16; convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW",
        )
    if b"\0" in raw:
        raise RecordError(
            "not text",
            where,
            f"{where} is not text: it has a NUL byte at offset {offset + raw.index(0)}. "
            "Leave it out of data.path.",
        )
    start = len(UTF8_MARK) if raw.startswith(UTF8_MARK) else 0
    body = raw[start:]
    try:
        return body.decode("utf-8"), 0
    except UnicodeDecodeError as error:
        if strict:
            at = offset + start + error.start
            raise RecordError(
                "not UTF-8",
                where,
                f"{where} is not UTF-8: byte 0x{body[error.start]:02x} at offset {at}. "
                "Convert the file, or set data.errors=skip, which puts U+FFFD there.",
            ) from None
    text = body.decode("utf-8", "replace")
    # U+FFFD that the file itself spells is not ours to count.
    return text, text.count(REPLACEMENT) - body.count(REPLACEMENT.encode("utf-8"))


def mend_text(text: str, where: str, *, strict: bool) -> tuple[str, int]:
    """Replace lone surrogates, which JSON can spell and UTF-8 cannot.

    Returns:
        The text, and how many U+FFFD were put in.

    Raises:
        RecordError: a lone surrogate under `strict`.
    """
    if text.isascii():
        return text, 0
    try:
        text.encode("utf-8")
        return text, 0
    except UnicodeEncodeError as error:
        if strict:
            raise RecordError(
                "not Unicode",
                where,
                f"{where}: the text has half a surrogate pair (character {error.start}), which is "
                "no Unicode. Mend it, or set data.errors=skip, which puts U+FFFD there.",
            ) from None
    mended = "".join(REPLACEMENT if "\ud800" <= c <= "\udfff" else c for c in text)
    return mended, mended.count(REPLACEMENT) - text.count(REPLACEMENT)
