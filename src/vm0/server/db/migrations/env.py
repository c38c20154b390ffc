"""Run by Alembic. The connection and its transaction belong to the caller (`migrations.upgrade`)."""

from __future__ import annotations

from alembic import context

from vm0.server.db.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
