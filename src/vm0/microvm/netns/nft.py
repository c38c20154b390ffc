"""nft transactions, in the network namespace of the calling thread."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from errno import EPERM
from typing import Any

from vm0.microvm.netns.errors import HINTS, NamespaceError
from vm0.microvm.netns.policy import Rules

NEEDS = "the kernel needs nf_tables with nft_fib_inet, nft_nat, nft_masq and nft_ct"
FALLBACK = "/usr/sbin/nft"  # not in everybody's PATH
LIMIT_S = 20.0  # a transaction takes milliseconds, but waits for those of others


def load(rules: Rules) -> None:
    """All commands or none. Raises NamespaceError with what nft says."""
    _run("-f", "-", text=json.dumps({"nftables": list(rules)}))


def chains() -> dict[str, Any]:
    """Every chain of the namespace, as nft lists them."""
    listing: dict[str, Any] = json.loads(_run("list", "chains"))
    return listing


def _run(*arguments: str, text: str = "") -> str:
    command = shutil.which("nft") or FALLBACK
    try:
        done = subprocess.run(
            [command, "-j", *arguments], input=text, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except FileNotFoundError as exc:
        raise NamespaceError("nft is not installed", hint="install the package nftables") from exc
    except subprocess.TimeoutExpired as exc:
        raise NamespaceError(f"nft gave no answer in {LIMIT_S:.0f} s") from exc
    if done.returncode != 0:
        detail = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
        raise NamespaceError(f"nft refused: {detail}", hint=HINTS[EPERM] if os.strerror(EPERM) in detail else NEEDS)
    return done.stdout
