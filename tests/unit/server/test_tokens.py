"""Tokens, keys and signed addresses."""

from __future__ import annotations

import os
import pathlib
import stat
import threading

import pytest

from tests.contract.plane import TurnedClock
from vm0.server.errors import ApiError, ServerError
from vm0.server.objects import ObjectStore, UrlSigner
from vm0.server.tokens import (
    MasterKey,
    RunnerPrincipal,
    SandboxPrincipal,
    TokenKind,
    TokenStore,
    UserPrincipal,
    create_token,
    private_dir,
)


@pytest.fixture
def state_dir(tmp_path: pathlib.Path) -> pathlib.Path:
    return private_dir(tmp_path / "state")


def store(state_dir: pathlib.Path, clock: TurnedClock | None = None) -> TokenStore:
    return TokenStore(state_dir, MasterKey(state_dir), clock or TurnedClock())


def test_a_token_made_before_or_after_the_store_opened_is_known(state_dir: pathlib.Path) -> None:
    before = create_token(state_dir, "user", "alice")
    tokens = store(state_dir)
    after = create_token(state_dir, "runner")
    assert tokens.authenticate(before) == UserPrincipal("alice")
    assert tokens.authenticate(after) == RunnerPrincipal()
    assert tokens.cached(before) == UserPrincipal("alice")


def test_only_the_hash_is_kept_and_only_for_us(state_dir: pathlib.Path) -> None:
    token = create_token(state_dir, "user")
    assert token.startswith("vm0_user_")
    (path,) = (state_dir / "tokens").iterdir()
    assert token not in path.read_text() and token not in path.name
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("user_id", ["", "../x", "a/b", "_uploads", ".x", "é", "a" * 65, "a\n"])
def test_a_user_id_must_be_a_name(state_dir: pathlib.Path, user_id: str) -> None:
    with pytest.raises(ServerError, match="user id"):
        create_token(state_dir, "user", user_id)


def test_there_are_two_kinds(state_dir: pathlib.Path) -> None:
    kind: TokenKind = "admin"  # type: ignore[assignment]
    with pytest.raises(ServerError, match="no token kind 'admin'"):
        create_token(state_dir, kind)


def test_a_token_whose_file_is_gone_is_refused_after_a_while(
    state_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vm0.server.tokens.CACHE_S", 0.0)
    tokens, token = store(state_dir), create_token(state_dir, "user")
    assert tokens.authenticate(token) is not None
    for path in (state_dir / "tokens").iterdir():
        path.unlink()
    assert tokens.authenticate(token) is None


def test_a_sandbox_token_says_which_attempt_until_it_expires(state_dir: pathlib.Path) -> None:
    clock = TurnedClock()
    tokens = store(state_dir, clock)
    token = tokens.mint_sandbox("alice", "run", 3, clock.now_ms(), 60)
    assert tokens.authenticate(token) == SandboxPrincipal("alice", "run", 3)
    assert store(state_dir, clock).authenticate(token) is not None, "the key is the same after a restart"
    clock.advance(61)
    assert tokens.authenticate(token) is None


def test_repeating_a_claim_repeats_the_token(state_dir: pathlib.Path) -> None:
    tokens = store(state_dir)
    assert tokens.mint_sandbox("a", "r", 1, 5000, 60) == tokens.mint_sandbox("a", "r", 1, 5000, 60)
    assert tokens.mint_sandbox("a", "r", 1, 5000, 60) != tokens.mint_sandbox("a", "r", 2, 5000, 60)


def test_two_starts_at_once_make_one_master_key(state_dir: pathlib.Path) -> None:
    keys: list[bytes] = []
    barrier = threading.Barrier(8)

    def make() -> None:
        barrier.wait()
        keys.append(MasterKey(state_dir).derive("x"))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 8 and len(set(keys)) == 1
    assert MasterKey(state_dir).derive("x") != MasterKey(state_dir).derive("y")
    assert [path.name for path in state_dir.iterdir()] == ["master.key"]


def test_hkdf_is_the_rfc_s(state_dir: pathlib.Path) -> None:
    """RFC 5869, test case 3: empty salt; with an empty label the first 32 bytes are known."""
    (state_dir / "master.key").write_text(("0b" * 22).ljust(64, "0"))
    key = MasterKey(state_dir)
    key._key = bytes.fromhex("0b" * 22)
    assert key.derive("").hex() == "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"


@pytest.mark.parametrize("content", ["", "nonsense", "ab" * 31])
def test_a_damaged_master_key_is_not_replaced(state_dir: pathlib.Path, content: str) -> None:
    (state_dir / "master.key").write_text(content)
    with pytest.raises(ServerError, match="64 hexadecimal digits"):
        MasterKey(state_dir)
    assert (state_dir / "master.key").read_text() == content


def test_an_address_is_good_for_one_method_key_size_and_time() -> None:
    clock = TurnedClock()
    signer = UrlSigner(b"k" * 32, clock, 60)
    url = signer.sign("PUT", "a/b", 10)
    assert url.startswith("/api/objects/a/b?")
    query = dict(part.split("=") for part in url.split("?")[1].split("&"))
    assert signer.check("PUT", "a/b", query) == 10
    for method, key, changes in (
        ("GET", "a/b", {}),
        ("PUT", "a/c", {}),
        ("PUT", "a/b", {"max": "11"}),
        ("PUT", "a/b", {"max": "+10"}),
        ("PUT", "a/b", {"expires": "9" * 30}),
        ("PUT", "a/b", {"signature": query["signature"].upper()}),
    ):
        with pytest.raises(ApiError):
            signer.check(method, key, query | changes)
    with pytest.raises(ApiError):
        UrlSigner(b"K" * 32, clock, 60).check("PUT", "a/b", query)
    clock.advance(61)
    with pytest.raises(ApiError, match="expired"):
        signer.check("PUT", "a/b", query)


@pytest.mark.parametrize(
    "key", ["..", "../a", "a/..", "a/../../b", "/a", "a/", "", ".", "a/.b", "a\0", "a b", "a" * 2000]
)
def test_a_key_cannot_lead_out_of_the_store(tmp_path: pathlib.Path, key: str) -> None:
    with pytest.raises(ApiError, match="key:"):
        ObjectStore(tmp_path / "objects").path(key)


def test_what_broken_uploads_left_is_removed_at_the_next_start(tmp_path: pathlib.Path) -> None:
    objects = ObjectStore(tmp_path / "objects")
    broken = objects.start("a/broken")
    broken.write(b"x")
    for name, age_s in (("old", 25 * 3600), ("new", 0)):
        upload = objects.start(f"_uploads/u/{name}")
        upload.write(b"x")
        upload.finish()
        path = objects.path(f"_uploads/u/{name}")
        os.utime(path, (path.stat().st_mtime - age_s,) * 2)
    kept = objects.start("a/kept")
    kept.finish()
    os.close(broken.descriptor)
    assert ObjectStore(tmp_path / "objects").remove_stale() == 2
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        "objects/_uploads/u/new",
        "objects/a/kept",
    ]
