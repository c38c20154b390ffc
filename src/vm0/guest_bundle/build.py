"""Builds guest.pyz: the guest's packages as source and as bytecode, the same bytes for the same input.

Bytecode lies beside each source file with an unchecked hash, so that a program starts in a quarter of the time; an
interpreter with another magic number falls back to the source.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import marshal
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vm0.guest_bundle import entry

PACKAGES = (
    "archive",
    "contracts",
    "guest_agent",
    "guest_common",
    "guest_download",
    "guest_init",
    "guest_mock_claude",
    "vsock_guest",
    "vsock_proto",
)
NOT_FOR_GUESTS = {"vm0/contracts/schema.py", "vm0/vsock_proto/documentation.py"}  # only a server or a build uses them
SOURCE_ROOT = Path(__file__).resolve().parent.parent.parent
TIMESTAMP = (1980, 1, 1, 0, 0, 0)  # the first that a zip can hold
NATIVE_SUFFIXES = {".so", ".pyd", ".dylib", ".a"}
COMPILE_S = 120.0  # under emulation of another processor too
COMPILER = """
import importlib.util, marshal, sys
header = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little")  # PEP 552: a hash is there and nobody compares it
files = {}
for name, source in marshal.load(sys.stdin.buffer).items():
    code = marshal.dumps(compile(source, f"guest.pyz/{name}", "exec", dont_inherit=True, optimize=0))
    files[name] = header + importlib.util.source_hash(source) + code
sys.stdout.buffer.write(marshal.dumps(files, 2))
"""
MARSHAL_VERSION = 2  # of what goes to and from the compiler: every CPython reads it
MAGIC = "import importlib.util; print(importlib.util.MAGIC_NUMBER[:2].hex())"


class BundleError(Exception):
    """a source that a guest could not run"""


@dataclass(frozen=True, slots=True)
class GuestBundle:
    """`build` names the sources (the same for every interpreter); `path` is the file for this interpreter."""

    path: Path
    build: str


def build_bundle(cache: Path, *, python: Sequence[str] = (sys.executable,)) -> GuestBundle:
    """The bundle of the installed sources, built into `cache` unless it is there. Safe to call at the same time from
    several processes: it appears under its name only when complete.

    `python` is the command that starts the interpreter which will run it (a guest's: `chroot TREE /usr/bin/python3`).
    Raises BundleError, OSError.
    """
    sources = read_sources()
    build = digest(sources)
    path = cache / f"guest-{build}-{_magic(python)}.pyz"
    if not path.exists():
        check_imports(sources)
        cache.mkdir(parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=cache, prefix=path.name, suffix=".tmp")
        try:
            with os.fdopen(fd, "wb") as file:
                write_bundle(sources, file, python=python)
            os.chmod(temporary, 0o644)  # commands run by other users of the guest start programs from it
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    return GuestBundle(path, build)


def read_sources() -> dict[str, bytes]:
    """Archive name to content, sorted."""
    names = ["vm0/__init__.py"]
    for package in PACKAGES:
        names += [path.relative_to(SOURCE_ROOT).as_posix() for path in python_files(SOURCE_ROOT / "vm0" / package)]
    sources = {name: (SOURCE_ROOT / name).read_bytes() for name in sorted(names) if name not in NOT_FOR_GUESTS}
    sources["__main__.py"] = Path(entry.__file__).read_bytes()
    return sources


def python_files(folder: Path) -> list[Path]:
    """Raises BundleError for native code: the guest's machine and its Python are not this one's."""
    native = [path for path in folder.rglob("*") if path.suffix in NATIVE_SUFFIXES]
    if native:
        raise BundleError(f"{native[0]}: native code cannot be in the guest's bundle")
    return list(folder.rglob("*.py"))


def check_imports(sources: dict[str, bytes]) -> None:
    """Raises BundleError for an import of anything but the standard library and what is in the bundle."""
    bundled = {name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in sources}
    for name, content in sources.items():
        for node in ast.walk(ast.parse(content, name)):
            imported: list[str] = []
            if isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                imported = [node.module or ""] if node.level == 0 else [f"{'.' * node.level}{node.module or ''}"]
            for module in imported:
                if module not in bundled and module.partition(".")[0] not in sys.stdlib_module_names:
                    raise BundleError(f"{name} imports {module}, which no guest has")


def digest(sources: dict[str, bytes]) -> str:
    """The name of a build: 16 hexadecimal digits."""
    total = hashlib.sha256()
    for name, content in sources.items():
        total.update(f"{name}\0{len(content)}\0".encode() + content)
    return total.hexdigest()[:16]


def write_bundle(sources: dict[str, bytes], file: object, *, python: Sequence[str] = (sys.executable,)) -> None:
    """A zip without compression, timestamps or order of its own: equal input gives equal bytes."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as bundle:  # type: ignore[call-overload]  # any binary file
        files = compiled(sources, python=python)
        for name, content in sources.items():
            bundle.writestr(_entry(name), content)
            bundle.writestr(_entry(f"{name}c"), files[name])


def compiled(sources: dict[str, bytes], *, python: Sequence[str] = (sys.executable,)) -> dict[str, bytes]:
    """Contents of .pyc files by name of the source, from a fresh interpreter: which objects are written as references
    depends on what else the compiling process holds (its interned strings), and the same input must give the same
    bytes."""
    answer = _answer(python, COMPILER, marshal.dumps(sources, MARSHAL_VERSION), "the guest's sources do not compile")
    files: dict[str, bytes] = marshal.loads(answer)
    return files


def _magic(python: Sequence[str]) -> str:
    """Which bytecode that interpreter runs."""
    if tuple(python) == (sys.executable,):
        return importlib.util.MAGIC_NUMBER[:2].hex()
    return _answer(python, MAGIC, b"", "the guest's Python does not run").decode().strip()


def _answer(python: Sequence[str], program: str, question: bytes, problem: str) -> bytes:
    done = subprocess.run(
        [*python, "-I", "-S", "-c", program], input=question, capture_output=True, timeout=COMPILE_S, check=False
    )
    if done.returncode != 0:
        raise BundleError(f"{problem}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _entry(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, TIMESTAMP)
    info.external_attr = 0o644 << 16
    return info
