"""Where a guest is waited for: what is made, who may come in, and what is left."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vm0.vsock_host import GuestListener, HandshakeError, UnixAddress, VsockAddress


@pytest.fixture
def path() -> Iterator[Path]:
    """Short, because socket paths have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="vm0-address-") as name:
        yield Path(name) / "s"


def test_a_unix_socket_is_for_its_owner_and_replaces_what_was_there(path: Path) -> None:
    address = UnixAddress(str(path))
    path.write_text("left by somebody")
    for _ in range(2):  # the second finds the socket of the first
        with address.listen(1) as sock:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_ISSOCK(path.stat().st_mode)
            assert not os.get_inheritable(sock.fileno()) and not sock.getblocking()
            assert address.admits("") and address.admits(None)
    for _ in range(2):
        address.withdraw()
        assert not path.exists()


def test_a_path_that_is_too_long_is_named(path: Path) -> None:
    with pytest.raises(HandshakeError, match="socket path of 108 bytes: /x") as caught:
        UnixAddress("/" + "x" * 107).listen(1)
    assert "107" in caught.value.hint


def test_a_folder_that_is_not_there_is_an_os_error(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        UnixAddress(str(path / "no" / "such")).listen(1)


def test_a_port_lets_in_its_own_guest_or_everybody() -> None:
    own = VsockAddress(port=1000, guest_cid=7)
    assert own.admits((7, 4000))
    assert not own.admits((8, 4000)) and not own.admits("") and not own.admits(())
    assert VsockAddress(port=1000).admits((8, 4000))


class OnlyOne:
    """A Unix address that takes the second caller for the guest."""

    def __init__(self, path: Path) -> None:
        self._address = UnixAddress(str(path))
        self._asked = 0

    def listen(self, backlog: int) -> socket.socket:
        return self._address.listen(backlog)

    def admits(self, peer: object) -> bool:
        self._asked += 1
        return self._asked > 1

    def withdraw(self) -> None:
        self._address.withdraw()


async def test_who_is_not_the_guest_is_not_listened_to(path: Path) -> None:
    async with GuestListener(OnlyOne(path), token=b"t") as listener:
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(str(path))
            with pytest.raises(HandshakeError, match="not a guest"):
                await listener.accept(0.1)
            assert stranger.recv(1) == b""
    assert not path.exists()
