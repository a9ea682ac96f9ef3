"""Pictures from elsewhere: only from public addresses, whatever names and redirects say."""

import asyncio
import socket

import httpx
import pytest

from paddlemix_vl2.server.errors import ApiError
from paddlemix_vl2.server.remote import PictureFetcher, is_public

PUBLIC = "93.184.216.34"
ADDRESSES = {"pictures.example": PUBLIC, "inside.example": "10.0.0.5", "six.example": "2606:2800:220:1::1"}


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (PUBLIC, True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_public_addresses(address, expected):
    assert is_public(address) is expected


@pytest.fixture
def fetch(monkeypatch):
    """``fetch(url, reply)``: what comes, or the error's message; and the requests that were made."""

    async def getaddrinfo(self, host, port, **options):
        if host not in ADDRESSES:
            # Numbers in every spelling (2130706433, 0x7f.1) are resolved as the system does.
            return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ADDRESSES[host], port))]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)

    def run(url, reply=None, max_bytes=100, timeout=5.0):
        seen = []

        async def answer(request):
            seen.append(request)
            return await reply(request) if asyncio.iscoroutinefunction(reply) else reply(request)

        async def fetch_it():
            try:
                fetcher = PictureFetcher(max_bytes, timeout, httpx.MockTransport(answer))
                return await fetcher.fetch(url, "here")
            except ApiError as error:
                assert (error.status, error.param, error.code) == (400, "here", "invalid_image_url")
                return error.message

        return asyncio.run(fetch_it()), seen

    return run


def ok(request, data=b"bytes"):
    async def chunks():
        yield data

    return httpx.Response(200, content=chunks())


def test_the_connection_goes_to_the_address_that_was_looked_at(fetch):
    data, (request,) = fetch("https://user:secret@pictures.example:8443/a.png?b=c", ok)
    assert data == b"bytes"
    assert str(request.url) == f"https://{PUBLIC}:8443/a.png?b=c"
    assert request.headers["host"] == "pictures.example:8443"
    assert request.extensions["sni_hostname"] == "pictures.example"
    assert request.headers["accept-encoding"] == "identity" and "authorization" not in request.headers
    data, (request,) = fetch("http://six.example/", ok)
    assert data == b"bytes" and request.url.host == "2606:2800:220:1::1"


@pytest.mark.parametrize(
    "url",
    [
        "http://inside.example/a.png",
        "http://127.0.0.1/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://[::1]/",
        "http://[::ffff:169.254.169.254]/latest/meta-data",
        "http://169.254.169.254/",
    ],
)
def test_private_addresses_are_not_asked(fetch, url):
    message, seen = fetch(url, ok)
    assert "not on the public network" in message and seen == []


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("http://127.0.0.1/secret", "not on the public network"),
        ("http://inside.example/", "not on the public network"),
        ("file:///etc/passwd", "only http and https"),
        ("/again", "redirected more than 3 times"),
    ],
)
def test_redirects_are_looked_at(fetch, location, expected):
    message, seen = fetch(
        "http://pictures.example/a", lambda request: httpx.Response(302, headers={"location": location})
    )
    assert expected in message and len(seen) == (4 if location == "/again" else 1)
    assert {request.url.host for request in seen} == {PUBLIC}


def test_a_redirect_within_public_hosts(fetch):
    def reply(request):
        if request.url.path == "/a":
            return httpx.Response(301, headers={"location": "https://six.example/b"})
        return ok(request)

    data, seen = fetch("http://pictures.example/a", reply)
    assert data == b"bytes" and seen[1].url.host == "2606:2800:220:1::1"


@pytest.mark.parametrize(
    ("url", "reply", "expected"),
    [
        ("http://pictures.example/", lambda r: httpx.Response(404), "status 404"),
        (
            "http://pictures.example/",
            lambda r: ok(r, b"x" * 101),
            "more than 100 bytes",
        ),
        ("http://", ok, "with a host"),
        ("http://pictures.example:port/", ok, "nvalid port"),
        ("http://nowhere.example/", ok, "no address"),
        ("http://93.184.216.34:99999/", ok, "no port 99999"),
    ],
)
def test_what_else_goes_wrong(fetch, url, reply, expected):
    assert expected in fetch(url, reply)[0]


def test_slow_and_broken_servers(fetch):
    async def slow(request):
        await asyncio.sleep(30)

    def broken(request):
        raise httpx.ConnectError("connection refused")

    assert "took more than 0.1 seconds" in fetch("http://pictures.example/", slow, timeout=0.1)[0]
    assert "connection refused" in fetch("http://pictures.example/", broken)[0]


def test_a_server_of_this_machine_is_never_asked(make_client):
    """Through the app, with real sockets: something listens, and nothing comes."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.2)
        port = listening.getsockname()[1]

        async def ask():
            async with make_client(allow_remote_images=True) as client:
                parts = [
                    {"type": "image_url", "image_url": {"url": f"http://{host}:{port}/a.png"}}
                    for host in ("localhost", "127.0.0.1")
                ]
                body = {"model": "demo", "messages": [{"role": "user", "content": parts}]}
                return await client.post("/v1/chat/completions", json=body)

        response = asyncio.run(ask())
        assert response.status_code == 400 and "public network" in response.json()["error"]["message"]
        with pytest.raises(TimeoutError):
            listening.accept()
