"""The routes of the server."""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio
from fastapi import FastAPI, Request
from PIL import Image
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from paddlemix_vl2.generation.decoding import PromptTooLong
from paddlemix_vl2.processing.pictures import is_remote
from paddlemix_vl2.processing.tokenizer import ASSISTANT_TOKEN, USER_TOKEN
from paddlemix_vl2.server.errors import ApiError, explain
from paddlemix_vl2.server.live import EventStream, LiveAnswer, while_connected
from paddlemix_vl2.server.metrics import Metrics, Timing
from paddlemix_vl2.server.pictures import decode, read_data_url
from paddlemix_vl2.server.remote import PictureFetcher
from paddlemix_vl2.server.replies import DONE, Reply, event
from paddlemix_vl2.server.schema import ChatRequest
from paddlemix_vl2.serving import (
    EngineStopped,
    GenerationRequest,
    QueueFull,
    RequestFailed,
    RequestOutput,
    ServingEngine,
)

# The status that nginx notes where a client has gone before its reply.
CLIENT_GONE = 499
# Threads that parse, decode pictures and tokenise. Few, since each may hold the pixels of large pictures.
_PREPARING_THREADS = 2


@dataclass(frozen=True)
class ServerSettings:
    """Attributes:
    model_name: what clients call the model.
    max_body_bytes: of a request, pictures in base64 included.
    body_timeout: seconds for its arrival.
    max_pictures: per request.
    max_pixels: per picture; those of a request may have twice as many together.
    allow_remote_images: fetch pictures from http(s) URLs.
    max_remote_bytes, remote_timeout: bytes and seconds of such a picture.
    """

    model_name: str
    max_body_bytes: int = 20 << 20
    body_timeout: float = 30.0
    max_pictures: int = 8
    max_pixels: int = 50_000_000
    allow_remote_images: bool = False
    max_remote_bytes: int = 10 << 20
    remote_timeout: float = 10.0


def create_app(service: ServingEngine, settings: ServerSettings) -> FastAPI:
    """The ASGI application; its end closes the service, which then has nothing left to do."""
    executor = ThreadPoolExecutor(_PREPARING_THREADS, "preparing")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)
        executor.shutdown(wait=False, cancel_futures=True)

    # No generated pages: they load scripts from elsewhere.
    app = FastAPI(title="paddlemix-vl2", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    metrics = Metrics(service)
    chat = _Chat(service, settings, executor, metrics)
    card = {"id": settings.model_name, "object": "model", "created": int(time.time()), "owned_by": "local"}

    @app.get("/health")
    async def health() -> Response:
        healthy = service.is_healthy
        return JSONResponse({"status": "ok" if healthy else "unhealthy"}, 200 if healthy else 503)

    @app.get("/metrics")
    async def read_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def list_models() -> dict:
        return {"object": "list", "data": [card]}

    @app.get("/v1/models/{name:path}")
    async def read_model(name: str) -> dict:
        chat.check_model(name)
        return card

    @app.post("/v1/chat/completions")
    async def complete_chat(request: Request) -> Response:
        return await chat(request)

    _handle_errors(app)
    return app


def _handle_errors(app: FastAPI) -> None:
    """Every error in OpenAI's form."""

    @app.exception_handler(ApiError)
    async def api_error(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        message = f"{request.method} {request.url.path}: {error.detail}"
        response = ApiError(error.status_code, message).response()
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def failure(request: Request, error: Exception) -> Response:
        return ApiError(500, "the server failed; its log says how").response()


class _Chat:
    """``POST /v1/chat/completions``."""

    def __init__(
        self,
        service: ServingEngine,
        settings: ServerSettings,
        executor: ThreadPoolExecutor,
        metrics: Metrics,
    ):
        self._service, self._settings = service, settings
        self._executor, self._metrics = executor, metrics
        self._fetcher = PictureFetcher(settings.max_remote_bytes, settings.remote_timeout)
        self._arriving = 0
        processor = service.processor
        tokens = processor.tokenizer
        self._image_token = processor.image_token
        # In a text they would begin and end turns, or ask for pictures that are not there.
        self._control_tokens = (
            processor.image_token,
            tokens.bos_token,
            tokens.eos_token,
            tokens.pad_token,
            USER_TOKEN,
            ASSISTANT_TOKEN,
        )

    async def __call__(self, request: Request) -> Response:
        timing = self._metrics.start()
        status = 500
        try:
            response = await self._reply(request, timing)
            status = response.status_code
            return response
        except ClientDisconnect:
            status = CLIENT_GONE
            return Response(status_code=status)  # the client is gone
        except ApiError as error:
            status = error.status
            raise
        finally:
            self._metrics.count(status)

    def check_model(self, name: str) -> None:
        """Refuse another model's name.

        Raises:
            ApiError: 404.
        """
        if name != self._settings.model_name:
            raise ApiError(
                404,
                f"there is no model {name[:80]!r}; this server has {self._settings.model_name!r}",
                "model",
                "model_not_found",
            )

    async def _reply(self, request: Request, timing: Timing) -> Response:
        live = LiveAnswer()
        reply, is_stream = await self._accept(request, live)

        def end() -> None:
            live.answer.cancel()
            timing.end(live.answer)

        if is_stream:
            return EventStream(_stream(live, reply, timing), end)
        try:
            return await while_connected(request.receive, _collect(live, reply, timing))
        finally:
            end()

    async def _accept(self, request: Request, live: LiveAnswer) -> tuple[Reply, bool]:
        """Put the request into the queue. Its body, with the pictures in it, is forgotten here."""
        self._arriving += 1
        try:
            self._check_open()
            chat = await self._read(request)
            await while_connected(request.receive, self._submit(chat, live))
            return Reply(self._settings.model_name, chat.includes_usage), bool(chat.stream)
        except (QueueFull, EngineStopped) as error:
            raise _turned_away(error) from None
        finally:
            self._arriving -= 1

    async def _read(self, request: Request) -> ChatRequest:
        """The body, checked."""
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if content_type != "application/json":
            # Also keeps the pages of a browser from sending requests here without asking first.
            raise ApiError(415, "the content type must be application/json")
        try:
            with anyio.fail_after(self._settings.body_timeout):
                body = await self._read_body(request)
        except TimeoutError:
            seconds = self._settings.body_timeout
            raise ApiError(408, f"the body did not arrive within {seconds:g} seconds") from None
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._parse, body)

    def _check_open(self) -> None:
        """Turn a request away before its body is read, where there is no place for it.

        Raises:
            QueueFull, EngineStopped: as :meth:`ServingEngine.submit`.
        """
        limits = self._service.limits
        self._service.check_open()
        # Each holds its body and pictures until it is in the queue.
        if self._arriving > limits.max_running + limits.max_waiting:
            raise QueueFull("too many requests are arriving; try again later")

    async def _read_body(self, request: Request) -> bytes:
        most = self._settings.max_body_bytes
        announced = request.headers.get("content-length", "")
        body = bytearray()
        if not (announced.isdecimal() and int(announced) > most):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    break
            else:
                return bytes(body)
        raise ApiError(413, f"the body has more than {most:,} bytes", code="body_too_large")

    def _parse(self, body: bytes) -> ChatRequest:
        """Runs in a thread, as everything does that takes time."""
        try:
            chat = ChatRequest.model_validate_json(body)
        except ValidationError as error:
            raise explain(error) from None
        self.check_model(chat.model)
        most, pictures = self._settings.max_pictures, chat.picture_urls()
        if len(pictures) > most:
            message = f"{len(pictures)} pictures; {most} are possible"
            raise ApiError(400, message, "messages", "too_many_images")
        found = chat.find_text(self._control_tokens)
        if found is not None:
            place, token = found
            message = f"{place}: {token} in a text would be taken as what it means to the model"
            raise ApiError(400, message, place, "invalid_value")
        return chat

    def _read_pictures(self, urls: list[tuple[str, str]], fetched: dict[str, bytes]) -> list[Image.Image]:
        most = self._settings.max_pixels
        pictures, left = [], 2 * most
        for place, url in urls:
            data = fetched.pop(place) if place in fetched else read_data_url(url, place)
            pictures.append(decode(data, place, min(most, left)))
            left -= pictures[-1].width * pictures[-1].height
        return pictures

    async def _submit(self, chat: ChatRequest, live: LiveAnswer) -> None:
        """Fetch what has to be fetched, then prepare and submit in a thread."""
        urls = chat.picture_urls()
        remote = {place: url for place, url in urls if is_remote(url)}
        if remote and not self._settings.allow_remote_images:
            message = "pictures are not fetched from elsewhere by this server; send a data: URL"
            raise ApiError(400, message, next(iter(remote)), "remote_images_disabled")
        fetched = dict(
            zip(remote, await asyncio.gather(*map(self._fetcher.fetch, remote.values(), remote)), strict=True)
        )

        def prepare(deliver) -> RequestOutput:
            request = GenerationRequest(
                chat.conversation(self._image_token),
                self._read_pictures(urls, fetched),
                chat.sampling(),
                chat.longest,
                chat.stop or (),
            )
            return self._service.submit(request, deliver)

        try:
            await live.submit(self._executor, prepare)
        except PromptTooLong as error:
            raise ApiError(400, str(error), "messages", "context_length_exceeded") from None
        except ValueError as error:
            raise ApiError(400, str(error), "messages", "invalid_value") from None


def _turned_away(error: QueueFull | EngineStopped) -> ApiError:
    if isinstance(error, QueueFull):
        return ApiError(429, str(error), code="queue_full")
    return ApiError(503, str(error), code="stopped")


async def _collect(live: LiveAnswer, reply: Reply, timing: Timing) -> Response:
    """The whole answer as one body."""
    text = []
    try:
        async for piece in live.pieces():
            timing.text()
            text.append(piece)
    except RequestFailed as error:
        raise ApiError(500, str(error), code="answer_failed") from None
    if live.answer.finish_reason == "cancelled":  # not by the client, who is still there
        raise ApiError(503, "the server has ended before the answer did", code="stopped")
    return JSONResponse(reply.whole("".join(text), live.answer))


async def _stream(live: LiveAnswer, reply: Reply, timing: Timing) -> AsyncIterator[bytes]:
    """The answer as events; what fails now can only be said in an event."""
    yield reply.chunk({"role": "assistant", "content": ""})
    try:
        async for piece in live.pieces():
            timing.text()
            yield reply.chunk({"content": piece})
    except RequestFailed as error:
        yield event(ApiError(500, str(error), code="answer_failed").body())
        return
    if live.answer.finish_reason == "cancelled":
        yield event(ApiError(503, "the server has ended before the answer did", code="stopped").body())
        return
    yield reply.chunk({}, live.answer.finish_reason)
    if reply.includes_usage:
        yield reply.usage_chunk(live.answer)
    yield DONE
