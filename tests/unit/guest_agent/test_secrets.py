"""No secret leaves the guest, wherever the agent puts it and in whatever form; found by searching every byte sent."""

from __future__ import annotations

import json

import pytest

from tests.support.fake_api import FakeApi
from tests.unit.guest_agent.sandbox import GuestSandbox, init, lines, result
from vm0.guest_common.masking import variants

SECRET = 'p@ss w/rd+"quoted"-é'
PEM = "-----BEGIN KEY-----\nMIIBOgIBAAJBAKj34GkxFhD9\nVbxiuC0AmcCHSv1C3ly1\n-----END KEY-----"
SHORT_IN_LONG = ("token-1234", "token-1234-and-the-rest")
ALL = (SECRET, PEM, *SHORT_IN_LONG)


def assert_clean(text: str) -> None:
    for secret in ALL:
        for form in variants(secret):
            assert form not in text, f"{form!r} escaped"
    assert "and-the-rest" not in text


CLI = """
import base64, json, os, sys, time, urllib.parse
secret, pem, long = os.environ["SECRET"], os.environ["PEM"], os.environ["LONG"]
def say(**event):
    print(json.dumps(event), flush=True)
for value in (secret, pem, long):
    say(type="assistant", text=value, other=["x" + value + "y", {value: value}])
    say(type=value, subtype=value)
    raw = value.encode()
    for before in (b"", b"u:", b"user:"):
        say(type="assistant", text=base64.b64encode(before + raw + b"tail").decode())
        say(type="assistant", text=base64.urlsafe_b64encode(before + raw + b"tail").decode())
    say(type="assistant", text=urllib.parse.quote(value, safe="-_.!~*'()"))
    say(type="assistant", text=urllib.parse.quote(value, safe="").lower() if value == secret else "")
    say(type="assistant", text=json.dumps({"inner": value}))
    for line in value.splitlines():
        say(type="user", text="> " + line)
    print("".join(f'"\\\\u{ord(c):04x}"'[1:-1] for c in value), file=sys.stderr)
    print("not json:", value, flush=True)
    print("failed with", value, file=sys.stderr, flush=True)
    time.sleep(0.1)
print('{"type":"assistant","text":"' + "".join(f"\\\\u{ord(c):04x}" for c in secret) + '"}', flush=True)
print(json.dumps({"type": "result", "subtype": "success", "is_error": False, "result": "it is " + secret}))
"""


def test_no_secret_of_claude_leaves(sandbox: GuestSandbox, api: FakeApi) -> None:
    sandbox.claude(lines(init()) + CLI)
    environment = {"SECRET": SECRET, "PEM": PEM, "LONG": SHORT_IN_LONG[1]}
    done = sandbox.run(f"use {SECRET}", environment=environment, secretValues=[*ALL, "abc"])
    assert done.code == 0, done
    assert len(api.events) > 30 and any("***" in json.dumps(e) for e in api.events.values())
    assert_clean(api.all_bytes().decode())
    for request in api.received:
        assert_clean(json.dumps(json.loads(request.body), ensure_ascii=False) if request.method == "POST" else "")
    assert_clean((sandbox.runtime / "system.log").read_text())
    assert done.stdout == "it is ***\n"
    assert_clean(done.stderr)
    assert "1 secret value(s) are shorter than 5 bytes" in api.system_log()


@pytest.mark.parametrize("code", [0, 3])
def test_no_secret_of_a_command_leaves(sandbox: GuestSandbox, api: FakeApi, code: int) -> None:
    script = f"""
    echo "$SECRET"; echo "$PEM"; echo "$LONG" >&2; printf '%s' "$SECRET" | base64; printf 'u:%s' "$LONG" | base64 -w0
    printf '%s' "$SECRET" | head -c 7; sleep 0.1; printf '%s\\n' "$SECRET" | tail -c +8
    echo "last words: $SECRET" >&2; exit {code}
    """
    environment = {"SECRET": SECRET, "PEM": PEM, "LONG": SHORT_IN_LONG[1]}
    done = sandbox.run(script, "command", environment=environment, secretValues=list(ALL))
    assert done.code == code, done
    assert_clean(api.all_bytes().decode())
    assert_clean(json.dumps(done.outcome, ensure_ascii=False) + json.dumps(done.outcome))
    assert_clean(done.stderr + done.stdout)


def test_secrets_in_files_that_others_wrote_are_masked_at_the_boundary(sandbox: GuestSandbox, api: FakeApi) -> None:
    """guest-download, or anybody in the sandbox, writes into the run's files; records of no contract are left out."""
    sandbox.runtime.mkdir(mode=0o700)
    (sandbox.runtime / "system.log").write_text(f"[x] [INFO] [sandbox:download] got {SECRET}\n" * 3)
    good = {"ts": "2026-03-01T12:00:00.000Z", "action_type": "x", "duration_ms": 1, "success": False, "error": SECRET}
    bad = [{**good, "duration_ms": -1}, {**good, "ts": SECRET}, {"a": 1}, [], 7]
    text = "\n".join(json.dumps(record) for record in [good, *bad, good]) + "\nnot json\n"
    (sandbox.runtime / "sandbox-ops.jsonl").write_text(text)
    network = {"timestamp": "t", "host": "h", "url": f"https://h/?k={SECRET}", SECRET: 1}
    (sandbox.runtime / "network.jsonl").write_text(json.dumps(network) + '\n{"host": "no timestamp"}\n')
    done = sandbox.run("true", "command", secretValues=list(ALL))
    assert done.code == 0, done
    assert_clean(api.all_bytes().decode())
    uploads = [request.json for request in api.requests("/telemetry")]
    operations = [r for upload in uploads for r in upload.get("sandboxOperations", [])]
    assert [r["error"] for r in operations if r["action_type"] == "x"] == ["***", "***"]
    assert [r for upload in uploads for r in upload.get("networkLogs", [])] == [
        {"timestamp": "t", "host": "h", "url": "https://h/?k=***", "***": 1}
    ]
    assert "a record of sandbox-ops.jsonl is left out" in api.system_log()


def test_a_secret_split_between_two_uploads_is_masked(sandbox: GuestSandbox, api: FakeApi) -> None:
    """Written in two halves of a multi-line text, with an upload between them."""
    sandbox.timings["telemetry_interval_s"] = 0.05
    log = sandbox.runtime / "system.log"
    script = f"""
    printf 'first half-line one of it\\n' >> {log}; sleep 0.5; printf 'second\\n' >> {log}; sleep 0.3
    """
    done = sandbox.run(script, "command", secretValues=["half-line one of it\nsecond"])
    assert done.code == 0, done
    assert len(api.requests("/telemetry")) >= 2
    text = api.system_log()
    assert "first ***\n" in text and "second" not in text and "one of it" not in text


def test_without_a_masker_nothing_leaves(sandbox: GuestSandbox, api: FakeApi) -> None:
    done = sandbox.run(f"echo {SECRET}", "command", secretValues=[7])
    assert (done.code, done.outcome["reason"]) == (1, "payload_invalid")
    assert api.received == []


def test_secrets_that_are_words_of_the_protocol_do_not_break_it(sandbox: GuestSandbox, api: FakeApi) -> None:
    sandbox.claude(lines(init(), {"type": "assistant", "message": "the assistant said success"}, result("success")))
    done = sandbox.run("work", secretValues=["assistant", "success", "result", "duration_ms", "sequenceNumber"])
    assert done.code == 0, done
    assert [e["type"] for _, e in sorted(api.events.items())] == ["system", "assistant", "result"]
    assert api.events[1]["message"] == "the *** said ***"
    assert done.stdout == "***\n"
