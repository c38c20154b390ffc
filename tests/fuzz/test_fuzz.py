"""Fuzzing in the ordinary test run: every target by Hypothesis, and each for some seconds by atheris.

`make fuzz` adds a longer run of each. A failure tells the bytes that were found: put them into FINDINGS below, so that
they are run for ever after.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, close_runner, frames_of, seeds, unframed
from tests.support.capabilities import require
from tests.unit.vsock_proto.strategies import sent_by
from vm0.vsock_proto.connection import Connection

ROOT = Path(__file__).resolve().parents[2]
ALL = pytest.mark.parametrize("target", TARGETS)
# (target, data) of everything that was ever found
FINDINGS: list[tuple[str, bytes]] = [
    ("payload", b"\x17"),
    ("guest_server", b""),
    ("host_client", b"\x0b\x01\x00\x01\x09"),  # a result cut off
]


@pytest.fixture(autouse=True)
def runner() -> Iterator[None]:
    yield
    close_runner()


@pytest.mark.parametrize(("target", "data"), FINDINGS)
def test_what_was_found_before(target: str, data: bytes) -> None:
    TARGETS[target](data)


@ALL
def test_seeds(target: str) -> None:
    for data in seeds(target):
        TARGETS[target](data)


def test_seeds_of_frames_come_out_as_they_went_in() -> None:
    for data in seeds("connections"):
        assert frames_of(unframed(data)) == data


@ALL
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_by_hypothesis(target: str, data: st.DataObject) -> None:
    """Noise, seeds with changed bytes, and sequences of legal messages."""
    kind = data.draw(st.sampled_from(["noise", "changed", "messages"]))
    if kind == "noise":
        raw = data.draw(st.binary(max_size=300))
    elif kind == "changed":
        changed = bytearray(data.draw(st.sampled_from(seeds(target))))
        for _ in range(data.draw(st.integers(1, 4))):
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
        raw = bytes(changed)
    else:
        role = "guest" if target == "host_client" else "host"
        traffic = data.draw(st.lists(st.tuples(st.integers(1, 11), sent_by(role)), max_size=12))
        speaker = Connection(role)
        raw = b"".join(b"".join(speaker.frame(message, seq)) for seq, message in traffic)
        if target in ("guest_server", "host_client"):
            raw = unframed(raw)
    TARGETS[target](raw)


def guided(target: str, seconds: int, folder: Path) -> None:
    require(importlib.util.find_spec("atheris") is not None, "atheris has no wheel for this interpreter")
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(seeds(target)):
        (corpus / f"seed-{number}").write_bytes(data)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.fuzz.coverage_guided", target, str(corpus)),
            *(f"-max_total_time={seconds}", "-max_len=4096", "-len_control=0", "-timeout=10", "-rss_limit_mb=1024"),
            f"-artifact_prefix={folder}/found-",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        check=False,
    )
    tail = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
    found = {path.name: path.read_bytes() for path in folder.glob("found-*")}
    assert done.returncode == 0 and not found, f"{found}\n{tail}"
    assert "Done " in tail and " runs in " in tail, tail


@ALL
def test_by_coverage(target: str, tmp_path: Path) -> None:
    guided(target, 2, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(180)
@ALL
def test_by_coverage_for_longer(target: str, tmp_path: Path) -> None:
    guided(target, 30, tmp_path)
