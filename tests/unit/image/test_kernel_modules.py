"""The order of modules, from data as depmod writes them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vm0.image.errors import ImageError
from vm0.image.kernel_modules import Module, ModuleIndex, load_order, module_name, parse_index

DEP = """\
kernel/drivers/net/virtio_net.ko.xz: kernel/drivers/net/net_failover.ko.xz kernel/net/core/failover.ko.xz
kernel/drivers/net/net_failover.ko.xz: kernel/net/core/failover.ko.xz
kernel/net/core/failover.ko.xz:
kernel/drivers/char/hw_random/virtio-rng.ko.xz:
kernel/arch/x86/crypto/crc32c-intel.ko.xz:
kernel/crypto/crc32c_generic.ko.xz:
kernel/lib/libcrc32c.ko.xz:
kernel/fs/thing.ko.xz: kernel/lib/libcrc32c.ko.xz
"""
SOFTDEP = """\
# Soft dependencies extracted from modules themselves.
softdep libcrc32c pre: crc32c
softdep cifs gcm
softdep virtio_net post: virtio_rng
"""
ALIAS = """\
# Aliases extracted from modules themselves.
alias crc32c crc32c_intel
alias crc32c crc32c_generic
alias crypto-crc32c crc32c_generic
alias virtio:d00000001v* virtio_net
"""
BUILTIN = "kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio/virtio-pci.ko\n"


@pytest.fixture
def index() -> ModuleIndex:
    return parse_index(dep=DEP, softdep=SOFTDEP, alias=ALIAS, builtin=BUILTIN)


def names(found: list[Module]) -> list[str]:
    return [module.name for module in found]


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz", ".zst"])
def test_names_have_underscores(suffix: str) -> None:
    assert module_name(f"kernel/drivers/char/hw_random/virtio-rng.ko{suffix}") == "virtio_rng"


def test_each_comes_after_what_it_needs(index: ModuleIndex) -> None:
    found = load_order(index, ["virtio_net"], [])
    assert names(found) == ["failover", "net_failover", "virtio_net"]
    assert found[0].file == "kernel/net/core/failover.ko.xz"
    assert all(module.needed for module in found)


def test_what_is_built_in_is_not_loaded(index: ModuleIndex) -> None:
    assert load_order(index, ["ext4", "virtio_pci"], []) == []


def test_hyphens_and_underscores_are_the_same(index: ModuleIndex) -> None:
    assert load_order(index, ["virtio-rng"], []) == load_order(index, ["virtio_rng"], [])


def test_a_soft_dependency_comes_before_and_is_not_needed(index: ModuleIndex) -> None:
    found = load_order(index, ["thing"], [])
    assert names(found) == ["crc32c_intel", "crc32c_generic", "libcrc32c", "thing"]
    assert [module.needed for module in found] == [False, False, True, True]


def test_what_would_come_after_is_not_loaded(index: ModuleIndex) -> None:
    assert "virtio_rng" not in names(load_order(index, ["virtio_net"], []))


def test_an_alias_stands_for_all_that_have_it(index: ModuleIndex) -> None:
    assert names(load_order(index, [], ["crc32c"])) == ["crc32c_intel", "crc32c_generic"]


def test_a_wanted_one_that_is_needed_too_is_needed(index: ModuleIndex) -> None:
    optional = load_order(index, [], ["virtio_net", "virtio_rng"])
    assert not any(module.needed for module in optional)
    both = load_order(index, ["virtio_net"], ["virtio_net", "net_failover"])
    assert [module.needed for module in both] == [True, True, True]


def test_a_needed_one_that_is_missing_is_named(index: ModuleIndex) -> None:
    with pytest.raises(ImageError, match="no module virtio_blk") as caught:
        load_order(index, ["virtio_blk"], [])
    assert caught.value.hint
    assert load_order(index, [], ["virtio_blk"]) == []


def test_a_circle_of_soft_dependencies_ends() -> None:
    index = parse_index(dep="a.ko:\nb.ko:\n", softdep="softdep a pre: b\nsoftdep b pre: a\n")
    assert sorted(names(load_order(index, ["a"], []))) == ["a", "b"]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20), st.lists(st.integers(0, 9)))
def test_any_graph_is_put_in_order(edges: list[tuple[int, int]], wanted: list[int]) -> None:
    """Edges go from the larger number to the smaller, so there is no circle; depmod lists needs transitively."""
    needs: dict[int, set[int]] = {number: set() for number in range(10)}
    for number in range(10):
        for one, other in edges:
            if max(one, other) == number and one != other:
                needs[number] |= {min(one, other)} | needs[min(one, other)]
    dep = "".join(
        f"m{number}.ko: {' '.join(f'm{need}.ko' for need in sorted(needs[number], reverse=True))}\n" for number in needs
    )
    found = names(load_order(parse_index(dep=dep), [f"m{number}" for number in wanted], []))
    assert set(found) == {f"m{number}" for one in wanted for number in {one} | needs[one]}
    assert len(found) == len(set(found))
    for earlier, later in itertools.combinations([int(name[1:]) for name in found], 2):
        assert later not in needs[earlier]
