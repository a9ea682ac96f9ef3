"""Answers as OpenAI's ``chat.completion`` objects and as the events of a stream."""

import json
import time
import uuid
from dataclasses import dataclass, field

from paddlemix_vl2.serving import RequestOutput

DONE = b"data: [DONE]\n\n"


def usage(answer: RequestOutput) -> dict:
    """Numbers of tokens; those of pictures count as the prompt's."""
    prompt, completion = answer.prompt_tokens, answer.completion_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


def event(body: dict) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


@dataclass(frozen=True)
class Reply:
    """What all objects of one answer have in common.

    Attributes:
        model: the name that the model is served under.
        includes_usage: whether a stream ends with the numbers of tokens.
    """

    model: str
    includes_usage: bool = False
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, answer: RequestOutput) -> dict:
        """A finished answer."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage(answer)}

    def chunk(self, delta: dict, finish_reason: str | None = None) -> bytes:
        """An event with new text, or the end."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event({**self._head("chat.completion.chunk"), "choices": [choice], **self._no_usage()})

    def usage_chunk(self, answer: RequestOutput) -> bytes:
        """The event with the numbers of tokens, behind the end of a stream."""
        return event({**self._head("chat.completion.chunk"), "choices": [], "usage": usage(answer)})

    def _no_usage(self) -> dict:
        return {"usage": None} if self.includes_usage else {}

    def _head(self, kind: str) -> dict:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}
