"""QEMU backend: every sandbox a virtual machine, with hardware virtualisation where it works, else by emulation.

`factory` makes them, `sandbox` is one, on a `seat` (what it has of the host). `vm` is a QEMU with all its ends, `argv`
its command line, `monitor` its control connection. `snapshot` is a stopped VM in a folder and `golden` makes one;
`accelerator` finds out whether KVM works.
"""

from __future__ import annotations

from vm0.sandbox_qemu.factory import QemuOptions, QemuSandboxFactory

__all__ = ["QemuOptions", "QemuSandboxFactory"]
