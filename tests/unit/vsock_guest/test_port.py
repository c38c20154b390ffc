"""A virtio-serial port's life of many connections, played by a FIFO: without a writer it reports a hang-up as well.

What a FIFO does not do is wake the reader when a writer comes, so here a connection begins with its first bytes.
`tests/vm` has the real port.
"""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from vm0.vsock_guest import transport
from vm0.vsock_guest.loop import Loop
from vm0.vsock_guest.transport import Port, open_port


class Line:
    """Both ends; `fds` are the connections that the port gave out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        os.mkfifo(path)
        self.loop = Loop()
        self.end = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self.writer = -1
        self.connect()
        self.hang_up()
        self.port = Port(self.loop, self.end)
        self.fds: list[int] = []

    def connect(self, data: bytes = b"") -> None:
        self.writer = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        self.say(data)

    def say(self, data: bytes) -> None:
        os.write(self.writer, data)

    def hang_up(self) -> None:
        os.close(self.writer)
        self.writer = -1

    def wait(self) -> None:
        self.port.when_connected(self.fds.append)

    def turn(self) -> None:
        """Let the loop do what there is to do."""
        self.loop.later(0.02, self.loop.stop)
        self.loop.run()

    def close(self) -> None:
        for fd in (self.end, *self.fds, *((self.writer,) if self.writer >= 0 else ())):
            os.close(fd)
        self.loop.close()


@pytest.fixture
def line(tmp_path: Path) -> Iterator[Line]:
    line = Line(tmp_path / "port")
    yield line
    line.close()


def test_it_waits_without_turning(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    look = line.port._look

    def counted(events: int) -> None:
        looks.append(events)
        look(events)

    monkeypatch.setattr(line.port, "_look", counted)
    line.wait()
    for _ in range(3):
        line.turn()
    assert looks == [select.EPOLLHUP] and line.fds == []


def test_the_first_connection(line: Line) -> None:
    line.wait()
    line.turn()
    line.connect(b"hello")
    line.turn()
    (fd,) = line.fds
    assert fd != line.end and os.read(fd, 100) == b"hello"


def test_a_connection_that_is_there_already(line: Line) -> None:
    line.connect(b"hello")
    line.wait()
    line.turn()
    assert len(line.fds) == 1


def test_one_at_a_time(line: Line) -> None:
    """Nobody asked for a second: it is not looked at, and there when somebody asks."""
    line.wait()
    line.connect(b"first")
    line.turn()
    assert os.read(line.fds[0], 100) == b"first"
    line.hang_up()
    line.port.released(hung_up=True)
    line.turn()
    line.connect(b"second")
    line.turn()
    assert len(line.fds) == 1
    line.wait()
    line.turn()
    assert len(line.fds) == 2 and os.read(line.fds[1], 100) == b"second"


def test_who_has_the_connection_watches_it_alone(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look of a second watch would take what the first one is waiting for."""
    line.wait()
    line.connect(b"first")
    line.turn()
    looks: list[int] = []
    monkeypatch.setattr(line.port, "_look", looks.append)
    assert line.end not in line.loop._callbacks
    line.hang_up()
    line.turn()
    assert looks == []
    line.port.released(hung_up=False)
    line.turn()
    assert looks == [select.EPOLLHUP], "a host that hangs up while nobody has the connection is noticed"


def test_a_connection_that_we_gave_up_is_no_new_one(line: Line) -> None:
    """The host does not see that we left, and may go on talking; not before it hangs up is there a new one."""
    line.wait()
    line.connect(b"first")
    line.turn()
    assert os.read(line.fds[0], 100) == b"first"
    line.port.released(hung_up=False)
    line.wait()
    line.say(b"x" * 60_000)
    line.turn()
    line.say(b"y" * 60_000)  # there is room again: it was thrown away
    line.turn()
    assert len(line.fds) == 1
    line.hang_up()
    line.turn()
    line.connect(b"second")
    line.turn()
    assert len(line.fds) == 2 and os.read(line.fds[1], 100) == b"second"


def test_a_port_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "VIRTIO_PORTS", str(tmp_path))
    for number, name in enumerate(("org.other", "vm0")):
        (tmp_path / f"vport0p{number}").mkdir()
        (tmp_path / f"vport0p{number}" / "name").write_text(f"{name}\n")
    with pytest.raises(FileNotFoundError) as caught:
        open_port("serial:vm0")
    assert caught.value.filename == "/dev/vport0p1"
