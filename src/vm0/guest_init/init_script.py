"""The program that the kernel starts as PID 1; the image has it at INIT_PATH, executable."""

from __future__ import annotations

BUNDLE_PATH = "/usr/lib/vm0/guest.pyz"

# `main` never returns and handles its own errors. What is left is a bundle that cannot be imported: an exit of PID 1
# would be a panic, so say why and switch off (0x4321FEDC is RB_POWER_OFF).
SCRIPT = f"""#!/usr/bin/python3 -IS
import sys
sys.path.insert(0, "{BUNDLE_PATH}")
try:
    from vm0.guest_init.main import main
    main()
except BaseException as exc:
    import ctypes, os
    os.write(2, f"vm0: init failed at start: {{exc!r}}\\n".encode())
    ctypes.CDLL(None).reboot(0x4321FEDC)
"""
