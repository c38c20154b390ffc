"""Credit: never more than a window under way, and none of it lost."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from vm0.vsock_proto.errors import LocalProtocolError, RemoteProtocolError
from vm0.vsock_proto.flow import ReceiveWindow, SendWindow

WINDOW = 64


class Stream(RuleBasedStateMachine):
    """A sender and a receiver with a slow wire in each direction."""

    def __init__(self) -> None:
        super().__init__()
        self.sender, self.receiver = SendWindow(WINDOW), ReceiveWindow(WINDOW)
        self.data: list[int] = []  # under way to the receiver
        self.credits: list[int] = []  # under way to the sender
        self.held = 0  # received, not consumed
        self.unsaid = 0  # consumed, credit for it not sent yet

    @precondition(lambda self: self.sender.available)
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        size = data.draw(st.integers(0, self.sender.available))
        self.sender.spend(size)
        self.data.append(size)

    @rule(extra=st.integers(1, 1000))
    def send_too_much(self, extra: int) -> None:
        available = self.sender.available
        with pytest.raises(LocalProtocolError, match=f"a credit of {available}"):
            self.sender.spend(available + extra)
        assert self.sender.available == available

    @precondition(lambda self: self.data)
    @rule()
    def receive(self) -> None:
        size = self.data.pop(0)
        self.receiver.received(size)  # must never refuse what an honest sender sent
        self.held += size

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def consume(self, data: st.DataObject) -> None:
        size = data.draw(st.integers(0, self.held))
        self.held -= size
        self.unsaid += size
        credit = self.receiver.consumed(size)
        assert credit in (0, self.unsaid)
        self.unsaid -= credit
        if credit:
            self.credits.append(credit)

    @precondition(lambda self: self.credits)
    @rule()
    def grant(self) -> None:
        self.sender.grant(self.credits.pop(0))

    @invariant()
    def credit_is_conserved(self) -> None:
        total = self.sender.available + sum(self.data) + self.held + self.unsaid + sum(self.credits)
        assert total == WINDOW

    @invariant()
    def the_receiver_holds_one_window_at_most(self) -> None:
        assert sum(self.data) + self.held <= WINDOW

    @invariant()
    def it_cannot_come_to_a_standstill(self) -> None:
        """With nothing under way and nothing held, the sender may send at least three quarters."""
        if not self.data and not self.credits and not self.held:
            assert self.sender.available * 4 > WINDOW * 3


TestStream = Stream.TestCase
TestStream.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("sizes", [[WINDOW + 1], [WINDOW, 1], [1] * (WINDOW + 1)])
def test_a_sender_without_credit_is_refused(sizes: list[int]) -> None:
    window = ReceiveWindow(WINDOW)
    for size in sizes[:-1]:
        window.received(size)
    with pytest.raises(RemoteProtocolError):
        window.received(sizes[-1])


def test_credit_that_was_never_taken_is_no_overflow() -> None:
    window = SendWindow(WINDOW)
    for _ in range(3):
        window.grant(2**62)
    assert window.available == 2**62
