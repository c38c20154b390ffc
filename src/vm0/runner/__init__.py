"""The runner: finds runs, claims them, executes each in a sandbox of its own, and reports how it ended.

::

    discovery ── poll, claim ──▶ executor ── create, start, fill, agent, outcome ──▶ reporter ── complete, release
        │                           │    │                                              │
     capacity                    leases  bridge ◀── the guest's API calls            spool (survives a crash)
    (reserved first)          (fences it) (adds the token the guest never sees)

`service` puts the parts together; `config` is the only module that reads the environment, `backends` the only one
that knows a sandbox backend.
"""
