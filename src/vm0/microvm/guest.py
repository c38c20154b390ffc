"""What a guest looks like from inside: the same in every VM, so that one snapshot serves all of them.

What tells two VMs apart on the host is the network namespace around each; what tells them apart inside (host name,
machine id, clock, entropy, token) is set after a restore.
"""

from __future__ import annotations

GUEST_ADDRESS = "192.168.241.2"
GATEWAY = "192.168.241.1"  # the host's end of the tap: bridge and resolver are reached through it
GUEST_PREFIX = 29
GUEST_MAC = "02:00:00:00:00:01"
TAP_MAC = "02:00:00:00:00:02"
TAP_NAME = "vm0-tap"
HOSTNAME = "vm0"
API_HOST = "api.vm0.internal"  # GATEWAY, by the guest's /etc/hosts
API_URL = f"http://{API_HOST}"
BRIDGE_PORT = 7080  # where the host listens for what a guest sends to API_URL

GUEST_USER = "user"  # of commands that name none
GUEST_PYTHON = "/usr/bin/python3"
BUNDLE_PATH = "/usr/lib/vm0/guest.pyz"
INIT_PATH = "/usr/lib/vm0/init"
BUILD_PATH = "/usr/lib/vm0/build"  # the build of the bundle, as text

SERIAL_PORT = "vm0"  # name of the virtio-serial port
VSOCK_HOST_CID = 2
VSOCK_GUEST_CID = 3
VSOCK_PORT = 1000
