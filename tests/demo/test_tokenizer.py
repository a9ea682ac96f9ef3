import pytest

from paddlemix_vl2.demo.samples import TASKS, make_sample
from paddlemix_vl2.demo.tokenizer import build_tokenizer, collect_texts
from paddlemix_vl2.demo.vocabulary import COLORS, POSITIONS, SHAPES, WORDS
from paddlemix_vl2.processing import DeepseekTokenizer

LONGEST = 512


def pieces(tokenizer, text):
    return [tokenizer.decode([id_]) for id_ in tokenizer.encode(text)]


@pytest.mark.parametrize(
    "text",
    [
        'The picture says "apple, 42".',
        "  two  spaces\n\nand\tlines ",
        "左上是红色圆形，中央是蓝色五角星。",
        "naïve Ω 😀 漢字 \u00a0 \u200b",
        "a红色b 圆形c柱",
        "<|ref|>the red circle<|/ref|><|det|>[[1, 22, 333, 999]]<|/det|>",
        "<|User|>: <image>\nHow many?\n\n<|Assistant|>:",
        "",
    ],
)
def test_every_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_all_byte_values_come_back(tokenizer):
    text = "".join(map(chr, [*range(0x250), *range(0x4E00, 0x4F00), 0x1F600, 0x10FFFF]))
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("word", [*WORDS, *COLORS, *SHAPES])
def test_names_and_words_are_one_token(tokenizer, word):
    assert len(tokenizer.encode(word)) == 1


@pytest.mark.parametrize("word", [*COLORS.values(), *SHAPES.values(), *POSITIONS.values()])
def test_chinese_names_are_one_token_whatever_surrounds_them(tokenizer, word):
    assert len(tokenizer.encode(word)) == 1
    assert word in pieces(tokenizer, f"左上是{word}，")


def test_a_word_to_be_read_is_the_same_token_everywhere(tokenizer):
    (apple,) = tokenizer.encode("apple")
    for text in [
        'The picture says "apple, 42".',
        "<|ref|>the word apple<|/ref|>",
        "42, apple",
        "单词apple在",
    ]:
        assert apple in tokenizer.encode(text)


def test_digits_are_tokens_of_their_own(tokenizer):
    expected = ["[[", "1", "0", "5", ", ", "4", "2", ", ", "9", "9", "9", ", ", "7", "]]"]
    assert pieces(tokenizer, "[[105, 42, 999, 7]]") == expected
    assert len({*tokenizer.encode("0123456789")}) == 10


def test_an_unknown_word_is_spelt(tokenizer):
    assert pieces(tokenizer, "xylem") == list("xylem")


def test_the_vocabulary_is_small_and_has_the_published_special_tokens(tokenizer):
    assert len(tokenizer) <= 640
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    for token in (
        "<image>",
        "<|User|>",
        "<|Assistant|>",
        "<|ref|>",
        "<|/det|>",
        "<|grounding|>",
        "<｜▁pad▁｜>",
    ):
        assert len(tokenizer.encode(token)) == 1


def test_it_survives_saving(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = DeepseekTokenizer.from_pretrained(tmp_path)
    for text in collect_texts(20):
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.decode(loaded.encode(text)) == text


def test_building_it_again_gives_the_same():
    texts = collect_texts(50)
    assert texts == collect_texts(50)
    first, second = (build_tokenizer(texts, 400) for _ in range(2))
    assert first.backend.to_str() == second.backend.to_str()
    assert len(first) <= 400


def test_there_must_be_room_for_all_bytes():
    with pytest.raises(ValueError, match="alone need 267"):
        build_tokenizer(["a"], 200)
    assert len(build_tokenizer(["a"], 267)) == 267


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_samples_become_short_inputs(processor, task, split):
    side = processor.tokens_per_side
    assert side == 3
    for index in range(60):
        sample = processor.process_one(make_sample(task, split, index)["messages"], inference_mode=False)
        assert len(sample.input_ids) < LONGEST
        words = sample.input_ids[~sample.images_seq_mask]
        assert processor.tokenizer.decode(words.tolist()).count("<|User|>") >= 1
        assert (sample.labels != processor.ignore_id).sum() >= 2
        assert sample.images.shape[1:] == (3, 84, 84)


def test_hardly_anything_is_spelt(tokenizer):
    """No conversation falls back to letters."""
    texts = [m["content"] for i in range(100) for m in make_sample("mixed", "test", i)["messages"]]
    tokens = [id_ for text in texts for id_ in tokenizer.encode(text)]
    letters = {tokenizer.encode(letter)[0] for letter in "bcdefghijklmnopqrstuvwxyz"}
    assert sum(token in letters for token in tokens) == 0
