"""nft transactions, in the network namespace of the calling thread."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from vm0.microvm.netns.errors import NamespaceError
from vm0.microvm.netns.policy import Rules

LIMIT_S = 20.0  # a transaction takes milliseconds, but waits for those of others


def load(rules: Rules) -> None:
    """All commands or none. Raises NamespaceError with what nft says."""
    _run("-f", "-", text=json.dumps({"nftables": list(rules)}))


def chains() -> dict[str, Any]:
    """Every chain of the namespace, as nft lists them."""
    listing: dict[str, Any] = json.loads(_run("list", "chains"))
    return listing


def _run(*arguments: str, text: str = "") -> str:
    try:
        done = subprocess.run(
            ["nft", "-j", *arguments], input=text, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except FileNotFoundError as exc:
        raise NamespaceError("nft is not installed", hint="install the package nftables") from exc
    except subprocess.TimeoutExpired as exc:
        raise NamespaceError(f"nft gave no answer in {LIMIT_S:.0f} s") from exc
    if done.returncode != 0:
        raise NamespaceError(f"nft refused: {done.stderr.strip() or done.stdout.strip() or done.returncode}")
    return done.stdout
