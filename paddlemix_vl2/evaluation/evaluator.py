"""From the questions of a benchmark to its score.

::

    questions -- build_prompt --> conversations -- answer_missing --> answers
    answers -- score_answer --> results, kept in a journal -- summarize --> table
"""

from typing import Any

from paddlemix_vl2.evaluation.questions import Question, QuestionFile
from paddlemix_vl2.evaluation.requests import make_conversation
from paddlemix_vl2.evaluation.tasks import MODELS, Task, build_prompt, score_answer
from paddlemix_vl2.generation.batched import ConversationAnswer
from paddlemix_vl2.processing.conversation import Conversation
from paddlemix_vl2.processing.deepseek_vl2 import DeepseekVLV2Processor
from paddlemix_vl2.processing.tiling import all_resolutions


def load_processor(folder, task: Task) -> DeepseekVLV2Processor:
    """The checkpoint's processor, with the grids of tiles that the task is evaluated with."""
    processor = DeepseekVLV2Processor.from_pretrained(folder)
    if task.max_tiles is None:
        return processor
    grids = all_resolutions(processor.tile_size, task.max_tiles)
    return DeepseekVLV2Processor.from_pretrained(folder, candidate_resolutions=grids)


class Benchmark:
    """The questions of a task as a source for :func:`answer_missing`."""

    def __init__(self, questions: QuestionFile):
        self.questions = questions
        self._asked: dict[int, Question] = {}  # until they are answered

    def __len__(self) -> int:
        return len(self.questions)

    def conversation(self, number: int) -> Conversation:
        """Question ``number`` as it is put to the model.

        Raises:
            ValueError: its record is broken.
        """
        question = self._asked[number] = self.questions[number]
        text = build_prompt(self.questions.task, question.text, question.options, question.hint)
        return make_conversation(text, question.pictures)

    def result(self, number: int, answer: ConversationAnswer) -> dict[str, Any]:
        """``id``, ``question``, ``category``, ``metric``, ``prediction``, ``answers`` or ``box``, and
        ``score``, 0 to 1. A question that could not be asked has an ``error`` and a score of 0.
        """
        question = self._asked.pop(number, None)
        if answer.error is not None:
            category, metric = (question.category, question.metric) if question else ("", "")
            reason = f"{self.questions.place(number)}: {answer.error}"
            return {"error": reason, "category": category, "metric": metric, "score": 0.0}
        right = {"box": list(question.box)} if question.box else {"answers": question.answers}
        return {
            "id": question.id,
            "question": question.text,
            "category": question.category,
            "prediction": answer.text.strip(),
            **right,
            "metric": question.metric,
            "score": round(score_answer(question.metric, answer.text, question), 4),
        }


def summarize(task: Task, results: list[dict]) -> dict[str, Any]:
    """The task's score, in percent (OCRBench: hits), overall and by category, with the paper's beside it."""
    groups: dict[str, list[dict]] = {}
    for result in results:
        groups.setdefault(result["category"], []).append(result)
    groups.pop("", None)
    return {
        "task": task.name,
        "title": task.title,
        "unit": task.unit,
        **_count(task, results),
        "categories": {name: _count(task, groups[name]) for name in sorted(groups)},
        "paper": dict(zip(MODELS, task.paper, strict=True)),
    }


def _count(task: Task, results: list[dict]) -> dict[str, Any]:
    total = sum(result["score"] for result in results)
    return {
        "score": round(total if task.unit == "hits" else 100 * total / len(results), 2),
        "questions": len(results),
        "failed": sum("error" in result for result in results),
    }


def to_markdown(summary: dict[str, Any]) -> str:
    """A table: the task, then its categories; the paper's scores beside the task's."""
    header = ["", "questions", "failed", f"score ({summary['unit']})", *[f"paper: {name}" for name in MODELS]]
    rows = [header, ["---", *["---:"] * (len(header) - 1)]]
    paper = ["-" if score is None else f"{score:g}" for score in summary["paper"].values()]
    rows.append([summary["title"], *_cells(summary), *paper])
    for name, counted in summary["categories"].items():
        rows.append([name.replace("|", "/"), *_cells(counted), *[""] * len(paper)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cells(counted: dict[str, Any]) -> list[str]:
    return [str(counted["questions"]), str(counted["failed"]), f"{counted['score']:.1f}"]
