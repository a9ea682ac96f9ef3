"""A small tokenizer for the conversations of this package: whole words where they are frequent, else bytes.

It is byte-level BPE without merges. A word that is in the vocabulary is one token; another one becomes its
UTF-8 bytes, letter by letter, so every text survives. Merges would fill a vocabulary of this size with parts
of words.
"""

from collections import Counter
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from paddlemix_vl2.demo.phrases import EXTREMES, ORDINALS
from paddlemix_vl2.demo.samples import TASKS, make_sample
from paddlemix_vl2.demo.vocabulary import COLORS, POSITIONS, SHAPES, WORDS
from paddlemix_vl2.processing.tokenizer import (
    ASSISTANT_TOKEN,
    BOS_TOKEN,
    EOS_TOKEN,
    GROUNDING_TOKENS,
    IMAGE_TOKEN,
    PAD_TOKEN,
    USER_TOKEN,
    DeepseekTokenizer,
)

VOCABULARY_SIZE = 640
CORPUS_SAMPLES = 3000
_ADDED_LATER = (PAD_TOKEN, IMAGE_TOKEN, *GROUNDING_TOKENS, USER_TOKEN, ASSISTANT_TOKEN)


def build_tokenizer(texts: Iterable[str], vocab_size: int = VOCABULARY_SIZE) -> DeepseekTokenizer:
    """A tokenizer whose tokens are the 256 bytes and the most frequent words of ``texts``.

    The same texts give the same tokenizer. With few different words it is smaller than asked for.

    Args:
        vocab_size: all tokens, the special ones among them.

    Raises:
        ValueError: ``vocab_size`` has no room for the bytes and the special tokens.
    """
    special = [BOS_TOKEN, EOS_TOKEN]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    room = vocab_size - len(special) - len(_ADDED_LATER) - len(alphabet)
    if room < 0:
        raise ValueError(
            f"vocab_size is {vocab_size}; bytes and special tokens alone need {vocab_size - room}"
        )
    splitter = _word_splitter()
    counts = Counter(word for text in texts for word in _split_to_words(splitter, text))
    # The words to be read come first: a rare one must not become a row of letters.
    for word in WORDS:
        counts[word] += 1 + max(counts.values())
    known = set(alphabet)
    words = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
    words = [word for word in words if word not in known][:room]
    vocabulary = {token: index for index, token in enumerate([*special, *alphabet, *words])}
    # The library keeps a word that is in the vocabulary whole, merges or not, when told to ignore merges.
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    backend.pre_tokenizer = _word_splitter()
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return DeepseekTokenizer(backend)


def _word_splitter() -> pre_tokenizers.PreTokenizer:
    """Words with the space behind them, digits one by one, Chinese names apart from what surrounds them.

    A space belongs to the word before it, so that a word at the end ("apple" as an answer, in quotes, in
    front of a comma) is always the same token.
    """
    names = [*COLORS.values(), *SHAPES.values(), *POSITIONS.values(), *EXTREMES["zh"], *ORDINALS["zh"]]
    chinese = "|".join([*names, "图形", "单词", "数字", "柱"])
    letters, other = r"[\p{L}&&[^\p{Han}]]+ ?", r"[^\s\p{L}\p{N}]+ ?"
    pattern = rf"{chinese}|(?:(?!{chinese})\p{{Han}})+|{letters}|\p{{N}}|{other}|\s+"
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([split, to_bytes])


def _split_to_words(splitter: pre_tokenizers.PreTokenizer, text: str) -> list[str]:
    """Words in the alphabet of bytes; special tokens end a word and are none."""
    for token in (BOS_TOKEN, EOS_TOKEN, *_ADDED_LATER):
        text = text.replace(token, "\0")
    return [word for part in text.split("\0") if part for word, _ in splitter.pre_tokenize_str(part)]


def collect_texts(samples: int = CORPUS_SAMPLES) -> list[str]:
    """What is said in ``samples`` training conversations of all tasks, always the same.

    Each text as the processor tokenises it.
    """
    texts = []
    for index in range(samples):
        sample = make_sample(TASKS[index % len(TASKS)], "train", index)
        for message in sample["messages"]:
            user = message["role"] == USER_TOKEN
            content = message["content"]
            texts.append(f"{USER_TOKEN}: {content}\n\n{ASSISTANT_TOKEN}:" if user else content)
    return texts
