"""Errors as OpenAI's clients know them: a status, and {"error": {"message", "type", "param", "code"}}."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import HTTPException
from fastapi.responses import Response

from intone.errors import UserError, nearest

# parts of a pydantic location that name a branch of a union, not a place in the body
BRANCHES = re.compile(r"str|int|bool|float|list\[.*|function-.*|constrained-.*|nullable.*|dict\[.*|[A-Z].*|.*\[.*")
MOST_DIGITS = 32  # of a number that an error repeats
ROLES = ("system", "developer", "user", "assistant", "tool", "text", "json_object", "json_schema")
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error",
         503: "service_unavailable"}  # fmt: skip
# fields of OpenAI's API that mean nothing here, and what to do instead
ELSEWHERE = {
    "tools": 'this server runs its own tools: builtin_tools, for example ["calculator"]',
    "functions": 'this server runs its own tools: builtin_tools, for example ["calculator"]',
    "function_call": "this server runs its own tools: builtin_tools",
    "parallel_tool_calls": "leave it out: tools run on the server, one after the other",
    "best_of": "use n and choose yourself",
    "suffix": "leave it out: the models here write forwards only",
    "guided_json": "use response_format or structured_outputs",
    "guided_regex": "use structured_outputs",
    "guided_choice": "use structured_outputs",
}


class Problem(HTTPException):
    """An answer that is an error. param: the field it is about."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(status, message, headers=dict(headers or {}))
        self.status = status
        self.message = message
        self.param = param
        self.code = code

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object of the answer."""
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> Response:
        return json_response(self.body, status=self.status, headers=self.headers)


def as_json(value: Any) -> bytes:
    """Compact JSON; half a surrogate pair stays an escape, as it came."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


def json_response(value: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(as_json(value), status_code=status, headers=dict(headers or {}), media_type="application/json")


def full(message: str, *, retry_s: float) -> Problem:
    """429: come back in so many seconds."""
    headers = {"Retry-After": str(max(1, round(retry_s)))}
    return Problem(429, message, code="queue_full", headers=headers)


def unavailable(message: str, *, code: str = "engine_unavailable", retry_s: float = 5) -> Problem:
    return Problem(503, message, code=code, headers={"Retry-After": str(max(1, round(retry_s)))})


def bad_value(error: UserError, fields: Sequence[str]) -> Problem:
    """400 for what the engine would not take; its messages begin with the field."""
    words = re.findall(r"[a-z_]+", error.message)
    param = next((word for word in words if word in fields), None)
    return Problem(400, f"{error.message}; {error.fix}" if error.fix else error.message, param=param)


def invalid(errors: Sequence[Mapping[str, Any]], fields: Sequence[str]) -> Problem:
    """400 from what pydantic found: the first field that is wrong, by its name. Of values only a number is repeated."""
    error = errors[0]
    place = [str(part) for part in error["loc"] if part != "body"]
    if error["type"] == "value_error" and not place:
        return bad_value(UserError(error["msg"].removeprefix("Value error, ")), fields)
    if error["type"] == "json_invalid" or not place:
        return Problem(400, f"the body is not a JSON object: {error['msg']}", code="invalid_json")
    path = [part for part in place[:1]]
    path += [part for part in place[1:] if not BRANCHES.fullmatch(part) and part not in ROLES]
    param, last = ".".join(path), path[-1]
    if error["type"] == "extra_forbidden":
        fix = ELSEWHERE.get(last)
        guess = nearest(last, fields)
        if fix is None and guess is not None:
            fix = f"did you mean {guess}?"
        shown = param if len(param) <= 100 else param[:100] + "..."
        return Problem(
            400, f"{shown} is no field that this server knows" + (f"; {fix}" if fix else ""), param=shown,
            code="unknown_field",
        )  # fmt: skip
    same_place = [other["msg"] for other in errors if [str(part) for part in other["loc"]][1:2] == place[:1]]
    message = " or ".join(dict.fromkeys(text.removeprefix("Value error, ") for text in same_place[:4]))
    code = "missing_field" if error["type"] == "missing" else "invalid_value"
    value = error.get("input")
    is_short_number = isinstance(value, int | float) and not isinstance(value, bool) and len(repr(value)) <= MOST_DIGITS
    return Problem(400, f"{param}: {message}{f', not {value}' if is_short_number else ''}", param=param, code=code)
