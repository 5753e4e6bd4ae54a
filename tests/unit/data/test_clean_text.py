"""Rules on characters: mojibake, control and invisible characters, width, spaces, HTML."""

import pytest

from llmtrain.data.clean_html import html_to_text
from llmtrain.data.clean_text import (
    collapse_spaces,
    fold_width,
    repair_mojibake,
    strip_control_characters,
    strip_invisible_characters,
    tidy_whitespace,
)


@pytest.mark.parametrize(
    ("text", "codec"),
    [
        ("Où est le café déjà fermé ?", "latin-1"),
        ("Größe und Übermaß", "cp1252"),
        ("she said “no", "cp1252"),
        ("Привет, мир", "latin-1"),
    ],
)
def test_mojibake_is_repaired(text: str, codec: str) -> None:
    broken = text.encode("utf-8").decode(codec)
    assert repair_mojibake(broken) == text
    sound = "这一行没有问题。"
    assert repair_mojibake(f"{sound}\n{broken}") == f"{sound}\n{text}"


def test_mojibake_of_chinese_is_repaired() -> None:
    broken = "中文网页".encode().decode("latin-1")
    assert repair_mojibake(broken) == "中文网页"


@pytest.mark.parametrize(
    "text",
    [
        "naïve café",
        "“quotes” … ﬁ",
        "学而时习之",
        "Ω ≈ ½ → ∞",
        "я не знаю",
        "x² ± ©",
        "ÄÖÜ",
        "日本語ﾃｽﾄ",
    ],
)
def test_sound_text_is_not_repaired(text: str) -> None:
    assert repair_mojibake(text) == text


def test_control_characters() -> None:
    assert strip_control_characters("a\r\nb\rc\x00\x07\x7f\td") == "a\nb\nc\td"
    assert strip_control_characters("é\x85\x9b字\r\n") == "é字\n"


def test_invisible_characters() -> None:
    assert strip_invisible_characters("co\u00adop \ufeffx\u200b\u202ey\u2060") == "coop xy"
    kept = ["👩\u200d👧", "می\u200cخواهم", "❤\ufe0f", "ភាសា\u200bខ្មែរ"]
    assert [strip_invisible_characters(text) for text in kept] == kept


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("Ｐｙｔｈｏｎ　３．１１！", "Python 3.11!"),
        ("版本３．１１，请安装Ｐｙｔｈｏｎ（必须）！", "版本3．11，请安装Python（必须）！"),
        ("ｶﾞﾗｽとﾊﾟﾝ｡", "ガラスとパン。"),
        ("（１）全角\n（ｘ）", "（1）全角\n(x)"),
        ("x² ﬁ Ⅳ ㎏ ～ ￥５", "x² ﬁ Ⅳ ㎏ ～ ￥5"),
        ("　　段落。", "　　段落。"),
    ],
)
def test_width(text: str, folded: str) -> None:
    assert fold_width(text) == folded
    assert fold_width(folded) == folded


def test_spaces() -> None:
    assert collapse_spaces("a \t b\u00a0c\u3000d\u2028e") == "a b c d\ne"
    assert collapse_spaces("a b\nc") == "a b\nc"


def test_whitespace() -> None:
    assert tidy_whitespace("\n a \t\n\n\n\n b\t\n") == "a\n\n b"
    assert tidy_whitespace("　　段落。　\n") == "段落。"


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<p>Hello <b>wo</b>rld<br>x</p>", "Hello world\nx"),
        ("<p>a &lt; b &amp;amp; &copy; &#x4e2d; &notanentity;</p>", "a < b &amp; © 中 ¬anentity;"),
        ("<script>if (a<b) document.write('<p>no</p>')</script>yes<style>p{}</style>", "yes"),
        ("<!-- <p>no</p> -->yes<noscript>no</noscript>", "yes"),
        (
            "<p>un<b>closed <i>tags</p><div>next <a href='x>y'>link</a>",
            "unclosed tags\n\nnext link",
        ),
        ("<script>never closed", ""),
        ("<pre>def f():\n    return 1\n</pre>", "def f():\n    return 1"),
        ("<p>中文<b>粗体</b>，好。</p>", "中文粗体，好。"),
        ("<p>one\n  line</p>", "one line"),
        ("<table><tr><td>a<td>b<tr><td>c<td>d</table>", "a\t\tb\nc\t\td"),
        ("<ul><li>a<li>b<ul><li>c</ul></ul>", "  a\n  b\n    c"),
    ],
)
def test_html(page: str, text: str) -> None:
    assert html_to_text(page) == text


def test_nested_tables_keep_their_words_apart() -> None:
    page = (
        "<table><tr><td>a<table><tr><td>n1</td><td>n2</td></tr></table></td><td>b</td></tr></table>"
    )
    assert html_to_text(page).split() == ["a", "n1", "n2", "b"]


def test_text_without_tags_keeps_its_lines() -> None:
    assert html_to_text("1 < 2 and 3 > 2\n\nnext") == "1 < 2 and 3 > 2\n\nnext"
    assert html_to_text("AT&amp;T\nx") == "AT&T\nx"


def test_the_main_content_of_a_page() -> None:
    article = "<p>" + "The main text of the page, which goes on for a while. " * 5 + "</p>"
    page = (
        "<html><body><header><nav><ul><li><a href='/'>Home</a><li><a href='/a'>About</a></ul></nav>"
        f"</header><main><article>{article}</article></main><footer>Imprint</footer></body></html>"
    )
    text = html_to_text(page, main_content=True)
    assert "The main text" in text
    assert "Home" not in text and "Imprint" not in text
    assert "Home" in html_to_text(page) and "Imprint" in html_to_text(page)
