"""The body of a chat completion: what is taken, what is ignored, what is refused.

A parameter that would change the answer in a way that this server cannot is refused, unless it has the value
that changes nothing; an unknown one is refused, because it might. What only names, stores or bills a request
is ignored.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from paddlemix_vl2.generation.sampling import SamplingParameters

MAX_STOPS, MAX_STOP_LENGTH = 16, 256
_LARGEST_SEED = 2**63 - 1


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Part):
    type: Literal["text"]
    text: str


class ImageUrl(_Part):
    """Attributes:
    detail: ignored; how a picture is tiled follows from its size.
    """

    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(_Part):
    type: Literal["image_url"]
    image_url: ImageUrl


def _as_parts(content: Any) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise PydanticCustomError("content_type", "must be text or a list of parts")
    return content


def _as_list(stop: Any) -> Any:
    return [stop] if isinstance(stop, str) else stop


def _neutral(kind: Any, *values: Any) -> Any:
    """A parameter of which only None and these values are possible."""

    def check(value: Any) -> Any:
        if value is not None and value not in values:
            raise PydanticCustomError("unsupported", f"is not supported; leave it out or give {values[0]!r}")
        return value

    return Annotated[kind | None, AfterValidator(check)]


Content = Annotated[
    list[Annotated[TextPart | ImagePart, Field(discriminator="type")]],
    BeforeValidator(_as_parts),
    Field(min_length=1),
]
StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
StopTexts = Annotated[list[StopText], Field(max_length=MAX_STOPS)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class ChatMessage(_Part):
    """Attributes:
    role: ``developer`` is another name of ``system``.
    name: ignored.
    """

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: str | None = None
    # A reply can be sent back as it came.
    refusal: _neutral(str, "") = None
    tool_calls: _neutral(list, []) = None
    function_call: None = None
    annotations: Any = None
    audio: None = None


class StreamOptions(_Part):
    include_usage: bool | None = None
    include_obfuscation: _neutral(bool, False) = None


class ChatRequest(BaseModel):
    """The body; strict: no text for a number."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[Finite, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Finite, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, le=_LARGEST_SEED)] | None = None
    stop: Annotated[StopTexts | None, BeforeValidator(_as_list)] = None
    # Beyond OpenAI's parameters, as other servers have them.
    top_k: Annotated[int, Field(ge=0, le=_LARGEST_SEED)] | None = None
    repetition_penalty: Annotated[Finite, Field(gt=0, le=10)] | None = None

    # Refused, unless they change nothing.
    n: _neutral(int, 1) = None
    logprobs: _neutral(bool, False) = None
    top_logprobs: _neutral(int, 0) = None
    presence_penalty: _neutral(float, 0) = None
    frequency_penalty: _neutral(float, 0) = None
    logit_bias: _neutral(dict, {}) = None
    tools: _neutral(list, []) = None
    tool_choice: _neutral(str, "none", "auto") = None
    functions: _neutral(list, []) = None
    function_call: _neutral(str, "none", "auto") = None
    response_format: _neutral(dict, {"type": "text"}) = None
    modalities: _neutral(list, ["text"]) = None

    # Ignored.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    parallel_tool_calls: Any = None

    @property
    def longest(self) -> int | None:
        """Both names of the limit are one."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def includes_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @model_validator(mode="after")
    def _check_sampling(self) -> "ChatRequest":
        self.sampling()
        return self

    def sampling(self) -> SamplingParameters:
        """Greedy, unless temperature, top_p or top_k is given; a temperature of 0 is greedy too."""
        return SamplingParameters.asked_for(
            self.temperature, self.top_p, self.top_k, self.repetition_penalty or 1.0, self.seed
        )

    def picture_urls(self) -> list[tuple[str, str]]:
        """(its place in the request, URL) of each picture, in order."""
        return [
            (f"messages[{index}].content[{number}].image_url.url", part.image_url.url)
            for index, message in enumerate(self.messages)
            for number, part in enumerate(message.content)
            if isinstance(part, ImagePart)
        ]

    def conversation(self, image_token: str) -> list[dict]:
        """Messages for the processor: parts on lines of their own, a picture as ``image_token``."""
        return [
            {
                "role": "system" if message.role == "developer" else message.role,
                "content": "\n".join(
                    image_token if isinstance(part, ImagePart) else part.text for part in message.content
                ),
            }
            for message in self.messages
        ]

    def find_text(self, tokens: tuple[str, ...]) -> tuple[str, str] | None:
        """(place, token) of the first of these tokens in a text."""
        for index, message in enumerate(self.messages):
            for part in message.content:
                if isinstance(part, TextPart):
                    for token in tokens:
                        if token in part.text:
                            return f"messages[{index}].content", token
        return None
