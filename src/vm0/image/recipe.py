"""What an image is made of: a TOML file, checked strictly and named key by key when it is wrong.

A recipe may extend another: its lists are appended to the other's, its single values win. `Recipe` is the result, with
everything it needs in itself (the contents of files too), so that its digest says all about it.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from vm0.image.errors import RecipeError

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")  # Debian policy 5.6.7
USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
SUITE = re.compile(r"[a-z][a-z0-9.-]*")
NPM_PACKAGE = re.compile(r"(@[a-z0-9~-][a-z0-9._~-]*/)?[a-z0-9~-]([a-z0-9._~-]|\{cpu\})*")
NPM_VERSION = re.compile(r"[0-9][0-9A-Za-z.+-]*|[a-z][a-z0-9-]*")  # one version, or a tag
MODE = re.compile(r"0?[0-7]{3,4}")
MAX_FILE_BYTES = 64 * 1024 * 1024  # of one file in a recipe: it is held in memory
MAX_EXTENDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class NpmPackage:
    """`package` may have `{cpu}`, which becomes npm's name of the architecture. `bin`: command -> file in it."""

    package: str
    version: str = "latest"
    bin: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeFile:
    path: str
    content: bytes = field(repr=False)
    mode: int = 0o644
    owner: str = "root"


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    name: str
    uid: int
    home: str
    shell: str = "/bin/bash"
    sudo: bool = False  # may become root without a password


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """`mirrors` empty: the one that mmdebstrap takes by itself. `commands` run as root in the tree when it is built,
    `warm` in the first virtual machine, before its snapshot is taken."""

    name: str
    suite: str
    mirrors: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    npm: tuple[NpmPackage, ...] = ()
    files: tuple[RecipeFile, ...] = ()
    users: tuple[User, ...] = ()
    commands: tuple[str, ...] = ()
    warm: tuple[str, ...] = ()

    def normalized(self) -> dict[str, Any]:
        """JSON that is equal for recipes that make the same image: no order of packages, files by their digests."""
        value = asdict(self)
        value["packages"] = sorted(set(self.packages))
        for file in value["files"]:
            file["content"] = hashlib.sha256(file["content"]).hexdigest()
        return json.loads(json.dumps(value))  # type: ignore[no-any-return]  # tuples become lists, as they are read back


def shipped_recipes() -> list[str]:
    folder = importlib.resources.files("vm0.image").joinpath("recipes")
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(name: str) -> Recipe:
    """A shipped recipe by its name, or one from a file whose name ends in `.toml`. Raises RecipeError."""
    return _finished(_loaded(name, here=Path(), depth=0))


def parse_recipe(text: str, *, name: str, here: Path = Path()) -> Recipe:
    """From the text of a recipe; `here` is where the files that it names are."""
    return _finished(_parsed(text, name, here, depth=0))


def _loaded(name: str, here: Path, depth: int) -> dict[str, Any]:
    if depth > MAX_EXTENDS:
        raise RecipeError(f"{name}: more than {MAX_EXTENDS} recipes extend one another", hint="is there a circle?")
    if name.endswith(".toml"):
        path = here / name
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as exc:
            raise RecipeError(f"{path}: cannot be read: {exc}", hint="check the path") from exc
        return _parsed(text, path.stem, path.parent, depth, source=str(path))
    if name not in shipped_recipes():
        known = ", ".join(shipped_recipes())
        raise RecipeError(
            f"there is no recipe {name!r}", hint=f"choose one of {known}, or give a file that ends in .toml"
        )
    folder = importlib.resources.files("vm0.image").joinpath("recipes")
    return _parsed(folder.joinpath(f"{name}.toml").read_text(encoding="utf-8"), name, Path(), depth, source=name)


def _parsed(text: str, name: str, here: Path, depth: int, source: str = "") -> dict[str, Any]:
    source = source or name
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise RecipeError(f"{source}: this is no TOML: {exc}") from exc
    own = _Table(source, "", table)
    extends = own.text("extends", "")
    values = _loaded(extends, here, depth + 1) if extends else {}
    values["name"] = own.text("name", name, NAME)
    if (suite := own.text("suite", "", SUITE)) or "suite" not in values:
        values["suite"] = suite
    if mirrors := own.texts("mirrors"):
        values["mirrors"] = mirrors
    for key, found in {
        "packages": own.texts("packages", PACKAGE),
        "npm": own.tables("npm", _npm_package),
        "files": own.tables("files", lambda inner: _file(inner, here)),
        "users": own.tables("users", _user),
        "commands": own.texts("commands"),
        "warm": own.texts("warm"),
    }.items():
        values[key] = (*values.get(key, ()), *found)
    own.done()
    return values


def _finished(values: dict[str, Any]) -> Recipe:
    if not values["suite"]:
        raise RecipeError(f"{values['name']}: suite is missing", hint='for example suite = "trixie"')
    recipe = Recipe(**values)
    for kind, names in (
        ("users", [user.name for user in recipe.users]),
        ("files", [file.path for file in recipe.files]),
        ("npm", [package.package for package in recipe.npm]),
        ("uid of users", [str(user.uid) for user in recipe.users]),
    ):
        if twice := {name for name in names if names.count(name) > 1}:
            raise RecipeError(f"{recipe.name}: {kind}: {min(twice)} is there twice")
    owners = {"root", *(user.name for user in recipe.users)}
    for file in recipe.files:
        if file.owner not in owners:
            raise RecipeError(f"{recipe.name}: files: {file.path}: there is no user {file.owner}")
    return replace(recipe, packages=tuple(dict.fromkeys(recipe.packages)))


def _npm_package(table: _Table) -> NpmPackage:
    return NpmPackage(
        package=table.text("package", None, NPM_PACKAGE),
        version=table.text("version", "latest", NPM_VERSION),
        bin={name: _inside(table, f"bin.{name}", path) for name, path in table.mapping("bin", NAME).items()},
    )


def _file(table: _Table, here: Path) -> RecipeFile:
    path = _absolute(table, "path")
    content, source = table.text("content", ""), table.text("source", "")
    if content and source:
        raise table.error("content", "and source cannot both be given")
    data = content.encode()
    if source:
        try:
            with open(here / source, "rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as exc:
            raise table.error("source", f"{here / source} cannot be read: {exc.strerror}") from exc
        if len(data) > MAX_FILE_BYTES:
            raise table.error("source", f"{here / source} has more than {MAX_FILE_BYTES} bytes")
    mode = int(table.text("mode", "0644", MODE), 8)
    return RecipeFile(path=path, content=data, mode=mode, owner=table.text("owner", "root", USER))


def _user(table: _Table) -> User:
    name = table.text("name", None, USER)
    uid = table.number("uid", 1000, 65533)
    home = _absolute(table, "home", f"/home/{name}")
    return User(
        name=name, uid=uid, home=home, shell=_absolute(table, "shell", "/bin/bash"), sudo=table.flag("sudo", False)
    )


def _absolute(table: _Table, key: str, default: str | None = None) -> str:
    path = table.text(key, default)
    if not path.startswith("/") or path.endswith("/") or {"..", "."} & set(path.split("/")) or ":" in path:
        raise table.error(key, f"{path!r} is no absolute path in the guest")
    return path


def _inside(table: _Table, key: str, path: str) -> str:
    if path.startswith("/") or not path or ".." in path.split("/"):
        raise table.error(key, f"{path!r} is no path inside the package")
    return path


class _Table:
    """One table of a recipe: each key is asked for with its type, and `done` refuses what nobody asked for."""

    def __init__(self, source: str, where: str, values: Mapping[str, Any]) -> None:
        self._source, self._where, self._values = source, where, values
        self._asked: set[str] = set()

    def error(self, key: str, problem: str) -> RecipeError:
        return RecipeError(f"{self._source}: {self._where}{key}: {problem}")

    def text(self, key: str, default: str | None, pattern: re.Pattern[str] | None = None) -> str:
        value = self._value(key, default, str)
        if key in self._values:
            self._check(key, value, pattern)
        return str(value)

    def number(self, key: str, least: int, most: int) -> int:
        value = self._value(key, None, int)
        if not least <= value <= most:
            raise self.error(key, f"{value} is not from {least} to {most}")
        return int(value)

    def flag(self, key: str, default: bool) -> bool:
        return bool(self._value(key, default, bool))

    def texts(self, key: str, pattern: re.Pattern[str] | None = None) -> tuple[str, ...]:
        values = self._value(key, [], list)
        for value in values:
            if not isinstance(value, str):
                raise self.error(key, f"{value!r} is not a text")
            self._check(key, value, pattern)
        return tuple(values)

    def mapping(self, key: str, pattern: re.Pattern[str]) -> dict[str, str]:
        values = self._value(key, {}, dict)
        for name, value in values.items():
            if not isinstance(value, str):
                raise self.error(f"{key}.{name}", f"{value!r} is not a text")
            self._check(key, name, pattern)
        return dict(values)

    def tables(self, key: str, make: Callable[[_Table], Any]) -> tuple[Any, ...]:
        found = []
        for number, value in enumerate(self._value(key, [], list)):
            if not isinstance(value, dict):
                raise self.error(key, "is not a list of tables ([[…]])")
            inner = _Table(self._source, f"{self._where}{key}[{number}].", value)
            found.append(make(inner))
            inner.done()
        return tuple(found)

    def done(self) -> None:
        if unknown := sorted(set(self._values) - self._asked):
            raise self.error(unknown[0], f"is not a key that vm0 knows here ({', '.join(sorted(self._asked))})")

    def _value(self, key: str, default: Any, kind: type) -> Any:
        self._asked.add(key)
        if key not in self._values:
            if default is None:
                raise self.error(key, "is missing")
            return default
        value = self._values[key]
        if type(value) is not kind:  # a bool is an int
            raise self.error(key, f"{value!r} is not {KINDS[kind]}")
        return value

    def _check(self, key: str, value: str, pattern: re.Pattern[str] | None) -> None:
        if not value or "\0" in value or (pattern is not None and not pattern.fullmatch(value)):
            raise self.error(key, f"{value!r} is not allowed" + (f" ({pattern.pattern})" if pattern else ""))


KINDS = {str: "a text", int: "a whole number", bool: "true or false", list: "a list", dict: "a table"}
