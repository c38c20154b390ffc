"""The items of a run that have any size, from a private file that is deleted as soon as it is read.

They are not in the environment, because that is limited to 128 KiB per item and readable by every process of the user.
"""

from __future__ import annotations

import json
import os
import re

MAX_PAYLOAD_BYTES = 16 * 1024 * 1024  # prompt 1 MiB, environment 512 KiB, and JSON may take six bytes for one
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class PayloadError(Exception):
    """the payload of the run cannot be read"""


class Payload:
    """What the run is to do. `environment` holds the secrets as well; `secret_values` are what to mask."""

    __slots__ = (
        "append_system_prompt",
        "disallowed_tools",
        "environment",
        "prompt",
        "secret_values",
        "settings",
        "tools",
    )

    def __init__(
        self,
        prompt: str,
        *,
        environment: dict[str, str] | None = None,
        secret_values: tuple[str, ...] = (),
        append_system_prompt: str | None = None,
        tools: tuple[str, ...] | None = None,
        disallowed_tools: tuple[str, ...] | None = None,
        settings: str | None = None,
    ) -> None:
        self.prompt = prompt
        self.environment = environment or {}
        self.secret_values = secret_values
        self.append_system_prompt = append_system_prompt
        self.tools = tools
        self.disallowed_tools = disallowed_tools
        self.settings = settings

    def __repr__(self) -> str:
        return "Payload(…)"  # it holds secrets


def take(path: str) -> Payload:
    """Read the file and delete it, whatever it holds. Raises PayloadError."""
    if not path:
        raise PayloadError("VM0_PAYLOAD_FILE is not set")
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_PAYLOAD_BYTES + 1)
    except OSError as exc:
        raise PayloadError(f"{path}: {exc.strerror}") from None
    try:
        os.unlink(path)
    except OSError as exc:
        raise PayloadError(f"{path} cannot be deleted: {exc.strerror}") from None
    if len(data) > MAX_PAYLOAD_BYTES:
        raise PayloadError(f"the payload exceeds {MAX_PAYLOAD_BYTES} bytes")
    return parse(data)


def parse(data: bytes) -> Payload:
    """Raises PayloadError; its text never repeats a value."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        raise PayloadError("the payload is not JSON") from None
    if not isinstance(fields, dict):
        raise PayloadError("the payload is not an object")
    prompt = _text(fields, "prompt")
    if prompt is None:
        raise PayloadError("prompt is missing")
    environment = {} if fields.get("environment") is None else fields["environment"]
    if not isinstance(environment, dict):
        raise PayloadError("environment is not an object")
    for name in environment:
        if not _NAME.fullmatch(name):
            raise PayloadError("environment has a name that is not an identifier")
        _text(environment, name, "environment.")
    return Payload(
        prompt,
        environment=environment,
        secret_values=_texts(fields, "secretValues") or (),
        append_system_prompt=_text(fields, "appendSystemPrompt"),
        tools=_texts(fields, "tools"),
        disallowed_tools=_texts(fields, "disallowedTools"),
        settings=_text(fields, "settings"),
    )


def _text(fields: dict[str, object], name: str, path: str = "") -> str | None:
    value = fields.get(name)
    if value is None and not path:
        return None
    if not isinstance(value, str) or "\0" in value:
        raise PayloadError(f"{path}{name} is not text without NUL characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise PayloadError(f"{path}{name} is not valid Unicode") from None
    return value


def _texts(fields: dict[str, object], name: str) -> tuple[str, ...] | None:
    values = fields.get(name)
    if values is None:
        return None
    if not isinstance(values, list):
        raise PayloadError(f"{name} is not a list")
    return tuple(_text({str(index): value}, str(index), f"{name}.") or "" for index, value in enumerate(values))
