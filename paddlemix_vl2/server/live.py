"""An answer of the service's thread inside the event loop, as long as the client is there."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor, Future
from typing import TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from paddlemix_vl2.serving import RequestOutput

T = TypeVar("T")


async def while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled when the client goes away.

    Args:
        receive: of a request whose body has been read.

    Raises:
        ClientDisconnect: the client has gone.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return await task
    finally:
        task.cancel(), gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class LiveAnswer:
    """Pieces of text that a thread delivers, for the event loop that made this.

    Attributes:
        answer: the service's; None before it was submitted.
    """

    def __init__(self):
        self.answer: RequestOutput | None = None
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()

    async def submit(self, executor: Executor, work: Callable[[Callable], RequestOutput]) -> None:
        """Run ``work(deliver)`` in a thread; it submits the request and returns the answer.

        Given up meanwhile, the answer is cancelled as soon as it is there.
        """
        future = executor.submit(work, self._deliver)
        try:
            self.answer = await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(_cancel_answer)
            raise

    async def pieces(self) -> AsyncIterator[str]:
        """The text as it comes.

        Raises:
            RequestFailed: the model failed.
        """
        while (piece := await self._pieces.get()) is not None:
            yield piece
        self.answer.raise_failure()

    def _deliver(self, piece: str | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
            self._loop.call_soon_threadsafe(self._pieces.put_nowait, piece)


def _cancel_answer(future: Future) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().cancel()


class EventStream(StreamingResponse):
    """Server-sent events for as long as the client is there.

    Args:
        when_over: called at the end, whatever kind of end it is.
    """

    def __init__(self, events: AsyncIterator[bytes], when_over: Callable[[], object]):
        # Proxies (nginx) must not collect the events before they pass them on.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._when_over = when_over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with contextlib.suppress(ClientDisconnect, OSError):  # the client is gone
                await while_connected(receive, self.stream_response(send))
        finally:
            self._when_over()
