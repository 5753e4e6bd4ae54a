"""Texts on which two ways of encoding would differ first."""

_ATOMS = "¦".join(
    (
        # Words.
        "the¦Él¦naïve¦Ünïcode¦世界¦你好，世界。¦こんにちは¦カタカナー¦한국어¦Привет¦Γειά¦שלום¦مرحبا¦नमस्ते¦สวัสดี",
        "ქართული¦ሰላም¦ខ្មែរ¦ǅ¦ʰ¦ß¦İı¦CamelCase¦HTMLParser",
        # Numbers.
        "1¦12¦1234567¦٣٤٥¦१२३¦１２¦Ⅷ¦½¦²¦①¦𝟘𝟙",
        # Spaces, and what looks like one.
        " ¦  ¦\t¦\n¦\r\n¦\n\n \n¦\x0b\x0c¦\x85¦\xa0¦\u1680¦\u180e¦\u2003¦\u2028\u2029¦\u200b",
        "\u202f¦\u205f¦\u3000¦\ufeff¦\x1c\x1f",
        # Signs, emoji, combining marks, control characters.
        "!¦...¦—¦«»¦。¦#¦##¦/¦/\n¦_¦^^^^^^¦€¦¿¦ª¦`¦😀¦👩‍👩‍👧¦🇩🇪¦👍🏽¦e\u0301¦\u0301¦\u0e31¦\u20e3¦\ufe0f¦\ue000",
        "\0¦\x01\x02¦\x7f¦\x9f¦\ufffd¦\uffff¦\U0010ffff¦\xad",
        # Contractions; ſ and K are other cases of s and k, ﬆ of st.
        "'s¦'S¦'ſ¦'t¦'re¦'VE¦'ll¦'d¦'dé¦''s¦’s¦'¦'x¦'ﬆ¦I'Mx¦K",
        # What special tokens of some tokenizer, or its inner spelling of bytes, look like.
        "<|endoftext|>¦<|im_start|>user¦<|¦|>¦</s>¦[UNK]¦<unk>¦Ġ¦Ċ¦▁¦<0x0A>",
        # Letters and digits of Unicode 12 to 17.
        "\u0c77ꟃ\U0001e950¦\U00030000\U00011950¦\u0870\U00010570¦\U00031350\U0001e4f0",
        "\U0002ebf0¦\U000105c0\U00016d70¦\U000323b0\U00010940\U00011de0",
    )
).split("¦")

_AROUND = (("a", ""), (" ", " "), ("", "a"), ("'", "s"), ("1", "\n"), ("!", " x"), ("世", "世"))

HARD_TEXTS = (
    "",
    "".join(_ATOMS),
    " ".join(_ATOMS),
    "\n".join(_ATOMS),
    *("".join(before + atom + after for atom in _ATOMS) for before, after in _AROUND),
    *(character * 300 for character in "a ^世\n1"),
)
"""Words, numbers, spaces, signs, contractions and look-alikes of special tokens of many scripts."""
