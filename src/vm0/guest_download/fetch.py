"""Fetch one archive into its folder: stream it into the extractor, and decide what is worth another attempt.

There is no temporary file: the extractor unpacks into a private folder inside the target and moves nothing out before
the archive's checksum was right, so a failed attempt leaves the target as it was and the next one starts clean.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from vm0.archive.errors import ArchiveError, SourceError
from vm0.archive.extract import Report, extract
from vm0.archive.members import ByteSource, Limits
from vm0.archive.tree import Owner
from vm0.guest_common.http import ApiClient, ApiError, HttpError
from vm0.guest_common.log import Log, describe
from vm0.guest_download.plan import Item, shown_url

RETRY_DELAYS_S = (1.0, 3.0)  # three attempts; a short outage of an object store lasts seconds
ATTEMPT_LIMIT_S = 900.0  # of one attempt; the client ends one that stands still much earlier
FOLDER_MODE = 0o755


class FetchError(Exception):
    """an item could not be fetched"""


class Fetcher:
    """Fetches items; safe to use from several threads, for items that do not overlap.

    `pause(seconds)` waits between attempts.
    """

    def __init__(
        self,
        client: ApiClient | None,
        log: Log,
        *,
        owner: Owner | None = None,
        limits: Limits | None = None,
        retry_delays_s: tuple[float, ...] = RETRY_DELAYS_S,
        attempt_limit_s: float = ATTEMPT_LIMIT_S,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._client, self._log, self._owner, self._limits = client, log, owner, limits
        self._retry_delays_s, self._attempt_limit_s, self._pause = retry_delays_s, attempt_limit_s, pause

    def make_folder(self, item: Item) -> None:
        """Make the item's folder; what is made belongs to the owner, what was there is left alone.

        :raises OSError: it cannot be made, or something else has the name.
        """
        missing = []
        path = item.mount_path
        while not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path)
        for folder in reversed(missing):
            try:
                os.mkdir(folder, FOLDER_MODE)
            except FileExistsError:
                raise NotADirectoryError(20, "is in the way and not a folder", folder) from None
            os.chmod(folder, FOLDER_MODE)
            if self._owner is not None:
                os.chown(folder, *self._owner)

    def fill(self, item: Item) -> None:
        """Fetch and unpack, with retries. :raises FetchError: it did not work, and the log says why."""
        if item.url is None:
            self._log.info(f"{item.mount_path}: nothing to fetch")
            return
        where = shown_url(item.url)
        attempts = len(self._retry_delays_s) + 1
        for attempt in range(1, attempts + 1):
            try:
                self._log_report(item, where, *self._attempt(item))
                return
            except HttpError as exc:
                if exc.status == 404 and item.may_be_missing:
                    self._log.info(f"{item.mount_path}: nothing is stored yet at {where}")
                    return
                error, retriable = describe(exc), exc.retriable
            except ApiError as exc:
                error, retriable = describe(exc), exc.retriable
            except SourceError as exc:
                error, retriable = describe(exc), True
            except (ArchiveError, OSError, ValueError) as exc:  # the same bytes on the same disk: the same error
                error, retriable = describe(exc), False
            if not retriable or attempt == attempts:
                raise FetchError(f"{item.mount_path}: {error} ({where}, attempt {attempt} of {attempts})")
            delay_s = self._retry_delays_s[attempt - 1]
            self._log.warn(f"{item.mount_path}: {error} ({where}); attempt {attempt + 1} in {delay_s:g} s")
            self._pause(delay_s)

    def _attempt(self, item: Item) -> tuple[Report, float]:
        if self._client is None or item.url is None:
            raise ValueError("there is no API to fetch it from: VM0_API_URL is not set")
        started_s = time.monotonic()
        with self._client.get_stream(item.url) as body:
            source = _Deadline(body, started_s + self._attempt_limit_s)
            report = extract(source, item.mount_path, self._limits, self._owner)
        return report, time.monotonic() - started_s

    def _log_report(self, item: Item, where: str, report: Report, took_s: float) -> None:
        for skipped in report.skipped:
            self._log.warn(f"{item.mount_path}: left out {skipped.name!r}: {skipped.reason}")
        if report.skipped_count > len(report.skipped):
            self._log.warn(f"{item.mount_path}: left out {report.skipped_count - len(report.skipped)} more")
        self._log.info(
            f"{item.mount_path}: {report.files} files, {report.links} links, {report.bytes} bytes "
            f"from {where} in {took_s:.2f} s"
        )


class _Deadline:
    """A body that trickles in keeps every single read short; this bounds all of them together."""

    def __init__(self, source: ByteSource, deadline_s: float) -> None:
        self._source, self._deadline_s = source, deadline_s

    def read(self, size: int) -> bytes:
        if time.monotonic() > self._deadline_s:
            raise TimeoutError("it took too long")
        return self._source.read(size)
