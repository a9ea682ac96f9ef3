"""Benchmarks as data: prompts, metrics, and the scores that the paper reports.

Scores and prompts: DeepSeek-VL2 paper, arXiv 2412.10302, section 4 and its tables; where the paper does not
print a prompt, it is the usual one of that benchmark.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from paddlemix_vl2.config.checks import check_key
from paddlemix_vl2.evaluation import metrics

MODELS = ("VL2-Tiny", "VL2-Small", "VL2")  # whose scores the paper has, in this order
# VQA accuracy of an answer that all gave: with fewer persons no answer reaches 1.
MIN_VOTES = metrics.FULL_AGREEMENT + 1

_PHRASE = "Answer the question using a single word or phrase."
_LETTER = "Answer with the option's letter from the given choices directly."
_VQA = f"{{question}}\n{_PHRASE}"
_CHOICE = f"{{hint}}{{question}}\n{{options}}{_LETTER}"

Scores = tuple[float | None, float | None, float | None]


class Asked(Protocol):
    """What metrics look at of a question."""

    answers: list[str]
    options: dict[str, str]
    category: str
    box: tuple[float, ...] | None
    size: tuple[int, int] | None


Metric = Callable[[str, Asked], float]


def _choice(answer: str, question: Asked) -> float:
    if not question.options:  # an open question
        return metrics.exact_match(answer, question.answers)
    return metrics.choice_accuracy(answer, question.answers, question.options)


# Name -> score of an answer, 0 to 1, given with its special tokens, and of the question that it answers.
METRICS: dict[str, Metric] = {
    "anls": lambda answer, question: metrics.anls(answer, question.answers),
    "relaxed": lambda answer, question: metrics.relaxed_accuracy(answer, question.answers),
    "vqa": lambda answer, question: metrics.vqa_accuracy(answer, question.answers),
    "ocrbench": lambda answer, question: metrics.ocrbench_hit(answer, question.answers, question.category),
    "choice": _choice,
    "box": lambda answer, question: metrics.box_hit(answer, question.box, question.size),
    "match": lambda answer, question: metrics.exact_match(answer, question.answers),
}


def register_metric(name: str, metric: Metric) -> None:
    """Make a metric known to tasks and to questions that name their own."""
    METRICS[name] = metric


def register_task(task: "Task") -> None:
    """Make a benchmark known under its name."""
    TASKS[task.name] = task


@dataclass(frozen=True)
class Task:
    """A benchmark.

    Attributes:
        title: what tables call it, with the split that the paper's scores are of.
        metric: one of ``METRICS``; a question may name another.
        prompt: with ``{question}``, and for multiple choice ``{hint}`` and ``{options}``, which are empty or
            end with a line break. Pictures come before it.
        max_new_tokens: longest answer; an answer ends by itself, this is for one that does not.
        max_tiles: grids of up to so many tiles instead of the processor's candidates.
        paper: scores of ``MODELS``, in percent, of OCRBench in hits of 1000; None where there is none.
    """

    name: str
    title: str
    metric: str
    prompt: str
    max_new_tokens: int
    max_tiles: int | None = None
    paper: Scores = (None, None, None)

    @property
    def unit(self) -> str:
        """What its score is counted in: "hits", added up, or "%", the mean."""
        return "hits" if self.metric == "ocrbench" else "%"


def _locate(name: str, title: str, paper: Scores) -> Task:
    return Task(name, title, "box", "<|ref|>{question}<|/ref|>.", 128, paper=paper)


_TASKS = (
    Task("docvqa", "DocVQA test", "anls", _VQA, 128, paper=(88.9, 92.3, 93.3)),
    # Evaluated with wider and taller grids than trained with; a prompt of 18 tiles leaves few positions.
    Task("infovqa", "InfoVQA test", "anls", _VQA, 48, max_tiles=18, paper=(66.1, 75.8, 78.1)),
    Task("chartqa", "ChartQA test", "relaxed", _VQA, 64, paper=(81.0, 84.5, 86.0)),
    Task("textvqa", "TextVQA val", "vqa", _VQA, 64, paper=(80.7, 83.4, 84.2)),
    # Its questions say themselves how to answer.
    Task("ocrbench", "OCRBench", "ocrbench", "{question}", 256, paper=(809, 834, 811)),
    Task("mmmu", "MMMU val", "choice", f"{_CHOICE} {_PHRASE}", 64, paper=(40.7, 48.0, 51.1)),
    Task("mmstar", "MMStar", "choice", _CHOICE, 64, paper=(45.9, 57.0, 61.3)),
    Task("ai2d", "AI2D", "choice", _CHOICE, 64, paper=(71.6, 80.0, 81.4)),
    Task("mmbench", "MMBench, each question once", "choice", _CHOICE, 64),
    _locate("refcoco_val", "RefCOCO val", (84.7, 93.9, 95.1)),
    _locate("refcoco_testA", "RefCOCO testA", (87.8, 95.3, 96.7)),
    _locate("refcoco_testB", "RefCOCO testB", (78.4, 91.3, 92.7)),
    _locate("refcoco+_val", "RefCOCO+ val", (None, None, 91.2)),
    _locate("refcoco+_testA", "RefCOCO+ testA", (None, None, 94.9)),
    _locate("refcoco+_testB", "RefCOCO+ testB", (None, None, 87.4)),
    _locate("refcocog_val", "RefCOCOg val", (None, None, 92.8)),
    _locate("refcocog_test", "RefCOCOg test", (None, None, 92.9)),
    Task("own", "own questions", "match", "{question}", 512),
)
TASKS = {task.name: task for task in _TASKS}


def find_task(name: str) -> Task:
    """The task of this name.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    check_key(name, TASKS, "task")
    return TASKS[name]


def build_prompt(task: Task, question: str, options: dict[str, str], hint: str = "") -> str:
    """The text of a question without its pictures.

    >>> print(build_prompt(TASKS["mmstar"], "What is it?", {"A": "a cat", "B": "a dog"}))
    What is it?
    A. a cat
    B. a dog
    Answer with the option's letter from the given choices directly.
    """
    if task.metric == "choice" and not options:
        return _VQA.format(question=question)  # some of MMMU's are open
    lines = "".join(f"{letter}. {text}\n" for letter, text in options.items())
    return task.prompt.format(question=question, options=lines, hint=f"{hint}\n" if hint else "")


def score_answer(metric: str, answer: str, question: Asked) -> float:
    """The score of an answer, 0 to 1.

    Args:
        metric: one of ``METRICS``.
        answer: with its special tokens.
    """
    return METRICS[metric](answer, question)
