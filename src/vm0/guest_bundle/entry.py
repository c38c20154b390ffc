"""The `__main__` of guest.pyz: starts the program that the first argument names."""

from __future__ import annotations

import sys

PROGRAMS = {
    "vsock-guest": "vm0.vsock_guest.main",
    "guest-init": "vm0.guest_init.main",
    "guest-agent": "vm0.guest_agent.main",
    "guest-download": "vm0.guest_download.main",
    "guest-mock-claude": "vm0.guest_mock_claude.main",
}


def main() -> int:
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in PROGRAMS:
        sys.stderr.write(f"usage: guest.pyz {'|'.join(PROGRAMS)} [arguments]\n")
        return 2
    module = __import__(PROGRAMS[name], fromlist=["main"])
    return int(module.main(sys.argv[2:]))


if __name__ == "__main__":
    sys.exit(main())
