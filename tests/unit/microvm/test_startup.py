"""Steps of a start: named errors, limits, and an undo that leaves nothing out."""

from __future__ import annotations

import asyncio

import pytest

from vm0.microvm.startup import Startup
from vm0.sandbox import SandboxError, StartError


async def test_undo_is_newest_first_and_complete() -> None:
    seen: list[str] = []
    startup = Startup()

    async def slow() -> None:
        seen.append("slow")

    def broken() -> None:
        seen.append("broken")
        raise OSError("no")

    startup.owns("first", lambda: seen.append("first"))
    startup.owns("broken", broken)
    startup.owns("slow", slow)
    await startup.undo()
    await startup.undo()
    assert seen == ["slow", "broken", "first"]


async def test_a_step_that_fails_is_named() -> None:
    async def fail() -> None:
        raise SandboxError("no such thing", hint="make one")

    startup = Startup()
    with pytest.raises(StartError, match="step spawn: no such thing") as caught:
        await startup.step("spawn", fail(), limit_s=1)
    assert (caught.value.step, caught.value.hint) == ("spawn", "make one")
    assert "spawn" in startup.seconds


async def test_a_step_that_hangs_is_ended() -> None:
    startup = Startup()
    with pytest.raises(StartError, match=r"step boot: not done within 0.01 s"):
        await startup.step("boot", asyncio.Event().wait(), limit_s=0.01)


async def test_a_start_error_keeps_its_own_step() -> None:
    async def fail() -> None:
        raise StartError("inner", "why")

    with pytest.raises(StartError) as caught:
        await Startup().step("outer", fail(), limit_s=1)
    assert caught.value.step == "inner"


async def test_bugs_are_not_start_errors() -> None:
    async def fail() -> None:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        await Startup().step("spawn", fail(), limit_s=1)
