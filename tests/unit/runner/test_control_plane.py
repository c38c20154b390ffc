"""The client of the server: which answer means what, that nothing waits for ever, and that nothing secret is said."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.fake_control_plane import RUNNER_TOKEN, FakeControlPlane
from vm0.contracts.runner import ClaimRequest, PollRequest, ReleaseRequest
from vm0.contracts.runs import Outcome, OutcomeKind, TimelineStep
from vm0.contracts.webhooks import CompleteRequest
from vm0.runner import control_plane
from vm0.runner.config import Secret
from vm0.runner.control_plane import ControlPlaneUnavailable, HttpControlPlane, LeaseLost, Refused

UUID = "11111111-2222-4333-8444-555555555555"
CLAIM = ClaimRequest(runner_id=UUID, boot_id=UUID)
POLL = PollRequest(group="vm0/default")


@pytest_asyncio.fixture
async def client(plane: FakeControlPlane) -> AsyncIterator[HttpControlPlane]:
    async with HttpControlPlane(plane.url, Secret(RUNNER_TOKEN)) as found:
        yield found


async def test_a_claim_gives_the_context(plane: FakeControlPlane, client: HttpControlPlane) -> None:
    run = plane.add_run(prompt="x" * (1 << 20), environment={"A": "y" * (1 << 19)})
    answer = await client.poll(POLL)
    assert answer.job is not None and answer.job.run_id == run.run_id
    context = await client.claim(run.run_id, CLAIM)
    assert len(context.prompt) == 1 << 20 and context.lease.epoch == 1
    assert plane.tokens == {f"Bearer {RUNNER_TOKEN}"}


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("500", ControlPlaneUnavailable),
        ("refuse:UNAVAILABLE", ControlPlaneUnavailable),
        ("lost", ControlPlaneUnavailable),
        ("garbage", ControlPlaneUnavailable),
        ("refuse:LEASE_LOST", LeaseLost),
        ("refuse:CONFLICT", Refused),
        ("refuse:UNAUTHORIZED", Refused),
        ("refuse:BAD_REQUEST", Refused),
    ],
)
async def test_each_answer_is_one_of_three_errors(
    plane: FakeControlPlane, client: HttpControlPlane, fault: str, error: type[Exception]
) -> None:
    plane.faults["claim"] = [fault]
    run = plane.add_run()
    with pytest.raises(error) as caught:
        await client.claim(run.run_id, CLAIM)
    assert type(caught.value) is error
    assert RUNNER_TOKEN not in str(caught.value)


async def test_no_call_waits_for_ever(
    plane: FakeControlPlane, client: HttpControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_plane, "CALL_LIMIT_S", 0.2)
    plane.faults["poll"] = ["hang"]
    async with asyncio.timeout(5):
        with pytest.raises(ControlPlaneUnavailable, match="no answer within the limit"):
            await client.poll(POLL)


async def test_a_server_that_is_not_there() -> None:
    async with HttpControlPlane("http://127.0.0.1:1", Secret(RUNNER_TOKEN)) as client:
        with pytest.raises(ControlPlaneUnavailable, match="cannot connect"):
            await client.poll(POLL)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n\r\n<html>",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://evil.example/\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_what_is_no_vm0_server(reply: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(reply)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with HttpControlPlane(f"http://127.0.0.1:{port}", Secret(RUNNER_TOKEN)) as client:
            with pytest.raises((ControlPlaneUnavailable, Refused)):
                await client.poll(POLL)


async def test_an_answer_without_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_plane, "MAX_ANSWER_BYTES", 1 << 20)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"}")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        try:
            while True:
                writer.write(b" " * 65536)
                await writer.drain()
        except ConnectionError:
            writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with HttpControlPlane(f"http://127.0.0.1:{port}", Secret(RUNNER_TOKEN)) as client:
            with pytest.raises(ControlPlaneUnavailable, match="more than"):
                await client.poll(POLL)


async def test_a_run_id_cannot_leave_its_place_in_the_address(
    plane: FakeControlPlane, client: HttpControlPlane
) -> None:
    with pytest.raises(Refused) as caught:
        await client.release("../../webhooks/agent/complete?x=", ReleaseRequest(runner_id=UUID, epoch=1, reason="x"))
    assert caught.value.status == 404 and plane.calls == ["release"]


async def test_a_large_report_is_sent(plane: FakeControlPlane, client: HttpControlPlane) -> None:
    steps = tuple(TimelineStep(phase="p", started_at_ms=1, detail="d" * 4096) for _ in range(256))
    run = plane.add_run()
    await client.claim(run.run_id, CLAIM)
    outcome = Outcome(kind=OutcomeKind.EXITED, exit_code=0, detail="x" * 65536)
    answer = await client.complete(CompleteRequest(run_id=run.run_id, epoch=1, outcome=outcome, timeline=steps))
    assert answer.status == "completed" and run.completions[0].timeline == steps


async def test_downloads_take_no_token_and_are_bounded(plane: FakeControlPlane, client: HttpControlPlane) -> None:
    url, digest = plane.add_object(b"h" * 1_000_000)
    out = io.BytesIO()
    assert await client.download(url, out, max_bytes=1_000_000) == digest
    assert len(out.getvalue()) == 1_000_000
    assert await client.download(plane.url + url, io.BytesIO(), max_bytes=1_000_000) == digest
    assert all("Authorization" not in headers for headers in plane.object_headers)
    with pytest.raises(Refused, match="more than 999999 bytes") as caught:
        await client.download(url, io.BytesIO(), max_bytes=999_999)
    assert "signature" not in str(caught.value)
    with pytest.raises(Refused) as missing:
        await client.download("/api/objects/absent?signature=abc", io.BytesIO(), max_bytes=1)
    assert "signature" not in str(missing.value)
