"""Names of images and their layers: digests of what they are made from, so that equal inputs are made once. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from vm0.guest_init.init_script import SCRIPT
from vm0.image.architectures import architecture as table_row
from vm0.image.initramfs import init_script
from vm0.image.recipe import Recipe

FORMAT = 2  # of what a build makes from its inputs; a change makes everything anew
KEY = re.compile(r"[0-9a-f]{24}")


def digest_of(value: Any) -> str:
    """The key for JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def image_key(recipe: Recipe, architecture: str, build: str) -> str:
    """`build` is that of the guest code in it. Raises ImageError for an architecture that is not in the table."""
    return digest_of(
        {
            "format": FORMAT,
            "recipe": recipe.normalized(),
            "architecture": table_row(architecture).debian,
            "build": build,
            "scripts": hashlib.sha256(f"{SCRIPT}\0{init_script()}".encode()).hexdigest(),
        }
    )
