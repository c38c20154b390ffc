"""The files by which a guest knows itself and others: host name, hosts, resolver, machine id.

`settle` moves them from /etc, once, into a folder in memory to which links in /etc lead. They are written again right
after a restore, while everybody waits: in place and in memory, which takes a tenth of the time that replacing a file on
the overlay takes in an emulated machine whose code is not translated yet. Needs root; nothing is synced.
"""

from __future__ import annotations

import _socket  # for the reason that `network` has
import os

API_HOST = "api.vm0.internal"  # the host's end of the network, where the runner listens
OURS = "# vm0"  # marks our lines in /etc/hosts; the others are the image's
FOLDER = "/run/vm0"
ETC = "/etc"
HOSTNAME, HOSTS, RESOLVER, MACHINE_ID = "hostname", "hosts", "resolv.conf", "machine-id"
MODES = {HOSTNAME: 0o644, HOSTS: 0o644, RESOLVER: 0o644, MACHINE_ID: 0o444}
MAX_BYTES = 64 * 1024


def settle(folder: str = FOLDER, etc: str = ETC) -> None:
    """Take over the files with what the image has in them. Idempotent."""
    os.makedirs(folder, 0o755, exist_ok=True)
    for name in MODES:
        place, link = f"{folder}/{name}", f"{etc}/{name}"
        if os.path.islink(link) and os.readlink(link) == place:
            continue
        write(name, read(link), folder)
        temporary = f"{link}.vm0"
        if os.path.lexists(temporary):
            os.unlink(temporary)
        os.symlink(place, temporary)
        os.rename(temporary, link)


def set_hostname(name: str) -> None:
    _socket.sethostname(name)
    write(HOSTNAME, f"{name}\n")


def set_hosts(hostname: str, gateway: str) -> None:
    """An empty name or address leaves what was said of it before."""
    write(HOSTS, hosts_text(read(f"{FOLDER}/{HOSTS}"), hostname, gateway))


def hosts_text(before: str, hostname: str, gateway: str) -> str:
    """`before` with our lines for the host name and for the runner's address. Pure."""
    kept = []
    for line in before.splitlines() or ["127.0.0.1\tlocalhost"]:
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
    write(RESOLVER, f"nameserver {address}\n")


def set_machine_id(machine_id: str) -> None:
    """32 hexadecimal digits."""
    write(MACHINE_ID, f"{machine_id}\n")


def read(path: str) -> str:
    """Up to 64 KiB of it, nothing if it is not there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    try:
        return os.read(fd, MAX_BYTES).decode("utf-8", "surrogateescape")
    finally:
        os.close(fd)


def write(name: str, text: str, folder: str = FOLDER) -> None:
    """In place; made if it is not there."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(f"{folder}/{name}", flags, MODES[name])
    try:
        os.write(fd, text.encode("utf-8", "surrogateescape"))
    finally:
        os.close(fd)
