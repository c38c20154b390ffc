"""`guest-agent`: no arguments; everything comes from the environment and the payload file it names.

Exit code: the CLI's own, 128 + n if signal n ended it, 127 if it is not installed, 143 if the runner ended the run, and
1 for what we find wrong ourselves; `outcome.json` in the run's directory says which.
"""

from __future__ import annotations

import os
import stat
import sys

from vm0.guest_agent import outcome
from vm0.guest_agent.inbox import Inbox
from vm0.guest_agent.run import AgentRun, install_signals
from vm0.guest_agent.timings import Timings
from vm0.guest_common import environment as environments
from vm0.guest_common.log import AGENT_TAG, describe, die, system_log
from vm0.guest_common.operations import run_operations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from vm0.guest_common.environment import Environment

USAGE = "usage: guest-agent (no arguments; reads VM0_RUN_ID, VM0_API_URL, VM0_PAYLOAD_FILE, … from the environment)\n"
USAGE_ERROR = 2


def main(argv: list[str]) -> int:
    """Run the agent of this sandbox; `argv` without the program's name."""
    if argv:
        asked = argv in (["-h"], ["--help"])
        (sys.stdout if asked else sys.stderr).write(USAGE)
        return 0 if asked else USAGE_ERROR
    return run(environments.read(), Timings())


def run(environment: Environment, timings: Timings) -> int:
    """One run, in this process: changes its directory and its signal handlers."""
    if not environment.local and not environment.run_id:
        return die(AGENT_TAG, "VM0_RUN_ID is not set", "the runner sets it; for a run without an API unset VM0_API_URL")
    try:
        make_private_dir(environment.runtime_dir)
    except OSError as exc:
        return die(
            AGENT_TAG, f"{environment.runtime_dir}: {exc.strerror}", "set VM0_RUNTIME_DIR to a private directory"
        )
    messages = Inbox()
    install_signals(messages)
    run_log = system_log(AGENT_TAG, environment.runtime_dir)
    agent_run = AgentRun(environment, run_log, run_operations(environment.runtime_dir), messages, timings)
    try:
        ending = agent_run.execute()
    except Exception as exc:
        run_log.error(f"bug: {exc!r}")
        ending = outcome.failure("internal_error", repr(exc))
    try:
        outcome.write(environment.runtime_file(outcome.OUTCOME_NAME), ending, agent_run.event_count)
    except OSError as exc:
        run_log.error(f"the outcome cannot be written: {describe(exc)}")
    run_log.close()
    return ending.process_exit_code


def make_private_dir(path: str) -> None:
    """Make sure that `path` is a directory of ours that nobody else can enter. Raises OSError."""
    try:
        os.makedirs(path, mode=0o700)
    except FileExistsError:
        pass
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(20, "is not a directory", path)
    if found.st_uid != os.geteuid():
        raise PermissionError(13, "belongs to another user", path)
    if stat.S_IMODE(found.st_mode) & 0o077:
        os.chmod(path, 0o700)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
