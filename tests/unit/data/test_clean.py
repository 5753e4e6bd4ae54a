"""The cleaner as a whole: order, counts, what it promises of every text."""

import random
import time
import unicodedata
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmtrain.config.groups.clean import CleanConfig
from llmtrain.data.clean import Cleaner
from llmtrain.data.clean_count import EXAMPLE_CHARACTERS, EXAMPLES_KEPT
from llmtrain.data.clean_mask import MASKS
from llmtrain.errors import ConfigError

PIECES = st.one_of(
    st.sampled_from(" \t\n\r\x00\x07\x0c\x85e\u0301<>&;\u00a0\u00ad\u200b\u2028\u3000\ufeff"),
    st.sampled_from("Ａｂ９，．（～ｶﾞﾊﾟﾞ｡漢字かなカーไทย។한국Ωя"),
    st.sampled_from(
        [
            "\n\n",
            " 202-555-0143",
            "+44 20 7946 0958",
            "a@b.co",
            "8.8.8.8",
            "Share this",
            "...",
            "- ",
        ]
    ),
    st.characters(exclude_categories=["Cs"]),
)
TEXT = st.lists(PIECES, max_size=40).map("".join)

# Every rule that is the same when done twice: all but HTML and mojibake.
STRICT = CleanConfig(
    invisible_characters=True,
    width=True,
    collapse_spaces=True,
    mask_keys=True,
    mask_email=True,
    mask_ip=True,
    mask_phone=True,
    boilerplate_lines=True,
    min_line_words=1,
    max_line_chars=60,
    max_line_repeats=1,
)

SOUND = {
    "prose": "“Well,” she said—“it’s 5 o’clock…” He didn’t answer; why would he?\n\nA naïve café.",
    "code": "def f(x):\n\treturn {\n        'a': x << 2,  # ©\n    }\n\nif a<b and c>d:\n    pass",
    "poem": "Tyger Tyger, burning bright,\n   In the forests of the night;\n\nTyger Tyger",
    "chinese": "　　学而时习之，不亦说乎？\n　　“人不知而不愠”——《论语》。",
    "japanese": "吾輩は猫である。名前はまだ無い。ｶﾞラス２枚！",
    "emoji": "👩‍👩‍👧‍👦 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f ❤️",
    "persian": "می\u200cخواهم",
}


def test_every_rule_is_counted() -> None:
    cleaner = Cleaner(CleanConfig(html=True, min_chars=3))
    assert cleaner.clean("cafe\u0301 \x07 <b>x</b> ") == "café  x"
    assert cleaner.clean("plain text") == "plain text"
    assert cleaner.clean("ab", "where") is None
    none = {"dropped": 0, "lines": 0, "masked": 0}
    assert cleaner.report() == {
        "html": {"documents": 1, **none, "characters": 8},
        "control_characters": {"documents": 1, **none, "characters": 1},
        "unicode_nfc": {"documents": 1, **none, "characters": 1},
        "whitespace": {"documents": 0, **none, "characters": 0},
        "min_chars": {
            "documents": 1, **none, "dropped": 1, "characters": 2,
            "examples": [{"id": "where", "text": "ab"}],
        },
    }  # fmt: skip
    assert cleaner.drops() == {"min_chars": 1}


def test_the_order_of_rules_is_the_order_of_settings() -> None:
    on: dict[str, Any] = {"scripts": ["latin"]}
    for each in fields(CleanConfig):
        if each.name in ("phone_regions", "min_script_ratio", "html_main_content", *on):
            continue
        kind = str(each.type)
        on[each.name] = True if kind == "bool" else 0.5 if each.name.endswith("_ratio") else 1
    expected = [f.name for f in fields(CleanConfig) if f.name in on]
    assert list(Cleaner(CleanConfig(**on)).counts) == expected


def test_rules_that_are_off_do_nothing() -> None:
    off = CleanConfig(unicode_nfc=False, control_characters=False, whitespace=False)
    text = "  e\u0301\x07\r\n\n\n\n <b>&amp; "
    assert Cleaner(off).clean(text) == text


@pytest.mark.parametrize("name", SOUND)
def test_the_defaults_leave_sound_text_alone(name: str) -> None:
    text = SOUND[name].strip().replace("\n\n\n", "\n\n")
    assert Cleaner(CleanConfig()).clean(text) == text


@given(text=TEXT)
@settings(max_examples=300, deadline=None)
def test_cleaning_twice_changes_nothing(text: str) -> None:
    for config in (CleanConfig(), STRICT):
        once = Cleaner(config).clean(text)
        if once is None:
            continue
        again = Cleaner(config)
        assert again.clean(once) == once
        assert all(count.documents == 0 for count in again.counts.values())
        assert unicodedata.is_normalized("NFC", once)
        assert "\n\n\n" not in once
        assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in once)
        assert once == once.strip()


def test_what_goes_may_bring_a_letter_and_its_accent_together() -> None:
    assert Cleaner(CleanConfig()).clean("e\x07\u0301") == "é"
    assert Cleaner(CleanConfig(invisible_characters=True)).clean("e\u00ad\u0301") == "é"


@given(text=TEXT)
@settings(max_examples=300, deadline=None)
def test_nothing_is_invented(text: str) -> None:
    """Every character comes from the text, in one of its forms, or is a newline, space or mask."""
    cleaned = Cleaner(STRICT).clean(text)
    if cleaned is None:
        return
    for mask in MASKS.values():
        cleaned = cleaned.replace(mask, "")
    known = set(text) | set("\n ")
    for form in ("NFC", "NFD", "NFKC"):
        known |= set(unicodedata.normalize(form, text))
        known |= {k for c in text for k in unicodedata.normalize(form, c)}
    composed = {c for c in cleaned if set(unicodedata.normalize("NFD", c)) <= known}
    assert set(cleaned) <= known | composed
    assert len(cleaned) <= len(text) + text.count("\r")


@given(text=TEXT)
@settings(max_examples=200, deadline=None)
def test_counts_add_up(text: str) -> None:
    cleaner = Cleaner(STRICT)
    cleaned = cleaner.clean(text)
    taken = sum(count.characters for count in cleaner.counts.values())
    assert taken == len(text) - len(cleaned or "")


def test_counts_depend_neither_on_order_nor_on_processes() -> None:
    config = CleanConfig(min_chars=20, min_words=6, max_line_repeats=1, mask_email=True)
    texts = [f"text {i} " + "word " * (i % 9) + "a@b.co\nx\nx" * (i % 2) for i in range(60)]
    documents = [(f"file:{i}", text) for i, text in enumerate(texts)]
    whole = Cleaner(config)
    kept = [whole.clean(text, name) for name, text in documents]
    order = list(range(60))
    random.Random(1).shuffle(order)
    parts = [Cleaner(config) for _ in range(3)]
    for i in order:
        assert parts[i % 3].clean(texts[i], f"file:{i}") == kept[i]
    merged = Cleaner(config)
    for part in parts:
        merged.merge(part.counts)
    assert merged.report() == whole.report()
    examples = whole.report()["min_words"]["examples"]
    assert len(examples) == EXAMPLES_KEPT
    assert all(len(e["text"]) <= EXAMPLE_CHARACTERS for e in examples)


def test_hostile_text_takes_no_time() -> None:
    cleaner = Cleaner(
        CleanConfig(
            html=True, mojibake=True, invisible_characters=True, width=True, collapse_spaces=True,
            mask_keys=True, mask_email=True, mask_ip=True, mask_phone=True, boilerplate_lines=True,
            unfinished_lines=True, min_line_words=1, max_line_repeats=1, min_words=1,
            min_sentences=1, max_symbol_ratio=0.99, scripts=["latin"],
        )
    )  # fmt: skip
    texts = [
        " " * 300_000 + "x", "<a" * 150_000, "\n \n" * 100_000, "&" * 300_000, "a." * 150_000,
        "a@" * 150_000, "1 " * 150_000, "1." * 150_000, "1:" * 150_000, "+1" * 150_000,
        "-----BEGIN PRIVATE KEY-----" * 10_000, "eyJ" * 100_000, "eyJhhhhhhhhhhh." * 20_000,
        "Ã©" * 100_000, "ｶﾞ" * 100_000, "| " * 150_000, ".\"" * 100_000, "ก " * 100_000,
    ]  # fmt: skip
    for text in texts:
        start = time.perf_counter()
        cleaner.clean(text)
        assert time.perf_counter() - start < 5, text[:20]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"min_chars": 0}, "data.clean.min_chars=0 must be at least 1"),
        ({"min_words": -1}, "data.clean.min_words=-1 must not be negative"),
        ({"max_symbol_ratio": 1.5}, r"data.clean.max_symbol_ratio=1.5 must be in \[0, 1\]"),
        ({"min_words": 9, "max_words": 3}, "min_words=9 is more than data.clean.max_words=3"),
        ({"scripts": ["latn"]}, "Did you mean 'latin'"),
        ({"phone_regions": ["usa"]}, "phone_regions has usa"),
        ({"html_main_content": True}, "needs data.clean.html=true"),
    ],
)
def test_settings_that_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CleanConfig(**wrong)
