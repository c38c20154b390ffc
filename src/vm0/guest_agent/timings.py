"""Every time limit and interval of the guest agent, in one place, so that a test can run in milliseconds."""

from __future__ import annotations


class Timings:
    """Seconds. Override by keyword; an unknown name is an AttributeError."""

    heartbeat_interval_s = 60.0
    metrics_interval_s = 5.0
    telemetry_interval_s = 30.0
    stop_grace_s = 5.0  # SIGTERM -> SIGKILL
    kill_grace_s = 10.0  # after SIGKILL; a process in the kernel's hands may never end
    drain_s = 5.0  # after the CLI's exit, for what is still in its pipes
    stopped_drain_s = 1.0  # the same for a CLI that we stopped: its group is dead
    result_quiet_s = 10.0  # a CLI that printed its result and then nothing for this long is stopped
    result_cap_s = 120.0  # the same, whatever it still prints
    tool_timeout_s = 300.0  # of WebSearch and WebFetch, which can hang for ever
    event_drain_s = 120.0  # for events that the API has not taken when the CLI ended
    telemetry_drain_s = 30.0  # for the last telemetry upload
    checkpoint_s = 1800.0  # all of it; each request in it has its own, smaller limit
    terminated_flush_s = 8.0  # both together, when the runner told us to end
    retry_delay_s = 1.0
    outage_delay_s = 10.0  # longest pause between deliveries to an API that fails
    batch_delay_s = 0.05  # events of one moment go into one POST

    def __init__(self, **overrides: float) -> None:
        for name, value in overrides.items():
            if not hasattr(type(self), name):
                raise AttributeError(f"unknown timing {name!r}")
            setattr(self, name, value)
