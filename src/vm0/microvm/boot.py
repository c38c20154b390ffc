"""The kernel command line of a guest. `guest_init` reads the `vm0.` part of it."""

from __future__ import annotations

from dataclasses import dataclass

from vm0.microvm import guest


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What of the command line differs between boots. `token` is what the guest shows when it connects."""

    console: str
    token: bytes
    link: str = f"serial:{guest.SERIAL_PORT}"
    extra: tuple[str, ...] = ()


# A VM that panics ends (its VMM is told not to reboot); nothing waits for a person at a console.
COMMON = (
    "quiet", "loglevel=3", "panic=-1", "audit=0", "random.trust_cpu=on", "net.ifnames=0", "ipv6.disable=1",
)  # fmt: skip


def kernel_parameters(boot: Boot) -> str:
    """The command line, for our initramfs and without one (the root device is named for the kernel itself)."""
    return " ".join(
        (
            f"console={boot.console}",
            *COMMON,
            *boot.extra,
            "root=/dev/vda",
            "rootfstype=squashfs",
            "ro",
            f"init={guest.INIT_PATH}",
            f"vm0.link={boot.link}",
            f"vm0.token={boot.token.hex()}",
            f"vm0.ip={guest.GUEST_ADDRESS}/{guest.GUEST_PREFIX}",
            f"vm0.gw={guest.GATEWAY}",
            f"vm0.dns={guest.GATEWAY}",
            f"vm0.hostname={guest.HOSTNAME}",
            "vm0.overlay=/dev/vdb",
        )
    )
