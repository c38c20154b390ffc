"""Settings: the order of their sources, and that a wrong one is named at the start."""

from __future__ import annotations

import pathlib

import pytest

from vm0.runner.config import SETTINGS, ConfigError, RunnerConfig, Secret, env_name
from vm0.runner.errors import RunnerError
from vm0.runner.failpoints import NAMES

NEEDED = {"VM0_SERVER_URL": "http://127.0.0.1:1", "VM0_RUNNER_TOKEN": "vm0_runner_x"}


def test_flags_win_over_environment_over_file(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "runner.toml"
    file.write_text('name = "file"\ngroup = "file/file"\nmax_concurrent = 3\n[limits]\nstart_s = 7\n')
    env = {**NEEDED, "VM0_RUNNER_NAME": "env", "VM0_RUNNER_GROUP": "env/env", "VM0_RUNNER_LIMITS_CREATE_S": "8.5"}
    config = RunnerConfig.load(file=file, env=env, flags={"name": "flag", "backend": None})
    assert (config.name, config.group, config.max_concurrent) == ("flag", "env/env", 3)
    assert (config.limits.start_s, config.limits.create_s, config.backend) == (7.0, 8.5, "auto")


def test_defaults_of_the_caller_are_the_weakest(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "runner.toml"
    file.write_text(f'images_dir = "{tmp_path}/file"\n')
    defaults = {"images_dir": tmp_path / "home", "snapshots_dir": tmp_path / "home", "state_dir": tmp_path / "home"}
    env = {**NEEDED, "VM0_RUNNER_SNAPSHOTS_DIR": str(tmp_path / "env")}
    config = RunnerConfig.load(file=file, env=env, flags={"state_dir": tmp_path / "flag"}, defaults=defaults)
    found = (config.images_dir.name, config.snapshots_dir.name, config.state_dir.name)
    assert found == ("file", "env", "flag")


def test_images_and_snapshots_are_beside_the_runner() -> None:
    config = RunnerConfig.load(env=NEEDED)
    assert {config.images_dir.parent, config.snapshots_dir.parent} == {config.state_dir.parent}


@pytest.mark.parametrize(
    ("value", "meant"), [("on", True), ("OFF", False), ("1", True), ("false", False), (True, True), (False, False)]
)
def test_a_switch_has_words(value: object, meant: bool) -> None:
    assert RunnerConfig.load(env=NEEDED, flags={"snapshot": value}).snapshot is meant


def test_every_setting_has_one_variable() -> None:
    variables = [env_name(key) for key in SETTINGS]
    assert len(set(variables)) == len(variables)
    assert all(name.startswith("VM0_") for name in variables)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"server_url": "ftp://x"}, "server_url"),
        ({"server_url": "http://"}, "server_url"),
        ({"server_url": "http://x:99999"}, "server_url"),
        ({"server_url": "http://[::1"}, "server_url"),
        ({"server_url": "http://user:pw@x"}, "server_url"),
        ({"server_url": "http://x/?q=1"}, "server_url"),
        ({"token": ""}, "token"),
        ({"token": "a\nb"}, "token"),
        ({"group": "Nope"}, "group"),
        ({"name": "a\x00b"}, "name"),
        ({"backend": "docker"}, "backend"),
        ({"accelerator": "xen"}, "accelerator"),
        ({"snapshot": "perhaps"}, "snapshot"),
        ({"snapshot": 2}, "snapshot"),
        ({"max_concurrent": -1}, "max_concurrent"),
        ({"max_concurrent": "two"}, "max_concurrent"),
        ({"max_concurrent": 1.5}, "max_concurrent"),
        ({"max_concurrent": True}, "max_concurrent"),
        ({"poll_wait_s": "nan"}, "poll_wait_s"),
        ({"poll_wait_s": 31}, "poll_wait_s"),
        ({"heartbeat_s": []}, "heartbeat_s"),
        ({"limits.start_s": 0}, "limits.start_s"),
        ({"limits.start_s": "inf"}, "limits.start_s"),
        ({"limits.nothing_s": 1}, "limits.nothing_s"),
        ({"nothing": 1}, "nothing"),
        ({"failpoints": "no.such=kill"}, "failpoints"),
        ({"failpoints": f"{NAMES[0]}=explode"}, "failpoints"),
        ({"failpoints": f"{NAMES[0]}=exit"}, "failpoints"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, object], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunnerConfig.load(env=NEEDED, flags=settings)
    assert caught.value.key == key
    assert str(caught.value).startswith(f"{key}: ")
    assert caught.value.hint


@pytest.mark.parametrize("missing", ["VM0_SERVER_URL", "VM0_RUNNER_TOKEN"])
def test_what_is_needed_is_named_with_its_variable(missing: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunnerConfig.load(env={name: value for name, value in NEEDED.items() if name != missing})
    assert missing in caught.value.hint


def test_a_misspelt_variable_is_not_ignored() -> None:
    with pytest.raises(ConfigError, match="VM0_RUNNER_MAX_CONCURENT"):
        RunnerConfig.load(env={**NEEDED, "VM0_RUNNER_MAX_CONCURENT": "2"})


@pytest.mark.parametrize("text", ["not toml", "x = ", b"\xff\xfe"])
def test_a_bad_file_is_named(tmp_path: pathlib.Path, text: str | bytes) -> None:
    file = tmp_path / "runner.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RunnerError, match=r"runner\.toml"):
        RunnerConfig.load(file=file, env=NEEDED)


def test_a_missing_file_is_an_error(tmp_path: pathlib.Path) -> None:
    with pytest.raises(RunnerError, match="No such file"):
        RunnerConfig.load(file=tmp_path / "absent.toml", env=NEEDED)


def test_the_token_never_shows() -> None:
    config = RunnerConfig.load(env=NEEDED)
    assert "vm0_runner_x" not in repr(config) and "vm0_runner_x" not in repr(config.token)
    assert config.token == Secret("vm0_runner_x")


def test_concurrency_follows_the_host() -> None:
    assert RunnerConfig.load(env=NEEDED).max_concurrent >= 1
