"""guest_init may not import the host's side; what both must know is compared here."""

from __future__ import annotations

import subprocess
import sys

from vm0.guest_bundle.entry import PROGRAMS
from vm0.guest_common import names
from vm0.guest_init import init_script, main, parameters, plan
from vm0.guest_init.main import endpoint_arguments
from vm0.microvm import boot, guest
from vm0.vsock_guest import power
from vm0.vsock_guest.containment import HOME


def test_paths_and_names() -> None:
    assert (main.BUILD_PATH, main.USER) == (guest.BUILD_PATH, guest.GUEST_USER)
    assert (init_script.BUNDLE_PATH, names.API_HOST) == (guest.BUNDLE_PATH, guest.API_HOST)
    assert parameters.DEFAULT_LINK == f"serial:{guest.SERIAL_PORT}"
    assert parameters.DEFAULT_HOSTNAME == guest.HOSTNAME
    assert plan.INTERFACE == power.INTERFACE
    assert plan.ENDPOINT_GROUP == f"{plan.COMMANDS_GROUP}/{HOME}"
    assert PROGRAMS["guest-init"] == main.__name__


def test_the_command_line_of_the_host_is_understood() -> None:
    line = boot.kernel_parameters(boot.Boot(console="ttyS0", token=b"\x01" * 32))
    found = parameters.parse(line)
    assert (found.link, found.token) == (f"serial:{guest.SERIAL_PORT}", b"\x01" * 32)
    assert (found.address, found.prefix) == (guest.GUEST_ADDRESS, guest.GUEST_PREFIX)
    assert (found.gateway, found.nameserver, found.hostname) == (guest.GATEWAY, guest.GATEWAY, guest.HOSTNAME)
    assert (found.overlay, found.unknown) == ("/dev/vdb", ())


def test_the_script_is_what_the_kernel_can_start() -> None:
    first, *rest = init_script.SCRIPT.splitlines()
    assert first == f"#!{guest.GUEST_PYTHON} -IS"
    compile("\n".join(rest), guest.INIT_PATH, "exec")


def test_the_endpoint_is_started_with_options_that_it_knows() -> None:
    from vm0.vsock_guest.main import _options

    options = _options(endpoint_arguments("serial:vm0", 7, "abc"))
    assert options is not None
    assert (options["connect"], options["token-fd"], options["build"]) == ("serial:vm0", "7", "abc")
    assert (options["cgroup"], options["user"]) == (plan.COMMANDS_GROUP, guest.GUEST_USER)
    assert "machine" in options


def test_few_imports() -> None:
    """All of it is on the way of a cold boot, where an import costs ten times of what it does here."""
    slow = {"argparse", "asyncio", "dataclasses", "inspect", "logging", "re", "socket", "subprocess", "typing"}
    look = "import sys; sys.path[:0] = sys.argv[1:]; import vm0.guest_init.main; print(*sys.modules)"
    sources = str(init_script.__file__).rpartition("/vm0/")[0]
    found = subprocess.run(
        [sys.executable, "-IS", "-c", look, sources], capture_output=True, text=True, check=True, timeout=20
    )
    modules = set(found.stdout.split())
    assert modules & slow == set()
    assert {name.split(".")[1] for name in modules if name.startswith("vm0.")} == {
        "guest_common", "guest_init", "vsock_guest", "vsock_proto",
    }  # fmt: skip
