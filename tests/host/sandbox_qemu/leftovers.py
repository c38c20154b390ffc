"""What a factory with the fake QEMU could leave on a private host: more or less after than before is a leak."""

from __future__ import annotations

import asyncio
import gc
import pathlib
import re
import subprocess
import time

from tests.host.netns.machine import PrivateHost, inventory, netlink
from tests.support.fake_qemu.installation import FakeQemu
from tests.support.inventory import take_inventory
from vm0.sandbox_common import cgroups
from vm0.sandbox_common.ownership import short_hash

# Empty folders of a factory's root, which the next one makes anew; disks in a pool, whose number is a matter of time.
OF_NO_INTEREST = re.compile(r"/(sandboxes|disks|disks/(ready|empty)-\w+\.ext4)$")
SETTLE_S = 10.0  # an exit is asynchronous, and so is what a cancelled call leaves to a background task


class Leftovers:
    """Of `folder`, which holds the roots of the factories. Children and VMMs count wherever they are."""

    def __init__(self, host: PrivateHost, fake: FakeQemu, folder: pathlib.Path) -> None:
        self._host, self._fake, self._folder = host, fake, folder
        self.before = self.now()

    def now(self) -> set[str]:
        gc.collect()
        found = take_inventory([self._folder], marker=str(self._fake.binary))
        lines = {f"process {text}" for text in found.processes.values()}
        lines |= {f"descriptor {text}" for text in found.descriptors}
        lines |= {f"socket {text}" for text in found.sockets.values()}
        lines |= {f"file {path}" for path in found.files if not OF_NO_INTEREST.search(path)}
        lines |= {f"{kind} {line}" for kind, every in netlink(lambda: inventory(self._host)).items() for line in every}
        mounts = pathlib.Path("/proc/self/mounts").read_text().splitlines()
        lines |= {f"mount {line}" for line in mounts if str(self._folder) in line}
        loops = subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True).stdout.splitlines()
        lines |= {f"loop {line}" for line in loops if str(self._folder) in line}
        return lines | {f"cgroup {group}" for group in self._cgroups()}

    def vmms(self) -> set[str]:
        """Processes of VMs, whoever's children they are."""
        return set(take_inventory(marker=str(self._fake.binary)).processes.values())

    async def assert_none(self, what: str = "") -> None:
        """All is as it was, at the latest in 10 s."""
        deadline = time.monotonic() + SETTLE_S
        while (now := self.now()) != self.before:
            if time.monotonic() > deadline:
                more = [f"+ {line}" for line in sorted(now - self.before)]
                less = [f"- {line}" for line in sorted(self.before - now)]
                raise AssertionError("\n".join([f"left over: {what}", *more, *less]))
            await asyncio.sleep(0.02)  # there is no event for the end of somebody else's background work

    def _cgroups(self) -> list[pathlib.Path]:
        parent = cgroups.writable_parent()
        if parent is None:
            return []
        groups = [parent / f"vm0-{short_hash(root)}" for root in self._folder.iterdir() if root.is_dir()]
        return [path for group in groups if group.exists() for path in (group, *group.rglob("*")) if path.is_dir()]
