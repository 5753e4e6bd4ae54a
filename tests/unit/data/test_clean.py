"""Each cleaning rule does its work, counts it, and is the same when done twice."""

import time
import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.config.groups.data import CleanConfig
from llmtrain.data.clean import Cleaner, strip_html
from llmtrain.data.dedup import Deduplicator, content_digest

TEXT = st.text(
    st.one_of(
        st.sampled_from(" \t\n\r\x00\x07\x0c\x85e\u0301<>&;"),
        st.characters(exclude_categories=["Cs"]),
    )
)


def test_every_rule_is_counted() -> None:
    cleaner = Cleaner(CleanConfig(html=True, min_chars=3))
    assert cleaner.clean("cafe\u0301 \t\r\n\r\n\r\n\r\nbell\x07 <b>x</b> ") == "café\n\nbell x"
    assert cleaner.clean("plain text") == "plain text"
    assert cleaner.clean("ab") is None
    assert cleaner.report() == {
        "html": {"documents": 1, "characters": 7},
        "unicode_nfc": {"documents": 1, "characters": 1},
        "control_characters": {"documents": 1, "characters": 5},
        "whitespace": {"documents": 1, "characters": 5},
        "min_chars": {"documents": 1, "characters": 2},
    }


def test_rules_that_are_off_do_nothing() -> None:
    off = CleanConfig(unicode_nfc=False, control_characters=False, whitespace=False)
    text = "  e\u0301\x07\r\n\n\n\n <b>&amp; "
    assert Cleaner(off).clean(text) == text


def test_html() -> None:
    page = "<html><head><style>p {x}</style></head><p>a &lt; b<br/>c</p><p>d</p><!-- no --></html>"
    assert strip_html(page).split() == ["a", "<", "b", "c", "d"]
    assert strip_html("1 < 2 and 3 > 2") == "1 < 2 and 3 > 2"


def test_hostile_text_takes_no_time() -> None:
    cleaner = Cleaner(CleanConfig(html=True))
    start = time.perf_counter()
    for text in (" " * 300_000 + "x", "<a" * 150_000, "\n \n" * 100_000, "&" * 300_000):
        cleaner.clean(text)
    assert time.perf_counter() - start < 5


@given(text=TEXT)
@settings(max_examples=200, deadline=None)
def test_cleaning_twice_changes_nothing(text: str) -> None:
    once = Cleaner(CleanConfig()).clean(text)
    if once is None:
        return
    assert Cleaner(CleanConfig()).clean(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert "\n\n\n" not in once
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in once)
    assert once == once.strip()


def test_duplicates_are_found_by_content() -> None:
    seen = Deduplicator()
    texts = [b"one", b"two", b"one", b"one "]
    assert [seen.is_new(content_digest(t)) for t in texts] == [True, True, False, True]
    assert seen.duplicates == 1
