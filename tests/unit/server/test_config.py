"""Settings from the environment."""

from __future__ import annotations

import pathlib

import pytest

from vm0.server.config import ServerConfig
from vm0.server.errors import ServerError


def test_the_environment_fills_settings_and_the_caller_wins() -> None:
    env = {"VM0_SERVER_STATE_DIR": "~/x", "VM0_SERVER_LEASE_TTL_S": "5", "VM0_SERVER_READER_THREADS": "2"}
    config = ServerConfig.from_env(env, lease_ttl_s=7, object_url_ttl_s=None)
    assert config.state_dir == pathlib.Path("~/x").expanduser()
    assert (config.lease_ttl_s, config.reader_threads, config.object_url_ttl_s) == (7, 2, 3600)


@pytest.mark.parametrize(
    ("env", "match"),
    [
        ({"VM0_SERVER_LEASE_TTL_S": "soon"}, "VM0_SERVER_LEASE_TTL_S must be a number, not 'soon'"),
        ({"VM0_SERVER_READER_THREADS": "1.5"}, "VM0_SERVER_READER_THREADS"),
        ({"VM0_SERVER_READER_THREADS": "0"}, "reader_threads must be greater than 0"),
        ({"VM0_SERVER_LEASE_TTL_S": "-1"}, "lease_ttl_s must be greater than 0"),
        ({"VM0_SERVER_LEASE_TTL_S": "nan"}, "lease_ttl_s"),
    ],
)
def test_a_bad_setting_is_named(env: dict[str, str], match: str) -> None:
    with pytest.raises(ServerError, match=match):
        ServerConfig.from_env(env)


def test_the_state_directory_is_absolute(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ServerConfig.from_env({}, state_dir=pathlib.Path("here")).state_dir == tmp_path / "here"
