"""Special tokens on the published ids, text in and out, files in and out."""

import json
import pickle

import pytest
from tokenizers import Tokenizer, models

from paddlemix_vl2.processing import DeepseekTokenizer

TEXTS = [
    "Why is the sky blue?",
    " 请用中文描述。\n\n",
    "<|ref|>a dog<|/ref|><|det|>[[1, 20, 300, 999]]<|/det|>",
    "12345\t🙂é",
]


@pytest.fixture(scope="module")
def recorded_ids(golden) -> dict[str, dict]:
    entries = json.loads((golden / "processor.json").read_text())
    return {e["tokenizer"]: e["special_token_ids"] for e in entries if "special_token_ids" in e}


@pytest.mark.parametrize("name", ["128k", "100k"])
def test_special_tokens_are_added_on_the_published_ids(name, tokenizers, tokenizer_folders, recorded_ids):
    raw = Tokenizer.from_file(str(tokenizer_folders[name] / "tokenizer.json"))
    assert raw.token_to_id("<image>") is None, (
        "the file is meant to lack the tokens of the vision-language model"
    )
    assert len(recorded_ids[name]) == 9
    tokenizer = tokenizers[name]
    assert {token: tokenizer.token_id(token) for token in recorded_ids[name]} == recorded_ids[name]
    assert len(tokenizer) == recorded_ids[name]["<|Assistant|>"] + 1


@pytest.mark.parametrize(
    ("name", "expected"), [("128k", (0, 1, 2, 128815)), ("100k", (100000, 100001, 100002, 100003))]
)
def test_named_ids(name, expected, tokenizers):
    t = tokenizers[name]
    assert (t.bos_token_id, t.eos_token_id, t.pad_token_id, t.image_token_id) == expected


@pytest.mark.parametrize("name", ["128k", "100k"])
@pytest.mark.parametrize("text", TEXTS)
def test_text_survives(name, text, tokenizers):
    ids = tokenizers[name].encode(text)
    assert tokenizers[name].decode(ids) == text


def test_nothing_is_added_to_text(tokenizers):
    assert tokenizers["100k"].encode("") == []
    assert tokenizers["100k"].bos_token_id not in tokenizers["100k"].encode("hello")


def test_decoding_keeps_special_tokens_unless_asked(tokenizers):
    t = tokenizers["128k"]
    ids = [t.bos_token_id, *t.encode("<|ref|>dog<|/ref|>"), t.eos_token_id]
    assert t.decode(ids) == "<｜begin▁of▁sentence｜><|ref|>dog<|/ref|><｜end▁of▁sentence｜>"
    assert t.decode(ids, skip_special_tokens=True) == "dog"


def test_ids_beyond_the_vocabulary_give_no_text(tokenizers):
    assert tokenizers["128k"].decode([129279, *tokenizers["128k"].encode("dog")]) == "dog"


@pytest.mark.parametrize("name", ["128k", "100k"])
def test_saved_files_read_back_the_same(name, tokenizers, recorded_ids, tmp_path):
    tokenizers[name].save_pretrained(tmp_path / "first")
    again = DeepseekTokenizer.from_pretrained(tmp_path / "first")
    assert len(again) == len(tokenizers[name])
    assert {token: again.token_id(token) for token in recorded_ids[name]} == recorded_ids[name]
    assert [again.encode(text) for text in TEXTS] == [tokenizers[name].encode(text) for text in TEXTS]
    again.save_pretrained(tmp_path / "second")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "second" / file).read_bytes() == (tmp_path / "first" / file).read_bytes()
    assert sorted(p.name for p in (tmp_path / "first").iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_saved_settings_keep_what_was_there(tokenizers, tmp_path):
    tokenizers["100k"].save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert settings["pad_token"] == "<｜▁pad▁｜>"
    assert settings["eos_token"] == "<｜end▁of▁sentence｜>"
    assert (settings["model_max_length"], settings["tokenizer_class"]) == (16384, "LlamaTokenizerFast")


def make_small(vocabulary: list[str]) -> Tokenizer:
    words = {word: index for index, word in enumerate(vocabulary)}
    return Tokenizer(models.WordLevel(words, unk_token=vocabulary[0]))


@pytest.mark.parametrize("as_object", [True, False])
def test_begin_and_end_tokens_of_the_settings_file(tmp_path, as_object):
    make_small(["?", "<s>", "</s>"]).save(str(tmp_path / "tokenizer.json"))
    settings = {
        "bos_token": "<s>",
        "eos_token": {"content": "</s>"} if as_object else "</s>",
        "pad_token": None,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = DeepseekTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 3)


def test_without_settings_file_the_deepseek_strings(tmp_path):
    make_small(["?", "<｜end▁of▁sentence｜>", "<｜begin▁of▁sentence｜>"]).save(
        str(tmp_path / "tokenizer.json")
    )
    tokenizer = DeepseekTokenizer.from_pretrained(tmp_path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (2, 1)


def test_truncation_and_padding_of_the_file_are_off(tokenizers, tokenizer_folders, tmp_path):
    raw = Tokenizer.from_file(str(tokenizer_folders["128k"] / "tokenizer.json"))
    raw.enable_truncation(3)
    raw.enable_padding(length=50)
    raw.save(str(tmp_path / "tokenizer.json"))
    text = "one two three four five six"
    assert DeepseekTokenizer.from_pretrained(tmp_path).encode(text) == tokenizers["128k"].encode(text)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: no such file"):
        DeepseekTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", ')
    with pytest.raises(ValueError, match=r"tokenizer\.json: not a tokenizer file"):
        DeepseekTokenizer.from_pretrained(tmp_path)
    make_small(["?", "a"]).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(
        ValueError, match=r"tokenizer\.json: the vocabulary has no token '<｜begin▁of▁sentence｜>'"
    ):
        DeepseekTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: holds a JSON list; it must be an object"):
        DeepseekTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json: not valid JSON"):
        DeepseekTokenizer.from_pretrained(tmp_path)


def test_text_that_is_no_utf8(tokenizers):
    with pytest.raises(ValueError, match="cannot be written as UTF-8"):
        tokenizers["128k"].encode("caf\udce9")


def test_can_be_sent_to_another_process(tokenizers):
    copy = pickle.loads(pickle.dumps(tokenizers["100k"]))
    assert copy.encode(TEXTS[0]) == tokenizers["100k"].encode(TEXTS[0])
