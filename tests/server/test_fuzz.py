"""Thousands of wrong requests: each gets a 4xx in OpenAI's form, or is valid and gets a 200; none harms."""

import asyncio
import base64
import copy
import io
import json
import random
import struct
import zlib

import httpx
import numpy as np
import paddle
import pytest
from PIL import Image

CHAT = "/v1/chat/completions"
REQUESTS = 10_000
SCALARS = [
    None, True, False, 0, 1, -1, 2, 7, 10**30, 0.5, -0.0, 1e308, 1e-320, "", "a", "user", "<image>", "\u0000",
    "é红😀", "text", "demo", "auto", "data:", "file:///etc/passwd", [], {}, [[]], [None], {"a": {}}, ["a", 1],
]  # fmt: skip


class Fuzzer:
    """Makes requests from a seed: (method, path, headers, body)."""

    def __init__(self, seed, picture_url):
        self.draw = random.Random(seed)
        url = {"type": "image_url", "image_url": {"url": picture_url, "detail": "low"}}
        text = {"type": "text", "text": "What is this?"}
        self.picture = base64.b64decode(picture_url.partition(",")[2])
        self.bodies = [
            {"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1},
            {
                "model": "demo",
                "messages": [
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": [url, text]},
                    {"role": "assistant", "content": "A circle."},
                    {"role": "user", "content": [text, url], "name": "me"},
                ],
                "max_tokens": 1,
                "temperature": 0.7,
                "top_p": 0.9,
                "seed": 3,
                "stop": ["\n"],
                "stream": True,
                "stream_options": {"include_usage": True},
                "n": 1,
                "user": "me",
            },
        ]

    def request(self):
        kind = self.draw.random()
        headers = {"Content-Type": "application/json"}
        if kind < 0.03:
            return self.odd_request()
        if kind < 0.18:
            return "POST", CHAT, headers, self.garble(json.dumps(self.draw.choice(self.bodies)).encode())
        if kind < 0.25:
            return "POST", CHAT, headers, json.dumps(self.tree(4)).encode()
        if kind < 0.5:
            return "POST", CHAT, headers, json.dumps(self.with_bad_picture()).encode()
        body = copy.deepcopy(self.draw.choice(self.bodies))
        for _ in range(self.draw.choice([1, 1, 1, 2, 3])):
            self.mutate(body)
        return "POST", CHAT, headers, json.dumps(body).encode()

    def odd_request(self):
        method = self.draw.choice(["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "POST"])
        path = self.draw.choice([CHAT, "/", "/v1/models/x", "/v1/../etc", "/v1/completions", "/%00", "//"])
        media = self.draw.choice(["text/plain", "application/json", "", "application/json; charset=utf-16"])
        return method, path, {"Content-Type": media}, b"{}"

    def garble(self, data):
        """Cut, repeat, or change some bytes."""
        data = bytearray(data)
        for _ in range(self.draw.choice([1, 1, 3, 10])):
            place = self.draw.randrange(len(data))
            change = self.draw.randrange(4)
            if change == 0:
                del data[place:]
            elif change == 1:
                data[place] = self.draw.randrange(256)
            elif change == 2:
                data[place:place] = self.draw.choice(
                    [b"[" * 500, b'"', b"\\ud800", b"NaN", b"\xff", b"1e999"]
                )
            else:
                del data[place : place + self.draw.randrange(1, 9)]
            if not data:
                return b""
        return bytes(data)

    def tree(self, depth):
        """Any JSON."""
        kind = self.draw.random()
        if depth == 0 or kind < 0.3:
            return self.scalar()
        if kind < 0.6:
            return [self.tree(depth - 1) for _ in range(self.draw.randrange(4))]
        keys = ["model", "messages", "role", "content", "type", "url", "stream", "text", "x"]
        return {self.draw.choice(keys): self.tree(depth - 1) for _ in range(self.draw.randrange(5))}

    def scalar(self):
        return copy.deepcopy(self.draw.choice(SCALARS))

    def mutate(self, body):
        """Change, drop or add something at a random depth."""
        node = body
        while True:
            keys = list(node) if isinstance(node, dict) else list(range(len(node)))
            if not keys:
                return
            key = self.draw.choice(keys)
            if isinstance(node[key], dict | list) and self.draw.random() < 0.6:
                node = node[key]
                continue
            break
        change = self.draw.randrange(4)
        if change == 0:
            del node[key]
        elif change == 1 and isinstance(node, dict):
            node[self.draw.choice(["tools", "logprobs", "best_of", "", "a" * 300, "name"])] = self.tree(2)
        elif change == 2:
            node[key] = self.tree(3)
        else:
            node[key] = self.scalar()

    def with_bad_picture(self):
        body = copy.deepcopy(self.bodies[1])
        kind = self.draw.randrange(6)
        data = "data:image/png;base64,"
        if kind == 0:
            url = data + base64.b64encode(self.garble(self.picture)).decode()
        elif kind == 1:
            url = data + self.garble(base64.b64encode(self.picture)).decode("latin-1")
        elif kind == 2:
            url = data + base64.b64encode(self.bomb()).decode()
        elif kind == 3:
            url = self.garble((data + base64.b64encode(self.picture).decode()).encode()).decode("latin-1")
        elif kind == 4:
            url = data + base64.b64encode(self.draw.randbytes(self.draw.randrange(200))).decode()
        else:
            url = self.draw.choice(["file:///etc/passwd", "/etc/passwd", "HTTP://[::1]/", "data:,", ","])
        body["messages"][1]["content"][0]["image_url"]["url"] = url
        return body

    def bomb(self):
        """A header that promises far more pixels than there are."""
        size = self.draw.choice([20_000, 65_000, 2**31 - 1])
        header = b"IHDR" + struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
        parts = [header, b"IDAT" + zlib.compress(bytes(1000)), b"IEND"]
        chunks = [struct.pack(">I", len(p) - 4) + p + struct.pack(">I", zlib.crc32(p)) for p in parts]
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.fixture
def fuzzer(data_url):
    return Fuzzer(0, data_url(Image.new("RGB", (20, 10), "red")))


async def send_all(app, fuzzer, count):
    """Statuses and how often each came, eight requests at a time."""
    counts = {}

    async def send(client):
        method, path, headers, body = fuzzer.request()
        response = await client.request(method, path, headers=headers, content=body)
        check(response, body)
        counts[response.status_code] = counts.get(response.status_code, 0) + 1

    transport = httpx.ASGITransport(app)  # raises what the app raises
    async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=60) as client:
        for _ in range(count // 8):
            await asyncio.gather(*[send(client) for _ in range(8)])
    return counts


def check(response, body):
    if response.status_code == 200:
        return
    assert 400 <= response.status_code < 500, (response.status_code, response.text, body[:500])
    if response.headers["content-type"] != "application/json":
        assert response.status_code == 405, response.text
        return
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}, error
    assert error["message"] and isinstance(error["message"], str) and len(error["message"]) < 2_000
    assert error["type"] == "invalid_request_error", error


class EndsAtOnce:
    """A model that has nothing to say: what is tested here comes before the model."""

    def __init__(self, config):
        self.config = config
        language = config.language_config
        logits = np.zeros([1, language.vocab_size], np.float32)
        logits[0, language.eos_token_id] = 1e6
        self._logits = paddle.to_tensor(logits)

    def prefill(self, batch, capacity, chunk_size):
        return self._logits, None


@pytest.mark.slow
def test_ten_thousand_requests(make_app, fuzzer, demo_model, wait_until):
    app, service = make_app(EndsAtOnce(demo_model.config), {"max_prompt_tokens": 300})
    counts = asyncio.run(send_all(app, fuzzer, REQUESTS))
    assert sum(counts.values()) == REQUESTS
    assert counts[400] > REQUESTS / 2 and 0 < counts[200] < REQUESTS / 2, counts
    assert service.is_healthy
    # The last answer has reached its client a moment before its row is given up.
    wait_until(lambda: service.num_running == service.num_waiting == 0, "the service is idle")


def test_the_fuzzer_makes_pictures_that_are_read(data_url):
    """The picture that it spoils is a good one."""
    picture = Fuzzer(0, data_url(Image.new("RGB", (20, 10), "red"))).picture
    assert Image.open(io.BytesIO(picture)).size == (20, 10)
