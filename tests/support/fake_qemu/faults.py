"""How it misbehaves: a JSON file beside the program, for a VMM's environment is clean and its arguments are checked.

exit_at_start N          before anything else, with that code
exit_after_greeting N
greet false              says nothing on the monitor, ever
refuse {COMMAND: TEXT}   answers that QMP command with an error
hang [COMMAND]           never answers that command, nor anything on the monitor afterwards
exit_on {COMMAND: N}     ends when it is asked that
deaf true                its guest never says anything
guest_errors [MESSAGE]   its guest answers these (Restore, Resume, Exec ...) with an error
guest_exits_on MESSAGE   the machine ends when its guest is asked that
link_noise N             its guest sends N bytes that are no frames
die_after_ms N           by SIGKILL, counted from its start
ignore_sigterm true
flood {WHERE: MIB}       so much on `console` (guest) or `output` (its own stderr), as fast as it can
event_flood N            so many QMP events, from the first command on
only "boot"|"incoming"   all of that only in machines that boot, or that are restored
"""

from __future__ import annotations

import json
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FILE = "faults.json"
NAMES = (
    "exit_at_start", "exit_after_greeting", "greet", "refuse", "hang", "exit_on", "deaf", "guest_errors",
    "guest_exits_on", "link_noise", "die_after_ms", "ignore_sigterm", "flood", "event_flood",
    "migration_ms", "only",
)  # fmt: skip


def read_faults(folder: str, *, incoming: bool) -> dict[str, Any]:
    """What applies to this machine."""
    try:
        with open(os.path.join(folder, FILE)) as file:
            found: dict[str, Any] = json.load(file)
    except FileNotFoundError:
        return {}
    only = found.get("only")
    return found if only is None or (only == "incoming") == incoming else {}
