"""What goes wrong, as ``{"error": {"message", "type", "param", "code"}}`` with a status."""

from pydantic import ValidationError
from starlette.responses import JSONResponse

# Seconds after which a client that was turned away may try again.
RETRY_AFTER = 1
# What pydantic calls a problem -> what OpenAI calls it.
_CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "json_invalid": "invalid_json",
    "unsupported": "unsupported_value",
}


class ApiError(Exception):
    """A request that gets no answer.

    Args:
        param: the part of the request that is wrong, as ``messages[0].content``.
        code: for programs; OpenAI's where it has one.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def body(self) -> dict:
        """OpenAI's error reply: an object under the key ``error``."""
        kind = "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        elif self.status >= 500:
            kind = "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {"Retry-After": str(RETRY_AFTER)} if self.status in (429, 503) else None
        return JSONResponse(self.body(), self.status, headers)


def explain(error: ValidationError) -> ApiError:
    """The first problem that pydantic has with a body."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    kind, param = first["type"], _path(first["loc"])
    code = _CODES.get(kind) or ("invalid_type" if kind.endswith("_type") else "invalid_value")
    message = first["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        message = "this parameter is unknown, or not supported"
    return ApiError(400, f"{param or 'the body'}: {message}", param, code)


def _path(places: tuple[int | str, ...]) -> str | None:
    """("messages", 0, "role") -> "messages[0].role"."""
    text = "".join(f"[{place}]" if isinstance(place, int) else f".{place}" for place in places)
    return text.removeprefix(".") or None
