"""What a command does about a machine or a store that is not ready, without making it so."""

from __future__ import annotations

import dataclasses
import io
import pathlib
from collections.abc import Mapping

import pytest

from tests.unit.cli.test_setup_plan import ALL, facts
from vm0.cli import vm_preparation
from vm0.cli.errors import CliError
from vm0.cli.local_sandboxes import Wanted, free_state_dir, local_config
from vm0.cli.setup_plan import Install, MachineFacts, Purpose
from vm0.cli.steps import LineSteps
from vm0.cli.vm_preparation import asked, prepare_backend, prepare_packages
from vm0.image import BuildOptions
from vm0.runner.errors import StateDirectoryInUse
from vm0.runner.state_directory import StateDirectory


@dataclasses.dataclass
class Machine:
    """What the commands find, and what they install."""

    facts: MachineFacts = dataclasses.field(default_factory=facts)
    installed: list[str] = dataclasses.field(default_factory=list)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()
    monkeypatch.setattr(vm_preparation, "machine_facts", lambda: found.facts)
    monkeypatch.setattr(vm_preparation, "install", lambda action, _: found.installed.extend(action.packages))
    return found


def yes(packages: Mapping[str, str]) -> bool:
    return True


def no(packages: Mapping[str, str]) -> bool:
    return False


def test_packages_are_named_before_anybody_is_asked(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.facts = facts(present=ALL - {"nft", "mmdebstrap"})
    seen: list[str] = []

    def consent(packages: Mapping[str, str]) -> bool:
        seen.append(capsys.readouterr().err)
        return True

    prepare_packages((Purpose.RUN, Purpose.BUILD), LineSteps(), consent=consent, offline=False)
    assert "missing: nftables, the firewall" in seen[0] and "missing: mmdebstrap" in seen[0]
    assert machine.installed == ["nftables", "mmdebstrap"]


def test_without_consent_nothing_is_installed(machine: Machine) -> None:
    machine.facts = facts(present=ALL - {"nft"})
    with pytest.raises(CliError, match="1 more packages: nftables") as caught:
        prepare_packages((Purpose.RUN,), LineSteps(), consent=no, offline=False)
    assert machine.installed == []
    assert "vm0 setup" in caught.value.hint and "--backend process" in caught.value.hint


@pytest.mark.parametrize("changes", [{"root": False}, {"has_tun": False}, {"system": "Darwin"}])
def test_the_way_out_is_named_and_not_taken(
    machine: Machine, changes: dict[str, object], tmp_path: pathlib.Path
) -> None:
    machine.facts = facts(**changes)
    with pytest.raises(CliError) as caught:
        prepare_backend(tmp_path, Wanted(), LineSteps(), consent=yes, build=BuildOptions())
    assert "--backend process" in caught.value.hint and "isolates nothing" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_offline_installs_nothing_whatever_is_agreed(machine: Machine) -> None:
    machine.facts = facts(present=ALL - {"nft"})
    with pytest.raises(CliError, match="lacks nft"):
        prepare_packages((Purpose.RUN,), LineSteps(), consent=yes, offline=True)
    assert machine.installed == []


def test_no_terminal_is_a_no(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert not asked(Install({"nftables": "x"}).packages)


def test_a_free_state_directory_is_one_that_nobody_holds(tmp_path: pathlib.Path) -> None:
    with free_state_dir(tmp_path) as first, free_state_dir(tmp_path) as second:
        assert (first.name, second.name) == ("local-0", "local-1")
        with pytest.raises(StateDirectoryInUse), StateDirectory(first).owned():
            raise AssertionError("it is ours")
    with free_state_dir(tmp_path) as again:
        assert again == first


def test_images_and_snapshots_belong_to_the_home(tmp_path: pathlib.Path) -> None:
    config = local_config(tmp_path, tmp_path / "runner" / "local-0", Wanted(backend="qemu", image="x"), group="a/b")
    assert (config.images_dir, config.snapshots_dir) == (tmp_path / "images", tmp_path / "snapshots")
    assert (config.backend, config.image, config.group, config.max_concurrent) == ("qemu", "x", "a/b", 1)
