"""What of the caller's environment a build sees: where programs are and how to reach the network. Nothing else, so that
the caller's settings are not in the image."""

from __future__ import annotations

import os
from collections.abc import Mapping

PASSED = (
    "HOME",
    "PATH",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NODE_EXTRA_CA_CERTS",
)
PASSED_PREFIXES = ("npm_config_", "NPM_CONFIG_")  # where its packages come from
FIXED = {
    "LC_ALL": "C.UTF-8",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
    "PYTHONHASHSEED": "0",
    "DEBIAN_FRONTEND": "noninteractive",
}
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


def build_environment(variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """For the programs of a build. The system's folders end PATH: a user's may lack those with the programs of root."""
    found = dict(os.environ) if variables is None else dict(variables)
    kept = {name: value for name, value in found.items() if name in PASSED or name.startswith(PASSED_PREFIXES)}
    path = ":".join(filter(None, (kept.get("PATH", ""), SYSTEM_PATH)))
    return {**kept, "PATH": path, **FIXED}
