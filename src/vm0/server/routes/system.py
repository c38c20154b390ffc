"""Routes about the server itself."""

from __future__ import annotations

from vm0.contracts.webhooks import OkAnswer
from vm0.server.routing import Call, Caller, RouteSpec, contract_router, declare

router = contract_router("system")


@declare(router, RouteSpec(method="GET", path="/healthz", callers=(Caller.ANYONE,), answer=OkAnswer))
async def healthz(call: Call[None]) -> OkAnswer:
    """The server answers and can read its database."""
    await call.context.database.read(lambda connection: connection.exec_driver_sql("SELECT 1").scalar())
    return OkAnswer()
