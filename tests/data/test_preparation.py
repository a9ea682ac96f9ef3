"""Records to samples: labels, and what happens to those that are too long or broken."""

import pickle

import numpy as np
import pytest

from paddlemix_vl2.data import BrokenSample, Overlong, Record, prepare
from paddlemix_vl2.processing.conversation import Conversation
from tests.data.conftest import ask, write_picture


def talk(*turns) -> Record:
    messages = [message for turn in turns for message in turn]
    return Record(Conversation.parse(messages, inference_mode=False), None, "a.jsonl:7")


def image_tokens(sample) -> int:
    return int(sample.images_seq_mask.sum())


def test_a_text_is_closed_and_all_of_it_is_learned(processor):
    sample = prepare(Record(None, "One two.", "a:1"), processor, 100)
    tokenizer = processor.tokenizer
    expected = [tokenizer.bos_token_id, *tokenizer.encode("One two."), tokenizer.eos_token_id]
    assert sample.input_ids.tolist() == expected and sample.labels.tolist() == expected
    assert not sample.inference_mode


def test_a_conversation_learns_its_answers(processor):
    sample = prepare(talk(ask("a b c", "yes")), processor, 100)
    tokenizer = processor.tokenizer
    learned = sample.labels[1:][sample.labels[1:] != processor.ignore_id].tolist()
    assert learned == [*tokenizer.encode("yes"), tokenizer.eos_token_id]


def test_a_text_is_cut(processor):
    record = Record(None, "one two three four five six seven", "a:1")
    whole, cut = prepare(record, processor, 100), prepare(record, processor, 5, "truncate")
    assert cut.input_ids.tolist() == whole.input_ids[:5].tolist()
    assert cut.labels.tolist() == whole.labels[:5].tolist() and len(cut.images_seq_mask) == 5
    with pytest.raises(Overlong, match=rf"a:1: has {len(whole.input_ids)} tokens; a sequence may have 5"):
        prepare(record, processor, 5)


def test_turns_are_dropped_until_it_fits(processor):
    turns = [ask("first", "yes"), ask("second", "no"), ask("third", "perhaps")]
    lengths = [len(prepare(talk(*turns[:count]), processor, 1000).input_ids) for count in (1, 2, 3)]
    for limit in range(lengths[0], lengths[2] + 1):
        kept = sum(length <= limit for length in lengths)
        truncated = prepare(talk(*turns), processor, limit, "truncate")
        assert np.array_equal(truncated.input_ids, prepare(talk(*turns[:kept]), processor, 1000).input_ids)
    with pytest.raises(Overlong, match=f"has {lengths[0]} tokens even with one turn; a sequence may have 4"):
        prepare(talk(*turns), processor, 4, "truncate")


def test_pictures_are_whole_or_gone(processor, tmp_path):
    """At every limit the image tokens are those of the pictures that are left, and so are the views."""
    wide = str(tmp_path / write_picture(tmp_path / "wide.png", 120, 60))
    turns = [ask("a", "yes", wide), ask("b", "no " * 5, wide), ask("c", "no", wide)]
    full = prepare(talk(*turns), processor, 1000)
    assert full.images_spatial_crop.tolist() == [[1, 1]] * 3  # more than two are not tiled
    seen = set()
    for limit in range(20, len(full.input_ids) + 1):
        try:
            sample = prepare(talk(*turns), processor, limit, "truncate")
        except Overlong:
            seen.add(0)
            continue
        assert len(sample.input_ids) <= limit
        pictures = len(sample.num_image_tokens)
        seen.add(pictures)
        assert image_tokens(sample) == sum(sample.num_image_tokens)
        assert len(sample.images) == sum(1 + int(w * h) for w, h in sample.images_spatial_crop)
        alone = prepare(talk(*turns[:pictures]), processor, 1000)
        assert np.array_equal(sample.input_ids, alone.input_ids)
    assert seen == {0, 1, 2, 3}


def test_the_end_token_in_a_text_does_not_mislead(processor):
    eos = processor.tokenizer.eos_token
    turns = [ask("a", f"yes {eos} and"), ask("b", f"{eos} no"), ask("c", "no " * 20)]
    lengths = [len(prepare(talk(*turns[:count]), processor, 1000).input_ids) for count in (1, 2)]
    assert len(prepare(talk(*turns), processor, lengths[1], "truncate").input_ids) == lengths[1]
    assert len(prepare(talk(*turns), processor, lengths[0], "truncate").input_ids) == lengths[0]


def test_a_system_message_stays(processor):
    system = [{"role": "system", "content": "Be kind."}]
    short = prepare(talk(system, ask("a", "b")), processor, 1000)
    truncated = prepare(
        talk(system, ask("a", "b"), ask("c", "d")), processor, len(short.input_ids), "truncate"
    )
    assert np.array_equal(short.input_ids, truncated.input_ids)


def test_broken_samples_have_place_and_reason(processor, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    record = talk(ask("a", "b", str(tmp_path / "a.png")))
    with pytest.raises(
        BrokenSample, match=r"^a.jsonl:7: .*a.png: not a picture that Pillow can read"
    ) as caught:
        prepare(record, processor, 100)
    assert not isinstance(caught.value, Overlong)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (
        (copy.place, copy.reason) == (caught.value.place, caught.value.reason) == ("a.jsonl:7", copy.reason)
    )


def test_unknown_rule(processor):
    with pytest.raises(ValueError, match="overlong is 'cut'; use one of skip, truncate"):
        prepare(talk(ask("a", "b")), processor, 100, "cut")
