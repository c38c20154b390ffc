"""What must survive: kill -9, a full disk, a damaged database, a second server, a stop in the middle."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from tests.contract.plane import Claimed, Plane, TurnedClock, running_plane
from tests.support.capabilities import require
from vm0.server.config import ServerConfig
from vm0.server.errors import ServerError
from vm0.server.service import ServerHandle, bind, running_server
from vm0.server.tokens import create_token


@contextlib.asynccontextmanager
async def server_process(
    state_dir: pathlib.Path, *options: str
) -> AsyncIterator[tuple[Plane, asyncio.subprocess.Process]]:
    """A server in a process of its own, killed at the end if it still lives."""
    command = [sys.executable, "-m", "vm0.server", "--state-dir", str(state_dir), "--port", "0", *options]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            url = (await process.stdout.readline()).decode().strip()
        assert url.startswith("http://")
        alice = create_token(state_dir, "user", "alice")
        bob, runner = create_token(state_dir, "user", "bob"), create_token(state_dir, "runner")
        async with aiohttp.ClientSession(url) as http:
            yield Plane(ServerHandle(url, "", 0, None), http, TurnedClock(), alice, bob, runner), process  # type: ignore[arg-type]
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_after_kill_9_everything_acknowledged_is_there_and_leases_live(tmp_path: pathlib.Path) -> None:
    acknowledged: dict[str, set[int]] = {}
    leases: list[Claimed] = []
    async with server_process(tmp_path / "s", "--lease-ttl-s", "3") as (plane, process):
        leases = [await plane.submit_and_claim(secrets={"A": "b"}) for _ in range(4)]
        waiting = await plane.submit()
        enough = asyncio.Event()

        async def send(lease: Claimed) -> None:
            done = acknowledged.setdefault(lease.run_id, set())
            with contextlib.suppress(aiohttp.ClientError):
                for start in range(0, 100_000, 10):
                    await plane.events(lease, *range(start, start + 10))
                    done.update(range(start, start + 10))
                    if sum(map(len, acknowledged.values())) >= 400:
                        enough.set()

        senders = [asyncio.create_task(send(lease)) for lease in leases]
        async with asyncio.timeout(30):
            await enough.wait()
        process.send_signal(signal.SIGKILL)
        await asyncio.gather(*senders)
        await process.wait()
    assert all(acknowledged.values())
    async with server_process(tmp_path / "s", "--lease-ttl-s", "3") as (plane, process):
        for lease in leases:
            stored: set[int] = set()
            after = -1
            while True:
                page = await plane.call("GET", f"/api/runs/{lease.run_id}/events?after={after}", plane.user)
                stored.update(event["sequenceNumber"] for event in page["events"])
                if not page["events"]:
                    break
                after = page["nextAfter"]
            assert stored >= acknowledged[lease.run_id]
            assert "missing" not in page
            await plane.renew(lease)
            again = await plane.claim(lease.run_id, lease.runner)
            assert (again.epoch, again.token) == (1, lease.token)
            assert again.context["environment"] == {"A": "b"}
            await plane.finish(lease)
        assert (await plane.claim(waiting)).epoch == 1
        process.terminate()
        async with asyncio.timeout(15):
            assert await process.wait() == 0


async def test_a_restart_gives_every_live_lease_its_whole_time(tmp_path: pathlib.Path) -> None:
    async with running_plane(tmp_path / "s") as plane:
        lease = await plane.submit_and_claim()
        plane.clock.advance(29)
    async with running_plane(tmp_path / "s") as plane:
        plane.clock.advance(29)
        await plane.handle.context.take_back_expired()
        assert (await plane.view(lease.run_id))["status"] == "running"
        plane.clock.advance(2)
        await plane.handle.context.take_back_expired()
        assert (await plane.view(lease.run_id))["status"] == "pending"


async def test_stopping_ends_long_polls_at_once_and_finishes_writes(tmp_path: pathlib.Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        plane = await stack.enter_async_context(running_plane(tmp_path / "s"))
        run_id = await plane.submit(group="other/group")
        polls = [
            asyncio.create_task(plane.call("GET", f"/api/runs/{run_id}/events?wait=30", plane.user)),
            asyncio.create_task(
                plane.call("POST", "/api/runners/poll", plane.runner_token, {"group": "vm0/default", "waitSeconds": 30})
            ),
        ]
        await plane.waited_for(f"run/{run_id}")
        await plane.waited_for("group/vm0/default")
        started = time.monotonic()
        plane.handle.context.notifier.close()
        assert [await poll for poll in polls] == [{"events": [], "nextAfter": -1, "complete": False}, {}]
    assert time.monotonic() - started < 8


@pytest.mark.usefixtures("leak_check")
async def test_a_server_that_ended_leaves_no_thread_descriptor_or_lock(tmp_path: pathlib.Path) -> None:
    for _ in range(2):
        async with running_plane(tmp_path / "s") as plane:
            await plane.submit()


async def test_a_second_server_is_refused_with_the_holder_s_pid(tmp_path: pathlib.Path) -> None:
    async with server_process(tmp_path / "s") as (plane, process):
        with pytest.raises(ServerError, match=rf"another server \(pid {process.pid}\)") as refused:
            async with running_server(ServerConfig(state_dir=tmp_path / "s")):
                pass
        assert refused.value.hint
        await plane.submit()


async def test_a_port_in_use_is_a_clear_error(tmp_path: pathlib.Path) -> None:
    with contextlib.closing(bind("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            ServerError, match=f"cannot listen on 127.0.0.1 port {port}: Address already in use"
        ) as error:
            async with running_server(ServerConfig(state_dir=tmp_path / "s"), port=port):
                pass
        assert "--port" in error.value.hint
        assert not (tmp_path / "s").exists(), "a server that cannot listen touches nothing"


def _garbage(path: pathlib.Path) -> None:
    path.write_bytes(os.urandom(100_000))


def _text(path: pathlib.Path) -> None:
    path.write_text("this is not a database\n" * 100)


def _cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-8192])


def _overwritten_page(path: pathlib.Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096 * 2 : 4096 * 4] = b"\xa5" * 8192
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("damage", [_garbage, _text, _cut, _overwritten_page])
async def test_a_damaged_database_is_refused_and_left_alone(tmp_path: pathlib.Path, damage: Any) -> None:
    async with running_plane(tmp_path / "s") as plane:
        for _ in range(20):
            await plane.submit(prompt="x" * 5000)
    path = tmp_path / "s" / "server.sqlite3"
    damage(path)
    before = path.read_bytes()
    with pytest.raises(ServerError) as error:
        async with running_server(ServerConfig(state_dir=tmp_path / "s")):
            pass
    assert str(path) in str(error.value) and "damaged" in str(error.value)
    assert "move" in error.value.hint and "backup" in error.value.hint
    assert path.read_bytes() == before
    path.rename(tmp_path / "evidence")  # what the hint says
    async with running_plane(tmp_path / "s") as plane:
        await plane.submit()


async def test_a_database_of_a_newer_version_is_refused(tmp_path: pathlib.Path) -> None:
    async with running_plane(tmp_path / "s"):
        pass
    with contextlib.closing(sqlite3.connect(tmp_path / "s" / "server.sqlite3")) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(ServerError, match="schema version 9999, made by a newer vm0"):
        async with running_server(ServerConfig(state_dir=tmp_path / "s")):
            pass


async def test_a_state_directory_that_cannot_be_used(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ServerError, match="cannot use"):
        async with running_server(ServerConfig(state_dir=tmp_path / "file" / "state")):
            pass


async def test_the_state_is_private(tmp_path: pathlib.Path) -> None:
    async with running_plane(tmp_path / "s") as plane:
        await plane.upload("volume", "data", {"a": b"b"})
        for path in [tmp_path / "s", *(tmp_path / "s").rglob("*")]:
            assert path.stat().st_mode & 0o077 == 0, path


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file system of 64 MiB of its own."""
    require(os.geteuid() == 0, "mounting a file system needs root")
    require(shutil.which("mkfs.ext4") is not None, "mkfs.ext4 is not installed")
    image, mount = tmp_path / "disk.img", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(64 * 1024 * 1024)
    mount.mkdir()
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True, timeout=60)
    subprocess.run(["mount", "-o", "loop", str(image), str(mount)], check=True, timeout=60)
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True, timeout=60)


def fill(disk: pathlib.Path) -> pathlib.Path:
    """Write until nothing more fits."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1024 * 1024, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)
    return ballast


@pytest.mark.host
async def test_a_full_disk_is_503_and_passes_when_there_is_room_again(small_disk: pathlib.Path) -> None:
    async with running_plane(small_disk / "state", lease_ttl_s=3600) as plane:
        lease = await plane.submit_and_claim()
        await plane.events(lease, 0)
        ballast = fill(small_disk)
        number = 1
        refused: tuple[int, str] | None = None
        message = ""
        while refused is None and number < 200:  # the log may hold a few more commits in space it has already
            text = "x" * 50_000
            event = {"type": "big", "sequenceNumber": number, "text": text}
            body = json.dumps({"runId": lease.run_id, "events": [event]}).encode()
            headers = {"authorization": f"Bearer {lease.token}"}
            async with plane.http.post("/api/webhooks/agent/events", data=body, headers=headers) as response:
                answer = await response.json()
            if response.status == 200:
                number += 1
            else:
                refused, message = (response.status, answer["error"]["code"]), answer["error"]["message"]
        assert refused == (503, "UNAVAILABLE")
        assert "disk is full" in message
        upload = plane.handle.context.signer.sign("PUT", "alice/object", 5_000_000)
        await plane.put(upload, b"x" * 5_000_000, want="UNAVAILABLE")
        assert not any(plane.handle.context.objects._incoming.iterdir()), "a broken upload leaves nothing"
        with pytest.raises(ServerError, match="No space"):
            create_token(plane.handle.context.config.state_dir, "user")
        assert (await plane.view(lease.run_id))["eventsContiguous"] == number, "reading goes on"
        await plane.call("GET", "/healthz")
        ballast.unlink()
        await plane.events(lease, *range(number, number + 100))
        await plane.put(upload, b"x" * 5_000_000)
        await plane.finish(lease)
        assert (await plane.view(lease.run_id))["eventsContiguous"] == number + 100


@pytest.mark.host
async def test_a_start_on_a_full_disk_says_so(small_disk: pathlib.Path) -> None:
    fill(small_disk)
    with pytest.raises(ServerError, match=r"No space left on device|disk is full"):
        async with running_server(ServerConfig(state_dir=small_disk / "state")):
            pass


async def test_an_overloaded_writer_refuses_instead_of_growing(plane: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vm0.server.db.engine.MAX_WAITING_WRITES", 0)
    body = {"prompt": "x", "cliAgentType": "command"}
    await plane.call("POST", "/api/runs", plane.user, body, want="UNAVAILABLE")
    monkeypatch.undo()
    await plane.call("POST", "/api/runs", plane.user, body, want=201)
