"""Many conversations: batches within their limits, answers to whom they belong, errors that stay alone."""

import random
from pathlib import Path

import paddle
import pytest

from paddlemix_vl2 import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor
from paddlemix_vl2.generation.batched import GenerationLimits, answer_conversations, form_batches

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "paddlemix_vl2" / "demo" / "checkpoint"
PICTURES = ROOT / "examples" / "images" / "drawn"


@pytest.fixture(scope="module")
def processor():
    return DeepseekVLV2Processor.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def model():
    # float32: equality of batch and single answers is of the arithmetic, not of a rounding to 16 bits.
    return DeepseekVLV2ForCausalLM.from_pretrained(CHECKPOINT, dtype="float32", backend="paddle")


def ask(text, *pictures):
    images = [str(PICTURES / name) for name in pictures]
    return [{"role": "user", "content": "<image>\n" * len(images) + text, "images": images}]


CONVERSATIONS = [
    ask("Read the text.", "words.png"),
    ask("Which shape is in the picture?", "red_circle.png"),
    ask("How many shapes are there?", "shapes.png"),
    ask("Do the two pictures show the same shape?", "red_circle.png", "blue_square.png"),
    ask("<|ref|>the red circle<|/ref|>.", "red_circle.png"),
    ask("Describe the picture.", "chart.png"),
    ask("The picture shows a red circle. Which colour is the circle?"),
]


def in_order(answers):
    return [answer for _, answer in sorted((answer.number, answer) for answer in answers)]


@pytest.mark.slow
def test_answers_in_batches_are_those_of_each_conversation_alone(model, processor):
    limits = GenerationLimits(max_new_tokens=12, batch_size=3)
    answers = in_order(answer_conversations(model, processor, enumerate(CONVERSATIONS), limits))
    alone = []
    for conversation in CONVERSATIONS:
        ids, _ = model.generate(**processor(conversations=conversation), max_new_tokens=12)
        ids = ids[0].tolist()
        end = processor.tokenizer.eos_token_id
        alone.append(processor.tokenizer.decode(ids[: ids.index(end)] if end in ids else ids))
    assert [answer.text for answer in answers] == alone
    assert len(set(alone)) > 4, "answers that are all alike prove nothing"


class Counting:
    """Answers with the number of its prompt's tokens, in digits; keeps the sizes of its batches."""

    def __init__(self, processor):
        self.tokenizer, self.batches = processor.tokenizer, []

    def generate(self, input_ids, attention_mask, max_new_tokens, **others):
        lengths = attention_mask.sum(axis=1).tolist()
        self.batches.append(lengths)
        end = self.tokenizer.eos_token_id
        rows = [[*self.tokenizer.encode(str(length)), end] for length in lengths]
        width = max(map(len, rows))
        return paddle.to_tensor([row + [end] * (width - len(row)) for row in rows]), None


def test_each_answer_belongs_to_its_question_whatever_the_batches(processor):
    rng = random.Random(2)
    questions = [ask("red " * rng.randrange(1, 60)) for _ in range(50)]
    expected = [str(len(processor.process_one(question).input_ids)) for question in questions]
    for size in (1, 3, 50):
        model = Counting(processor)
        limits = GenerationLimits(max_new_tokens=5, batch_size=size)
        answers = in_order(answer_conversations(model, processor, enumerate(questions), limits))
        assert [answer.number for answer in answers] == list(range(50))
        assert [answer.text.replace(" ", "") for answer in answers] == expected
        assert max(map(len, model.batches)) == size


def test_conversations_are_taken_a_window_at_a_time(processor):
    taken = []

    def conversations():
        for number in range(40):
            taken.append(number)
            yield number, ask(f"red {number}")

    answers = answer_conversations(
        Counting(processor), processor, conversations(), GenerationLimits(5, batch_size=2)
    )
    next(answers)
    assert len(taken) == 8  # four batches of two
    assert len(list(answers)) == 39 and len(taken) == 40


def test_what_cannot_be_asked_has_an_error_and_the_others_an_answer(processor):
    conversations = [
        ask("red"),
        ValueError("not valid\nJSON"),
        ask("What?", "no.png"),
        ask("red " * 300),
        [{"role": "user", "content": "<image>"}],
        [],
        ask("blue"),
    ]
    limits = GenerationLimits(max_new_tokens=20, max_length=200)
    answers = in_order(answer_conversations(Counting(processor), processor, enumerate(conversations), limits))
    assert [answer.error is None for answer in answers] == [True, False, False, False, False, False, True]
    assert [answer.text is None for answer in answers] == [False, True, True, True, True, True, False]
    assert answers[1].error == "not valid JSON"
    assert "no.png: no such file" in answers[2].error
    assert "the model has 200 positions" in answers[3].error
    assert "1 <image> in the text but 0 picture(s)" in answers[4].error
    assert "the conversation is empty" in answers[5].error


def test_numbers_need_not_be_in_a_row(processor):
    asked = [(7, ask("red")), (3, ask("blue red green"))]
    answers = answer_conversations(Counting(processor), processor, asked, GenerationLimits(5))
    assert {answer.number for answer in answers} == {3, 7}
    assert list(answer_conversations(Counting(processor), processor, [], GenerationLimits(5))) == []


@pytest.mark.parametrize(
    ("lengths", "limits", "batches"),
    [
        ({}, {}, []),
        ({5: 10}, {}, [[5]]),
        # Longest first; in a batch in the order of their numbers.
        ({0: 10, 1: 30, 2: 20, 3: 40}, {"batch_size": 2}, [[1, 3], [0, 2]]),
        # Two of 40 + 10 positions are 100, three would be 150.
        ({0: 40, 1: 40, 2: 40}, {"batch_tokens": 100}, [[0, 1], [2]]),
        # The longest counts for all: 90 + 10 for each.
        ({0: 90, 1: 5}, {"batch_tokens": 199}, [[0], [1]]),
        ({0: 90, 1: 5}, {"batch_tokens": 200}, [[0, 1]]),
        # One that alone is too large is asked all the same.
        ({0: 500, 1: 5, 2: 5}, {"batch_tokens": 100}, [[0], [1, 2]]),
    ],
)
def test_batches_keep_to_their_limits(lengths, limits, batches):
    assert form_batches(lengths, GenerationLimits(max_new_tokens=10, **limits)) == batches


@pytest.mark.parametrize("name", ["max_new_tokens", "batch_size", "batch_tokens"])
def test_limits_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0; it must be at least 1"):
        GenerationLimits(**{name: 0})
