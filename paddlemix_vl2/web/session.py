"""One question from the page: what to show while it is answered, how it is stopped, errors as sentences."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from paddlemix_vl2.web.chat import Chat, Refusal, Settings, Turn
from paddlemix_vl2.web.wording import say

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Progress:
    """What the page shows at one moment.

    Attributes:
        turns: the conversation, the growing answer included.
        notice: a sentence below the chat, empty for none.
        is_running: whether more is to come.
        is_refused: whether the question was not taken, so that it goes back to where it was typed.
    """

    turns: list[Turn]
    notice: str = ""
    is_running: bool = False
    is_refused: bool = False


@dataclass
class Interruption:
    """Whether the answer that is being written is to end, and whether its conversation is to go too."""

    is_stopped: bool = False
    is_cleared: bool = False

    def stop(self, clear: bool) -> None:
        self.is_stopped = True
        self.is_cleared |= clear


class Interruptions:
    """One :class:`Interruption` for each browser window that waits for an answer."""

    def __init__(self):
        self._of_window: dict[str, Interruption] = {}

    def begin(self, window: str) -> Interruption:
        """For the answer that begins in this window."""
        self._of_window[window] = Interruption()
        return self._of_window[window]

    def interrupt(self, window: str, clear: bool = False) -> None:
        """End the window's answer, if there is one."""
        if window in self._of_window:
            self._of_window[window].stop(clear)

    def end(self, window: str) -> None:
        self._of_window.pop(window, None)


def respond(
    chat: Chat,
    turns: Sequence[Turn],
    question: str,
    pictures: Sequence[Path],
    settings: dict,
    language: str,
    interruption: Interruption,
) -> Iterator[Progress]:
    """Ask, and say what to show at each moment. The last one is not running; nothing that goes wrong while
    answering is raised.

    An answer whose conversation was cleared ends with the empty one: what it showed before may reach the
    browser later than what clearing showed.

    Args:
        settings: keyword arguments of :class:`Settings`, as they are on the page.
    """
    for progress in _answer(chat, list(turns), question, pictures, settings, language, interruption):
        if not interruption.is_cleared:
            yield progress
        elif not progress.is_running:
            yield Progress([])


def _answer(chat, turns, question, pictures, settings, language, interruption) -> Iterator[Progress]:
    running = Progress(turns, say(language, "reading"), is_running=True)
    try:
        yield running
        for turn in chat.ask(
            turns, question, pictures, Settings(**settings), lambda: interruption.is_stopped
        ):
            running = Progress([*turns, turn], say(language, "answering"), is_running=True)
            yield running
    except Refusal as refusal:
        yield Progress(turns, say(language, refusal.reason, **refusal.values), is_refused=True)
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        # Paddle reports a lack of memory, and broken devices, by any of the last three.
        logger.exception("the question could not be answered")
        yield Progress(turns, say(language, "failed", detail=_one_line(error)), is_refused=True)
    else:
        yield Progress(running.turns, _summary(chat, running.turns[-1], language, interruption.is_stopped))


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def _summary(chat: Chat, turn: Turn, language: str, was_stopped: bool) -> str:
    """How much of the context is used, and what the answer lacks."""
    sentences = [say(language, "used", tokens=turn.num_tokens, limit=chat.limit)]
    if was_stopped:
        sentences.insert(0, say(language, "stopped"))
    if turn.is_cut and turn.num_tokens >= chat.limit:
        sentences = [say(language, "full", tokens=turn.num_tokens, limit=chat.limit)]
    elif turn.is_cut:
        sentences.append(say(language, "cut"))
    sentences += [say(language, "left_out", detail=problem) for problem in turn.problems]
    return " ".join(sentences)
