"""The control plane: HTTP API, queue with leases, storages, checkpoints, events, on SQLite and local files.

`service.running_server` runs it; `tokens.create_token` makes the tokens its callers need.
"""

from __future__ import annotations
