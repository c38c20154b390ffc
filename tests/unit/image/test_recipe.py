"""Recipes: what they may say, how one extends another, and errors that name the key."""

from __future__ import annotations

import pathlib
import re

import pytest

from vm0.image.errors import RecipeError
from vm0.image.recipe import MAX_FILE_BYTES, NpmPackage, Recipe, RecipeFile, User, load_recipe, parse_recipe
from vm0.image.recipe import shipped_recipes as shipped
from vm0.microvm.guest import GUEST_USER

WHOLE = """
suite = "trixie"
mirrors = ["deb [signed-by=/k] mirror://x trixie main"]
packages = ["git", "libc++1", "git"]
commands = ["echo hello > /etc/motd"]
warm = ["git --version"]

[[npm]]
package = "@scope/tool-linux-{cpu}"
version = "1.2.3-rc.1"
[npm.bin]
tool = "bin/tool"

[[npm]]
package = "plain"

[[users]]
name = "dev"
uid = 1001
home = "/srv/dev"
shell = "/bin/sh"
sudo = true

[[files]]
path = "/etc/tool.conf"
content = "a = 1\\n"
mode = "0600"
owner = "dev"
"""


def test_all_that_a_recipe_can_say() -> None:
    assert parse_recipe(WHOLE, name="mine") == Recipe(
        name="mine",
        suite="trixie",
        mirrors=("deb [signed-by=/k] mirror://x trixie main",),
        packages=("git", "libc++1"),
        npm=(
            NpmPackage(package="@scope/tool-linux-{cpu}", version="1.2.3-rc.1", bin={"tool": "bin/tool"}),
            NpmPackage(package="plain"),
        ),
        files=(RecipeFile(path="/etc/tool.conf", content=b"a = 1\n", mode=0o600, owner="dev"),),
        users=(User(name="dev", uid=1001, home="/srv/dev", shell="/bin/sh", sudo=True),),
        commands=("echo hello > /etc/motd",),
        warm=("git --version",),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("suite = ", "this is no TOML"),
        ("", "suite is missing"),
        ('suite = ""', "suite: '' is not allowed"),
        ('suite = "../x"', "suite: '../x' is not allowed"),
        ("suite = 13", "suite: 13 is not a text"),
        ('suit = "trixie"', "suit: is not a key that vm0 knows here"),
        ('packages = "git"', "packages: 'git' is not a list"),
        ("packages = [1]", "packages: 1 is not a text"),
        ('packages = ["git", "--force"]', "packages: '--force' is not allowed"),
        ('packages = ["a,b"]', "packages: 'a,b' is not allowed"),
        ('commands = [""]', "commands: '' is not allowed"),
        ('extends = "nothing"', "there is no recipe 'nothing'"),
        ('npm = ["x"]', "npm: is not a list of tables"),
        ("[[npm]]\nversion = '1'", "npm[0].package: is missing"),
        ("[[npm]]\npackage = 'A b'", "npm[0].package: 'A b' is not allowed"),
        ("[[npm]]\npackage = 'a'\nversion = '../x'", "npm[0].version: '../x' is not allowed"),
        ("[[npm]]\npackage = 'a'\nbin = 'x'", "npm[0].bin: 'x' is not a table"),
        ("[[npm]]\npackage = 'a'\nbin = {a = 1}", "npm[0].bin.a: 1 is not a text"),
        (
            "[[npm]]\npackage = 'a'\nbin = {a = '../../etc/passwd'}",
            "npm[0].bin.a: '../../etc/passwd' is no path inside",
        ),
        ("[[npm]]\npackage = 'a'\nbin = {'../a' = 'x'}", "npm[0].bin: '../a' is not allowed"),
        ("[[npm]]\npackage = 'a'\n[[npm]]\npackage = 'a'", "npm: a is there twice"),
        ("[[users]]\nname = 'root'\nuid = 0", "users[0].uid: 0 is not from 1000"),
        ("[[users]]\nname = 'a'\nuid = true", "users[0].uid: True is not a whole number"),
        ("[[users]]\nname = 'a b'\nuid = 1000", "users[0].name: 'a b' is not allowed"),
        ("[[users]]\nname = 'a'\nuid = 1000\nsudo = 1", "users[0].sudo: 1 is not true or false"),
        ("[[users]]\nname = 'a'\nuid = 1000\nhome = 'home'", "users[0].home: 'home' is no absolute path"),
        ("[[users]]\nname = 'a'\nuid = 1000\nhome = '/a:b'", "users[0].home: '/a:b' is no absolute path"),
        ("[[users]]\nname = 'a'\nuid = 1000\n[[users]]\nname = 'a'\nuid = 1001", "users: a is there twice"),
        ("[[users]]\nname = 'a'\nuid = 1000\n[[users]]\nname = 'b'\nuid = 1000", "uid of users: 1000 is there twice"),
        ("[[files]]\ncontent = 'x'", "files[0].path: is missing"),
        ("[[files]]\npath = 'etc/x'", "files[0].path: 'etc/x' is no absolute path"),
        ("[[files]]\npath = '/etc/../x'", "files[0].path: '/etc/../x' is no absolute path"),
        ("[[files]]\npath = '/etc/'", "files[0].path: '/etc/' is no absolute path"),
        ("[[files]]\npath = '/x'\nmode = 'rwx'", "files[0].mode: 'rwx' is not allowed"),
        ("[[files]]\npath = '/x'\nmode = 644", "files[0].mode: 644 is not a text"),
        ("[[files]]\npath = '/x'\nowner = 'nobody'", "/x: there is no user nobody"),
        ("[[files]]\npath = '/x'\nsource = 'missing'", "files[0].source: missing cannot be read"),
        ("[[files]]\npath = '/x'\nsource = 'a'\ncontent = 'b'", "files[0].content: and source cannot both be given"),
        ("[[files]]\npath = '/x'\n[[files]]\npath = '/x'", "files: /x is there twice"),
    ],
)
def test_an_error_names_the_key(text: str, said: str) -> None:
    suite = "" if "suit" in text or not text else 'suite = "trixie"\n'
    with pytest.raises(RecipeError) as caught:
        parse_recipe(suite + text, name="mine")
    assert said in str(caught.value)
    assert "mine" in str(caught.value) or "nothing" in str(caught.value)


def test_a_recipe_extends_another(tmp_path: pathlib.Path) -> None:
    (tmp_path / "one.toml").write_text('suite = "trixie"\npackages = ["git"]\nwarm = ["a"]\n')
    (tmp_path / "two.toml").write_text(
        'extends = "one.toml"\nsuite = "forky"\npackages = ["jq", "git"]\nwarm = ["b"]\n'
    )
    found = load_recipe(str(tmp_path / "two.toml"))
    assert (found.name, found.suite, found.packages, found.warm) == ("two", "forky", ("git", "jq"), ("a", "b"))


def test_a_circle_of_recipes_is_an_error(tmp_path: pathlib.Path) -> None:
    (tmp_path / "one.toml").write_text('extends = "two.toml"\n')
    (tmp_path / "two.toml").write_text('extends = "one.toml"\n')
    with pytest.raises(RecipeError, match="extend one another"):
        load_recipe(str(tmp_path / "one.toml"))


def test_files_are_beside_the_recipe(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x").write_bytes(b"\0\xff")
    (tmp_path / "mine.toml").write_text('suite = "trixie"\n[[files]]\npath = "/x"\nsource = "data/x"\n')
    monkeypatch.chdir("/")
    assert load_recipe(str(tmp_path / "mine.toml")).files[0].content == b"\0\xff"


def test_a_large_file_is_refused(tmp_path: pathlib.Path) -> None:
    with open(tmp_path / "large", "wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    text = 'suite = "trixie"\n[[files]]\npath = "/x"\nsource = "large"\n'
    with pytest.raises(RecipeError, match="more than"):
        parse_recipe(text, name="mine", here=tmp_path)


@pytest.mark.parametrize("name", ["missing.toml", "/nowhere/at/all.toml"])
def test_a_recipe_that_is_not_there(name: str) -> None:
    with pytest.raises(RecipeError, match="cannot be read") as caught:
        load_recipe(name)
    assert caught.value.hint


def test_the_shipped_ones() -> None:
    assert shipped() == ["base", "claude-code"]
    base, claude = load_recipe("base"), load_recipe("claude-code")
    assert [(user.name, user.uid, user.home, user.sudo) for user in base.users] == [
        (GUEST_USER, 1000, "/home/user", True)
    ]
    assert set(base.packages) >= {"python3", "git", "curl", "jq", "ripgrep", "ca-certificates", "sudo", "procps"}
    assert base.mirrors == ()  # whose it is, is the tool's own choice
    assert set(claude.packages) == set(base.packages) and claude.users == base.users
    assert claude.npm[0].bin == {"claude": "claude"}
    assert claude.warm == (*base.warm, "claude --version")


def test_the_example_of_the_guide(tmp_path: pathlib.Path) -> None:
    guide = pathlib.Path(__file__).parents[3] / "docs/how-to-images.md"
    (example,) = re.findall(r"```toml\n(.*?)```", guide.read_text(), re.DOTALL)
    (tmp_path / "team.sh").write_text("export EDITOR=vi\n")
    found = parse_recipe(example, name="mine", here=tmp_path)
    assert found.suite == "trixie" and found.npm[0].bin == {"biome": "biome"}
    for key in ("packages", "npm", "files", "users", "commands", "warm", "mirrors", "extends", "suite", "name"):
        assert f"`{key}`" in guide.read_text() or f"`[[{key}]]`" in guide.read_text()


def test_equal_recipes_have_equal_keys() -> None:
    one = parse_recipe('suite = "trixie"\npackages = ["git", "jq"]', name="mine")
    other = parse_recipe('packages = ["jq", "git", "jq"]\nsuite = "trixie"', name="mine")
    assert one.normalized() == other.normalized()
    for change in ('suite = "forky"', 'packages = ["git"]', 'warm = ["x"]', 'commands = ["x"]'):
        text = change if change.startswith("suite") else f'suite = "trixie"\n{change}'
        assert parse_recipe(text, name="mine").normalized() != one.normalized()


def test_the_contents_of_files_are_in_the_key_and_not_in_the_manifest() -> None:
    def normalized(content: str) -> dict[str, object]:
        text = f'suite = "trixie"\n[[files]]\npath = "/x"\ncontent = "{content}"\n'
        return parse_recipe(text, name="mine").normalized()

    assert normalized("secret a") != normalized("secret b")
    assert "secret" not in str(normalized("secret a"))
