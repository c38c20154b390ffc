"""The files below /etc by which a guest knows itself and others: host name, hosts, resolver, machine id.

Written at boot and again after a restore; needs root. Nothing is synced: no guest outlives its host's crash.
"""

from __future__ import annotations

import _socket  # for the reason that `network` has
import os

API_HOST = "api.vm0.internal"  # the host's end of the network, where the runner listens
OURS = "# vm0"  # marks our lines in /etc/hosts; the others are the image's


def set_hostname(name: str) -> None:
    _socket.sethostname(name)
    replace("/etc/hostname", f"{name}\n")


def set_hosts(hostname: str, gateway: str) -> None:
    """An empty name or address leaves what was said of it before."""
    try:
        with open("/etc/hosts", encoding="utf-8") as file:
            before = file.read()
    except FileNotFoundError:
        before = "127.0.0.1\tlocalhost\n"
    replace("/etc/hosts", hosts_text(before, hostname, gateway))


def hosts_text(before: str, hostname: str, gateway: str) -> str:
    """`before` with our lines for the host name and for the runner's address. Pure."""
    kept = []
    for line in before.splitlines():
        ours = line.endswith(OURS)
        about_api = ours and API_HOST in line
        if not ours or (not gateway if about_api else not hostname):
            kept.append(line)
    if hostname:
        kept.append(f"127.0.1.1\t{hostname} {OURS}")
    if gateway:
        kept.append(f"{gateway}\t{API_HOST} {OURS}")
    return "\n".join(kept) + "\n"


def set_nameserver(address: str) -> None:
    replace("/etc/resolv.conf", f"nameserver {address}\n")


def set_machine_id(machine_id: str) -> None:
    """32 hexadecimal digits."""
    replace("/etc/machine-id", f"{machine_id}\n", 0o444)


def replace(path: str, text: str, mode: int = 0o644) -> None:
    """In one step, whatever was there: a symbolic link is replaced, not followed."""
    temporary = f"{path}.vm0"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        os.fchmod(fd, mode)
        os.write(fd, text.encode())
    finally:
        os.close(fd)
    os.rename(temporary, path)
