"""The guest's tree of files on the host: writing into it without following its links, and making it the same each time.

Files that packages ship keep their times, because compiled Python files record them; what the build made gets one fixed
time, and a compiled file that recorded another one is told.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from vm0.image.errors import BuildError

FIXED_TIME = 1735689600  # 2025-01-01; of files that a build makes
FIXED_DAY = FIXED_TIME // 86400  # when passwords "changed"
CLOCK_MARGIN_S = 2.0  # a file's time comes from a clock that lags some milliseconds behind
EMPTIED = (
    "var/cache/apt",
    "var/cache/debconf",
    "var/cache/ldconfig",
    "var/lib/apt/lists",
    "var/log",
    "run",
    "tmp",
    "boot",
)
REMOVED = (
    "etc/.pwd.lock",
    "etc/group-",
    "etc/gshadow-",
    "etc/passwd-",
    "etc/shadow-",
    "etc/subgid-",
    "etc/subuid-",
    "root/.bash_history",
    "root/.npm",
    "root/.cache",
    "var/lib/dpkg/available-old",
    "var/lib/dpkg/diversions-old",
    "var/lib/dpkg/lock",
    "var/lib/dpkg/lock-frontend",
    "var/lib/dpkg/status-old",
    "var/lib/dpkg/statoverride-old",
    "var/lib/systemd/random-seed",
)
MOUNT_POINTS = {"dev": 0o755, "mnt": 0o755, "proc": 0o555, "run": 0o755, "sys": 0o555, "tmp": 0o1777}


def inside(tree: Path, path: str) -> Path:
    """The place on the host of `path` in the guest. Raises BuildError if a link on the way leads out of the tree."""
    found = tree / path.lstrip("/")
    resolved = found.parent.resolve()
    if not resolved.is_relative_to(tree.resolve()):
        # an absolute link means the guest's root, which is not ours
        raise BuildError(f"{path}: a link in the image leads out of it", hint="name the path that the link means")
    return resolved / found.name


def write(tree: Path, path: str, content: bytes, mode: int = 0o644, owner: tuple[int, int] = (0, 0)) -> None:
    """A file in the guest, in place of what may be there; directories that are missing are made, with its owner."""
    place = inside(tree, path)
    for folder in reversed([parent for parent in place.parents if not parent.exists()]):
        folder.mkdir()
        os.chown(folder, *owner)
    with contextlib.suppress(FileNotFoundError):
        place.unlink()
    fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as file:
        file.write(content)
        os.fchown(fd, *owner)
        os.fchmod(fd, mode)


def tidy(tree: Path, *, since: float) -> None:
    """Remove what no guest needs and give everything that was changed since then (seconds) the same time."""
    for name in EMPTIED:
        _empty(tree / name)
    for name in REMOVED:
        _remove(tree / name)
    for name, mode in MOUNT_POINTS.items():
        (tree / name).mkdir(exist_ok=True)
        (tree / name).chmod(mode)
    _fix_password_days(tree)
    fix_times(tree, since=since)


def fix_times(tree: Path, *, since: float) -> None:
    """Set FIXED_TIME on all that was changed since then, and in compiled files that recorded it."""
    changed = [path for path, found in _walk(tree) if found.st_mtime >= since - CLOCK_MARGIN_S]
    for path in changed:
        if path.suffix == ".py" and not path.is_symlink():
            _retime_compiled(path)
    for path in changed:  # parents after all else: what is done above may change theirs
        os.utime(path, (FIXED_TIME, FIXED_TIME), follow_symlinks=False)


def _retime_compiled(source: Path) -> None:
    found = source.stat()
    for compiled in source.parent.glob(f"__pycache__/{source.stem}.*.pyc"):
        before = compiled.stat()
        with open(compiled, "r+b") as file:
            header = file.read(16)
            if len(header) == 16 and struct.unpack_from("<III", header, 4) == (
                0,  # by time, not by hash
                int(found.st_mtime) & 0xFFFFFFFF,
                found.st_size & 0xFFFFFFFF,
            ):
                file.seek(8)
                file.write(struct.pack("<I", FIXED_TIME))
        os.utime(compiled, (before.st_atime, before.st_mtime))


def _walk(tree: Path) -> Iterator[tuple[Path, os.stat_result]]:
    yield tree, tree.lstat()
    for folder, folders, files in os.walk(tree):
        for name in (*folders, *files):
            path = Path(folder, name)
            yield path, path.lstat()


def _empty(folder: Path) -> None:
    """Files go, directories stay where programs expect them (`/var/log/apt`); in /run and /tmp nothing stays."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in sorted(folder.rglob("*"), reverse=True):
        if not path.is_symlink() and path.is_dir():
            if folder.name in ("run", "tmp"):
                path.rmdir()
        else:
            path.unlink()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _fix_password_days(tree: Path) -> None:
    path = tree / "etc/shadow"
    if not path.is_file():
        return
    lines = [line.split(":") for line in path.read_text().splitlines()]
    for fields in lines:
        if len(fields) > 2 and fields[2]:
            fields[2] = str(FIXED_DAY)
    found = path.stat()
    path.write_text("".join(":".join(fields) + "\n" for fields in lines))
    os.chmod(path, stat.S_IMODE(found.st_mode))
