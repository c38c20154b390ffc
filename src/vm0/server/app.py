"""The ASGI application: the routes, the OpenAPI page, and one error shape for everything."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

from vm0 import __version__
from vm0.contracts.errors import STATUS, ErrorCode
from vm0.server import docs_page, openapi
from vm0.server.context import ServerContext
from vm0.server.errors import ApiError
from vm0.server.routes import objects, runners, runs, storages, system, webhooks
from vm0.server.routing import error_body, error_response

CODES = {
    status: code for code, status in STATUS.items() if code not in (ErrorCode.LEASE_LOST, ErrorCode.S3_FILES_MISSING)
}


def create_app(context: ServerContext) -> FastAPI:
    """The application on a context that its caller has started and will close (`service.running_server` does both)."""
    app = documented_app()
    app.state.context = context
    return app


def documented_app() -> FastAPI:
    """The application without anything behind it: enough to read its routes and its OpenAPI page."""
    app = FastAPI(
        title="vm0",
        version=__version__,
        description="Runs of AI coding agents, one microVM each.",
        redirect_slashes=False,
        docs_url=None,  # our own, without scripts of others
        redoc_url=None,
    )
    for module in (runs, runners, webhooks, storages, objects, system):
        app.router.routes.extend(module.router.routes)  # as they are: including wraps each call once more
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)
    app.openapi = lambda: openapi.document(app)  # type: ignore[method-assign]
    app.add_route("/docs", _docs)
    return app


async def _docs(request: Request) -> Response:
    page = docs_page.render(openapi.document(request.app))
    return HTMLResponse(page, headers={"Content-Security-Policy": docs_page.POLICY})


async def _http_error(request: Request, exc: Exception) -> Response:
    """404 and 405 of addresses nobody declared."""
    status = exc.status_code if isinstance(exc, HTTPException) else 500
    code = CODES.get(status, ErrorCode.BAD_REQUEST)
    reasons = {
        ErrorCode.NOT_FOUND: "there is nothing at this address",
        ErrorCode.METHOD_NOT_ALLOWED: f"this address does not know {request.method}",
    }
    response = error_body(ApiError(code, reasons.get(code, "this request cannot be served")))
    response.headers.update(getattr(exc, "headers", None) or {})
    return response


async def _unexpected(request: Request, exc: Exception) -> Response:
    return error_response(exc, f"{request.method} request")
