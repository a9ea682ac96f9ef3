"""Streamed pieces together are the decoded text, no piece breaks a character, threads end as they should."""

import io
import random
import sys
import threading

import numpy as np
import pytest

from paddlemix_vl2.generation.streaming import StreamAbandonedError, TextIteratorStreamer, TextStreamer
from paddlemix_vl2.processing.tokenizer import DeepseekTokenizer

TEXTS = [
    "A plain answer, with numbers 3.14 and\nlines.",
    "图中有一只猫坐在红色的垫子上，旁边是一本打开的书。",
    "emoji 👩‍👩‍👧‍👦 🇨🇳 👍🏽 mixed with 汉字 and é, ß, ñ; 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 龘靐齉",
    "<|ref|>猫<|/ref|><|det|>[[1, 2, 300, 400]]<|/det|> and <|grounding|>",
]


@pytest.fixture(scope="module", params=["128k", "100k"])
def tokenizer(request, tokenizer_folders):
    return DeepseekTokenizer.from_pretrained(tokenizer_folders[request.param])


def feed(streamer, *rows):
    """Stream rows of token ids of equal length as ``generate`` does."""
    for step in np.array(rows, np.int64).T:
        streamer.put(step)
    streamer.end()


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text_and_never_break_a_character(tokenizer, text):
    pieces = []
    feed(TextStreamer(tokenizer, pieces.append), [*tokenizer.encode(text), tokenizer.eos_token_id])
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)
    assert len(pieces) > 3, "text must come while it is generated, not at the end"


def test_a_character_is_held_back_until_it_is_complete(tokenizer):
    ids = tokenizer.encode("龘")
    assert len(ids) > 1, "the test needs a character of several tokens"
    pieces = []
    streamer = TextStreamer(tokenizer, pieces.append)
    for token_id in ids[:-1]:
        streamer.put(np.array([token_id]))
    assert pieces == []
    streamer.put(np.array(ids[-1:]))
    assert pieces == ["龘"]


def test_an_incomplete_last_character_appears_when_the_stream_ends(tokenizer):
    ids = tokenizer.encode("ok 龘")[:-1]
    pieces = []
    feed(TextStreamer(tokenizer, pieces.append), ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    assert pieces[-1].endswith("\ufffd")


def test_random_tokens_stream_to_the_text_that_decoding_gives(tokenizer):
    """An untrained model writes broken UTF-8 and ids beyond the tokenizer's vocabulary."""
    rng = random.Random(0)
    broken = [i for i in range(3000) if "\ufffd" in tokenizer.decode([i])]
    assert len(broken) > 50
    vocabulary = len(tokenizer) + 300
    for _ in range(100):
        ids = [rng.choice([rng.choice(broken), rng.randrange(2, vocabulary)]) for _ in range(40)]
        ids = [token_id for token_id in ids if token_id != tokenizer.eos_token_id]
        streamer = TextStreamer(tokenizer, lambda piece: None)
        feed(streamer, ids)
        assert streamer.texts == [tokenizer.decode(ids)]


def test_nothing_follows_a_stop_token(tokenizer):
    stop, other = tokenizer.eos_token_id, tokenizer.encode("x")[0]
    pieces = []
    feed(TextStreamer(tokenizer, pieces.append), [other, stop, stop, other])
    assert pieces == ["x"]
    feed(TextStreamer(tokenizer, pieces.append, eos_token_id=[other, stop]), [stop, other])
    feed(TextStreamer(tokenizer, pieces.append, eos_token_id=other), [other, stop])
    assert pieces == ["x"]


def test_grounding_tokens_are_shown_unless_asked_otherwise(tokenizer):
    ids = tokenizer.encode(TEXTS[3])
    streamer = TextStreamer(tokenizer, lambda piece: None, skip_special_tokens=True)
    feed(streamer, ids)
    assert streamer.texts == ["猫[[1, 2, 300, 400]] and "]


def test_row_zero_goes_to_the_standard_output_of_the_moment(tokenizer, capsys):
    streamer = TextStreamer(tokenizer)
    feed(streamer, tokenizer.encode("one two"), tokenizer.encode("three four"))
    assert capsys.readouterr().out == "one two\n"


def test_writing_to_a_file_shows_each_piece_at_once(tokenizer):
    class Recorder(io.StringIO):
        flushed = 0

        def flush(self):
            self.flushed += 1

    file = Recorder()
    feed(TextStreamer(tokenizer, file=file), tokenizer.encode("one two three"))
    assert file.getvalue() == "one two three\n"
    assert file.flushed == 4


def test_each_row_has_its_callback_and_its_end(tokenizer):
    first, second = [], []
    one, stop = tokenizer.encode("first row"), tokenizer.eos_token_id
    streamer = TextStreamer(tokenizer, [first.append, second.append])
    feed(streamer, [*one, stop, stop], [*tokenizer.encode("the second row"), stop])
    assert ("".join(first), "".join(second)) == ("first row", "the second row")
    assert streamer.texts == ["first row", "the second row"]


def test_more_callbacks_than_rows_is_an_error(tokenizer):
    with pytest.raises(ValueError, match=r"2 callbacks.*1 row"):
        TextStreamer(tokenizer, [print, print]).put(np.array([5]))


def test_a_streamer_can_be_used_again(tokenizer):
    streamer = TextStreamer(tokenizer, lambda piece: None)
    feed(streamer, [*tokenizer.encode("one"), tokenizer.eos_token_id])
    feed(streamer, tokenizer.encode("two"))
    assert streamer.texts == ["two"]


def fake_generate(ids, streamer, error=None, steps=None):
    """What ``generate`` does with a streamer: ``end`` is called also when an exception passes."""
    try:
        for token_id in ids:
            streamer.put(np.array([token_id]))
            if steps is not None:
                steps.append(token_id)
        if error is not None:
            raise error
    finally:
        streamer.end()
    return "ids", "scores"


def test_the_iterator_yields_the_text_and_keeps_the_result(tokenizer):
    streamer = TextIteratorStreamer(tokenizer)
    pieces = list(streamer.run(fake_generate, tokenizer.encode(TEXTS[2])))
    assert "".join(pieces) == TEXTS[2]
    assert streamer.result == ("ids", "scores")


def test_an_exception_reaches_the_reader_after_the_text_so_far(tokenizer):
    streamer = TextIteratorStreamer(tokenizer)
    pieces = []
    with pytest.raises(RuntimeError, match="out of memory"):
        for piece in streamer.run(
            fake_generate, tokenizer.encode("so far"), error=RuntimeError("out of memory")
        ):
            pieces.append(piece)
    assert "".join(pieces) == "so far"


def test_an_exception_before_the_first_token_reaches_the_reader(tokenizer):
    def refuse(streamer):
        raise ValueError("the prompt is too long")

    with pytest.raises(ValueError, match="too long"):
        list(TextIteratorStreamer(tokenizer).run(refuse))


def test_leaving_the_loop_stops_the_generation(tokenizer):
    steps, has_stopped, may_go_on = [], threading.Event(), threading.Event()

    def generate(streamer):
        def endless():
            yield from tokenizer.encode("word and")
            may_go_on.wait(10)
            while len(steps) < 1000:
                yield tokenizer.encode("x")[0]

        try:
            fake_generate(endless(), streamer, steps=steps)
        except StreamAbandonedError:
            has_stopped.set()
            raise

    streamer = TextIteratorStreamer(tokenizer)
    for _ in streamer.run(generate):
        break
    may_go_on.set()
    assert has_stopped.wait(10)
    assert len(steps) < 1000


def test_with_a_thread_of_ones_own_the_end_of_the_stream_ends_the_iteration(tokenizer):
    streamer = TextIteratorStreamer(tokenizer)
    thread = threading.Thread(target=fake_generate, args=(tokenizer.encode("my own thread"), streamer))
    thread.start()
    assert "".join(streamer) == "my own thread"
    thread.join()


def test_a_silent_generation_times_out(tokenizer):
    streamer = TextIteratorStreamer(tokenizer, timeout=0.01)
    with pytest.raises(TimeoutError, match=r"0\.01 seconds"):
        next(iter(streamer))


def test_an_iterator_streamer_serves_one_answer(tokenizer):
    streamer = TextIteratorStreamer(tokenizer)
    list(streamer.run(fake_generate, []))
    with pytest.raises(ValueError, match="make a new one"):
        streamer.run(fake_generate, [])


def test_the_standard_output_is_looked_up_when_text_comes(tokenizer, monkeypatch):
    streamer = TextStreamer(tokenizer)
    cell = io.StringIO()
    monkeypatch.setattr(sys, "stdout", cell)  # as a notebook does for each cell
    feed(streamer, tokenizer.encode("cell"))
    assert cell.getvalue() == "cell\n"
