"""What this host must have for QEMU sandboxes, and the facts of it that a snapshot depends on."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from vm0.sandbox import BackendUnavailable

VERSION_S = 10.0


def check_host() -> None:
    """Raises BackendUnavailable with all that is missing."""
    if os.geteuid() != 0:
        raise BackendUnavailable(
            "virtual machines need root: network namespaces, taps and firewall rules",
            hint="run vm0 as root (sudo), or name `--backend process`, which isolates nothing",
        )
    missing = [name for name in ("mkfs.ext4", "nft") if shutil.which(name) is None]
    if not Path("/dev/net/tun").exists():
        missing.append("/dev/net/tun")
    if missing:
        raise BackendUnavailable(f"this host lacks {', '.join(missing)}", hint="let `vm0 setup` install it")


def qemu_version(binary: str, package: str) -> str:
    """Of the installed QEMU, as it says it. Raises BackendUnavailable."""
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, timeout=VERSION_S, check=True, text=True)
    except (OSError, subprocess.SubprocessError) as exc:
        raise BackendUnavailable(
            f"{binary} cannot be run: {exc}", hint=f"install {package}, or let `vm0 setup` do it"
        ) from exc
    return done.stdout.partition("\n")[0].removeprefix("QEMU emulator version ").strip()


def host_cpu() -> str:
    """What a guest with the host's processor can see of it."""
    text = Path("/proc/cpuinfo").read_text(errors="replace").partition("\n\n")[0]
    kept = [line for line in text.splitlines() if line.startswith(("model name", "flags", "CPU part", "Features"))]
    return "; ".join(kept)
