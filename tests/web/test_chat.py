"""What reaches the model, what comes back, what is refused."""

import itertools
import time

import numpy as np
import pytest
from PIL import Image

from paddlemix_vl2 import DeepseekVLV2ForCausalLM
from paddlemix_vl2.figures.boxes import draw_boxes
from paddlemix_vl2.processing.boxes import parse_boxes
from paddlemix_vl2.web.chat import Chat, Refusal, Settings, Turn, build_conversation

BOXES = "<|ref|>the red circle<|/ref|><|det|>[[0, 0, 500, 999], [1, 2]]<|/det|>"


def last(turns):
    *_, turn = turns
    return turn


def test_the_answer_grows_and_ends_with_its_length(make_chat, picture):
    chat, model = make_chat(answer="red and blue")
    turns = list(chat.ask([], " What is this? ", [picture("red_circle")], Settings()))
    answers = [turn.answer for turn in turns]
    assert answers[0] == "" and answers[-1] == "red and blue" and len(set(answers)) > 2
    assert all(after.startswith(before) for before, after in itertools.pairwise(answers))
    assert model.prompt() == "<|User|>: <image>\nWhat is this?\n\n<|Assistant|>:"
    prompt = model.calls[0]["input_ids"].shape[1]
    assert turns[-1].num_tokens == prompt + len(model.tokenizer.encode("red and blue")) + 1  # its end
    assert not turns[-1].is_cut and turns[-1].boxed is None


def test_earlier_turns_and_pictures_stay(make_chat, picture):
    chat, model = make_chat(answer="red")
    first = last(chat.ask([], "What colour?", [picture("red_circle")], Settings()))
    last(chat.ask([first], "And this?", [picture("blue_square")], Settings()))
    question = "<|User|>: <image>\nWhat colour?\n\n<|Assistant|>:red<｜end▁of▁sentence｜>"
    assert model.prompt() == question + "<|User|>: <image>\nAnd this?\n\n<|Assistant|>:"
    assert model.calls[1]["images_spatial_crop"].shape[1] == 2


def test_with_more_than_two_pictures_none_is_tiled(make_chat, picture):
    chat, model = make_chat()
    first = last(chat.ask([], "What?", [picture("shapes")], Settings()))
    assert model.calls[0]["images_spatial_crop"].tolist() == [[[2, 2]]]
    last(chat.ask([first], "What?", [picture("words"), picture("chart")], Settings()))
    assert model.calls[1]["images_spatial_crop"].tolist() == [[[1, 1]] * 3]


def test_placeholders_say_where_pictures_belong(make_chat, picture):
    chat, model = make_chat()
    files = [picture("red_circle"), picture("blue_square")]
    last(chat.ask([], "From <image> to <image>?", files, Settings()))
    assert model.prompt() == "<|User|>: From <image> to <image>?\n\n<|Assistant|>:"


def test_a_turn_without_an_answer_is_left_out_and_answers_bring_no_pictures():
    turns = [Turn("one", (), " "), Turn("two", ("a.png",), "an <image>"), Turn("three")]
    assert build_conversation(turns, "<image>") == [
        {"role": "<|User|>", "content": "<image>\ntwo", "images": ["a.png"]},
        {"role": "<|Assistant|>", "content": "an "},
        {"role": "<|User|>", "content": "three", "images": []},
        {"role": "<|Assistant|>", "content": ""},
    ]


def test_settings_reach_generate(make_chat):
    chat, model = make_chat()
    last(chat.ask([], "Hi", [], Settings(repetition_penalty=1.2, max_new_tokens=7)))
    last(chat.ask([], "Hi", [], Settings(temperature=0.4, top_p=0.9)))
    greedy, sampled = model.calls
    assert greedy["do_sample"] is False and "temperature" not in greedy
    assert (greedy["repetition_penalty"], greedy["max_new_tokens"], greedy["chunk_size"]) == (1.2, 7, None)
    assert (sampled["do_sample"], sampled["temperature"], sampled["top_p"]) == (True, 0.4, 0.9)


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"temperature": 1, "top_p": 0}, {"max_new_tokens": 0}], ids=str
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=list(wrong)[-1]):
        Settings(**wrong)


def test_boxes_are_drawn_on_the_last_picture(make_chat, picture):
    chat, _ = make_chat(answer=BOXES)
    files = [picture("red_circle"), picture("shapes")]
    turn = last(chat.ask([], "Where?", files, Settings()))
    expected = draw_boxes(Image.open(files[1]), parse_boxes(BOXES, (504, 504)).objects)
    assert np.array_equal(np.asarray(Image.open(turn.boxed)), np.asarray(expected))
    assert len(turn.problems) == 1 and "2 value(s), not 4" in turn.problems[0]
    later = last(chat.ask([turn], "And now?", [], Settings()))
    assert later.boxed != turn.boxed and Image.open(later.boxed).size == (504, 504)


def test_without_a_picture_boxes_are_only_text(make_chat):
    chat, _ = make_chat(answer=BOXES)
    assert last(chat.ask([], "Where?", [], Settings())).boxed is None


@pytest.mark.parametrize("question", ["", "  \n", "<image>"])
def test_an_empty_question_is_refused(make_chat, picture, question):
    refused(make_chat()[0], question, [picture("words")], "empty")


def test_placeholders_must_be_as_many_as_pictures(make_chat, picture):
    values = {"placeholders": 2, "pictures": 1}
    refused(make_chat()[0], "<image> or <image>?", [picture("words")], "placeholders", **values)


def test_a_file_that_is_no_picture_is_refused_by_its_name(make_chat, tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    detail = "text.png: not a picture that Pillow can read"
    refused(make_chat()[0], "What?", [tmp_path / "text.png"], "picture", detail=detail)


def refused(chat, question, files, reason, **values):
    with pytest.raises(Refusal) as refusal:
        next(chat.ask([], question, files, Settings()))
    assert (refusal.value.reason, refusal.value.values) == (reason, values)


def test_a_prompt_that_does_not_fit_is_refused(make_chat, picture):
    chat, model = make_chat(limit=40)
    with pytest.raises(Refusal, match="overlong") as refusal:
        next(chat.ask([], "What?", [picture("shapes")], Settings()))
    assert refusal.value.values["tokens"] > refusal.value.values["limit"] == 40
    with pytest.raises(Refusal, match="full"):
        next(chat.ask([Turn("a " * 30, (), "b")], "What?", [], Settings()))
    assert model.calls == []


def test_an_answer_gets_the_positions_that_are_left(make_chat):
    chat, model = make_chat(answer="red", is_endless=True, limit=40)
    turn = last(chat.ask([], "Hi", [], Settings(max_new_tokens=500)))
    assert model.calls[0]["max_new_tokens"] == 40 - model.calls[0]["input_ids"].shape[1]
    assert turn.is_cut and turn.num_tokens == 40


def test_stop_ends_the_generation_and_keeps_the_text(make_chat):
    chat, model = make_chat(answer="red", is_endless=True, pause=0.01)
    turns = []
    for turn in chat.ask([], "Hi", [], Settings(), lambda: len(turns) > 3):
        turns.append(turn)
    assert turns[-1].answer == turns[-2].answer != "" and not turns[-1].is_cut
    assert model.has_ended.wait(10) and model.num_tokens < 100


def test_closing_the_iterator_ends_the_generation(make_chat):
    chat, model = make_chat(answer="red", is_endless=True, pause=0.01)
    turns = chat.ask([], "Hi", [], Settings())
    while not next(turns).answer:
        time.sleep(0.01)
    turns.close()
    assert model.has_ended.wait(10) and model.num_tokens < 100


@pytest.mark.slow
def test_the_demo_model_answers_as_generate_does(processor, checkpoint, picture, tmp_path):
    model = DeepseekVLV2ForCausalLM.from_pretrained(checkpoint)
    question = "Locate <|ref|>the red circle<|/ref|> in the given image."
    turn = last(Chat(model, processor, tmp_path).ask([], question, [picture("shapes")], Settings()))
    messages = [{"role": "user", "content": f"<image>\n{question}", "images": [str(picture("shapes"))]}]
    ids, _ = model.generate(**processor(conversations=messages))
    answer = processor.tokenizer.decode(ids[0, :-1].tolist())
    assert turn.answer == answer
    assert (turn.boxed is not None) == bool(parse_boxes(answer, (504, 504)).objects)
