"""A VM's network namespace as its user has it: addresses for the bridge, a tap for the VMM."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from vm0.microvm.guest import TAP_NAME
from vm0.microvm.netns import tap
from vm0.microvm.netns.errors import NamespaceError, hint_for
from vm0.microvm.netns.plan import Slot
from vm0.microvm.threads import call_inside


@dataclass(frozen=True, slots=True)
class Namespace:
    """A VM's network namespace. Valid until it is released."""

    slot: Slot
    netns_path: Path  # for setns

    @property
    def name(self) -> str:
        return self.slot.name

    @property
    def host_address(self) -> str:
        """The host's end of this VM's link, and of no other: the bridge listens there."""
        return self.slot.host_address

    @property
    def source_address(self) -> str:
        """Where what the VM sends comes from, as the host sees it; nobody else can send from it."""
        return self.slot.source_address

    @property
    def host_link(self) -> str:
        return self.slot.host_link

    def open_tap(self, owner_uid: int) -> int:
        """A descriptor of the tap (close-on-exec, blocking, with vnet header), for a VMM that takes one; the caller
        closes it. The tap belongs to the user from then on. Blocks for less than a millisecond.

        Raises NamespaceError, also while the tap is open already: it has one queue.
        """

        def attach() -> int:
            fd = tap.open_tap(TAP_NAME)
            try:
                tap.set_owner(fd, owner_uid)
            except BaseException:
                os.close(fd)
                raise
            return fd

        try:
            return call_inside(self.netns_path, attach)
        except OSError as exc:
            hint = "one VMM at a time" if exc.errno == errno.EBUSY else hint_for(exc)
            raise NamespaceError(f"tap {TAP_NAME} in {self.name}: {exc}", hint=hint) from exc

    def set_tap_owner(self, owner_uid: int) -> None:
        """For a VMM that opens the tap by its name inside the namespace, as that user: it may, from then on.

        Blocks for less than a millisecond. Raises NamespaceError, also while the tap is open.
        """
        os.close(self.open_tap(owner_uid))
