"""Personal data and secrets, each replaced by a fixed word."""

import ipaddress
import re
from collections.abc import Sequence

MASKS = {
    "mask_keys": "<KEY>",
    "mask_email": "<EMAIL>",
    "mask_ip": "<IP>",
    "mask_phone": "<PHONE>",
}
"""What stands for what a rule takes."""

# Boundaries are ASCII classes, not \b: in Chinese no space parts an address from the words.
EMAIL = re.compile(
    r"(?<![A-Za-z0-9_%+-])(?!git@)[A-Za-z0-9_][A-Za-z0-9._%+-]{0,63}@"
    r"(?:[A-Za-z0-9-]{1,63}\.){1,8}(?!(?:png|jpe?g|gif|svg|webp|css|js)\b)[A-Za-z]{2,24}"
    r"(?![A-Za-z0-9])"
)
# Forms that the issuers document, chosen so that nothing else looks like them.
KEY = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:AKIA|ASIA)[A-Z0-9]{16}"  # AWS access key
    r"|gh[pousr]_[A-Za-z0-9]{36,251}|github_pat_[A-Za-z0-9_]{82}"  # GitHub
    r"|glpat-[A-Za-z0-9_-]{20,64}"  # GitLab
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,250}"  # Slack
    r"|AIza[A-Za-z0-9_-]{35}"  # Google
    r"|[rs]k_live_[A-Za-z0-9]{16,247}"  # Stripe
    r"|sk-[A-Za-z0-9_-]{40,250}"  # OpenAI, Anthropic
    r"|hf_[A-Za-z0-9]{34}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{85,250}"
    r"|eyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,2000}"  # JWT
    r")(?![A-Za-z0-9])"
)
PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")
PRIVATE_KEY_END = re.compile(r"-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----")

IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\.?\w)", re.ASCII)
# Global unicast is 2000::/3 (RFC 4291), which also leaves a::b of many languages alone.
IPV6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])", re.ASCII)

# A run of digits with at most two characters between them. Not inside a word, a decimal, a time, a
# price or a path, and no ISBN that ends with X.
GAP = r"[ ().\u00a0\u2010-\u2015/-]"
PHONE = re.compile(
    rf"(?<![\w.,+/$=#-])(?<!\d:)(?:\+\(?|\()?\d(?:{GAP}{{0,2}}\d){{6,}}(?![\w%]|[.,:/-]\d|-X)",
    re.ASCII,
)
GAPS = re.compile(rf"{GAP}+")
MOST_DIGITS = 15  # ITU-T E.164, 6
MOST_CHARACTERS = 32
DATE = re.compile(r"\d{4}-\d\d-\d\d")
CHINESE_MOBILE = re.compile(r"1[3-9]\d{9}")


def mask_keys(text: str) -> str:
    """Replace private key blocks and access tokens of well-known services by <KEY>."""
    if "-----BEGIN" in text:
        text = _mask_private_keys(text)
    return KEY.sub(MASKS["mask_keys"], text)


def mask_email(text: str) -> str:
    """Replace mail addresses by <EMAIL>."""
    return EMAIL.sub(MASKS["mask_email"], text) if "@" in text else text


def mask_ip(text: str) -> str:
    """Replace public IP addresses by <IP>; private and documentation ranges tell of nobody."""
    text = IPV4.sub(_mask_address, text)
    return IPV6.sub(_mask_address, text) if ":" in text else text


def mask_phone(text: str, regions: Sequence[str]) -> str:
    """Replace telephone numbers by <PHONE>.

    A run of digits is a number where libphonenumber knows it as a valid one whose groups are
    written as usual, and where it shows that it is one: by a leading +, or by its groups if it is
    in the plan of one of `regions` (see `_grouped`). Ungrouped only the mobile numbers of
    China count: else every id of ten digits would be a telephone number somewhere.
    """
    while True:
        masked = PHONE.sub(lambda run: _mask_numbers(run[0], regions), text)
        if masked == text:
            return text
        text = masked  # once more: what a number was glued to may be one itself


def _mask_private_keys(text: str) -> str:
    parts: list[str] = []
    start = 0
    while (begin := PRIVATE_KEY.search(text, start)) is not None:
        end = PRIVATE_KEY_END.search(text, begin.end())
        if end is None:
            break
        parts += [text[start : begin.start()], MASKS["mask_keys"]]
        start = end.end()
    return "".join([*parts, text[start:]])


def _mask_address(match: re.Match[str]) -> str:
    try:
        public = ipaddress.ip_address(match[0]).is_global
    except ValueError:
        return match[0]
    return MASKS["mask_ip"] if public else match[0]


def _mask_numbers(run: str, regions: Sequence[str]) -> str:
    spans = list(_phone_spans(run, regions))
    for start, end in sorted(spans, reverse=True):
        run = run[:start] + MASKS["mask_phone"] + run[end:]
    return run


def _phone_spans(run: str, regions: Sequence[str]) -> list[tuple[int, int]]:
    if CHINESE_MOBILE.fullmatch(run):
        return [(0, len(run))] if "CN" in regions else []
    international = run.startswith(("+", "(+"))
    if not international and not _may_be_national(run):
        return []
    from phonenumbers import Leniency, PhoneNumberMatcher

    run = run[:MOST_CHARACTERS]
    for plan in [None] if international else regions:
        found = PhoneNumberMatcher(run, plan, leniency=Leniency.STRICT_GROUPING)
        spans = [
            (match.start, match.end)
            for match in found
            if match.raw_string.startswith("+")
            or (_looks_national(match.raw_string) and run[: match.start][-1:] != ".")
        ]
        if spans:
            return spans
    return []


def _may_be_national(run: str) -> bool:
    """Say whether it is worth to ask libphonenumber, which takes a tenth of a millisecond a plan:
    most rows of a table of numbers are not."""
    groups, digits = _groups(run)
    return digits <= MOST_DIGITS and _grouped(groups, digits) and not DATE.search(run)


def _looks_national(number: str) -> bool:
    """Say whether digits without a leading + are written as a telephone number is. Dots do not
    count, for they are in versions and coordinates."""
    return "." not in number and _grouped(*_groups(number))


def _groups(run: str) -> tuple[list[str], int]:
    """Return the groups of digits in `run`, and how many digits there are."""
    groups = [group for group in GAPS.split(run) if group]
    return groups, sum(map(len, groups))


def _grouped(groups: list[str], digits: int) -> bool:
    """Say whether there are nine digits or more behind a zero, or ten or more in groups of at least
    three behind a 1 or nothing."""
    if len(groups) < 2:
        return False
    if groups[0][0] == "0":
        return digits >= 9
    body = groups[1:] if groups[0] == "1" else groups
    return digits >= 10 and all(len(group) >= 3 for group in body)
