"""Many conversations answered at once by one model, without any network in it.

stopping  text -> the text before the first stop string
answer    what a caller holds: pieces of text, an end, a way to give up
row       one conversation while it is decoded: sampling, text, when it ends
batch     the rows that are decoded together; they join and leave between steps
service   a queue in front of a batch, and the one thread that works on it

::

    service = AnswerService(model, processor)
    answer = service.submit(AnswerRequest([{"role": "user", "content": "Hello"}]))
    for piece in answer:
        ...
    answer.finish_reason, answer.completion_tokens
"""

from paddlemix_vl2.answering.answer import Answer, AnswerFailed
from paddlemix_vl2.answering.row import AnswerRequest
from paddlemix_vl2.answering.service import AnswerService, Limits, QueueFull, ServiceStopped

__all__ = [
    "Answer",
    "AnswerFailed",
    "AnswerRequest",
    "AnswerService",
    "Limits",
    "QueueFull",
    "ServiceStopped",
]
