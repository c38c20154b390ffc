"""Run the prompt with bash: bounded output, and no waiting for what it left behind."""

from __future__ import annotations

import os

MAX_OUTPUT_BYTES = 1024 * 1024  # of each stream; the rest is counted and thrown away
DRAIN_S = 1.0  # after bash ended: a background process may hold its pipes for ever
MAX_ARGUMENT_BYTES = 100_000  # the kernel takes 128 KiB per argument
READ_BYTES = 64 * 1024


def bash_command(prompt: str) -> tuple[list[str], tuple[int, ...]]:
    """The command line that runs `prompt`, and the descriptors it needs; a long one goes through a memory file."""
    script = prompt.encode("utf-8", "surrogateescape")
    if len(script) <= MAX_ARGUMENT_BYTES:
        return ["bash", "-c", prompt], ()
    fd = os.memfd_create("prompt", 0)
    left = memoryview(script)
    while left:
        left = left[os.write(fd, left) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return ["bash", f"/proc/self/fd/{fd}"], (fd,)


def replace_with_bash(prompt: str) -> int:
    """Become `bash -c <prompt>`: same streams, same exit code. Returns only if that fails."""
    import signal
    import sys

    command, fds = bash_command(prompt)
    for fd in fds:
        os.set_inheritable(fd, True)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and that would be inherited
    try:
        os.execvp(command[0], command)
    except (OSError, ValueError) as exc:
        sys.stderr.write(f"mock-claude: bash cannot be started: {exc}\n")
        return 1


def run_bash(prompt: str) -> tuple[int, str]:
    """Exit code and output: stdout, followed by stderr if it failed. Not started or killed by a signal: code 1."""
    import subprocess

    try:
        command, fds = bash_command(prompt)
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=fds
        )
    except (OSError, ValueError) as exc:
        return 1, f"bash cannot be started: {exc}"
    out, err = _collect(process)
    code = process.wait()
    code = code if code >= 0 else 1
    return code, out if code == 0 else out + err


class _Capture:
    def __init__(self) -> None:
        self._kept = bytearray()
        self._dropped = 0

    def add(self, data: bytes) -> None:
        room = MAX_OUTPUT_BYTES - len(self._kept)
        self._kept += data[:room]
        self._dropped += max(0, len(data) - room)

    def text(self) -> str:
        note = f"\n[{self._dropped} more bytes left out]" if self._dropped else ""
        return self._kept.decode("utf-8", "replace") + note


def _collect(process) -> tuple[str, str]:  # type: ignore[no-untyped-def]  # subprocess is not imported at start
    import selectors
    import time

    out, err = _Capture(), _Capture()
    deadline: float | None = None
    with selectors.DefaultSelector() as selector, process.stdout, process.stderr:
        pidfd = os.pidfd_open(process.pid)
        try:
            selector.register(process.stdout, selectors.EVENT_READ, out)
            selector.register(process.stderr, selectors.EVENT_READ, err)
            selector.register(pidfd, selectors.EVENT_READ)
            while len(selector.get_map()) > (1 if deadline is None else 0):  # more than the pidfd
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    break
                for key, _ in selector.select(left):
                    if key.data is None:
                        selector.unregister(pidfd)
                        deadline = time.monotonic() + DRAIN_S
                    elif data := os.read(key.fd, READ_BYTES):
                        key.data.add(data)
                    else:
                        selector.unregister(key.fileobj)
        finally:
            os.close(pidfd)
    return out.text(), err.text()
