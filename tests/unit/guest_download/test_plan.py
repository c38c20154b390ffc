"""Which item may start when, and what of an address may be shown."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vm0.contracts import codec
from vm0.contracts.manifest import StorageManifest
from vm0.guest_download.plan import Item, ItemKind, next_ready, overlap, plan_items, shown_url
from vm0.guest_download.schedule import WORKERS, run_all


def item(path: str) -> Item:
    return Item(kind=ItemKind.STORAGE, mount_path=path, url=None)


def test_a_manifest_becomes_items_parents_first() -> None:
    text = """{"storages": [{"mountPath": "/a/b/c", "archiveUrl": "/x"}, {"mountPath": "/z", "archiveUrl": null},
                            {"mountPath": "/a", "archiveUrl": "null", "unknown": 1}, {"mountPath": "/a"}],
               "artifact": {"mountPath": "/a/b", "archiveUrl": "/y", "vasStorageName": "n", "vasVersionId": "v"},
               "memory": {"mountPath": "/m/m", "archiveUrl": ""}}"""
    found = plan_items(codec.loads(StorageManifest, text))
    assert [(entry.mount_path, entry.kind.value, entry.url) for entry in found] == [
        ("/z", "storage", None),
        ("/a", "storage", None),
        ("/a", "storage", None),
        ("/a/b", "artifact", "/y"),
        ("/m/m", "memory", None),
        ("/a/b/c", "storage", "/x"),
    ]
    assert [entry.operation for entry in found[2:5]] == ["storage_download", "artifact_download", "artifact_download"]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [("/a", "/a", True), ("/a", "/a/b", True), ("/a", "/ab", False), ("/a/b", "/a/c", False), ("/a/b/c", "/a", True)],
)
def test_overlap(one: str, other: str, expected: bool) -> None:
    assert overlap(item(one), item(other)) is overlap(item(other), item(one)) is expected


def test_next_ready_passes_over_what_must_wait() -> None:
    a, b, c, ab = item("/a"), item("/b"), item("/c"), item("/a/b")
    assert next_ready([ab, b], [a]) is b
    assert next_ready([a, ab, b], [b]) is a
    assert next_ready([a, ab], [ab]) is None  # an item before `ab` that overlaps it was not there when it started
    assert next_ready([item("/a/b/c"), ab], [a]) is None
    assert next_ready([], [c]) is None


PATHS = st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map(lambda parts: "/" + "/".join(parts))


@given(paths=st.lists(PATHS, max_size=12))
def test_nothing_overlapping_runs_at_once_and_parents_go_first(paths: list[str]) -> None:
    items = sorted((item(path) for path in paths), key=lambda entry: entry.mount_path.count("/"))
    lock = threading.Lock()
    running: list[Item] = []
    order: list[Item] = []

    def work(entry: Item) -> None:
        with lock:
            assert len(running) < WORKERS
            assert not any(overlap(entry, other) for other in running)
            running.append(entry)
            order.append(entry)
        with lock:
            running.remove(entry)

    run_all(items, work)
    assert sorted(map(id, order)) == sorted(map(id, items))
    place = {id(entry): index for index, entry in enumerate(order)}
    for index, entry in enumerate(items):
        assert all(place[id(entry)] < place[id(later)] for later in items[index + 1 :] if overlap(entry, later))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("/api/objects/a@b/archive.tar.gz?expires=1&signature=x", "/api/objects/a@b/archive.tar.gz"),
        ("https://s3.example/b/k?X-Amz-Signature=x#f", "https://s3.example/b/k"),
        ("https://user:password@s3.example/b?x", "https://s3.example/b"),
        ("https://s3.example?x=1", "https://s3.example"),
    ],
)
def test_a_shown_address_has_no_secret(url: str, shown: str) -> None:
    assert shown_url(url) == shown
