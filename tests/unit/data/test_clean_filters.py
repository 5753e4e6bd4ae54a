"""Document filters: English and scripts without spaces are judged alike."""

from typing import Any

import pytest

from llmtrain.config.groups.clean import CleanConfig
from llmtrain.data.clean import Cleaner
from llmtrain.data.clean_measure import Measure, count_sentences, count_words

ENGLISH = (
    "The court has ruled that the law does not apply to the case. The judges agreed on it, and "
    "said so in a short statement. Both sides will now have to wait. Nobody knows for how long."
)
CHINESE = (
    "法院裁定，该法律不适用于此案。法官们一致同意，并在一份简短的声明中说明了理由。双方现在都必须等待。"
    "没有人知道要等多久。报纸写道，这个决定来得太晚了。"
)
JAPANESE = (
    "裁判所は、この法律は本件には適用されないと判断した。裁判官は全員一致で同意し、短い声明を出した。"
    "双方は今、待たなければならない。いつまでかは誰も知らない。"
)
THAI = (
    "ศาลตัดสินว่ากฎหมายนี้ใช้ไม่ได้กับคดีนี้ ผู้พิพากษาทุกคนเห็นด้วยและออกแถลงการณ์สั้น ๆ ทั้งสองฝ่ายต้องรอต่อไป "
    "ไม่มีใครรู้ว่านานเท่าไร"
)
PROSE = {"english": ENGLISH, "chinese": CHINESE, "japanese": JAPANESE, "thai": THAI}

# Rae et al. 2021, A.1.1, but for the least number of words; Raffel et al. 2020, 2.2: sentences.
PUBLISHED: dict[str, Any] = {
    "min_words": 25,
    "max_words": 100_000,
    "min_sentences": 3,
    "min_mean_word_chars": 3.0,
    "max_mean_word_chars": 10.0,
    "max_symbol_ratio": 0.2,
    "min_alphabetic_ratio": 0.8,
    "max_bullet_lines_ratio": 0.9,
    "max_ellipsis_lines_ratio": 0.3,
    "max_repeated_lines_ratio": 0.3,
}


def dropped_by(text: str, **rules: Any) -> str | None:
    cleaner = Cleaner(CleanConfig(**rules))
    kept = cleaner.clean(text)
    drops = cleaner.drops()
    assert (kept is None) == bool(drops)
    return next(iter(drops), None)


@pytest.mark.parametrize("language", PROSE)
def test_prose_passes_the_published_filters(language: str) -> None:
    assert dropped_by(PROSE[language], **PUBLISHED) is None


def test_words_of_all_scripts() -> None:
    assert count_words("five words are in here") == 5
    assert count_words("café déjà vu") == 3
    assert 30 <= count_words(CHINESE) <= 60
    assert 30 <= count_words(JAPANESE) <= 60
    assert 20 <= count_words(THAI) <= 45
    # Punctuation of either script is no word; words of both count.
    assert count_words("，。！？") == 0
    assert count_words("我用Python写代码") == pytest.approx(1 + 5 / 1.8)
    assert count_words("한국어는 띄어쓰기를 한다") == 3


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        (ENGLISH, 4), (CHINESE, 5), (JAPANESE, 4), ("One. Two! Three? Four", 4), ("3.14 is pi", 1),
        ("“Yes.” He left.", 2), ("好。”他说。", 2), ("Wait... what?!", 2), ("等等……什么？", 2),
        ("", 0),
        ("यह है। वह है।", 2), ("هل هذا؟ نعم.", 2), ("ไปแล้ว มาแล้ว", 2),
    ],
)  # fmt: skip
def test_sentences(text: str, sentences: int) -> None:
    assert count_sentences(text) == sentences


@pytest.mark.parametrize("language", PROSE)
def test_length(language: str) -> None:
    text = PROSE[language]
    assert dropped_by(text, min_words=500) == "min_words"
    assert dropped_by(text, max_words=10) == "max_words"
    assert dropped_by(text, min_sentences=10) == "min_sentences"
    assert dropped_by(text, min_chars=500) == "min_chars"
    assert dropped_by(text, max_chars=50) == "max_chars"


def test_word_length() -> None:
    assert dropped_by("a b c d e f g h", min_mean_word_chars=3.0) == "min_mean_word_chars"
    assert dropped_by("x" * 40 + " and", max_mean_word_chars=10.0) == "max_mean_word_chars"
    assert dropped_by("中文" * 100, max_mean_word_chars=10.0, min_mean_word_chars=3.0) is None
    assert dropped_by("中文网页 " + "x" * 40, max_mean_word_chars=10.0) is None  # mostly Chinese
    assert dropped_by("中 " + "x" * 40, max_mean_word_chars=10.0) == "max_mean_word_chars"


@pytest.mark.parametrize("language", PROSE)
def test_symbols(language: str) -> None:
    text = PROSE[language]
    assert dropped_by(text, max_symbol_ratio=0.15) is None
    assert dropped_by(text + "#$%^&*★" * 20, max_symbol_ratio=0.15) == "max_symbol_ratio"
    assert Measure("ab, cd!").symbol_ratio == pytest.approx(2 / 6)
    assert Measure("नमस्ते").symbol_ratio == 0.0  # vowel signs belong to letters


def test_words_without_letters() -> None:
    assert dropped_by("1 2 3 4 word", min_alphabetic_ratio=0.8) == "min_alphabetic_ratio"
    assert dropped_by("1 2 3 4 中文中文中文中文中文", min_alphabetic_ratio=0.4) is None
    assert dropped_by("1 2 3 4 5 6 7 8 中文", min_alphabetic_ratio=0.4) == "min_alphabetic_ratio"


def test_bullets_and_ellipses() -> None:
    for bullet in ("- ", "* ", "• ", "・", "◆"):
        text = f"{bullet}one\n{bullet}two\n  {bullet}三"
        assert dropped_by(text, max_bullet_lines_ratio=0.9) == "max_bullet_lines_ratio"
        assert dropped_by(f"Title\n{text}", max_bullet_lines_ratio=0.9) is None
    assert dropped_by("-1\n-2", max_bullet_lines_ratio=0.9) is None
    for end in ("...", "…", "……"):
        text = f"a{end}\n好{end}\nend"
        assert dropped_by(text, max_ellipsis_lines_ratio=0.3) == "max_ellipsis_lines_ratio"


def test_repeated_lines() -> None:
    assert dropped_by("a\nb\na\na", max_repeated_lines_ratio=0.3) == "max_repeated_lines_ratio"
    assert dropped_by("a\n\nb\n\nc\n\na", max_repeated_lines_ratio=0.3) is None


@pytest.mark.parametrize(
    ("scripts", "passes"),
    [
        (["latin"], {"english"}),
        (["han"], {"chinese"}),
        (["latin", "han"], {"english", "chinese"}),
        (["han", "hiragana", "katakana"], {"chinese", "japanese"}),
        (["thai"], {"thai"}),
        (["cyrillic"], set()),
    ],
)
def test_scripts(scripts: list[str], passes: set[str]) -> None:
    kept = {
        name
        for name, text in PROSE.items()
        if dropped_by(text, scripts=scripts, min_script_ratio=0.8) is None
    }
    assert kept == passes


def test_the_share_of_a_script() -> None:
    assert dropped_by("abcdef жж", scripts=["latin"], min_script_ratio=0.75) is None
    assert dropped_by("abcde жж", scripts=["latin"], min_script_ratio=0.75) == "scripts"
    assert dropped_by("ラーメン", scripts=["katakana"], min_script_ratio=1.0) is None
    assert dropped_by("123 !?", scripts=["latin"]) is None  # no letters, no verdict


def test_the_first_rule_that_fails_is_the_one_that_drops() -> None:
    cleaner = Cleaner(CleanConfig(min_words=5, scripts=["han"]))
    assert cleaner.clean("two words", "a") is None
    assert cleaner.clean("a text that has many more words", "b") is None
    assert cleaner.drops() == {"min_words": 1, "scripts": 1}
    assert cleaner.report()["scripts"]["examples"][0]["id"] == "b"
