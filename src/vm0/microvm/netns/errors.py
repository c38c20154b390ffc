"""What went wrong with a namespace, and what to do about it."""

from __future__ import annotations

import errno

from vm0.sandbox import SandboxError


class NamespaceError(SandboxError):
    """a network namespace could not be made"""


HINTS = {
    errno.EPERM: "network namespaces need root (CAP_NET_ADMIN and CAP_SYS_ADMIN)",
    errno.EACCES: "network namespaces need root (CAP_NET_ADMIN and CAP_SYS_ADMIN)",
    errno.EROFS: "/proc/sys is read-only here: run it on the host itself, not in a container",
    errno.ENOSPC: "a limit of the kernel: see /proc/sys/user/max_net_namespaces and /proc/sys/fs/mount-max",
    errno.EMFILE: "raise the limit of open files (ulimit -n) of this process",
    errno.ENFILE: "raise /proc/sys/fs/file-max",
    errno.EOPNOTSUPP: "this kernel lacks a part of it: veth, tun, nf_tables, nft_fib or nf_nat",
}


def hint_for(error: BaseException) -> str:
    code = getattr(error, "errno", None) or getattr(error, "code", None)  # OSError, or pyroute2's NetlinkError
    return HINTS.get(code, "") if isinstance(code, int) else ""
