"""The task that fine-tuning teaches: a question in one language, the answer in the other."""

import re

import pytest

from paddlemix_vl2.demo import samples, scenes
from paddlemix_vl2.demo.phrases import in_other_language
from paddlemix_vl2.demo.questions import EXTRA_KINDS, KINDS, ask, kinds_of
from paddlemix_vl2.demo.samples import EXTRA_TASKS, TASKS, make_question, make_sample
from paddlemix_vl2.demo.scenes import Scene, Thing
from paddlemix_vl2.demo.vocabulary import COLORS, POSITIONS, SHAPES

STAR = Thing("star", "blue", 4, (30, 30, 60, 60))
SCENE = Scene((84, 84), (255, 255, 255), (STAR,), 1)
HAN = re.compile("[\u4e00-\u9fff]")


def test_the_answers_are_in_the_other_language(rng):
    for language, answers in (
        ("en", {"colour": "蓝色", "(What|Which) shape": "五角星", "Where|part": "中央"}),
        ("zh", {"颜色": "blue", "什么形状|什么图形": "star", "哪里|什么位置": "centre"}),
    ):
        asked = [ask(rng, SCENE, "other_language", language) for _ in range(200)]
        for words, answer in answers.items():
            found = [question for question in asked if re.search(words, question.prompt)]
            assert found and {question.answer for question in found} == {answer}
        assert {"Answer in Chinese.", "Say it in Chinese."} >= {
            question.prompt.split("? ")[1] for question in asked if language == "en"
        }
        assert all(bool(HAN.search(question.prompt)) == (language == "zh") for question in asked)


def test_every_name_has_one_in_the_other_language():
    for english, chinese in {**COLORS, **SHAPES, **POSITIONS}.items():
        assert in_other_language(english) == chinese and in_other_language(chinese) == english


def test_it_is_in_no_other_task_and_asked_only_when_named(rng):
    assert not {*EXTRA_TASKS} & {*TASKS} and not {*EXTRA_KINDS} & {*KINDS}
    assert "other_language" not in kinds_of(Scene)
    for task in TASKS:
        for index in range(30):
            contents = [message["content"] for message in make_sample(task, "train", index)["messages"]]
            assert not any("in Chinese" in text or "英语" in text for text in contents)
    assert ask(rng, scenes.make_card(rng), "other_language", "en") is None


@pytest.mark.parametrize("split", samples.SPLITS)
def test_conversations_and_single_questions(split, processor):
    for index in range(30):
        sample = make_sample("other_language", split, index)
        messages = sample["messages"]
        assert messages[0]["content"].startswith("<image>\n") and len(messages[0]["images"]) == 1
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            prompt = question["content"].removeprefix("<image>\n")
            assert bool(HAN.search(prompt)) != bool(HAN.search(answer["content"]))
        # The recipe's rows have 384 tokens.
        assert len(processor.process_one(messages, inference_mode=False).input_ids) <= 384
        images, question = make_question("other_language", split, index, "zh")
        assert (len(images), question.kind, question.language) == (1, "other_language", "zh")
