"""guest-agent with guest-mock-claude: a session, its history, and a run that resumes it."""

from __future__ import annotations

import json
import pathlib
import sys

import pytest

from tests.support.fake_api import FakeApi
from tests.unit.guest_agent.sandbox import REPOSITORY, GuestSandbox

MOCK = (
    f"import sys; sys.path.insert(0, {str(REPOSITORY / 'src')!r}); "
    "from vm0.guest_mock_claude.main import main; sys.exit(main(sys.argv[1:]))"
)


@pytest.fixture
def mock(sandbox: GuestSandbox) -> GuestSandbox:
    sandbox.variables["VM0_MOCK_CLAUDE_COMMAND"] = json.dumps([sys.executable, "-I", "-S", "-c", MOCK])
    sandbox.mount("ARTIFACT", sandbox.workspace)
    return sandbox


def test_a_session_is_checkpointed_and_resumed(mock: GuestSandbox, api: FakeApi) -> None:
    done = mock.run("echo one > file; echo said", "mock-claude")
    assert done.code == 0, done
    assert "said" in done.stdout
    first = api.checkpoints[0]
    assert first.cli_agent_session_id and first.cli_agent_session_history_hash
    history = api.objects[f"blobs/{first.cli_agent_session_history_hash}.blob"]
    assert len(history.splitlines()) >= 1 and all(json.loads(line) for line in history.splitlines())
    types = [event["type"] for _, event in sorted(api.events.items())]
    assert types[0] == "system" and types[-1] == "result"

    mock.variables["VM0_RESUME_SESSION_ID"] = first.cli_agent_session_id
    api.events.clear()
    done = mock.run("echo two > file", "mock-claude", tools=["Read", "Bash"], disallowedTools=["WebFetch"])
    assert done.code == 0, done
    second = api.checkpoints[1]
    assert second.cli_agent_session_id == first.cli_agent_session_id
    longer = api.objects[f"blobs/{second.cli_agent_session_history_hash}.blob"]
    assert longer.startswith(history) and len(longer) > len(history)
    assert pathlib.Path(mock.workspace / "file").read_text() == "two\n"


@pytest.mark.parametrize("size", [10, 200_000])
def test_prompts_of_any_size(mock: GuestSandbox, api: FakeApi, size: int) -> None:
    done = mock.run("echo hello  #" + "x" * size, "mock-claude")
    assert done.code == 0 and "hello" in done.stdout, done


def test_a_failing_prompt(mock: GuestSandbox, api: FakeApi) -> None:
    done = mock.run("echo broken >&2; exit 5", "mock-claude")
    assert done.code != 0, done
    assert len(api.checkpoints) == 1


def test_resuming_what_is_not_there(mock: GuestSandbox, api: FakeApi) -> None:
    mock.variables["VM0_RESUME_SESSION_ID"] = "00000000-0000-0000-0000-000000000000"
    done = mock.run("echo x", "mock-claude")
    assert done.code == 1 and done.outcome["detail"], done
