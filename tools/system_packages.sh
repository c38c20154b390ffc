#!/usr/bin/env bash
# Install the Debian packages that tests and benchmarks use, and say why each is wanted.
#
# Does nothing, quickly, when all are there. Without root, or on another distribution, it only names what is missing:
# the tests that need it then skip (with CI=true they fail, see tests/support/capabilities.py).
set -euo pipefail

# package | why
WANTED="
e2fsprogs|mkfs.ext4 for overlay disks
iproute2|ip: network namespaces and taps
mount|loop mounts of overlay disks
nftables|nft: the firewall of each sandbox
openssh-server|sshd, the peer that the transfer benchmark compares with
"

missing=()
while IFS='|' read -r package why; do
    [[ -n "$package" ]] || continue
    if [[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)" != installed ]]; then
        missing+=("$package")
        echo "system packages: $package is missing ($why)" >&2
    fi
done <<<"$WANTED"

((${#missing[@]})) || exit 0

if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "system packages: not installed, this needs root on Debian: ${missing[*]}" >&2
    exit 0
fi

echo "system packages: installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
# Packages that bring a service must not start it here: tests start their own, on their own ports.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
    trap 'rm -f "$policy"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
