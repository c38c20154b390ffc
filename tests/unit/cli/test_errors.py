"""The one error handler: what is said, which code, and what a bug report holds."""

from __future__ import annotations

import pathlib
import subprocess

import pytest

from tests.unit.cli.conftest import COMMAND, Cli
from vm0.cli.errors import CliError, Interrupted, UsageError, as_cli_error, guarded, without_secrets
from vm0.server.errors import ServerError


def _raising(exc: BaseException):
    def command() -> int:
        raise exc

    return command


@pytest.mark.parametrize(
    ("exc", "argv", "code"),
    [
        (CliError("no", hint="try"), ["runs"], 1),
        (CliError("no"), ["run"], 125),
        (CliError("no", exit_code=7), ["run"], 7),
        (UsageError("no"), ["run"], 2),
        (ServerError("no", hint="try"), ["server"], 1),
        (PermissionError(13, "Permission denied", "/x"), ["runs"], 1),
        (OSError(28, "No space left on device"), ["run"], 125),
        (Interrupted(), ["run"], 130),
        (KeyboardInterrupt(), ["runs"], 130),
        (ExceptionGroup("two", [CliError("a"), CliError("b")]), ["runs"], 1),
        (ZeroDivisionError("oops"), ["run"], 3),
        (ExceptionGroup("two", [CliError("a"), KeyError("b")]), ["runs"], 3),
    ],
)
def test_exit_codes(exc: BaseException, argv: list[str], code: int, tmp_path: pathlib.Path) -> None:
    assert guarded(_raising(exc), argv, lambda: tmp_path) == code


def test_an_error_is_two_lines_on_stderr(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    guarded(_raising(CliError("the thing is broken", hint="mend it")), ["runs"], lambda: tmp_path)
    assert capsys.readouterr() == ("", "error: the thing is broken\nhint: mend it\n")
    assert list(tmp_path.iterdir()) == []


def test_a_bug_writes_a_report_without_secrets(capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    argv = [
        "run",
        "--secret",
        "KEY=hunter2hunter2",
        "--env=B=topsecret",
        "--token",
        "vm0_user_abc",
        "do hunter2hunter2",
    ]
    guarded(_raising(ZeroDivisionError("with vm0_runner_Zx-9_y inside")), argv, lambda: tmp_path)
    said = capsys.readouterr().err
    (report,) = (tmp_path / "crashes").iterdir()
    text = report.read_text()
    assert str(report) in said
    assert report.stat().st_mode & 0o777 == 0o600
    assert "ZeroDivisionError" in text and "Traceback" in text and "Python 3." in text
    assert "vm0 run --secret KEY=*** --env=B=*** --token *** do ***" in text
    assert not [secret for secret in ("hunter2", "topsecret", "abc", "Zx-9") if secret in text]


def test_a_report_goes_elsewhere_when_the_state_directory_cannot_be_used(
    capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temp"))
    assert guarded(_raising(RuntimeError("x")), ["runs"], lambda: tmp_path / "file") == 3
    assert len(list((tmp_path / "temp").iterdir())) == 1


def test_names_without_values_stay_readable() -> None:
    shown, values = without_secrets(["run", "--env", "HOME", "--secret=KEY", "--", "x"])
    assert (shown, values) == (["run", "--env", "HOME", "--secret=KEY", "--", "x"], [])


def test_foreign_errors_are_known_by_their_hint() -> None:
    found = as_cli_error(ServerError("port taken", hint="choose another"))
    assert found is not None
    assert (str(found), found.hint) == ("port taken", "choose another")
    assert as_cli_error(ValueError("x")) is None


def test_a_reader_that_goes_away_is_no_error(cli: Cli) -> None:
    """As in `vm0 runs ls --help | head -1`, with a pipe that is closed before we write."""
    with subprocess.Popen(
        [*COMMAND, "run", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=cli.environment()
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read()
        code = process.wait(30)
    assert said == b""
    assert code == 141


def test_a_state_directory_that_is_a_file(cli: Cli) -> None:
    (cli.home / "state").write_text("")
    found = cli("token", "create", "--kind", "user")
    assert found.returncode == 1
    assert found.stderr.startswith(b"error: ")
    assert b"hint: " in found.stderr
