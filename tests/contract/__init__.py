"""Seams tested from outside: the HTTP API over real sockets, and the sandbox contract on its backends."""

from __future__ import annotations
