"""Addresses and options of the guest program: what cannot be is refused at the start, what is not there fails fast."""

from __future__ import annotations

import errno
import socket
import time
from pathlib import Path

import pytest

from vm0.vsock_guest import transport
from vm0.vsock_guest.main import main
from vm0.vsock_guest.transport import AddressError, check_address, connect, is_port, open_port

BAD = [
    "",
    "vsock",
    "vsock:",
    "vsock:2",
    "vsock:2:",
    "vsock::1000",
    "vsock:2:1000:3",
    "vsock:two:1000",
    "vsock:-1:1000",
    "vsock:2:²",
    f"vsock:{2**32}:1000",
    f"vsock:2:{2**32}",
    "unix:",
    "unix:/" + "x" * 107,
    "serial:",
    "tcp:127.0.0.1:80",
    "/run/x.sock",
]


@pytest.mark.parametrize("address", BAD)
def test_bad_addresses(address: str) -> None:
    for call in (check_address, connect, open_port):
        with pytest.raises(AddressError):
            call(address)


@pytest.mark.parametrize(
    "address", ["vsock:2:1000", f"vsock:{2**32 - 1}:0", "unix:/x", "unix:" + "x" * 107, "serial:a:b"]
)
def test_good_addresses(address: str) -> None:
    check_address(address)


@pytest.mark.parametrize("address", ["vsock:2:1000", "vsock:77:1000", "unix:/no/such.sock", "serial:no.such.port"])
def test_nobody_there_is_an_os_error_at_once(address: str) -> None:
    started = time.monotonic()
    with pytest.raises(OSError):
        (open_port if is_port(address) else connect)(address)
    assert time.monotonic() - started < transport.CONNECT_S + 1


def test_a_port_that_does_not_exist_is_named() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        open_port("serial:org.example.port")
    assert caught.value.errno == errno.ENOENT and caught.value.filename == "org.example.port"


def test_a_host_that_does_not_accept_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its backlog is full: the guest must come back to its loop and try again later."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(transport, "CONNECT_S", 0.2)
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind("s")
        listener.listen(0)
        first.connect("s")
        started = time.monotonic()
        with pytest.raises(OSError):
            connect("unix:s")
        assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("argv", "why"),
    [
        ([], "usage"),
        (["--connect"], "usage"),
        (["--build", "x"], "usage"),
        (["--connect", "unix:/x", "--unknown"], "usage"),
        (["--connect", "unix:/x", "stray"], "usage"),
        (["--connect", "tcp:x"], "'tcp:x' is not vsock:CID:PORT"),
        (["--connect", "unix:/x", "--give-up-s", "soon"], "soon"),
        (["--connect", "unix:/x", "--token-file", "/no/such/token"], "/no/such/token"),
        (["--connect", "unix:/x", "--token-fd", "first"], "first"),
        (["--connect", "unix:/x", "--token-fd", "987654"], "Bad file descriptor"),
    ],
)
def test_bad_options_are_told_with_code_2(argv: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    errors = capsys.readouterr().err
    assert why in errors and "usage: vsock-guest" in errors
