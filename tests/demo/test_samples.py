import hashlib
import subprocess
import sys

import numpy as np
import pytest

from paddlemix_vl2.demo import samples, scenes
from paddlemix_vl2.demo.phrases import position_name
from paddlemix_vl2.demo.questions import KINDS
from paddlemix_vl2.demo.samples import (
    EXTRA_TASKS,
    TASKS,
    make_question,
    make_sample,
    prompt_messages,
    split_of,
)
from paddlemix_vl2.demo.vocabulary import COLORS, LANGUAGES, SHAPES
from paddlemix_vl2.processing.boxes import parse_boxes

WITH_PICTURES = [*(task for task in TASKS if task != "words"), *EXTRA_TASKS]
TEXTS = ("<|User|>", "<|Assistant|>")


def pictures_of(sample):
    return sample["messages"][0].get("images", [])


def fingerprint(sample):
    digest = hashlib.sha256()
    for message in sample["messages"]:
        digest.update(f"{message['role']}{message['content']}".encode())
    for picture in pictures_of(sample):
        digest.update(repr(picture.size).encode() + picture.tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("task", [*TASKS, *EXTRA_TASKS])
def test_a_sample_depends_on_its_arguments_only(task):
    first = [fingerprint(make_sample(task, "train", index)) for index in range(8)]
    np.random.default_rng(0).random()
    assert [fingerprint(make_sample(task, "train", index)) for index in reversed(range(8))][::-1] == first
    assert len(set(first)) == 8
    assert fingerprint(make_sample(task, "test", 0)) != first[0]


def test_a_sample_is_the_same_in_another_process():
    code = (
        "import hashlib\nfrom paddlemix_vl2.demo.samples import make_sample\n"
        "message = make_sample('mixed', 'train', 3)['messages'][0]\n"
        "print(hashlib.sha256(message['images'][0].tobytes() + message['content'].encode()).hexdigest())"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    message = make_sample("mixed", "train", 3)["messages"][0]
    data = message["images"][0].tobytes() + message["content"].encode()
    assert output.strip() == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("task", WITH_PICTURES)
def test_no_picture_is_in_both_splits(task):
    seen = {
        split: {
            picture.tobytes()
            for index in range(60)
            for picture in pictures_of(make_sample(task, split, index))
        }
        for split in samples.SPLITS
    }
    assert not seen["train"] & seen["test"]


@pytest.mark.parametrize("maker", samples.SUBJECTS.values())
def test_what_a_picture_shows_decides_its_split(rng, maker):
    subjects = [maker(rng) for _ in range(400)]
    share = np.mean([split_of(subject) == "test" for subject in subjects])
    assert 0.06 < share < 0.2
    for name, made in samples.SUBJECTS.items():
        if made is maker:
            for split in samples.SPLITS:
                assert split_of(samples._make_subject(rng, name, split)) == split


def test_noise_does_not_decide_the_split(rng):
    scene = scenes.make_scene(rng)
    other = scenes.Scene(scene.size, scene.background, scene.things, scene.grain + 1)
    assert split_of(scene) == split_of(other)


@pytest.mark.parametrize("task", TASKS)
def test_messages_are_a_conversation(task):
    for index in range(40):
        messages = make_sample(task, "train", index)["messages"]
        assert [message["role"] for message in messages] == [TEXTS[i % 2] for i in range(len(messages))]
        assert len(messages) >= 2 and len(messages) % 2 == 0
        pictures = pictures_of({"messages": messages})
        assert messages[0]["content"].startswith("<image>\n" * len(pictures))
        assert sum(message["content"].count("<image>") for message in messages) == len(pictures)
        assert not any("images" in message for message in messages[1:])
        assert len(pictures) == 0 if task == "words" else len(pictures) in (1, 2)
        if task == "caption":
            assert len(messages) == 2


def test_number_of_turns():
    turns = {task: [len(make_sample(task, "train", i)["messages"]) // 2 for i in range(60)] for task in TASKS}
    assert min(turns["scene"]) >= 4 and max(turns["scene"]) == 7
    assert np.mean(turns["text"]) >= 2 and max(turns["text"]) <= 5
    assert min(turns["chart"]) >= 3 and min(turns["compare"]) >= 2


def test_no_answer_is_given_away_by_an_earlier_one():
    for index in range(60):
        messages = make_sample("text", "train", index)["messages"]
        read = {"Read", "What does", "Which word", "Which number", "图中", "读出", "第"}
        answers = [
            answer["content"]
            for question, answer in zip(messages[::2], messages[1::2], strict=True)
            if any(question["content"].removeprefix("<image>\n").startswith(word) for word in read)
        ]
        assert len(answers) == len(set(answers))


def test_mixed_has_pictures_of_all_sizes_and_both_languages():
    made = [make_sample("mixed", "train", index) for index in range(150)]
    sizes = {picture.size for sample in made for picture in pictures_of(sample)}
    assert sizes == {(84, 84), (168, 84), (84, 168), (168, 168), (84, 252)}
    assert 0.08 < np.mean([len(pictures_of(sample)) == 2 for sample in made]) < 0.24
    prompts = [message["content"] for sample in made for message in sample["messages"][::2]]
    chinese = np.mean([any("\u4e00" <= letter <= "\u9fff" for letter in prompt) for prompt in prompts])
    assert 0.4 < chinese < 0.6


def test_a_grid_is_of_many_things_each_in_its_cell():
    rng = np.random.default_rng(0)
    for _ in range(60):
        scene = scenes.make_grid(rng)
        assert 5 <= len(scene.things) <= 9
        assert len({(thing.shape, thing.color) for thing in scene.things}) == len(scene.things)
        check_cells(scene)


def test_a_color_grid_differs_in_colours_only():
    rng = np.random.default_rng(0)
    counts = set()
    for _ in range(60):
        scene = scenes.make_color_grid(rng)
        assert len({thing.shape for thing in scene.things}) == 1
        assert len({thing.color for thing in scene.things}) == len(scene.things)
        check_cells(scene)
        counts.add(len(scene.things))
    assert counts == {4, 5, 6, 7}


def check_cells(scene):
    """Every thing is large, and within the cell that it is said to be in."""
    for thing in scene.things:
        corners = np.array(thing.box).reshape(2, 2) * 3 / scene.size[0]
        assert (corners[0] >= (thing.cell % 3, thing.cell // 3)).all()
        assert (corners[1] <= (thing.cell % 3 + 1, thing.cell // 3 + 1)).all()
        assert thing.box[2] - thing.box[0] >= 19


def test_closed_asks_for_short_answers_only():
    answers = set()
    for index in range(60):
        answers.update(
            message["content"] for message in make_sample("closed", "train", index)["messages"][1::2]
        )
    colors = {*COLORS, *COLORS.values()}
    shapes = {*SHAPES, *SHAPES.values()}
    places = {position_name(cell, language) for cell in range(9) for language in LANGUAGES}
    counts = {str(count) for count in range(5)}
    assert answers <= colors | shapes | places | counts
    assert all(answers & some for some in (colors, shapes, places, counts))


def test_locate_asks_where_things_of_a_scene_are():
    for index in range(40):
        answers = [message["content"] for message in make_sample("locate", "train", index)["messages"][1::2]]
        boxes = ["<|det|>" in answer for answer in answers]
        places = {
            name for language in ("en", "zh") for name in map(lambda c: position_name(c, language), range(9))
        }
        assert all(box or answer in places for box, answer in zip(boxes, answers, strict=True))
        assert len(answers) >= 2


def test_ink_asks_for_colours_of_several_words():
    colors = {*COLORS, *COLORS.values()}
    answers = []
    for index in range(60):
        subject = scenes.make_long_card(np.random.default_rng(index))
        assert len(subject.items) > 1
        answers += [message["content"] for message in make_sample("ink", "train", index)["messages"][1::2]]
    assert 0.3 < np.mean([answer in colors for answer in answers]) < 0.7
    assert not any("<|det|>" in answer for answer in answers)


def test_words_tell_what_is_asked():
    """Every box and every digit of an answer is in what the user says."""
    for index in range(100):
        messages = make_sample("words", "train", index)["messages"]
        told = messages[0]["content"].split("\n")[0]
        assert messages[0]["content"].count("\n") == 1
        for message in messages[1::2]:
            if "<|det|>" in message["content"]:
                boxes = message["content"].split("<|det|>")[1:]
                assert all(box.split("<|/det|>")[0] in told for box in boxes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_single_questions(kind, language):
    for index in range(5):
        images, question = make_question(kind, "test", index, language)
        again, same = make_question(kind, "test", index, language)
        assert question == same and [i.tobytes() for i in images] == [i.tobytes() for i in again]
        assert (question.kind, question.language) == (kind, language)
        (message,) = prompt_messages(images, question)
        assert message["content"] == "<image>\n" * len(images) + question.prompt
    assert make_question(kind, "train", 0, language)[0][0].tobytes() != images[0].tobytes()


def test_wrong_names():
    with pytest.raises(ValueError, match=r"no task 'scenes'.*tasks: scene, text"):
        make_sample("scenes", "train", 0)
    with pytest.raises(ValueError, match="of split 'dev'"):
        make_sample("scene", "dev", 0)
    for arguments in [("color", "test", 0, "en"), ("colour", "dev", 0, "en"), ("colour", "test", 0, "de")]:
        with pytest.raises(ValueError, match=r"kinds: describe"):
            make_question(*arguments)


def test_simple_pictures_are_one_tile_with_one_thing_that_is_told():
    samples = [make_sample("simple", "train", index) for index in range(60)]
    assert all(picture.size == (84, 84) for sample in samples for picture in pictures_of(sample))
    assert {len(sample["messages"]) for sample in samples} == {2, 4}
    answers = [sample["messages"][1]["content"] for sample in samples]
    assert any("circle" in answer for answer in answers) and any("圆形" in answer for answer in answers)
    located = [sample["messages"][3]["content"] for sample in samples if len(sample["messages"]) == 4]
    assert all(parse_boxes(answer, (84, 84)).objects for answer in located)
