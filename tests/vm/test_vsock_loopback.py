"""AF_VSOCK for real: no VMM here gives a guest a vsock device, so both ends of the link run inside one guest, over its
kernel's vsock_loopback (CID 1, port 1000 and up), and have to pass the suite that they pass over Unix sockets."""

from __future__ import annotations

import importlib.metadata
import io
import re
import tarfile
from pathlib import Path

import pytest

from tests.vm.conftest import NewSandbox
from vm0.sandbox import Ended
from vm0.sandbox.testing import sh
from vm0.sandbox_qemu.sandbox import QemuSandbox

pytestmark = pytest.mark.vm

REPOSITORY = Path(__file__).resolve().parents[2]
# What the suite needs of us, and of others: pure Python all of it, which the guest's own interpreter runs.
PACKAGES = ("guest_bundle", "sandbox", "sandbox_common", "vsock_host")
BUNDLED = ("archive", "contracts", "guest_agent", "guest_common", "guest_download", "guest_init", "guest_mock_claude")
TESTS = ("pyproject.toml", "tests/__init__.py", "tests/conftest.py", "tests/support", "tests/vsock")
DISTRIBUTIONS = (
    *("pytest", "pluggy", "iniconfig", "packaging", "pygments"),
    *("pytest-asyncio", "pytest-timeout", "typing-extensions"),
)
PLACE = "/opt/suite"
ENVIRONMENT = {
    "CI": "true",  # what the guest lacks is a failure
    "TEST_TRANSPORT": "vsock",
    "TEST_SLOWER": "20",
    "PYTHONPATH": f"{PLACE}/others:{PLACE}/own/src",
}
PYTEST = (
    "python3 -m pytest -p no:cacheprovider --override-ini timeout=900 --override-ini addopts= --import-mode=importlib"
)
SOME_S, ALL_S = 900.0, 5400.0


def packed() -> bytes:
    """The suite as a tar archive: `own` is a part of this repository, `others` what pytest needs."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:

        def add(path: Path, name: str) -> None:
            archive.add(path, name, filter=lambda entry: None if "__pycache__" in entry.name else entry)

        for name in DISTRIBUTIONS:
            files = importlib.metadata.distribution(name).files
            assert files, name
            for file in files:
                if ".." not in file.parts and "__pycache__" not in file.parts:
                    add(Path(str(file.locate())), f"others/{file}")
        for name in ("__init__.py", *PACKAGES, *BUNDLED, "vsock_guest", "vsock_proto"):
            add(REPOSITORY / "src/vm0" / name, f"own/src/vm0/{name}")
        for name in TESTS:
            add(REPOSITORY / name, f"own/{name}")
    return out.getvalue()


@pytest.fixture
async def prepared(new_sandbox: NewSandbox) -> QemuSandbox:
    """A machine with the suite in it, and with the loopback of its AF_VSOCK."""
    sandbox = await new_sandbox(memory_mib=1024, vcpus=2)
    await sandbox.start()
    await sandbox.write_file("/tmp/suite.tar", packed())
    made = f"mkdir {PLACE} && tar -xf /tmp/suite.tar -C {PLACE} && modprobe vsock_loopback"
    result = await sandbox.exec(sh(made, user="root", merge_stderr=True))
    assert result.exit_code == 0, result
    return sandbox


async def passed(sandbox: QemuSandbox, arguments: str, limit_s: float) -> int:
    """Run pytest in the guest; the number of tests that passed, which must be all that ran."""
    command = f"cd {PLACE}/own && exec {PYTEST} {arguments}"
    process = await sandbox.start_process(
        sh(command, user="root", env=ENVIRONMENT, timeout_s=limit_s, stdout_limit=None, merge_stderr=True)
    )
    output = bytearray()
    while piece := await process.stdout.read():
        output += piece
    result = await process.wait()
    text = output.decode(errors="replace")
    print(text)
    assert (result.ended, result.exit_code) == (Ended.EXITED, 0), result
    summary = text.splitlines()[-1]
    found = re.search(r"(\d+) passed", summary)
    assert found and not re.search(r"skipped|failed|error", summary), summary
    return int(found[1])


@pytest.mark.timeout(1200)
async def test_the_link_over_af_vsock(prepared: QemuSandbox) -> None:
    """The first port is 1000: the guest says who it is, and commands run; what else there is, `make soak` looks at."""
    assert await passed(prepared, "tests/vsock/test_start.py", SOME_S) >= 6
    assert await passed(prepared, "tests/vsock/test_commands.py -k 'not 200 and not no-cgroup'", SOME_S) >= 20


@pytest.mark.slow
@pytest.mark.timeout(6000)
async def test_the_whole_suite_over_af_vsock(prepared: QemuSandbox) -> None:
    assert await passed(prepared, "-v --durations=10 tests/vsock", ALL_S) >= 270
