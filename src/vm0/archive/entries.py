"""What a version consists of: files and links with their hashes, and the rules for their paths.

Empty folders are not versioned: a version is a set of `path:hash` lines, and a folder has neither content nor hash.

The hash of a plain file is the SHA-256 of its content. Executable files and links hash a marker first: the version id
is made of paths and hashes alone, so without it a `chmod +x`, or a file replaced by a link, would not be a change,
and the folder would be taken for one that is stored already.
"""

from __future__ import annotations

import dataclasses
import enum

EXCLUDED_NAMES = frozenset({".git", ".vm0"})  # at any depth: another tool's database, and our own
STAGING_PREFIX = ".vm0-extract-"  # where `extract` works; left behind only if it is killed, and never versioned

EXECUTABLE_MARK = b"vm0:executable\0"
SYMLINK_MARK = b"vm0:symlink\0"

MAX_FILE_BYTES = 100 * 1024 * 1024  # one file of a version; the same number as in the API contract
MAX_ENTRIES = 200_000  # of one version; the same number as in the API contract
MAX_PATH_BYTES = 4096  # of one path of a version; the same number as in the API contract
MAX_NAME_BYTES = 255  # NAME_MAX of every file system we run on
MAX_DEPTH = 100  # folders in a path: one file descriptor each while walking


class EntryKind(enum.Enum):
    FILE = "file"
    EXECUTABLE = "executable"
    SYMLINK = "symlink"


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One regular file or symbolic link. Of a link, `size` is the length of its target in bytes."""

    path: str  # relative, `/` between parts
    hash: str  # 64 lower-case hexadecimal digits
    size: int
    kind: EntryKind = EntryKind.FILE

    @property
    def executable(self) -> bool:
        return self.kind is EntryKind.EXECUTABLE


class Cause(enum.Enum):
    """Why something was left out: low-cardinality, for the caller to decide on."""

    NAME = "name"  #: the path cannot be part of a version
    SPECIAL = "special"  #: socket, FIFO, device, or an archive member that is neither file, folder nor link
    UNREADABLE = "unreadable"  #: the file system refused
    TOO_LARGE = "too_large"  #: over the limit for one file
    LINK = "link"  #: a link that would lead out of the folder
    CONFLICT = "conflict"  #: something of another kind has the same name
    TRAILING = "trailing"  #: data after the archive's end


@dataclasses.dataclass(frozen=True, slots=True)
class Skipped:
    """One thing left out. `name` is printable (control characters escaped, long ones cut), `reason` is for people."""

    name: str
    reason: str
    cause: Cause


def printable(name: str, limit: int = 200) -> str:
    """`name` on one line and in valid UTF-8, so that a hostile one cannot forge a log line."""
    cut = name if len(name) <= limit else name[:limit] + "…"
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode("ascii")
        for char in cut
    )


def path_problem(path: str) -> str | None:
    """Why `path` cannot be a path of a version, or None. The same rule when scanning and when extracting,
    so that whatever was stored can also be restored."""
    parts = path.split("/")
    try:
        size = len(path.encode())
        name_size = max(len(part.encode()) for part in parts)
    except UnicodeEncodeError:
        return "the name is not valid UTF-8, so it cannot be listed in a manifest"
    problems = {
        "the name is empty": not path,
        "the path is absolute": path.startswith("/"),
        "the path has a `..` component": ".." in parts,
        "the path has an empty or `.` component": "" in parts or "." in parts,
        "the name holds a NUL character": "\0" in path,
        "the name holds a line break, and a version lists one path per line": "\n" in path,
        f"a name is longer than {MAX_NAME_BYTES} bytes": name_size > MAX_NAME_BYTES,
        f"the path is longer than {MAX_PATH_BYTES} bytes": size > MAX_PATH_BYTES,
        f"the path is more than {MAX_DEPTH} folders deep": len(parts) > MAX_DEPTH,
    }
    return next((problem for problem, found in problems.items() if found), None)


def link_problem(folder: tuple[str, ...], text: str) -> str | None:
    """Why a link in `folder` (parts below the root) with the relative target `text` might lead out, or None.

    `..` may only come first. There it climbs real folders, so the text says where it ends. After a name it would climb
    from wherever that name leads, which may be a link that somebody adds later. Given this rule for every link, all
    chains of them stay inside: each one climbs no higher than the root and then only goes down.
    """
    if not text:
        return "the link has no target"
    if "\0" in text:
        return "the link's target holds a NUL character"
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return "the link's target is not valid UTF-8"
    if size > MAX_PATH_BYTES - 1:
        return "the link's target is longer than a path can be"
    climbed = 0
    descended = False
    for part in text.split("/"):
        if part == "..":
            if descended:
                return "the link's target has `..` after a name, so where it leads can change"
            climbed += 1
        elif part not in ("", "."):
            descended = True
    return "the link leads out of the folder" if climbed > len(folder) else None
