"""The rule sets as text: a change of what a VM may reach shows up here."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import pytest

from vm0.microvm.netns.policy import (
    DROP,
    Rules,
    host_rules,
    host_rules_removal,
    namespace_rules,
    obstacles,
)

GOLDEN = pathlib.Path(__file__).parent / "golden"


def as_text(rules: Rules) -> str:
    return "".join(f"{command_text(dict(command))}\n" for command in rules)


def command_text(command: dict[str, Any]) -> str:
    ((verb, what),) = command.items()
    ((kind, value),) = what.items()
    assert value["family"] == "inet"
    assert value.get("table", value.get("name")) == "vm0"
    match kind:
        case "table":
            return f"{verb} table"
        case "rule":
            return f"{verb} rule {value['chain']}: " + ", ".join(map(expression_text, value["expr"]))
        case "chain" if "hook" in value:
            hook = f"{value['type']} hook {value['hook']} priority {value['prio']} policy {value['policy']}"
            return f"{verb} chain {value['name']}: {hook}"
        case "chain":
            return f"{verb} chain {value['name']}"
        case "set":
            return f"{verb} set {value['name']}: {value['type']}"
        case "element":
            return f"{verb} element {value['name']}: {' '.join(value['elem'])}"
        case _:
            raise AssertionError(f"no text for {kind}")


def expression_text(expression: dict[str, Any]) -> str:
    ((kind, value),) = expression.items()
    match kind:
        case "match":
            return f"{left_text(value['left'])} {value['op']} {right_text(value['right'])}"
        case "dnat":
            return f"dnat {value['family']} {value['addr']}" + (f":{value['port']}" if "port" in value else "")
        case "jump":
            return f"jump {value['target']}"
        case "accept" | "drop" | "masquerade":
            assert value is None
            return str(kind)
        case _:
            raise AssertionError(f"no text for {kind}")


def left_text(left: dict[str, Any]) -> str:
    ((kind, value),) = left.items()
    match kind:
        case "meta" | "ct":
            return f"{kind} {value['key']}"
        case "payload":
            return f"{value['protocol']} {value['field']}"
        case "fib":
            return f"fib {'.'.join(value['flags'])} {value['result']}"
        case _:
            raise AssertionError(f"no text for {kind}")


def right_text(right: Any) -> str:
    match right:
        case {"prefix": {"addr": address, "len": length}}:
            return f"{address}/{length}"
        case list():
            return ",".join(right)
        case _:
            return str(right)


@pytest.mark.parametrize(
    ("file", "rules"),
    [
        ("namespace.txt", namespace_rules("10.200.0.1", "192.0.2.53")),
        ("namespace_without_resolver.txt", namespace_rules("10.200.0.1", None)),
        ("host.txt", host_rules("192.0.2.53")),
        ("host_removal.txt", host_rules_removal()),
    ],
)
def test_rules_as_text(file: str, rules: Rules) -> None:
    assert as_text(rules) == (GOLDEN / file).read_text()


def test_rules_are_json() -> None:
    for rules in (namespace_rules("10.200.0.1", "192.0.2.53"), host_rules(None), host_rules_removal()):
        assert json.loads(json.dumps(rules)) == list(rules)


def test_an_egress_policy_takes_the_place_of_the_open_one() -> None:
    open_text, closed_text = as_text(host_rules(None)), as_text(host_rules(None, egress=((DROP,),)))
    assert closed_text == open_text.replace("add rule egress: accept\n", "add rule egress: drop\n") != open_text


def test_obstacles_are_chains_of_others_that_drop_by_policy() -> None:
    def chain(family: str, table: str, name: str, **base: object) -> dict[str, object]:
        return {"chain": {"family": family, "table": table, "name": name, **base}}

    listing = {
        "nftables": [
            {"metainfo": {"version": "1.0.6"}},
            chain("ip", "filter", "FORWARD", hook="forward", policy="drop"),
            chain("ip", "filter", "DOCKER"),
            chain("ip", "filter", "OUTPUT", hook="output", policy="drop"),
            chain("ip6", "filter", "FORWARD", hook="forward", policy="drop"),
            chain("inet", "firewall", "incoming", hook="input", policy="drop"),
            chain("inet", "firewall", "passing", hook="forward", policy="accept"),
            chain("inet", "vm0", "forward", hook="forward", policy="drop"),
        ]
    }
    assert obstacles(listing) == ["ip filter FORWARD", "inet firewall incoming"]
    assert obstacles({}) == []
