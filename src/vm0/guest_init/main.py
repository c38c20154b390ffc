"""`main()`, which the script at INIT_PATH calls: boot, supervise, switch off. Never returns."""

from __future__ import annotations

import os
import signal

from vm0.guest_init import plan
from vm0.guest_init.console import Console
from vm0.guest_init.machine import StepError, carry_out
from vm0.guest_init.parameters import ParameterError, parse
from vm0.guest_init.supervisor import SUPERVISED, Supervisor
from vm0.guest_init.system_calls import RB_AUTOBOOT, RB_POWER_OFF, reboot
from vm0.vsock_guest import main as guest_endpoint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vm0.guest_init.parameters import Parameters

COMMAND_LINE = "/proc/cmdline"
BUILD_PATH = "/usr/lib/vm0/build"
ENVIRONMENT_PATH = "/etc/environment"
USER = "user"  # of commands that name none
FAILED = 70  # exit code of an endpoint that raised


def main() -> None:
    """As PID 1. Whatever fails is said on the console and the machine switched off: no panic."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SUPERVISED)
    console = Console()
    resets = False
    try:
        parameters = boot(console)
        resets = parameters.resets
        supervise(parameters, console)
    except (StepError, ParameterError) as exc:
        step = "" if isinstance(exc, StepError) else "kernel parameters: "
        console.say(f"init failed at {step}{exc}")
    except BaseException as exc:
        console.say(f"init failed: {exc!r}")
    switch_off(resets, console)


def boot(console: Console) -> Parameters:
    """Raises StepError, ParameterError."""

    def warn(text: str) -> None:
        console.say(f"warning: {text}")

    os.umask(0o022)
    carry_out(plan.plan_kernel(), warn)
    with open(COMMAND_LINE, encoding="utf-8", errors="replace") as file:
        parameters = parse(file.read())
    if parameters.unknown:
        warn(f"unknown kernel parameters: {', '.join(parameters.unknown)}")
    for steps in (
        plan.plan_root(parameters),
        plan.plan_mounts(),
        plan.plan_cgroups(),
        plan.plan_names(parameters),
        plan.plan_network(parameters),
        plan.plan_protection(),
    ):
        carry_out(steps, warn)
    return parameters


def supervise(parameters: Parameters, console: Console) -> None:
    """Until the machine is to be switched off."""
    token = os.memfd_create("vm0-token", os.MFD_CLOEXEC)
    os.write(token, parameters.token)
    arguments = endpoint_arguments(parameters.link, token, build_name())

    def start() -> int:
        pid = os.fork()
        if pid == 0:
            run_endpoint(arguments, console)
        return pid

    Supervisor(start, clear_groups, console.say).run()


def build_name() -> str:
    try:
        with open(BUILD_PATH, encoding="utf-8") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def endpoint_arguments(link: str, token_fd: int, build: str) -> list[str]:
    return [
        *("--connect", link),
        *("--token-fd", str(token_fd)),
        *("--build", build),
        *("--cgroup", plan.COMMANDS_GROUP),
        *("--environment", ENVIRONMENT_PATH),
        *("--user", USER),
        "--machine",
    ]


def run_endpoint(arguments: list[str], console: Console) -> None:
    """In the child: PID 2 for the rest of its life. Leaves without what an interpreter does at its end."""
    code = FAILED
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SUPERVISED)
        code = guest_endpoint.main(arguments)
    except BaseException as exc:
        console.say(f"guest endpoint failed: {exc!r}")
    finally:
        os._exit(code)


def clear_groups() -> None:
    """Of the commands of an endpoint that died, which made groups of their own perhaps; the next one uses the same
    names. What cannot be removed makes commands fail, not the machine."""
    for folder, _, _ in os.walk(plan.COMMANDS_GROUP, topdown=False):
        if folder not in (plan.COMMANDS_GROUP, plan.ENDPOINT_GROUP):
            try:
                os.rmdir(folder)
            except OSError:
                continue


def switch_off(resets: bool, console: Console) -> None:
    """A machine that cannot do the one is ended by the other."""
    os.sync()
    for command in (RB_AUTOBOOT, RB_POWER_OFF) if resets else (RB_POWER_OFF, RB_AUTOBOOT):
        try:
            reboot(command)
        except OSError as exc:
            console.say(f"warning: {exc}")
    while True:  # nothing is left that could be done; an exit would be a panic
        signal.pause()
