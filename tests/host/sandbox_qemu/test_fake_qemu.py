"""The fake QEMU says what QEMU says, and refuses what QEMU refuses or should never get."""

from __future__ import annotations

import array
import json
import os
import pathlib
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from tests.support.capabilities import require
from tests.support.fake_qemu.installation import FakeQemu
from vm0.microvm.process import Launch, VmmProcess
from vm0.sandbox_qemu.argv import Accelerator, Descriptors, MemoryUse, Shape, plan_argv
from vm0.sandbox_qemu.machines import MACHINES

pytestmark = pytest.mark.host

MIB = 1024 * 1024
SIZE_MIB = 16
UID = 1_885_998_000
ANSWER_S = 20.0
# What QEMU takes for a bzImage (Documentation/arch/x86/boot.rst): magic and version of the header, nothing to run.
KERNEL = bytes(0x202) + b"HdrS" + (0x202).to_bytes(2, "little") + bytes(MIB - 0x208)
BUSY_START_S = 2.0  # measured: 40 ms, of which 30 are Python's own

QUESTIONS: tuple[dict[str, object], ...] = (
    {"execute": "query-status"},
    {"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}},
    {"execute": "qmp_capabilities"},
    {"execute": "nonsense", "id": "one"},
    {"execute": "query-status", "id": 2},
    {"execute": "query-migrate"},
    {"execute": "migrate-set-capabilities", "arguments": {"capabilities": [{"capability": "no", "state": True}]}},
    {
        "execute": "migrate-set-capabilities",
        "arguments": {
            "capabilities": [{"capability": "events", "state": True}, {"capability": "x-ignore-shared", "state": True}]
        },
    },
    {"execute": "migrate-set-parameters", "arguments": {"max-bandwidth": 1 << 40}},
    {"execute": "getfd", "arguments": {"fdname": "state"}},
    {"execute": "balloon"},
    {"execute": "balloon", "arguments": {"value": MIB, "more": 1}},
    {"execute": "cont"},
    {"execute": "query-status"},
    {"execute": "stop"},
    {"execute": "migrate", "arguments": {"uri": "fd:state"}},
    {"execute": "migrate-incoming"},
    {"execute": "migrate-incoming", "arguments": {"uri": "fd:none"}},
)


class Vmm:
    """A VMM of its own with a socket on each end, as `vm0.sandbox_qemu.vm` has them."""

    def __init__(self, folder: pathlib.Path, binary: str, *, incoming: bool) -> None:
        self.ends = {name: socket.socketpair() for name in ("monitor", "link", "console")}
        for name, content in (("kernel", KERNEL), ("initramfs", b"x"), ("root", bytes(MIB)), ("disk", bytes(MIB))):
            (folder / name).write_bytes(content)
        opened = {
            name: os.open(folder / name, os.O_RDWR if name == "disk" else os.O_RDONLY)
            for name in ("kernel", "initramfs", "root", "disk")
        }
        memory = os.memfd_create("memory")
        os.ftruncate(memory, SIZE_MIB * MIB)
        fds = Descriptors(**opened, memory=memory, **{name: pair[1].fileno() for name, pair in self.ends.items()})
        machine = MACHINES["x86_64"]
        shape = Shape(machine=machine, accelerator=Accelerator.TCG, vcpus=1, memory_mib=SIZE_MIB)
        argv = plan_argv(shape, fds, "vm0.token=00ff", MemoryUse.SHARED, incoming=incoming)
        self.argv = (binary, *argv[1:])
        self.given = (*opened.values(), memory, *(pair[1].fileno() for pair in self.ends.values()))

    async def spawned(self, *more: str, uid: int | None = UID, extra: tuple[int, ...] = ()) -> VmmProcess:
        launch = Launch(argv=(*self.argv, *more), uid=uid, gid=uid, descriptors=(*self.given, *extra))
        process = await VmmProcess.spawn(launch)
        for _, theirs in self.ends.values():
            theirs.close()  # so that the end of the process is seen
        return process

    def close(self) -> None:
        for sock in (sock for pair in self.ends.values() for sock in pair):
            sock.close()
        for fd in self.given[:5]:
            os.close(fd)

    def hear(self) -> list[dict[str, object]]:
        """Everything up to the next answer, without what differs from start to start."""
        return heard(self.ends["monitor"][0])


def heard(sock: socket.socket) -> list[dict[str, object]]:
    sock.settimeout(ANSWER_S)
    messages: list[dict[str, object]] = []
    line = b""
    while not any(message.keys() & {"return", "error", "QMP"} for message in messages):
        piece = sock.recv(1)
        assert piece, f"the monitor was closed after {messages}"
        line += piece
        if piece == b"\n":
            message = json.loads(line)
            message.pop("timestamp", None)
            if "QMP" in message:
                del message["QMP"]["version"]
            messages.append(message)
            line = b""
    return messages


@pytest.fixture
def new_vmm(tmp_path: pathlib.Path) -> Iterator[Callable[..., Vmm]]:
    made: list[Vmm] = []

    def make(binary: str, *, incoming: bool = False) -> Vmm:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Vmm(folder, binary, incoming=incoming))
        return made[-1]

    yield make
    for vmm in made:
        vmm.close()


async def test_it_says_what_qemu_says(fake: FakeQemu, new_vmm: Callable[..., Vmm]) -> None:
    real = shutil.which("qemu-system-x86_64")
    require(real is not None, "qemu-system-x86_64 is not installed")
    said = []
    for binary in (str(real), str(fake.binary)):
        vmm = new_vmm(binary, incoming=True)
        process = await vmm.spawned()
        said.append([vmm.hear()])
        for question in QUESTIONS:
            vmm.ends["monitor"][0].sendall(json.dumps(question).encode())
            said[-1].append(vmm.hear())
        await process.kill()
    for question, qemu, ours in zip(("greeting", *QUESTIONS), *said, strict=True):
        assert ours == qemu, question


@pytest.mark.parametrize("content", [b"", b"garbage", b"fake-qemu state 1\n{", bytes(MIB)])
async def test_a_state_that_is_none_ends_it_as_it_ends_qemu(
    fake: FakeQemu, new_vmm: Callable[..., Vmm], content: bytes
) -> None:
    """The monitor is told no more than that it failed; why is on stderr."""
    real = shutil.which("qemu-system-x86_64")
    require(real is not None, "qemu-system-x86_64 is not installed")
    for binary in (str(real), str(fake.binary)):
        vmm = new_vmm(binary, incoming=True)
        state = os.memfd_create("state")
        os.write(state, content)
        os.lseek(state, 0, os.SEEK_SET)
        process = await vmm.spawned(extra=(state,))
        os.close(state)
        vmm.hear()
        for question in (QUESTIONS[1], QUESTIONS[7]):
            vmm.ends["monitor"][0].sendall(json.dumps(question).encode())
            vmm.hear()
        request = {"execute": "migrate-incoming", "arguments": {"uri": f"fd:{state}"}}
        vmm.ends["monitor"][0].sendall(json.dumps(request).encode())
        assert vmm.hear()[0]["data"] == {"status": "setup"}
        assert await process.wait() == 1, process.output
        await process.kill()
        assert "migration" in process.output, process.output
        rest = vmm.ends["monitor"][0].recv(65536).decode()
        assert '"active"' in rest and '"completed"' not in rest


async def test_it_refuses_an_argument_that_it_does_not_know(fake: FakeQemu, new_vmm: Callable[..., Vmm]) -> None:
    for more, why in (
        (("-enable-kvm",), "-enable-kvm: invalid option"),
        (("-device", "virtio-rng-pci,rng=x"), "Property 'rng' not found"),
        (("-device", "e1000"), "'e1000' is not a valid kind"),
        (("-nodefaults",), "given twice"),
        (("-incoming", "tcp:0:1"), "only defer"),
    ):
        process = await new_vmm(str(fake.binary)).spawned(*more)
        assert await process.wait() == 1
        await process.kill()
        assert why in process.output


async def test_it_refuses_to_have_more_than_it_needs(fake: FakeQemu, new_vmm: Callable[..., Vmm]) -> None:
    as_root = await new_vmm(str(fake.binary)).spawned(uid=None)
    assert await as_root.wait() == 1
    await as_root.kill()
    assert "runs as root" in as_root.output
    extra = os.memfd_create("extra")
    curious = await new_vmm(str(fake.binary)).spawned(extra=(extra,))
    os.close(extra)
    assert await curious.wait() == 1
    await curious.kill()
    assert "descriptors that it was not told of" in curious.output


async def test_it_starts_fast(fake: FakeQemu, new_vmm: Callable[..., Vmm]) -> None:
    """Best of five: it must not be what a test of a thousand cycles measures."""
    times = []
    for _ in range(5):
        vmm = new_vmm(str(fake.binary))
        begun = time.monotonic()
        process = await vmm.spawned()
        vmm.hear()
        times.append(time.monotonic() - begun)
        await process.kill()
    print(f"spawn to greeting: {min(times) * 1000:.0f} ms")
    assert min(times) < BUSY_START_S


def test_version(fake: FakeQemu) -> None:
    done = subprocess.run([fake.binary, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == "QEMU emulator version 7.2.0 (fake)\n"


async def test_the_descriptor_of_a_state_is_received_with_a_message(
    fake: FakeQemu, new_vmm: Callable[..., Vmm]
) -> None:
    vmm = new_vmm(str(fake.binary))
    process = await vmm.spawned()
    ours = vmm.ends["monitor"][0]
    vmm.hear()
    state = os.memfd_create("state")

    def answer(question: dict[str, object]) -> dict[str, object]:
        ours.sendall(json.dumps(question).encode())
        return vmm.hear()[-1]

    answer({"execute": "qmp_capabilities"})
    answer({"execute": "stop"})
    ours.sendmsg([b" "], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [state]))])
    answer({"execute": "getfd", "arguments": {"fdname": "x"}})
    answer({"execute": "migrate", "arguments": {"uri": "fd:x"}})
    assert answer({"execute": "query-migrate"}) == {"return": {"status": "completed"}}
    await process.kill()
    with os.fdopen(state, "rb") as file:
        assert os.pread(file.fileno(), 100, 0).startswith(b"fake-qemu state")
