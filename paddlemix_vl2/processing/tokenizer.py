"""Text to ids and back, from a ``tokenizer.json`` through the ``tokenizers`` library.

The vision-language tokens are added where the file lacks them, in the order in which the published processor
adds
them, so that they get the published ids: with the 128k tokenizer (VL2-Tiny, VL2) ``<image>`` is 128815 and
``<|Assistant|>`` 128822, with the 100k tokenizer (VL2-Small) 100003 and 100010.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from paddlemix_vl2.files import read_object, write_object, write_text
from paddlemix_vl2.hub import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE

BOS_TOKEN = "<｜begin▁of▁sentence｜>"
EOS_TOKEN = "<｜end▁of▁sentence｜>"
PAD_TOKEN = "<｜▁pad▁｜>"
IMAGE_TOKEN = "<image>"
GROUNDING_TOKENS = ("<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>", "<|grounding|>")
USER_TOKEN = "<|User|>"
ASSISTANT_TOKEN = "<|Assistant|>"


class DeepseekTokenizer:
    """A ``tokenizers.Tokenizer`` with the special tokens of DeepSeek-VL2.

    Attributes:
        backend: the ``tokenizers.Tokenizer``.
        bos_token_id, eos_token_id, pad_token_id, image_token_id: int.
    """

    def __init__(
        self,
        backend: Tokenizer,
        bos_token: str = BOS_TOKEN,
        eos_token: str = EOS_TOKEN,
        pad_token: str = PAD_TOKEN,
        image_token: str = IMAGE_TOKEN,
        settings: dict | None = None,
    ):
        """Wrap ``backend`` and add the special tokens that it lacks.

        Args:
            settings: content of ``tokenizer_config.json``, written back by :meth:`save_pretrained`.

        Raises:
            ValueError: the vocabulary has no ``bos_token`` or ``eos_token``.
        """
        self.backend = backend
        # A file may ask for either; both would cut or pad text before image tokens are expanded.
        backend.no_truncation()
        backend.no_padding()
        self.bos_token = bos_token
        self.eos_token = eos_token
        self.pad_token = pad_token
        self.image_token = image_token
        self._settings = dict(settings or {})
        self.bos_token_id = self.token_id(bos_token)
        self.eos_token_id = self.token_id(eos_token)
        added = (pad_token, image_token, *GROUNDING_TOKENS, USER_TOKEN, ASSISTANT_TOKEN)
        backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in added])
        self.pad_token_id = self.token_id(pad_token)
        self.image_token_id = self.token_id(image_token)

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike, pad_token: str = PAD_TOKEN, image_token: str = IMAGE_TOKEN
    ) -> "DeepseekTokenizer":
        """Read ``tokenizer.json``, and the begin and end tokens from ``tokenizer_config.json`` if present.

        Raises:
            FileNotFoundError: no ``tokenizer.json``.
            ValueError: one of the files cannot be read.
        """
        file, settings_file = Path(folder) / TOKENIZER_FILE, Path(folder) / TOKENIZER_CONFIG_FILE
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; a checkpoint folder holds {TOKENIZER_FILE}")
        settings = read_object(settings_file) if settings_file.is_file() else {}
        try:
            backend = Tokenizer.from_file(str(file))
        # The library raises plain Exception for every kind of broken file.
        except Exception as error:
            raise ValueError(f"{file}: not a tokenizer file ({error})") from None
        bos_token = _token_text(settings, "bos_token", BOS_TOKEN)
        eos_token = _token_text(settings, "eos_token", EOS_TOKEN)
        try:
            return cls(backend, bos_token, eos_token, pad_token, image_token, settings)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write ``tokenizer.json`` with the special tokens and ``tokenizer_config.json`` into ``folder``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / TOKENIZER_FILE, self.backend.to_str(pretty=True) + "\n")
        # The class under which other tools load a tokenizer.json of this family.
        defaults = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": False, "add_eos_token": False}
        special = {"bos_token": self.bos_token, "eos_token": self.eos_token, "pad_token": self.pad_token}
        write_object(folder / TOKENIZER_CONFIG_FILE, {**defaults, **self._settings, **special})

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, nothing added before or after it. Special tokens in the text become their ids.

        Raises:
            ValueError: the text cannot be written as UTF-8 (a lone surrogate, as a broken command line
            gives).
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(f"the text {text[:40]!r} cannot be written as UTF-8: {error.reason}") from None
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False) -> str:
        """Text of ``ids``.

        Boxes are written with special tokens, so these are kept unless asked otherwise. Ids without a token
        (a model's vocabulary is padded beyond the tokenizer's) give no text.
        """
        return self.backend.decode([int(id_) for id_ in ids], skip_special_tokens=skip_special_tokens)

    def token_id(self, token: str) -> int:
        """The id of one token.

        Raises:
            ValueError: the vocabulary does not have it.
        """
        token_id = self.backend.token_to_id(token)
        if token_id is None:
            raise ValueError(f"the vocabulary has no token {token!r}")
        return token_id

    def __len__(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)


def _token_text(settings: dict, key: str, default: str) -> str:
    """A token of ``tokenizer_config.json``: a string, an object with ``content``, or null."""
    value = settings.get(key)
    if isinstance(value, dict):
        value = value.get("content")
    return value or default
