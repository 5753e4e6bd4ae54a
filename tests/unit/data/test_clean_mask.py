"""Masks: what is taken, and what only looks like it."""

import pytest

from llmtrain.config.groups.clean import PHONE_REGIONS
from llmtrain.data.clean_mask import mask_email, mask_ip, mask_keys, mask_phone

HEX40 = "0123456789abcdefABCD" * 2


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to bob.smith+x@mail.example.co.uk.", "write to <EMAIL>."),
        ("请联系zhang@example.com谢谢", "请联系<EMAIL>谢谢"),
        ("<a@b.org>, c_d@e-f.de;", "<<EMAIL>>, <EMAIL>;"),
    ],
)
def test_email(text: str, masked: str) -> None:
    assert mask_email(text) == masked


@pytest.mark.parametrize(
    "text",
    [
        "@property",
        "user@host",
        "git@github.com:o/r",
        "logo@2x.png",
        "a @ b.com",
        "@someone",
        "5@3.2",
    ],
)
def test_no_email(text: str) -> None:
    assert mask_email(text) == text


@pytest.mark.parametrize(
    "number",
    [
        "+1 202-555-0143", "+12025550143", "(202) 456-1111", "202-456-1111", "1-800-356-9377",
        "+44 20 7946 0958", "020 7946 0958", "07911 123456", "+86 138 1234 5678", "13812345678",
        "138-1234-5678", "010-62345678", "+49 (0)30 901820", "030 901820", "01 42 68 53 00",
        "+33142685300", "03-1234-5678", "090-1234-5678", "98765 43210",
    ],
)  # fmt: skip
def test_phone(number: str) -> None:
    regions = PHONE_REGIONS
    assert mask_phone(f"call {number}, please", regions) == "call <PHONE>, please"
    assert mask_phone(f"电话：{number}。", regions) == "电话：<PHONE>。"
    assert mask_phone(f"tel:{number}", regions) == "tel:<PHONE>"


def test_two_phones() -> None:
    text = "+1 202-555-0143 / +1 202-555-0144 or 202-456-1111 and 202-456-1112"
    assert mask_phone(text, ["US"]) == "<PHONE> / <PHONE> or <PHONE> and <PHONE>"


@pytest.mark.parametrize(
    "text",
    [
        "in 1999-2004", "2024-01-31 10:15:22", "ISBN 978-0-306-40615-7", "0-306-40615-2",
        "ISBN 0-201-15790-X", "3.14159265358979", "925.541.7625 662", "1,234,567,890",
        "$2024561111",
        "192.168.100.200", "10.1000/182", "1234567890", "4294967296", "100 200 3000", "555-1234",
        "[GCC 2.96 20000731 (Red Hat)]", "[GCC 6.2.0 20161005]", "v1.2.3-20240131", "1010 1001",
        "1 1 2 3 5 8 13 21 34 55 89 144", "#202-456-1111", "id=13812345678", "113812345678901",
        "65 2008-06-09 13:26:51", "040-0177 ( 041-0176 )", "pages 123-456", "第2024章 100-200 页",
        "4111 1111 1111 1111", "abc123-456-7890def",
    ],
)  # fmt: skip
def test_no_phone(text: str) -> None:
    assert mask_phone(text, PHONE_REGIONS) == text


def test_numbers_of_other_countries_stay() -> None:
    assert mask_phone("020 7946 0958", ["US"]) == "020 7946 0958"
    assert mask_phone("13812345678", ["US"]) == "13812345678"
    assert mask_phone("+44 20 7946 0958", []) == "<PHONE>"


@pytest.mark.parametrize(
    "key",
    [
        "AKIAIOSFODNN7EXAMPLE", f"ghp_{HEX40}", "github_pat_" + "a" * 82, f"sk-proj-{HEX40}",
        "AIza" + "b" * 35, f"xoxb-{HEX40}", f"sk_live_{HEX40}", "hf_" + "c" * 34,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9P",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE+/=\nabc\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n-----END OPENSSH PRIVATE KEY-----",
        "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\nxyz\n-----END PGP PRIVATE KEY BLOCK-----",
    ],
)  # fmt: skip
def test_keys(key: str) -> None:
    assert mask_keys(f"key = '{key}' # x") == "key = '<KEY>' # x"


@pytest.mark.parametrize(
    "text",
    [
        "AKIA", "sk-learn", "ghp_short", HEX40, "eyJ.eyJ.x", "-----BEGIN PRIVATE KEY-----\nno end",
        "-----BEGIN CERTIFICATE-----\nMIIE\n-----END CERTIFICATE-----", "KAKIAIOSFODNN7EXAMPLEX",
    ],
)  # fmt: skip
def test_no_keys(text: str) -> None:
    assert mask_keys(text) == text


def test_ip() -> None:
    assert mask_ip("from 8.8.8.8, 2606:4700::1111.") == "from <IP>, <IP>."
    for text in ("127.0.0.1", "10.0.0.1", "192.168.1.1", "999.1.1.1", "1.2.3.4.5", "v1.2.3.4b",
                 "a::b", "std::vector", "12:34:56", "2001:db8::1", "2024:"):  # fmt: skip
        assert mask_ip(text) == text
