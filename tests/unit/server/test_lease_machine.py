"""Any order of claims, renewals, reports and lost time, on a real database: the laws of the queue hold."""

from __future__ import annotations

import dataclasses
import uuid
from typing import Any

import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from sqlalchemy.pool import StaticPool

from vm0.contracts.runner import ClaimRequest, LeaseRequest, ReleaseRequest
from vm0.contracts.runs import Outcome, OutcomeKind, RunRequest, RunStatus
from vm0.contracts.webhooks import CheckpointRequest, CompleteRequest
from vm0.server import queue
from vm0.server.db import checkpoints, runs, schema
from vm0.server.domain.mounts import MountPlan
from vm0.server.errors import ApiError
from vm0.server.queue import Times

TTL_MS = 1000
RUNNERS = [(str(uuid.UUID(int=n)), str(uuid.UUID(int=boot))) for n in (1, 2) for boot in (1, 2)]


@dataclasses.dataclass(frozen=True)
class Held:
    """What a runner believes to have; it may be long out of date."""

    run_id: str
    runner_id: str
    boot_id: str
    epoch: int


class Queue(RuleBasedStateMachine):
    run_ids = Bundle("run_ids")
    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        engine = sa.create_engine("sqlite://", poolclass=StaticPool)
        schema.metadata.create_all(engine)
        self.connection = engine.connect()
        self.now_ms = 1_000_000
        self.owner: dict[tuple[str, int], tuple[str, str]] = {}
        self.ended: dict[str, tuple[RunStatus, Outcome | None]] = {}
        self.started: set[str] = set()
        self.attempts: dict[str, int] = {}

    def teardown(self) -> None:
        self.connection.close()
        self.connection.engine.dispose()

    @property
    def times(self) -> Times:
        return Times(self.now_ms, self.now_ms, TTL_MS)

    def state(self, run_id: str) -> Any:
        return queue.existing(self.connection, run_id).state

    def accepted(self, held: Held) -> None:
        """A write was accepted: it must have been the current holder's, of a run that was not over."""
        assert held.run_id not in self.ended, "a finished run was written to"
        assert self.attempts[held.run_id] == held.epoch, "an older attempt was written to"
        assert self.owner[held.run_id, held.epoch] == (held.runner_id, held.boot_id)

    @initialize(target=run_ids)
    def submit_one(self) -> str:
        return self.submit_with(3)

    @precondition(lambda self: len(self.attempts) < 3)  # few runs, so that much happens to each
    @rule(target=run_ids, attempts=st.integers(1, 3))
    def submit(self, attempts: int) -> str:
        return self.submit_with(attempts)

    def submit_with(self, attempts: int) -> str:
        run_id = str(uuid.uuid4())
        request = RunRequest(prompt="x", max_attempts=attempts, secrets={"S": "secret"})
        runs.insert(
            self.connection,
            run_id=run_id,
            user_id="u",
            request=request,
            mounts=MountPlan(),
            session=None,
            now_ms=self.now_ms,
        )
        self.attempts[run_id] = 0
        return run_id

    @rule(target=held, run_id=run_ids, who=st.sampled_from(RUNNERS))
    def claim(self, run_id: str, who: tuple[str, str]) -> Any:
        return self.claim_as(run_id, who)

    def claim_as(self, run_id: str, who: tuple[str, str]) -> Any:
        request = ClaimRequest(runner_id=who[0], boot_id=who[1])
        try:
            row = queue.claim(self.connection, run_id, request, self.times)
        except ApiError:
            return multiple()
        assert run_id not in self.ended
        assert run_id not in self.started or self.owner[run_id, row.epoch] == who, "a started run was given out again"
        assert self.owner.setdefault((run_id, row.epoch), who) == who, "one epoch has two owners"
        assert row.epoch - self.attempts[run_id] in (0, 1)
        self.attempts[run_id] = row.epoch
        return Held(run_id, *who, row.epoch)

    @rule(held=held, started=st.booleans(), forged=st.booleans())
    def renew(self, held: Held, started: bool, forged: bool) -> None:
        self.renew_as(held, started, forged)

    def renew_as(self, held: Held, started: bool, forged: bool) -> None:
        boot_id = str(uuid.UUID(int=99)) if forged else held.boot_id
        request = LeaseRequest(runner_id=held.runner_id, boot_id=boot_id, epoch=held.epoch, agent_started=started)
        try:
            queue.renew(self.connection, held.run_id, request, self.times)
        except ApiError:
            return
        assert not forged
        self.accepted(held)
        if started:
            self.started.add(held.run_id)

    @rule(held=held)
    def write(self, held: Held) -> None:
        """Events, telemetry, heartbeats: all behind the same fence."""
        try:
            queue.fenced(self.connection, held.run_id, "u", held.epoch)
        except ApiError:
            return
        self.accepted(held)

    @rule(held=held)
    def store_checkpoint(self, held: Held) -> None:
        try:
            row = queue.fenced(self.connection, held.run_id, "u", held.epoch)
        except ApiError:
            return
        request = CheckpointRequest(run_id=held.run_id, cli_agent_type="command")
        checkpoints.put(self.connection, row.num, request, self.now_ms)

    @rule(held=held)
    def release(self, held: Held) -> None:
        before = self.state(held.run_id)
        request = ReleaseRequest(runner_id=held.runner_id, epoch=held.epoch, reason="test")
        try:
            queue.release(self.connection, held.run_id, request, self.times)
        except ApiError:
            return
        if self.state(held.run_id) != before:
            self.accepted(held)
            self.started.discard(held.run_id)  # announced, and by its holder's word not done

    @rule(held=held, code=st.integers(0, 1), cancelled=st.booleans())
    def complete(self, held: Held, code: int, cancelled: bool) -> None:
        observed = (
            Outcome(kind=OutcomeKind.CANCELLED) if cancelled else Outcome(kind=OutcomeKind.EXITED, exit_code=code)
        )
        self.report(held, observed)

    def report(self, held: Held, observed: Outcome) -> None:
        request = CompleteRequest(run_id=held.run_id, outcome=observed)
        row = queue.existing(self.connection, held.run_id)
        try:
            status = queue.complete(self.connection, row, held.epoch, request, observed, self.times)
        except ApiError:
            assert not row.state.status.terminal
            return
        if row.state.status.terminal:
            assert status is row.state.status
            return
        self.accepted(held)
        if status is RunStatus.COMPLETED:
            assert observed.exit_code == 0 and checkpoints.find(self.connection, row.num) is not None

    @rule(run_id=run_ids)
    def cancel(self, run_id: str) -> None:
        queue.cancel(self.connection, queue.existing(self.connection, run_id), self.times)

    @rule(by_ms=st.sampled_from([1, TTL_MS // 2, TTL_MS + 1]))
    def time_passes(self, by_ms: int) -> None:
        self.now_ms += by_ms

    @rule(target=held, old=held, who=st.sampled_from(RUNNERS), started=st.booleans())
    def lose_and_claim_again(self, old: Held, who: tuple[str, str], started: bool) -> Any:
        """The way into most trouble: the old holder is cut off, somebody else gets the run, both go on."""
        self.renew_as(old, started=started, forged=False)
        self.now_ms += TTL_MS + 1
        self.take_back()
        return self.claim_as(old.run_id, who)

    @rule(held=held)
    def report_late(self, held: Held) -> None:
        """Everything an old holder may still send, at once."""
        self.renew_as(held, started=False, forged=False)
        self.write(held)
        self.report(held, Outcome(kind=OutcomeKind.EXITED, exit_code=1))

    @rule()
    def take_back(self) -> None:
        queue.take_back_expired(self.connection, self.times)

    @rule(held=consumes(held))
    def runner_forgets(self, held: Held) -> None:
        """A runner that crashed says nothing more."""

    @invariant()
    def the_end_is_the_end(self) -> None:
        for run_id in self.attempts:
            state = self.state(run_id)
            if run_id in self.ended:
                assert self.ended[run_id] == (state.status, state.outcome), "a finished run changed"
            elif state.status.terminal:
                assert state.outcome is not None
                self.ended[run_id] = (state.status, state.outcome)
            assert state.epoch == self.attempts[run_id] <= state.max_attempts

    @invariant()
    def secrets_live_as_long_as_the_run(self) -> None:
        for run_id in self.attempts:
            row = queue.existing(self.connection, run_id)
            assert bool(runs.secrets_of(self.connection, row.num)) == (not row.state.status.terminal)


TestQueue = Queue.TestCase
TestQueue.settings = settings(max_examples=80, stateful_step_count=40, deadline=None, report_multiple_bugs=False)
