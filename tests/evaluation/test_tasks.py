"""Benchmarks as data: prompts, metrics, the paper's scores."""

import re
from pathlib import Path

import pytest

from paddlemix_vl2.evaluation.questions import Question
from paddlemix_vl2.evaluation.tasks import METRICS, TASKS, build_prompt, find_task, score_answer
from paddlemix_vl2.generation.decoding import check_lengths
from paddlemix_vl2.layouts.tiles import num_image_tokens

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {"A": "a cat", "B": "a dog"}
PHRASE = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."


@pytest.mark.parametrize(
    ("task", "options", "hint", "prompt"),
    [
        ("docvqa", {}, "", f"Why?\n{PHRASE}"),
        ("infovqa", {}, "", f"Why?\n{PHRASE}"),
        ("chartqa", {}, "", f"Why?\n{PHRASE}"),
        ("textvqa", {}, "", f"Why?\n{PHRASE}"),
        ("ocrbench", {}, "", "Why?"),
        ("own", {}, "", "Why?"),
        ("mmmu", OPTIONS, "", f"Why?\nA. a cat\nB. a dog\n{LETTER} {PHRASE}"),
        ("mmmu", {}, "", f"Why?\n{PHRASE}"),
        ("mmstar", OPTIONS, "", f"Why?\nA. a cat\nB. a dog\n{LETTER}"),
        ("ai2d", OPTIONS, "Look.", f"Look.\nWhy?\nA. a cat\nB. a dog\n{LETTER}"),
        ("refcoco+_testA", {}, "", "<|ref|>Why?<|/ref|>."),
    ],
)
def test_prompts(task, options, hint, prompt):
    assert build_prompt(TASKS[task], "Why?", options, hint) == prompt


def test_braces_of_a_question_are_text():
    assert build_prompt(TASKS["docvqa"], "What is {x}?", {}) == f"What is {{x}}?\n{PHRASE}"


def test_every_task_can_be_scored():
    assert {task.metric for task in TASKS.values()} == set(METRICS)
    for name, task in TASKS.items():
        assert name == task.name and task.max_new_tokens >= 32
        assert "{question}" in task.prompt and len(task.paper) == 3


def test_the_family_of_refcoco_is_complete():
    splits = {"refcoco": "val testA testB", "refcoco+": "val testA testB", "refcocog": "val test"}
    expected = {f"{name}_{split}" for name, ends in splits.items() for split in ends.split()}
    assert {name for name in TASKS if name.startswith("refcoco")} == expected


def test_the_widest_prompt_of_infovqa_leaves_room_for_question_and_answer():
    task = TASKS["infovqa"]
    grids = [(w, h) for w in range(1, 19) for h in range(1, 19) if w * h <= task.max_tiles]
    longest = max(num_image_tokens(*grid, side=14) for grid in grids)
    assert longest == 210 + 1 + 14 * 18 * (14 + 1)  # 18 tiles above each other, each row with its newline
    check_lengths(longest + 50, task.max_new_tokens, None, 4096)


@pytest.mark.parametrize(
    ("metric", "answer", "question", "score"),
    [
        ("anls", "tets", {"answers": ["test"]}, 0.5),
        ("relaxed", "104", {"answers": ["100"]}, 1),
        ("vqa", "two", {"answers": ["2"] * 10}, 1),
        ("match", "Two", {"answers": ["two"]}, 1),
        ("ocrbench", "a b", {"answers": ["ab"], "category": "HME100k"}, 1),
        ("choice", "B.", {"answers": ["B"], "options": OPTIONS}, 1),
        ("choice", "Five", {"answers": ["five"]}, 1),
        (
            "box",
            "<|ref|>x<|/ref|><|det|>[[0, 0, 999, 999]]<|/det|>",
            {"answers": [], "box": (0, 0, 10, 10), "size": (10, 10)},
            1,
        ),
    ],
)
def test_each_metric_gets_what_it_needs(metric, answer, question, score):
    question = Question(id="0", text="?", pictures=[], metric=metric, **question)
    assert score_answer(metric, answer, question) == score


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(ValueError, match="task: unknown key 'docvaq' \\(did you mean 'docvqa'"):
        find_task("docvaq")


def test_every_task_is_in_the_documentation():
    text = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert [name for name in TASKS if not re.search(rf"`{re.escape(name)}`", text)] == []
