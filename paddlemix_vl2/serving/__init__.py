"""Continuous batching: one model answers many conversations at once. Knows no network.

stop_strings  text -> the text before the first stop string
stream        what a caller holds: pieces of text, an end, a way to give up
sequence      one conversation while it is decoded: sampling, text, when it ends
batch         the sequences that are decoded together; they join and leave between steps
engine        a queue in front of a batch, and the one thread that works on it

::

    engine = ServingEngine(model, processor)
    output = engine.submit(GenerationRequest([{"role": "user", "content": "Hello"}]))
    for piece in output:
        ...
    output.finish_reason, output.completion_tokens
"""

from paddlemix_vl2.serving.engine import EngineLimits, EngineStopped, QueueFull, ServingEngine
from paddlemix_vl2.serving.sequence import GenerationRequest
from paddlemix_vl2.serving.stream import RequestFailed, RequestOutput

__all__ = [
    "EngineLimits",
    "EngineStopped",
    "GenerationRequest",
    "QueueFull",
    "RequestFailed",
    "RequestOutput",
    "ServingEngine",
]
