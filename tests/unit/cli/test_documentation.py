"""The documentation names files that exist and options that the command has."""

from __future__ import annotations

import pathlib
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from vm0.cli.app import app

REPOSITORY = pathlib.Path(__file__).parents[3]
PAGES = sorted([REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
ROOT = typer.main.get_command(app)


def shell_commands(text: str) -> Iterator[list[str]]:
    """The words of every `vm0` command in the `sh` blocks of a page."""
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and words[-1].startswith("&"):
                words.pop()
            if words and words[0].rpartition("/")[2] == "vm0":
                yield words[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: pathlib.Path) -> None:
    text = page.read_text()
    broken = []
    for link in LINK.findall(text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        if "://" in link or (target.exists() and (not anchor or anchor in anchors(target))):
            continue
        broken.append(link)
    assert broken == []


def anchors(page: pathlib.Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_commands_have_the_options_shown(page: pathlib.Path) -> None:
    for words in shell_commands(page.read_text()):
        command: Any = ROOT
        while getattr(command, "commands", None) and words and not words[0].startswith("-"):
            assert words[0] in command.commands, words
            command = command.commands[words.pop(0)]
        known = {name for parameter in command.params for name in parameter.opts} | {"--help", "--version"}
        used = {word for word in words if word.startswith("--")}
        assert used <= known, f"{words}: no option {used - known}"


def test_the_pages_show_commands() -> None:
    """So that the test above has something to look at."""
    assert sum(1 for page in PAGES for _ in shell_commands(page.read_text())) > 15
