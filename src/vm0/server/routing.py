"""One way to declare a route: who may call it, which contract its body, query and answer have.

From the declaration come authentication, decoding, the error shape, the OpenAPI page and the table that the access
test walks over. A handler gets a `Call` and returns a contract (or a Response of its own).
"""

from __future__ import annotations

import dataclasses
import enum
import logging
import re
import typing
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar, cast

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.routing import request_response

from vm0.contracts import codec
from vm0.contracts.errors import ErrorBody, ErrorCode, ErrorDetail
from vm0.server import openapi
from vm0.server.body import BodyReader, ClientGone
from vm0.server.context import ServerContext
from vm0.server.errors import ApiError, api_error_for, bad_request
from vm0.server.tokens import Principal, RunnerPrincipal, SandboxPrincipal, UserPrincipal

log = logging.getLogger("vm0.server.http")
B_co = TypeVar("B_co", covariant=True)
Q = TypeVar("Q")

MIB = 1024 * 1024
NUMBER = re.compile(r"-?[0-9]{1,20}(?:\.[0-9]{1,20})?")  # as a query parameter
LARGE_BYTES = MIB  # bodies above this are few at a time and decoded in a thread


class Caller(enum.Enum):
    """Who may call a route; ANYONE needs no token, SIGNED a signed address instead of one."""

    ANYONE = "anyone"
    USER = "user"
    RUNNER = "runner"
    SANDBOX = "sandbox"
    SIGNED = "signed"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RouteSpec:
    """The declaration of a route."""

    method: str
    path: str
    callers: tuple[Caller, ...]
    body: type | None = None
    query: type | None = None
    answer: type | None = None
    status: int = 200
    max_body_bytes: int = 2 * MIB


@dataclasses.dataclass(frozen=True, slots=True)
class Call(Generic[B_co]):
    """One request, authenticated and decoded. `body` is None on routes without one."""

    context: ServerContext
    request: Request
    reader: BodyReader
    principal: Principal | None
    body: B_co

    def path(self, name: str) -> str:
        return str(self.request.path_params[name])

    def query(self, cls: type[Q]) -> Q:
        return decode_query(cls, dict(self.request.query_params))

    @property
    def user_id(self) -> str:
        """Of the user who calls, or whose run it is."""
        return cast("UserPrincipal | SandboxPrincipal", self.principal).user_id

    @property
    def sandbox(self) -> SandboxPrincipal:
        return cast(SandboxPrincipal, self.principal)


class ContractRoute(APIRoute):
    """A route whose endpoint takes the request as it is: no dependencies to solve, which costs as much as the rest."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.app = request_response(endpoint)


Handler = Callable[[Call[Any]], Awaitable[Any]]
KINDS: dict[type, Caller] = {
    UserPrincipal: Caller.USER,
    RunnerPrincipal: Caller.RUNNER,
    SandboxPrincipal: Caller.SANDBOX,
}


def contract_router(tag: str) -> APIRouter:
    """An empty router for `declare`; `tag` is its heading in the OpenAPI page."""
    return APIRouter(tags=[tag], route_class=ContractRoute)


def declare(router: APIRouter, spec: RouteSpec) -> Callable[[Handler], Handler]:
    """Register the decorated handler as `spec` says; its docstring is the route's text in the OpenAPI page."""

    def register(handler: Handler) -> Handler:
        async def endpoint(request: Request) -> Response:
            return await _serve(spec, handler, request)

        endpoint.route_spec = spec  # type: ignore[attr-defined]  # for the access table and the OpenAPI page
        router.add_api_route(
            spec.path,
            endpoint,
            methods=[spec.method],
            name=handler.__name__,
            description=(handler.__doc__ or "").strip(),
            status_code=spec.status,
            response_model=None,
            openapi_extra=openapi.operation(
                body=spec.body,
                query=spec.query,
                answer=spec.answer,
                status=spec.status,
                path=spec.path,
                callers=[caller.value for caller in spec.callers],
            ),
        )
        return handler

    return register


async def _serve(spec: RouteSpec, handler: Handler, request: Request) -> Response:
    context: ServerContext = request.app.state.context
    reader = BodyReader(request)
    try:
        principal = await _authenticate(spec, context, request)
        if spec.body is None:
            answer = await handler(Call(context, request, reader, principal, None))
        elif reader.announced > LARGE_BYTES or reader.announced < 0:
            async with context.large_bodies:
                answer = await _decoded(spec, handler, Call(context, request, reader, principal, None))
        else:
            answer = await _decoded(spec, handler, Call(context, request, reader, principal, None))
    except ClientGone:
        return Response(status_code=400)  # nobody reads it
    except Exception as exc:
        answer = error_response(exc, f"{spec.method} {spec.path}")
    await reader.drain()  # an answer before the end of the body would reach nobody: the connection would be reset
    return answer if isinstance(answer, Response) else json_response(answer, spec.status)


async def _decoded(spec: RouteSpec, handler: Handler, call: Call[None]) -> Any:
    try:
        data = (await call.reader.whole(spec.max_body_bytes)).decode()  # `json` would take UTF-16 as well
    except UnicodeDecodeError:
        raise bad_request("", "the body is not UTF-8") from None
    contract = cast("type[Any]", spec.body)
    if len(data) > LARGE_BYTES:
        body = await call.context.in_thread(codec.loads, contract, data)
    else:
        body = codec.loads(contract, data)
    return await handler(Call(call.context, call.request, call.reader, call.principal, body))


async def _authenticate(spec: RouteSpec, context: ServerContext, request: Request) -> Principal | None:
    if Caller.ANYONE in spec.callers or Caller.SIGNED in spec.callers:
        return None
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise ApiError(ErrorCode.UNAUTHORIZED, "this needs the header `Authorization: Bearer <token>`")
    principal = context.tokens.cached(token) or await context.in_thread(context.tokens.authenticate, token)
    if principal is None:
        raise ApiError(ErrorCode.UNAUTHORIZED, "the token is unknown or has expired")
    if KINDS[type(principal)] not in spec.callers:
        wanted = " or ".join(caller.value for caller in spec.callers)
        raise ApiError(ErrorCode.FORBIDDEN, f"a {KINDS[type(principal)].value} token may not do this, a {wanted} may")
    return principal


def json_response(answer: Any, status: int = 200) -> Response:
    return Response(codec.dumps(answer), status, media_type="application/json")


def error_response(exc: Exception, where: str) -> Response:
    """The answer for any exception; what is our fault is logged with its traceback and told without details."""
    error = api_error_for(exc)
    if error is None:
        log.error("unexpected error at %s", where, exc_info=exc, extra={"action": "request_failed"})
        error = ApiError(ErrorCode.INTERNAL_ERROR, "unexpected error; the server's log has the details")
    elif error.code is ErrorCode.UNAVAILABLE:
        log.warning("unavailable at %s: %s", where, exc, extra={"action": "request_unavailable"})
    return error_body(error)


def error_body(error: ApiError) -> Response:
    body = ErrorBody(error=ErrorDetail(code=error.code, message=error.message))
    headers = {"www-authenticate": "Bearer"} if error.code is ErrorCode.UNAUTHORIZED else None
    return Response(codec.dumps(body), error.status, headers, media_type="application/json")


def decode_query(cls: type[Q], given: dict[str, str]) -> Q:
    """Query parameters as a contract: text that must be a number becomes one first."""
    data: dict[str, Any] = {}
    contract: type = cls
    for plan in codec.field_plans(contract):
        text = given.get(plan.json_name)
        if text is None:
            continue
        number = next((kind for kind in (int, float) if kind in (plan.type, *typing.get_args(plan.type))), None)
        if number is None:
            data[plan.json_name] = text
        elif not NUMBER.fullmatch(text):
            raise bad_request(plan.json_name, "must be a number")
        else:
            data[plan.json_name] = float(text) if number is float or "." in text else int(text)
    return codec.decode(cls, data)
