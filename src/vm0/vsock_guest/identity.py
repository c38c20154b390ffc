"""Who a command runs as, and the clean environment that such a user starts with."""

from __future__ import annotations

import os
import pwd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Identity:
    """`uid` is None when the process stays who it is (no privileges to drop, or none wanted)."""

    __slots__ = ("environment", "gid", "groups", "home", "uid")

    def __init__(self, account: pwd.struct_passwd, switch: bool, machine: Mapping[str, str]) -> None:
        self.uid = account.pw_uid if switch else None
        self.gid = account.pw_gid if switch else None
        self.groups = os.getgrouplist(account.pw_name, account.pw_gid) if switch else None
        self.home = account.pw_dir
        self.environment = {
            "PATH": PATH,
            "LANG": "C.UTF-8",
            **machine,
            "HOME": account.pw_dir,
            "USER": account.pw_name,
            "LOGNAME": account.pw_name,
            "SHELL": account.pw_shell or "/bin/sh",
        }


def identity_of(user: str, default_user: str, machine: Mapping[str, str]) -> Identity:
    """`machine` is what every user's environment has. Raises KeyError for an unknown account, PermissionError when we
    may not become it."""
    name = user or default_user
    own = os.geteuid()
    account = pwd.getpwnam(name) if name else pwd.getpwuid(own)
    if account.pw_uid != own and own != 0:
        raise PermissionError(f"cannot run as {name}: the guest endpoint is not root")
    return Identity(account, account.pw_uid != own or (own == 0 and bool(name)), machine)


def environment_of(text: str) -> dict[str, str]:
    """What a file like /etc/environment says: NAME=VALUE lines, perhaps with `export` before and double quotes around
    the value. Other lines say nothing. Pure."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.strip().removeprefix("export ").partition("=")
        name, value = name.strip(), value.strip()
        if equals and name.isascii() and name.isidentifier() and "\0" not in value:
            quoted = len(value) > 1 and value[0] == value[-1] == '"'
            found[name] = value[1:-1] if quoted else value
    return found
