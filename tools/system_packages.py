"""Install the Debian packages that tests and benchmarks use: what `vm0 setup` installs, and a few more.

Does nothing, quickly, when all are there. Without root, or on another distribution, it only says what is missing: the
tests that need it then skip (with CI=true they fail, see tests/support/capabilities.py).
"""

from __future__ import annotations

import dataclasses
import shutil
import sys

from vm0.cli.errors import CliError
from vm0.cli.setup_apply import install, machine_facts
from vm0.cli.setup_plan import Install, Refuse, plan_packages

FOR_TESTS = {  # program: (package, why)
    "mount": ("mount", "loop mounts of overlay disks"),
    "busybox": ("busybox-static", "reads an initramfs back"),
    "unsquashfs": ("squashfs-tools", "reads an image's root file system back"),
    "qemu-aarch64-static": ("qemu-user-static", "builds an image for arm64 on another machine (make soak)"),
    "update-binfmts": ("binfmt-support", "has the kernel run arm64 programs with it"),
    "qemu-system-aarch64": ("qemu-system-arm", "boots that image"),
    "sshd": ("openssh-server", "the peer that the transfer benchmark compares with"),
}


def main() -> int:
    facts = machine_facts()
    missing = {package: why for program, (package, why) in FOR_TESTS.items() if shutil.which(program) is None}
    # Here a machine without a tun device is a test's to skip.
    for action in plan_packages(dataclasses.replace(facts, has_tun=True)):
        match action:
            case Refuse(problem, hint):
                print(f"system packages: {problem}; {hint}", file=sys.stderr)
                return 0
            case Install(packages):
                missing |= packages
    if not missing:
        return 0
    for package, why in missing.items():
        print(f"system packages: {package} is missing ({why})", file=sys.stderr)
    print(f"system packages: installing {' '.join(missing)}", file=sys.stderr)
    try:
        install(Install(missing))
    except CliError as exc:
        print(f"system packages: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
