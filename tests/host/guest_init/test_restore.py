"""A guest that becomes another one after its snapshot: all for real but the clock, which this machine shares."""

from __future__ import annotations

from typing import Any

import pytest

from tests.host.guest_init.machine import Ended, run_machine

pytestmark = pytest.mark.host

COMMON = """
command_line("vm0.ip=192.168.241.2/29 vm0.gw=192.168.241.1 vm0.dns=192.168.241.1 vm0.hostname=golden")

class Quiet:
    def say(self, text):
        pass

os.makedirs("/run/zones")
main.boot(Quiet())
calls = []
time.clock_settime_ns = lambda clock, value: calls.append(["clock", clock, value])
fed = power.add_entropy

def add_entropy(entropy):
    fed(entropy)
    calls.append(["entropy", len(entropy)])

power.add_entropy = add_entropy

def become_another(token):
    calls.append(["token", token.hex()])

def restore(**fields):
    empty = dict(realtime_ns=1, entropy=bytes(256), token=b"", timezone="", hostname="", machine_id="", address="",
                 gateway="", nameserver="")
    begun = time.perf_counter()
    power.restore(Restore(**empty | fields), become_another)
    return (time.perf_counter() - begun) * 1000

def read(path):
    with open(path) as file:
        return file.read()

def state():
    (eth0,) = json.loads(run("ip", "-j", "address", "show", "dev", "eth0"))
    return {
        "hostname": os.uname().nodename,
        "files": {name: read(f"/etc/{name}") for name in ("hostname", "hosts", "resolv.conf", "machine-id")},
        "zone": [os.readlink("/etc/localtime"), read("/etc/timezone")] if os.path.exists("/etc/timezone") else [],
        "addresses": [a["local"] + "/" + str(a["prefixlen"]) for a in eth0["addr_info"] if a["family"] == "inet"],
        "routes": sorted([r["dst"], r.get("gateway", "")] for r in json.loads(run("ip", "-j", "route"))),
    }
"""


def life(script: str) -> Ended:
    ended = run_machine(COMMON + script)
    assert ended.code == 0 and ended.console == [], ended
    return ended


def test_everything_at_once_in_order_and_fast() -> None:
    (facts,) = life("""
zones = power.ZONES = "/tmp/zones"
os.makedirs("/tmp/zones/Europe")
open("/tmp/zones/Europe/Berlin", "w").close()
fields = dict(realtime_ns=5 * 10**18, token=bytes(range(32)), timezone="Europe/Berlin", hostname="clone-7",
              machine_id="0123456789abcdef" * 2, address="10.9.8.2/24", gateway="10.9.8.1", nameserver="10.9.8.3")
restore(**fields)
first = calls[:]
told(calls=first, ms=min(restore(**fields) for _ in range(5)), clock=time.CLOCK_REALTIME, **state())
""").facts
    assert facts["calls"] == [
        ["clock", facts["clock"], 5 * 10**18],
        ["entropy", 256],
        ["token", bytes(range(32)).hex()],
    ]
    assert (facts["hostname"], facts["files"]["hostname"]) == ("clone-7", "clone-7\n")
    assert "127.0.1.1\tclone-7 # vm0\n10.9.8.1\tapi.vm0.internal # vm0\n" in facts["files"]["hosts"]
    assert "golden" not in facts["files"]["hosts"]
    assert facts["files"]["resolv.conf"] == "nameserver 10.9.8.3\n"
    assert facts["files"]["machine-id"] == "0123456789abcdef" * 2 + "\n"
    assert facts["zone"] == ["/tmp/zones/Europe/Berlin", "Europe/Berlin\n"]
    assert facts["addresses"] == ["10.9.8.2/24"]
    assert facts["routes"] == [["10.9.8.0/24", ""], ["default", "10.9.8.1"]]
    assert facts["ms"] < 20, "a few ms on an idle machine"


def test_what_is_not_said_stays() -> None:
    (facts,) = life("""
before = state()
restore()
told(before=before, after=state(), calls=calls)
""").facts
    assert facts["before"] == facts["after"]
    assert [call[0] for call in facts["calls"]] == ["clock", "entropy", "token"]


def test_the_same_network_again_changes_nothing() -> None:
    """One snapshot serves all because every guest has the same address: no moment without it."""
    (facts,) = life("""
before = state()
restore(address="192.168.241.2/29", gateway="192.168.241.1", nameserver="192.168.241.1")
told(before=before, after=state())
""").facts
    assert facts["before"] == facts["after"]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"timezone": "Mars/Olympus"}, "time zone 'Mars/Olympus' is not known here"),
        ({"timezone": "../../../etc/passwd"}, "is not known here"),
        ({"timezone": "."}, "is not known here"),
        ({"address": "10.0.0.1"}, "'10.0.0.1' is not ADDRESS/PREFIX"),
        ({"address": "10.0.0/8"}, "illegal IP address"),
        ({"gateway": "10.77.0.1"}, "Network is unreachable"),
        ({"hostname": "x" * 65}, "Invalid argument"),
    ],
)
def test_what_cannot_be_is_an_error(fields: dict[str, Any], why: str) -> None:
    (facts,) = life(f"""
try:
    restore(**{fields!r})
    told(error="")
except (OSError, RequestError) as exc:
    told(error=str(exc))
""").facts
    assert why in facts["error"]


def test_entropy_is_taken_by_the_kernel() -> None:
    """And what is drawn after it differs, whatever was fed."""
    (facts,) = life("""
drawn = []
for _ in range(2):
    fed(bytes(256))
    drawn.append(os.urandom(32).hex())
told(drawn=drawn)
""").facts
    assert len(set(facts["drawn"])) == 2
