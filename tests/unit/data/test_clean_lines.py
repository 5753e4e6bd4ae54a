"""Line rules, in English and in Chinese."""

import pytest

from llmtrain.config.groups.clean import CleanConfig
from llmtrain.data.clean import Cleaner
from llmtrain.data.clean_boilerplate import is_boilerplate


def clean(text: str, **rules: object) -> str | None:
    return Cleaner(CleanConfig(**rules)).clean(text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "line",
    [
        "This site uses cookies to improve your experience.", "We use cookies.",
        "Accept all cookies",
        "Please enable JavaScript to view this page.", "Share this article on Facebook",
        "Read more...", "Skip to main content", "Home | About us | Contact | Blog",
        "Log in or register",
        "© 2023 Example Inc. All rights reserved.", "Copyright (c) 1999 by A. Author",
        "Privacy Policy | Terms of Use", "Subscribe to our newsletter", "12 comments",
        "« Previous post",
        "Lorem ipsum dolor sit amet, consectetur",
        "本网站使用cookies以改善体验。", "分享到：微信 微博", "首页 > 新闻 > 国际",
        "上一篇：春天来了",
        "版权所有 © 某某公司", "京ICP备12345678号", "点击查看更多", "扫一扫关注我们",
        "このサイトではクッキーを使用しています", "もっと見る", "ホーム | ニュース | お問い合わせ",
        "Diese Website verwendet Cookies.", "Ce site utilise des cookies.",
    ],
)  # fmt: skip
def test_boilerplate(line: str) -> None:
    assert is_boilerplate(line)
    assert clean(f"Text.\n  {line}\n正文。", boilerplate_lines=True) == "Text.\n正文。"


@pytest.mark.parametrize(
    "line",
    [
        "She baked cookies for us.", "I like this", "Share", "next", "Home is where the heart is.",
        "cat log | grep error | wc -l", "PosixPath('/home/user/help')",
        "| home | about | value |x|",
        "a | b | c", "The privacy policy was debated in parliament for a week.", "Read more books.",
        "Contact", "We use cookie cutters for this.", "He read more than he wrote.",
        "他在首页上看到了关于我们的新闻。", "分享是一种美德，我们应该从小学会。",
        "这本书的版权所有人是他的父亲。",
        "次のページをもっと見るつもりだ。", "我们使用筷子。",
    ],
)  # fmt: skip
def test_prose_and_code_are_no_boilerplate(line: str) -> None:
    assert not is_boilerplate(line)


def test_unfinished_lines() -> None:
    text = 'A sentence.\nMenu item\n"Quoted."\nReally?!\nand (so on.)\n\nLast one…'
    kept = 'A sentence.\n"Quoted."\nReally?!\nand (so on.)\n\nLast one…'
    assert clean(text, unfinished_lines=True) == kept
    chinese = "这是一句话。\n菜单\n“他说：‘好！’”\n真的吗？\n（完。）"
    assert clean(chinese, unfinished_lines=True) == chinese.replace("菜单\n", "")
    japanese = "吾輩は猫である。\nメニュー\n「はい。」"
    assert clean(japanese, unfinished_lines=True) == japanese.replace("メニュー\n", "")
    thai = "ภาษาไทยไม่มีเครื่องหมายจบประโยค"
    assert clean(f"{thai}\nmenu", unfinished_lines=True) == thai
    hindi = "यह एक वाक्य है।\nमेनू"
    assert clean(hindi, unfinished_lines=True) == "यह एक वाक्य है।"


def test_lines_of_few_words() -> None:
    text = "Only two\n\nThis line has five words.\n这一行有足够多的汉字。\n两字"
    kept = "This line has five words.\n这一行有足够多的汉字。"
    assert clean(text, min_line_words=3) == kept


def test_long_lines() -> None:
    assert clean("short\n" + "A" * 101 + "\nend", max_line_chars=100) == "short\nend"


def test_lines_that_repeat() -> None:
    text = "Buy now\nA\n  Buy now\n}\nBuy now \n}\n}\n版权\n版权\n版权"
    assert clean(text, max_line_repeats=2) == "Buy now\nA\n  Buy now\n}\n}\n}\n版权\n版权"
    assert clean(text) == text.replace("now \n", "now\n")


def test_lines_are_counted() -> None:
    cleaner = Cleaner(CleanConfig(min_line_words=2, max_line_chars=10))
    assert cleaner.clean("two words\none\nfar more than ten\n\n\nx y") == "two words\n\nx y"
    counts = cleaner.counts
    assert (counts["min_line_words"].lines, counts["min_line_words"].characters) == (1, 4)
    assert (counts["max_line_chars"].lines, counts["max_line_chars"].characters) == (1, 18)
    assert counts["max_line_chars"].documents == 1
