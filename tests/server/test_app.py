"""Requests that get no answer but the reason, in OpenAI's form. And what is ignored."""

import asyncio
import base64
import copy
import json
import struct
import zlib

import httpx
import pytest
from PIL import Image

from paddlemix_vl2.server import bind

CHAT = "/v1/chat/completions"
HELLO = {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}


@pytest.fixture
def send(make_client):
    """Send requests to one app, in order; the responses."""

    def run(*requests, limits=None, **settings):
        async def post_all():
            async with make_client(None, limits, **settings) as client:
                return [await client.request(*request[:2], **request[2]) for request in requests]

        return asyncio.run(post_all())

    return run


def post(body):
    return ("POST", CHAT, {"json": body})


def with_content(*parts):
    return {**HELLO, "messages": [{"role": "user", "content": list(parts)}]}


def picture(url):
    return {"type": "image_url", "image_url": {"url": url}}


def check_error(response, status, code, message):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code and message in error["message"], error
    assert error["type"] == {429: "rate_limit_error", 503: "server_error"}.get(
        status, "invalid_request_error"
    )
    return error


def bomb(width, height):
    """A PNG whose header promises many pixels and whose data are a few bytes."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )
    return "data:image/png;base64," + base64.b64encode(data).decode()


WRONG_BODIES = [
    ({"model": None}, "model", "invalid_type", "string"),
    ({"model": "gpt-4"}, "model", "model_not_found", "no model 'gpt-4'; this server has 'demo'"),
    ({"messages": []}, "messages", "invalid_value", "at least 1"),
    ({"messages": "Hello"}, "messages", "invalid_type", "array"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role", "invalid_value", "'user'"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter", "required"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_type", "text or a"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "invalid_value", "at least 1"),
    ({"messages": [{"role": "user", "content": "  "}]}, "messages", "invalid_value", "is empty"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, "messages", "invalid_value", "take turns"),
    ({"messages": [{"role": "system", "content": "a"}]}, "messages", "invalid_value", "user message"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value", "greater than or equal to 1"),
    ({"max_tokens": "5"}, "max_tokens", "invalid_type", "integer"),
    ({"max_tokens": 1_000_000}, "messages", "context_length_exceeded", "positions"),
    ({"temperature": -1}, "temperature", "invalid_value", "greater"),
    ({"temperature": 2.5}, "temperature", "invalid_value", "less"),
    ({"temperature": 1e-300}, None, "invalid_value", "1e-37"),
    ({"top_p": 0}, "top_p", "invalid_value", "greater than 0"),
    ({"seed": -1}, "seed", "invalid_value", "greater"),
    ({"stop": [""]}, "stop[0]", "invalid_value", "at least 1"),
    ({"stop": ["a"] * 17}, "stop", "invalid_value", "at most 16"),
    ({"stream": "yes"}, "stream", "invalid_type", "boolean"),
    ({"n": 2}, "n", "unsupported_value", "leave it out or give 1"),
    ({"logprobs": True}, "logprobs", "unsupported_value", "not supported"),
    ({"presence_penalty": 0.5}, "presence_penalty", "unsupported_value", "not supported"),
    ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_value", "give {}"),
    ({"tools": [{"type": "function"}]}, "tools", "unsupported_value", "give []"),
    ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_value", "'text'"),
    ({"frobnicate": 1}, "frobnicate", "unknown_parameter", "unknown, or not supported"),
]


def test_bodies(send):
    """In one app, which answers a good request at the end."""
    responses = send(*[post({**HELLO, **change}) for change, *_ in WRONG_BODIES], post(HELLO))
    for response, (change, param, code, message) in zip(responses, WRONG_BODIES, strict=False):
        error = check_error(response, 404 if code == "model_not_found" else 400, code, message)
        assert error["param"] == param, (change, error)
    assert responses[-1].status_code == 200


def test_what_changes_nothing_is_taken(send):
    neutral = {
        "n": 1,
        "logprobs": False,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "tools": [],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
    }
    ignored = {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "stop": None}
    (response,) = send(post({**HELLO, **neutral, **ignored}))
    assert response.status_code == 200 and response.json()["usage"]["completion_tokens"] <= 2


def test_pictures(send, data_url, tmp_path):
    good = data_url(Image.new("RGB", (60, 40), "red"))
    file = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(file)
    head, data = good.split(",")
    half = f"{head},{data[: len(data) // 8 * 4]}"
    cases = [
        (file.as_uri(), "invalid_image_url", "a picture is a data: URL"),
        (str(file), "invalid_image_url", "a picture is a data: URL"),
        ("ftp://example.org/a.png", "invalid_image_url", "a picture is a data: URL"),
        ("http://127.0.0.1/a.png", "remote_images_disabled", "send a data: URL"),
        ("HTTPS://example.org/a.png", "remote_images_disabled", "send a data: URL"),
        ("data:text/plain;base64,aGVsbG8=", "invalid_image_url", "begins with data:image"),
        ("data:image/png,abc", "invalid_image_url", "begins with data:image"),
        ("data:image/png;base64,%%%", "invalid_base64", "not base64"),
        ("data:image/png;base64,é", "invalid_base64", "not base64"),
        ("data:image/png;base64,", "invalid_image", "not a picture"),
        ("data:image/png;base64,aGVsbG8=", "invalid_image", "not a picture"),
        (half, "invalid_image", "cannot be read as a picture"),
        (bomb(30_000, 30_000), "invalid_image", "pixels"),
        (bomb(9_000, 9_000), "invalid_image", "9000 x 9000 pixels; 50,000,000"),
        (data_url(Image.new("F", (8, 8)), "tiff"), "invalid_image", "not a picture that"),
    ]
    responses = send(
        *[post(with_content(picture(url))) for url, *_ in cases], post(with_content(picture(good)))
    )
    for response, (_, code, message) in zip(responses, cases, strict=False):
        error = check_error(response, 400, code, message)
        assert error["param"] == "messages[0].content[0].image_url.url"
    assert responses[-1].status_code == 200 and responses[-1].json()["usage"]["prompt_tokens"] > 20


def test_limits(send, data_url):
    small, wide = (data_url(Image.new("RGB", size)) for size in ((8, 8), (40, 20)))
    text = {"type": "text", "text": "red " * 300}
    responses = send(
        post(with_content(*[picture(small)] * 3)),
        post(with_content(picture(small), picture(wide))),
        post(with_content(text)),
        post({**HELLO, "messages": [{"role": "user", "content": "a" * 20_000}]}),
        post(with_content(picture(small), picture(small))),
        limits={"max_prompt_tokens": 200},
        max_pictures=2,
        max_pixels=700,
        max_body_bytes=10_000,
    )
    check_error(responses[0], 400, "too_many_images", "3 pictures; 2 are possible")
    check_error(responses[1], 400, "invalid_image", "40 x 20 pixels; 700 in all")
    check_error(responses[2], 400, "context_length_exceeded", "200 are possible")
    check_error(responses[3], 413, "body_too_large", "10,000 bytes")
    assert responses[4].status_code == 200


def test_pictures_of_a_request_share_pixels(send, data_url):
    """Each may have 700, together they may have twice as many."""
    url = picture(data_url(Image.new("RGB", (30, 20))))
    fitting, too_many = send(post(with_content(url, url)), post(with_content(url, url, url)), max_pixels=700)
    assert fitting.status_code == 200
    check_error(too_many, 400, "invalid_image", "30 x 20 pixels; 200 in all")


@pytest.mark.parametrize(
    "token", ["<image>", "<|User|>", "<|Assistant|>", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"]
)
def test_control_tokens_in_a_text(send, token):
    body = copy.deepcopy(HELLO)
    body["messages"][0]["content"] = f"a{token}b"
    error = check_error(send(post(body))[0], 400, "invalid_value", token)
    assert error["param"] == "messages[0].content"


def test_grounding_tokens_are_text(send):
    body = with_content({"type": "text", "text": "Locate <|ref|>the red circle<|/ref|>."})
    assert send(post(body))[0].status_code == 200


def test_requests_that_are_no_chat(send):
    json_header = {"Content-Type": "application/json"}
    raw = [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b'{"model": "\\ud800"}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b"[]", "invalid_type"),
        (b"null", "invalid_type"),
        (json.dumps({**HELLO, "temperature": float("nan")}).encode(), "invalid_value"),
    ]
    requests = [("POST", CHAT, {"content": body, "headers": json_header}) for body, _ in raw]
    others = [
        (("POST", CHAT, {"data": {"a": "b"}}), 415),
        (("GET", CHAT, {}), 405),
        (("GET", "/v1/nothing", {}), 404),
        (("GET", "/v1/models/other", {}), 404),
        (("DELETE", "/v1/models", {}), 405),
    ]
    responses = send(*requests, *[request for request, _ in others])
    for response, (body, code) in zip(responses, raw, strict=False):
        assert response.json()["error"]["code"] == code, (body[:40], response.text)
        assert response.status_code == 400
    for response, (request, status) in zip(responses[len(raw) :], others, strict=True):
        assert response.status_code == status and response.json()["error"]["message"], request


def test_a_body_that_does_not_arrive(make_client):
    async def post_slowly():
        async def body():
            yield b"{"
            await asyncio.sleep(30)

        async with make_client(body_timeout=0.1) as client:
            return await client.post(CHAT, content=body(), headers={"Content-Type": "application/json"})

    check_error(asyncio.run(post_slowly()), 408, None, "within 0.1 seconds")


def test_a_service_that_has_stopped(make_app):
    app, service = make_app()
    service.close()

    async def post_late():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client:
            return await client.post(CHAT, json=HELLO), await client.get("/health")

    response, health = asyncio.run(post_late())
    check_error(response, 503, "stopped", "has stopped")
    assert response.headers["retry-after"] == "1"
    assert health.status_code == 503 and health.json() == {"status": "unhealthy"}


def test_an_address_in_use():
    with bind("127.0.0.1", 0) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}: Address already in use"):
            bind("127.0.0.1", port)
    with pytest.raises(OSError, match=r"no\.such.host.invalid:80: "):
        bind("no.such.host.invalid", 80)
    with pytest.raises(ValueError, match="port 99999: a port is a number from 0 to 65535"):
        bind("127.0.0.1", 99999)
