"""What virtual machines could leave behind on a host, as a set of lines: more after than before is a leak."""

from __future__ import annotations

import json
import pathlib
import subprocess

from tests.support.inventory import take_inventory

COMMAND_S = 20.0
NETNS = pathlib.Path("/run/netns")


def host_inventory(folder: pathlib.Path, pool: int | None = None) -> set[str]:
    """Our processes and descriptors; files, sockets, mounts and loop devices below `folder`; namespaces, links, rules
    of this pool (other tests of this machine have other ones)."""
    ours = take_inventory([folder])
    found = {f"process {text}" for text in ours.processes.values()}
    found |= {f"descriptor {key}" for key in ours.descriptors}
    found |= {f"socket {text}" for text in ours.sockets.values()}
    found |= {f"file {path}" for path in ours.files}
    mounts = pathlib.Path("/proc/self/mounts").read_text().splitlines()
    found |= {f"mount {line}" for line in mounts if str(folder) in line}
    found |= {f"loop {line}" for line in _lines("losetup", "-a") if str(folder) in line}
    if pool is not None:
        mark = f"-{pool:02x}-"
        found |= {f"netns {path.name}" for path in NETNS.glob(f"vm0-ns{mark}*")}
        found |= {f"mount {line}" for line in mounts if f"vm0-ns{mark}" in line}
        found |= {f"link {link['ifname']}" for link in _json("ip", "-j", "link") if f"vm0-ve{mark}" in link["ifname"]}
        found |= {f"rule {line}" for line in _lines("nft", "list", "ruleset") if f"vm0-ve{mark}" in line}
    return found


def _lines(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=True).stdout.splitlines()


def _json(*command: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads("\n".join(_lines(*command)))
    return found
