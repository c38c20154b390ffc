from __future__ import annotations

import base64
import json
import random
import re
import time
import urllib.parse

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vm0.guest_common.masking import MAX_NESTING, Masker, MaskingError, StreamMasker, variants

SECRET = 'pä$$w/rd "x"+é~tail'
MULTI_LINE = "-----BEGIN KEY-----\nabcdefghij/+klmn\r\nopqrstuvw\nxy\n-----END KEY-----"


def written_forms(secret: str) -> list[str]:
    raw = secret.encode()
    percent = urllib.parse.quote(secret, safe="-_.!~*'()")
    return [
        secret,
        json.dumps(secret),
        json.dumps(secret, ensure_ascii=False),
        json.dumps(json.dumps(secret)),
        percent,
        re.sub("%..", lambda escape: escape[0].lower(), percent),
        urllib.parse.quote(secret, safe=""),
        urllib.parse.quote_plus(secret),
        base64.b64encode(raw).decode(),
        base64.urlsafe_b64encode(raw).decode(),
        base64.b64encode(raw).decode().rstrip("="),
    ]


@pytest.mark.parametrize("form", written_forms(SECRET))
def test_every_form_is_masked(form: str) -> None:
    masked = Masker([SECRET]).mask_text(f"before {form} after")
    assert masked.startswith("before ") and masked.endswith(" after")
    assert "***" in masked
    assert "w/rd" not in masked and "tail" not in masked


def test_lower_case_percent_escapes_are_masked() -> None:
    secret = "a/b c:d?e"
    lower = urllib.parse.quote(secret, safe="").lower()
    assert lower == "a%2fb%20c%3ad%3fe"
    assert Masker([secret]).mask_text(f"x={lower}&") == "x=***&"


@pytest.mark.parametrize("before", [b"", b"u", b"us", b"use", b"user:"])
@pytest.mark.parametrize("after", [b"", b"\n", b"ab", b"abc"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_base64_of_something_that_contains_the_secret_is_masked(before: bytes, after: bytes, encode) -> None:
    secret = "hunter2-hunter2>?"
    text = encode(before + secret.encode() + after).decode()
    masked = Masker([secret]).mask_text(text)
    assert "***" in masked
    left = masked.replace("***", "")  # what stays may hold the neighbours and parts of a byte at the edges
    assert len(left) <= (len(before) + len(after)) * 4 / 3 + 6


def test_longest_secret_wins() -> None:
    masker = Masker(["token", "token-and-more"])
    assert masker.mask_text("a token-and-more b token c") == "a *** b *** c"


def test_overlapping_secrets_leave_nothing() -> None:
    assert Masker(["abcdefgh", "efghijkl"]).mask_text("-abcdefghijkl-") == "-***-"


def test_lines_of_a_multi_line_secret_are_masked_alone() -> None:
    masker = Masker([MULTI_LINE])
    for line in ("abcdefghij/+klmn", "opqrstuvw", "-----BEGIN KEY-----"):
        assert masker.mask_text(f"> {line} <") == "> *** <"
    assert masker.mask_text("xy") == "xy"  # under five bytes
    assert masker.mask_text(f"k={MULTI_LINE}!") == "k=***!"


@pytest.mark.parametrize("secret", ["", "a", "abcd", "éé"])
def test_short_secrets_are_counted_and_not_masked(secret: str) -> None:
    masker = Masker([secret, "long enough"])
    assert masker.skipped == bool(secret)
    assert masker.mask_text(f"x{secret}y") == f"x{secret}y"


def test_json_is_masked_in_values_keys_and_numbers() -> None:
    masker = Masker(["secret-one", "secret-two", "1234567"], vocabulary=["type", "assistant"])
    value = {
        "secret-one": 1,
        "secret-two": [True, None, 1.5, "has secret-one inside"],
        "n": 1234567,
        "m": 12345678,
        "deep": {"k": ["secret-two"]},
    }
    assert masker.mask_json(value) == {
        "***": 1,
        "***#2": [True, None, 1.5, "has *** inside"],
        "n": "***",
        "m": 12345678,
        "deep": {"k": ["***"]},
    }


def test_words_of_the_protocol_survive_a_secret_of_the_same_text() -> None:
    masker = Masker(["assistant", "content"], vocabulary=["type", "assistant", "content"])
    masked = masker.mask_json({"type": "assistant", "content": "the assistant", "text": "content"})
    assert masked == {"type": "assistant", "content": "the ***", "text": "***"}


def test_deep_json_is_replaced_rather_than_followed() -> None:
    value: object = "secret-one"
    for _ in range(MAX_NESTING + 50):
        value = [value]
    assert "secret-one" not in Masker(["secret-one"]).dumps(value)


def test_escapes_cannot_hide_a_secret_in_json() -> None:
    masker = Masker(["hunter2hunter"])
    event = json.loads('{"type":"x","text":"h\\u0075nter2hunter"}')
    assert "hunter2" not in masker.dumps(event)


@pytest.mark.parametrize("bad", [[None], [b"bytes"], [7]])
def test_building_fails_closed(bad: list) -> None:
    with pytest.raises(MaskingError):
        Masker(bad)


SECRETS = st.lists(st.text(alphabet='ab%é\n"/', min_size=5, max_size=12), min_size=0, max_size=4)


@settings(max_examples=300, deadline=None)
@given(secrets=SECRETS, text=st.text(alphabet='ab%é\n"/c', max_size=80), data=st.data())
def test_a_stream_in_any_pieces_equals_the_whole(secrets: list[str], text: str, data: st.DataObject) -> None:
    for secret in secrets:  # make hits likely
        cut = data.draw(st.integers(0, len(text)))
        text = text[:cut] + secret + text[cut:]
    masker = Masker(secrets)
    stream = StreamMasker(masker)
    pieces, rest = [], text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        pieces.append(rest[:size])
        rest = rest[size:]
    masked = "".join([*(stream.feed(piece) for piece in pieces), stream.finish()])
    assert masked == masker.mask_text(text)


@settings(max_examples=200, deadline=None)
@given(
    secret=st.text(min_size=5, max_size=30).filter(lambda s: not set(s) & set("*\ud800")), around=st.text(max_size=10)
)
def test_no_secret_survives(secret: str, around: str) -> None:
    masker = Masker([secret])
    masked = masker.mask_text(f"{around}{secret}{around}")
    assert secret not in masked.replace("***", "\0")
    event = {"type": "t", secret: [secret, {"x": around + secret}]}
    assert secret not in json.dumps(json.loads(masker.dumps(event)), ensure_ascii=False).replace("***", "\0")


def test_a_copy_of_a_stream_can_be_thrown_away() -> None:
    stream = StreamMasker(Masker(["0123456789"]))
    first = stream.feed("abc 01234")
    again = stream.copy()
    assert again.feed("56789 x" + "." * 20) == stream.feed("56789 x" + "." * 20)
    assert first + "" == ""


def test_many_secrets_and_much_text_take_bounded_time() -> None:
    random.seed(7)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    secrets = ["".join(random.choices(letters, k=random.randint(16, 64))) for _ in range(256)]
    masker = Masker(secrets)
    text = "".join(random.choices(letters + " ", k=500_000)) + secrets[100]
    started = time.perf_counter()
    assert masker.mask_text(text).endswith("***")
    assert time.perf_counter() - started < 10  # a flat list of all forms takes minutes


def test_variants_of_a_plain_word_are_few() -> None:
    assert variants("abcd") == set()
    assert {"abcde", "YWJjZGU=", "YWJjZGU"} <= variants("abcde")
