"""The app in process, a server in a thread, and requests about synthetic pictures."""

import base64
import contextlib
import io
import threading

import httpx
import pytest

from paddlemix_vl2.server import ServerSettings, bind, create_app
from paddlemix_vl2.server.launch import make_server
from paddlemix_vl2.serving import EngineLimits, ServingEngine

NAME = "demo"


def to_data_url(picture, kind="png") -> str:
    file = io.BytesIO()
    picture.save(file, kind)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def to_openai(message: dict) -> dict:
    """A processor's message, pictures first, as a client sends it."""
    text = message["content"].replace("<image>\n", "")
    assert "<image>" not in text
    parts = [{"type": "image_url", "image_url": {"url": to_data_url(p)}} for p in message["images"]]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


@pytest.fixture(scope="session")
def demo_messages(demo_questions) -> list[dict]:
    """``demo_questions`` as a client sends them."""
    return [to_openai(message) for message in demo_questions]


@pytest.fixture(scope="session")
def data_url():
    return to_data_url


@pytest.fixture
def make_app(demo_model, demo_processor):
    """``make_app(model=None, limits={}, **settings)`` -> the app and its service, closed at the end."""
    made = []

    def make(model=None, limits=None, **settings):
        service = ServingEngine(model or demo_model, demo_processor, EngineLimits(**limits or {}))
        made.append(service)
        return create_app(service, ServerSettings(NAME, **settings)), service

    yield make
    for service in made:
        service.close()


@pytest.fixture
def make_client(make_app):
    """The same as a client of the app without sockets: ``await client.post(path, ...)``."""

    def make(*arguments, **settings):
        app, _ = make_app(*arguments, **settings)
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server", timeout=60)

    return make


class LiveServer:
    """Attributes:
    url: of the server.
    service: behind it.
    """

    def __init__(self, app, service, stop_timeout):
        sock = bind("127.0.0.1", 0)
        self.url, self.service = f"http://127.0.0.1:{sock.getsockname()[1]}", service
        self._server = make_server(app, service, stop_timeout)
        self._thread = threading.Thread(target=self._server.run, args=([sock],), daemon=True)
        self._thread.start()

    @property
    def is_started(self) -> bool:
        return self._server.started

    def begin_to_stop(self) -> None:
        """What SIGTERM does."""
        self._server.should_exit = True

    def wait(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()

    def metric(self, name: str) -> float:
        """A number of ``/metrics``."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return float(dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#")).get(name, 0))


@pytest.fixture
def start_server(make_app, wait_until):
    """As ``make_app``, listening on a free port of this machine; stopped at the end."""
    with contextlib.ExitStack() as stack:

        def start(*arguments, stop_timeout=30.0, **settings):
            server = LiveServer(*make_app(*arguments, **settings), stop_timeout)
            stack.callback(server.wait)
            stack.callback(server.begin_to_stop)
            wait_until(lambda: server.is_started, "the server listens")
            return server

        yield start
