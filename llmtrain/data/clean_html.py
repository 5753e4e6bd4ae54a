"""HTML to the text that a browser shows."""

import html
import re

MARKUP = re.compile(r"<[a-zA-Z/!?]")


def html_to_text(text: str, *, main_content: bool = False) -> str:
    """Return what a reader sees of a page: blocks as lines, table cells apart, entities decoded.

    Scripts, styles, comments, forms and the title go. The parser is that of the HTML standard, so
    that broken pages read as in a browser. Text without a tag keeps its lines.

    Args:
        text: A page, or a part of one.
        main_content: Leave out menus, headers, footers and sidebars, by rules of thumb.
    """
    if not MARKUP.search(text):
        return html.unescape(text) if "&" in text else text
    from resiliparse.extract.html2text import extract_plain_text

    return extract_plain_text(
        text,
        preserve_formatting=True,
        main_content=main_content,
        list_bullets=False,  # no character that is not in the page
        alt_texts=False,
    )
