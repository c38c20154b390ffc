from __future__ import annotations

import json
import os
import pathlib

import pytest

from vm0.guest_agent import payload
from vm0.guest_agent.payload import Payload, PayloadError, parse, take

FULL = {
    "prompt": "do it",
    "environment": {"A_1": "x", "TOKEN": "hunter2"},
    "secretValues": ["hunter2"],
    "appendSystemPrompt": "s",
    "tools": [],
    "disallowedTools": ["Bash"],
    "settings": "{}",
    "unknown": 1,
}


def test_everything_is_read_and_the_file_is_gone(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "payload"
    path.write_text(json.dumps(FULL))
    found = take(str(path))
    assert not path.exists()
    assert (found.prompt, found.environment, found.secret_values) == ("do it", FULL["environment"], ("hunter2",))
    assert (found.append_system_prompt, found.tools, found.disallowed_tools) == ("s", (), ("Bash",))
    assert found.settings == "{}"
    assert "hunter2" not in repr(found)


def test_only_the_prompt_is_needed() -> None:
    found = parse(b'{"prompt": "x", "environment": null, "tools": null}')
    assert isinstance(found, Payload)
    assert (found.environment, found.secret_values, found.tools) == ({}, (), None)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b"{}",
        b'{"prompt": 7}',
        b'{"prompt": "a\\u0000b"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "p", "environment": []}',
        b'{"prompt": "p", "environment": {"A=B": "hunter2"}}',
        b'{"prompt": "p", "environment": {"": "hunter2"}}',
        b'{"prompt": "p", "environment": {"A": null}}',
        b'{"prompt": "p", "environment": {"A": "hunter2\\u0000"}}',
        b'{"prompt": "p", "secretValues": "hunter2"}',
        b'{"prompt": "p", "secretValues": [null]}',
        b'{"prompt": "p", "tools": [1]}',
    ],
)
def test_a_malformed_payload_is_refused_deleted_and_not_repeated(tmp_path: pathlib.Path, data: bytes) -> None:
    path = tmp_path / "payload"
    path.write_bytes(data)
    with pytest.raises(PayloadError) as caught:
        take(str(path))
    assert not path.exists()
    assert "hunter2" not in str(caught.value)


def test_no_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(PayloadError, match="VM0_PAYLOAD_FILE is not set"):
        take("")
    with pytest.raises(PayloadError, match="No such file"):
        take(str(tmp_path / "missing"))


def test_a_payload_too_large_is_not_read_whole(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "payload"
    with path.open("wb") as file:
        os.truncate(file.fileno(), payload.MAX_PAYLOAD_BYTES * 100)
    with pytest.raises(PayloadError, match="exceeds"):
        take(str(path))
    assert not path.exists()
