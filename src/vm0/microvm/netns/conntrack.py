"""Forgetting the connections of an address, in the network namespace of the calling thread.

Conntrack entries outlive links and routes: whoever has the address next would inherit its predecessor's connections.
"""

from __future__ import annotations

import errno
from typing import Any

from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import IPCTNL_MSG_CT_DELETE, NFCTAttrTuple, NFCTSocket, nfct_msg

# what kernels say that delete one entry at a time (Linux 6.1), or do not filter at all
_NO_FILTER = {errno.EINVAL, errno.EOPNOTSUPP}


def forget(address: str) -> None:
    """Delete every entry whose originator or first destination was the address. Idempotent."""
    with NFCTSocket() as socket:
        for side in ("saddr", "daddr"):
            try:
                _delete_matching(socket, NFCTAttrTuple(**{side: address}))
            except NetlinkError as exc:
                if exc.code not in _NO_FILTER:
                    raise
                _delete_each(socket, NFCTAttrTuple(**{side: address}))


def _delete_matching(socket: Any, pattern: Any) -> None:
    """One request, the kernel does the rest, however many they are."""
    attributes = {"attrs": pattern.attrs()}  # computes the flags
    message = nfct_msg.create_from(tuple_orig=attributes, filter={"attrs": [["CTA_FILTER_ORIG_FLAGS", pattern.flags]]})
    message["version"] = 1  # the family counts for a flush as well, ctnetlink_del_conntrack()
    socket.request(message, IPCTNL_MSG_CT_DELETE, msg_flags=NLM_F_REQUEST | NLM_F_ACK, terminate=lambda _: True)


def _delete_each(socket: Any, pattern: Any) -> None:
    """A list filtered by the kernel (Linux 5.8), then one request per entry; one that expires meanwhile is no error."""
    for found in list(socket.dump(tuple_orig=pattern)):
        attributes = {name: found.get_attr(f"CTA_{name.upper()}") for name in ("tuple_orig", "zone")}
        present = {
            name: {"attrs": value["attrs"]} if name == "tuple_orig" else value
            for name, value in attributes.items()
            if value is not None
        }
        try:
            socket.entry("del", **present)
        except NetlinkError as exc:
            if exc.code != errno.ENOENT:
                raise
