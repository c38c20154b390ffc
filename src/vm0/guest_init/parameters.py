"""What the host tells this boot: the `vm0.` part of the kernel's command line. Pure."""

from __future__ import annotations

PREFIX = "vm0."
MAX_TOKEN = 64  # bytes; what the *ready* message can carry
MAX_NAME = 64  # of a host, __NEW_UTS_LEN
DEFAULT_LINK = "serial:vm0"
DEFAULT_HOSTNAME = "vm0"
NAME_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-.")
KNOWN = frozenset({"link", "token", "ip", "gw", "dns", "hostname", "overlay"})


class ParameterError(ValueError):
    """a kernel parameter that makes no sense"""


class Parameters:
    """Absent: `address`, `gateway`, `nameserver`, `overlay` are "", `token` is empty. `unknown` are the names of `vm0.`
    parameters that this init does not know. `resets` says that the machine ends by a reset, not by power off."""

    __slots__ = (
        "address",
        "gateway",
        "hostname",
        "link",
        "nameserver",
        "overlay",
        "prefix",
        "resets",
        "token",
        "unknown",
    )

    def __init__(self) -> None:
        self.link = DEFAULT_LINK
        self.token = b""
        self.address, self.prefix = "", 0
        self.gateway = self.nameserver = self.overlay = ""
        self.hostname = DEFAULT_HOSTNAME
        self.resets = False
        self.unknown: tuple[str, ...] = ()


def parse(command_line: str) -> Parameters:
    """Of a parameter that is there twice, the last counts. Raises ParameterError with the parameter's name."""
    found: dict[str, str] = {}
    parameters = Parameters()
    for word in command_line.split():
        name, _, value = word.partition("=")
        if name.startswith(PREFIX):
            found[name[len(PREFIX) :]] = value
        elif word == "reboot=k":  # Firecracker's machines have no power to switch off
            parameters.resets = True
    parameters.unknown = tuple(sorted(name for name in found if name not in KNOWN and name != "probe"))
    parameters.link = found.get("link") or DEFAULT_LINK
    parameters.token = _token(found.get("token", ""))
    if found.get("ip"):
        parameters.address, parameters.prefix = _network(found["ip"])
    parameters.gateway = _address("gw", found.get("gw", ""))
    parameters.nameserver = _address("dns", found.get("dns", ""))
    if parameters.gateway and not parameters.address:
        raise ParameterError("vm0.gw without vm0.ip")
    parameters.hostname = _hostname(found.get("hostname") or DEFAULT_HOSTNAME)
    parameters.overlay = found.get("overlay", "")
    if parameters.overlay and not parameters.overlay.startswith("/dev/"):
        raise ParameterError(f"vm0.overlay={parameters.overlay}: not a device below /dev")
    return parameters


def _token(text: str) -> bytes:
    try:
        token = bytes.fromhex(text)
    except ValueError:
        raise ParameterError("vm0.token: not hexadecimal") from None
    if len(token) > MAX_TOKEN:
        raise ParameterError(f"vm0.token: {len(token)} bytes, at most {MAX_TOKEN}")
    return token


def _network(text: str) -> tuple[str, int]:
    address, _, prefix = text.partition("/")
    if not (prefix.isascii() and prefix.isdigit() and 1 <= int(prefix) <= 32):
        raise ParameterError(f"vm0.ip={text}: not ADDRESS/PREFIX")
    return _address("ip", address), int(prefix)


def _address(name: str, text: str) -> str:
    numbers = text.split(".")
    if text and not (len(numbers) == 4 and all(n.isascii() and n.isdigit() and int(n) < 256 for n in numbers)):
        raise ParameterError(f"vm0.{name}={text}: not an IPv4 address")
    return text


def _hostname(text: str) -> str:
    if len(text) > MAX_NAME or not NAME_CHARACTERS.issuperset(text) or text.startswith("-"):
        raise ParameterError(f"vm0.hostname={text}: not a host name")
    return text
