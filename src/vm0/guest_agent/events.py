"""The queue between the CLI's output and the API: numbered events in order, bounded in memory and on disk.

`put` never waits: what does not fit into memory goes to unnamed files in the run's directory, in segments that are
given back as soon as they are read. Beyond the limit of those, or of one run's events in all (an agent that floods
must not fill the control plane either), the queue has overflowed for good: a reader shows no event behind a gap, so all
that follow are dropped. Their numbers are used up and `dropped` counts them.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque

MEMORY_EVENTS = 10_000
MEMORY_BYTES = 16 * 1024 * 1024  # with the batch that is being sent
SPILL_BYTES = 256 * 1024 * 1024
RUN_EVENTS = 2_000_000
RUN_BYTES = 512 * 1024 * 1024
SEGMENT_BYTES = 8 * 1024 * 1024
BATCH_EVENTS = 500  # the contract's limit for one POST
BATCH_BYTES = 1024 * 1024
_LENGTH_BYTES = 4


class Segment:
    """A part of the overflow: a file without a name, written at its end and read from its start."""

    def __init__(self, directory: str) -> None:
        path = os.path.join(directory, f".events-{os.getpid()}-{id(self):x}")
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.unlink(path)  # nothing stays behind, however this process ends
        self._written = 0
        self._read = 0

    @property
    def full(self) -> bool:
        return self._written >= SEGMENT_BYTES

    @property
    def empty(self) -> bool:
        return self._read >= self._written

    def append(self, event: bytes) -> None:
        """Raises OSError, after which the segment is as before."""
        record = len(event).to_bytes(_LENGTH_BYTES, "big") + event
        done = 0
        while done < len(record):
            done += os.pwrite(self._fd, record[done:], self._written + done)
        self._written += len(record)

    def pop(self) -> bytes:
        size = int.from_bytes(os.pread(self._fd, _LENGTH_BYTES, self._read), "big")
        event = os.pread(self._fd, size, self._read + _LENGTH_BYTES)
        self._read += _LENGTH_BYTES + size
        return event

    def close(self) -> None:
        os.close(self._fd)


class EventQueue:
    """Any number of threads put, one takes. With `keep=False` events are counted and forgotten (no API)."""

    def __init__(
        self,
        directory: str,
        *,
        keep: bool = True,
        memory_events: int = MEMORY_EVENTS,
        memory_bytes: int = MEMORY_BYTES,
        spill_bytes: int = SPILL_BYTES,
        run_events: int = RUN_EVENTS,
        run_bytes: int = RUN_BYTES,
    ) -> None:
        self._directory = directory
        self._keep = keep
        self._memory_events, self._memory_bytes, self._spill_bytes = memory_events, memory_bytes, spill_bytes
        self._run_events, self._bytes_left = run_events, run_bytes
        self._changed = threading.Condition()
        self._memory: deque[bytes] = deque()
        self._held_bytes = 0  # in memory, the batch in flight included
        self._segments: deque[Segment] = deque()
        self._spilled_bytes = 0
        self._spilled_events = 0
        self._in_flight: list[bytes] = []
        self._closed = False
        self.event_count = 0  # numbers given out so far
        self.dropped = 0

    def put(self, event_json: str) -> bool:
        """Number and keep a JSON object with at least one key; False if it had to be dropped."""
        with self._changed:
            data = encoded(f'{event_json[:-1]},"sequenceNumber":{self.event_count}}}')
            self.event_count += 1
            if not self._keep:
                return True
            if not self._takes(data) or not (self._put_memory(data) or self._put_spill(data)):
                self.dropped += 1
                return False
            self._bytes_left -= len(data)
            self._changed.notify_all()
            return True

    def drop(self, count: int) -> None:
        """Use up numbers for events that the caller does not even make, because the queue has overflowed."""
        with self._changed:
            self.event_count += count
            if self._keep:
                self.dropped += count

    def take(self, timeout_s: float, linger_s: float = 0.0) -> list[bytes]:
        """The next batch, after waiting for its first event up to `timeout_s` and a little for more.

        Empty when nothing came. The batch stays in the queue's count until `settle`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._memory or self._closed, timeout_s)
            if self._memory and linger_s and len(self._memory) < BATCH_EVENTS:
                end = time.monotonic() + linger_s
                self._changed.wait_for(
                    lambda: self._closed or len(self._memory) >= BATCH_EVENTS, end - time.monotonic()
                )
            size = 0
            while self._memory and len(self._in_flight) < BATCH_EVENTS:
                size += len(self._memory[0])
                if self._in_flight and size > BATCH_BYTES:
                    break
                self._in_flight.append(self._memory.popleft())
            return list(self._in_flight)

    def settle(self) -> None:
        """The batch of the last `take` is delivered or given up."""
        with self._changed:
            self._held_bytes -= sum(map(len, self._in_flight))
            self._in_flight = []
            self._refill()
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing more comes: `take` no longer waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def overflowed(self) -> bool:
        return self.dropped > 0

    @property
    def finished(self) -> bool:
        """Closed, and everything taken and settled."""
        with self._changed:
            return self._closed and self.pending == 0

    @property
    def pending(self) -> int:
        """Events that are neither settled nor dropped."""
        return len(self._memory) + self._spilled_events + len(self._in_flight)

    def discard(self) -> int:
        """Forget what is pending and free the files; how many events that were."""
        with self._changed:
            self._closed = True
            lost = self.pending
            self._memory.clear()
            self._in_flight = []
            self._spilled_events = self._spilled_bytes = self._held_bytes = 0
            while self._segments:
                self._segments.popleft().close()
            self._changed.notify_all()
            return lost

    def _takes(self, data: bytes) -> bool:
        within = self.event_count <= self._run_events and len(data) <= self._bytes_left
        return within and not self._closed and not self.dropped

    def _put_memory(self, data: bytes) -> bool:
        if self._segments or not self._fits(len(data)):
            return False  # behind what is on disk, to keep the order
        self._memory.append(data)
        self._held_bytes += len(data)
        return True

    def _fits(self, size: int) -> bool:
        count = len(self._memory) + len(self._in_flight)
        return count == 0 or (count < self._memory_events and self._held_bytes + size <= self._memory_bytes)

    def _put_spill(self, data: bytes) -> bool:
        if self._spilled_bytes + len(data) > self._spill_bytes:
            return False
        try:
            if not self._segments or self._segments[-1].full:
                self._segments.append(Segment(self._directory))
            self._segments[-1].append(data)
        except OSError:  # the disk is full
            return False
        self._spilled_bytes += len(data)
        self._spilled_events += 1
        return True

    def _refill(self) -> None:
        while self._segments:
            segment = self._segments[0]
            if segment.empty:
                self._segments.popleft().close()
                continue
            if self._held_bytes >= self._memory_bytes // 2 or len(self._memory) >= self._memory_events // 2:
                return
            data = segment.pop()
            self._spilled_bytes -= len(data)
            self._spilled_events -= 1
            self._memory.append(data)
            self._held_bytes += len(data)


def encoded(text: str) -> bytes:
    """UTF-8; a lone surrogate, which has none, becomes its JSON escape."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return "".join(f"\\u{ord(c):04x}" if "\ud800" <= c <= "\udfff" else c for c in text).encode()
