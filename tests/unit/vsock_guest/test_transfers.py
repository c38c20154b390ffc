"""What a file transfer takes from the host, without a host."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from vm0.vsock_guest.files import RequestError, Transfer, WriteTransfer, reason_of
from vm0.vsock_guest.identity import identity_of
from vm0.vsock_guest.loop import Loop
from vm0.vsock_proto import messages as m
from vm0.vsock_proto.codec import Message
from vm0.vsock_proto.errors import MAX_TEXT, RemoteProtocolError, wire_text


class Stage:
    """A loop and one write transfer, whose messages and end are kept."""

    def __init__(self, path: Path) -> None:
        self.loop = Loop()
        self.sent: list[Message] = []
        self.error: Exception | None = None
        request = m.WriteFile(str(path), 0, 0o640, "")
        self.transfer = WriteTransfer(self.loop, request, identity_of("", "", {}), self.sent.append, self._finished)

    def _finished(self, transfer: Transfer, error: Exception | None) -> None:
        self.error = error
        self.loop.stop()

    def run(self) -> None:
        self.transfer.start()
        guard = self.loop.later(10, self.loop.stop)
        self.loop.run()
        assert guard.call is not None, "the transfer did not end"
        guard.cancel()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path / "new" / "file")
    yield stage
    stage.loop.close()


def test_one_window_and_not_a_byte_more(stage: Stage) -> None:
    """The thread does not run, as when the disk hangs."""
    for _ in range(m.FILE_WINDOW // m.MAX_CHUNK):
        stage.transfer.feed(m.Data(0, bytes(m.MAX_CHUNK)))
    with pytest.raises(RemoteProtocolError, match="with a credit of 0"):
        stage.transfer.feed(m.Data(m.LAST, b"x"))


@pytest.mark.parametrize("sizes", [[0], [1], [0, 0, 5, 0], [m.MAX_CHUNK] * 16, [7] * 1000])
def test_pieces_become_the_file(stage: Stage, tmp_path: Path, sizes: list[int]) -> None:
    content = b""
    for number, size in enumerate(sizes):
        piece = bytes([number % 251]) * size
        content += piece
        stage.transfer.feed(m.Data(m.LAST if number == len(sizes) - 1 else 0, memoryview(piece)))
    stage.run()
    assert stage.error is None and stage.sent[-1] == m.Written(len(content))
    assert (tmp_path / "new" / "file").read_bytes() == content
    assert os.listdir(tmp_path / "new") == ["file"]


def test_a_cancelled_transfer_leaves_nothing(stage: Stage, tmp_path: Path) -> None:
    stage.transfer.feed(m.Data(0, b"half"))
    stage.transfer.cancel()
    stage.run()
    assert isinstance(stage.error, RequestError) and stage.error.reason == "cancelled"
    assert os.listdir(tmp_path / "new") == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (FileNotFoundError(2, "x"), "not_found"),
        (NotADirectoryError(20, "x"), "not_found"),
        (PermissionError(13, "x"), "permission"),
        (OSError(28, "x"), "no_space"),
        (OSError(122, "x"), "no_space"),
        (OSError(5, "x"), "io"),
        (OSError("without a number"), "io"),
        (ValueError("embedded null byte"), "invalid"),
        (KeyError("name"), "not_found"),
        (RequestError("busy", "x"), "busy"),
        (RuntimeError("bug"), "internal"),
    ],
    ids=repr,
)
def test_reasons(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason


@pytest.mark.parametrize("text", ["", "plain", "a\udcff", "\ud800", "ü" * 5000, "\udcff" * 5000, "x" * 10_000, "a\0b"])
def test_any_text_fits_the_wire(text: str) -> None:
    sent = m.Error(1, wire_text(text))
    assert m.Error.decode(sent.encode()) == sent
    assert len(sent.text.encode()) <= MAX_TEXT
    assert wire_text("plain ü") == "plain ü"
