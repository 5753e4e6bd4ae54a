"""Templates: text in which names of fields stand in braces, such as `German: {de}\\nEnglish:`.

A newline may stand there as it is, or as the two characters \\n: in single quotes of a shell
nothing changes those on their way here. {{ and }} are braces, \\t is a tab, \\\\ a backslash.
"""

import functools
import re
import string

from llmtrain.errors import ConfigError, require

ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


@functools.cache
def parse_template(key: str, template: str) -> tuple[tuple[str, str | None], ...]:
    """Return what `template` is made of: its own text, and the field behind it, in turn.

    Args:
        key: The setting that it is the value of, for messages.
        template: The text.

    Returns:
        Pairs of text, escapes resolved, and the name of a field; None where there is none.

    Raises:
        ConfigError: braces that are not closed or hold more than a name, or an unknown escape.
    """
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(
            f"{key}={template!r} cannot be read: {str(error).lower()}. Fields stand in braces, "
            "such as {text}; {{ and }} are braces themselves."
        ) from None
    for _, name, spec, conversion in pieces:
        if name is None:
            continue
        require(
            bool(name) and not (spec or conversion or set("{}[]") & set(name)),
            f"{key}={template!r}: between braces stands the name of a field of the row, and "
            "nothing else, such as {text}; {{ and }} are braces themselves.",
        )
    return tuple((_resolve(key, text), name) for text, name, _, _ in pieces)


def template_fields(key: str, template: str) -> list[str]:
    """Return the names of the fields of `template`, each once, in order.

    Raises:
        ConfigError: as `parse_template`.
    """
    names = (name for _, name in parse_template(key, template))
    return list(dict.fromkeys(name for name in names if name is not None))


def check_templates(
    prefix: str, prompt: str | None, target: str | None, label_names: list[str] | None
) -> None:
    """Refuse templates that cannot be read or make no pair.

    Args:
        prefix: What the names of the three settings start with, for messages: `data.`, say.
        prompt: Template of what is given.
        target: Template of what is learned.
        label_names: Names of the numbers in the field of `target`.

    Raises:
        ConfigError: names the setting and a value that works.
    """
    example = f"""'{prefix}target=" {{label}}"'"""
    if prompt is not None:
        parse_template(f"{prefix}prompt", prompt)
        require(
            target is not None,
            f"{prefix}prompt is set without {prefix}target, and only that is learned: set "
            f"{prefix}target too, such as {example}.",
        )
    fields = [] if target is None else template_fields(f"{prefix}target", target)
    require(
        target is None or bool(fields),
        f"{prefix}target={target!r} names no field: put one in braces, such as {example}.",
    )
    require(
        label_names is None or len(fields) == 1,
        f"{prefix}label_names are names of the numbers in the field of {prefix}target, which must "
        f"have exactly one, such as {example}.",
    )


def _resolve(key: str, text: str) -> str:
    def replace(found: re.Match[str]) -> str:
        require(
            found[1] in ESCAPES,
            f"{key} has {found[0]!r}, which stands for nothing: \\n is a newline, \\t a tab, and "
            "\\\\ a backslash.",
        )
        return ESCAPES[found[1]]

    return re.sub(r"\\(.?)", replace, text, flags=re.DOTALL)
