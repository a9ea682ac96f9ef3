"""Talk with a model about pictures in the terminal.

    paddlemix-vl2 chat --image_files a.jpg b.jpg
    printf 'What is this?\\nWhich colour is it?\\n' | paddlemix-vl2 chat --image_files a.jpg

Prints each answer as it is generated. A line is a question about all pictures and answers so far, or one of:

    /image FILE   a picture for the next question
    /reset        start a new conversation, without pictures
    /quit         end; so does the end of the input

Ctrl-C ends an answer. A wrong line is refused in one line, and the conversation continues. Exit code
0, 1 where lines of a file or a pipe could not be answered, 2 where nothing could be done.
"""

import argparse
import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from paddlemix_vl2.cli.arguments import (
    add_model_flags,
    add_prompt_flags,
    add_sampling_flags,
    sampling_options,
)
from paddlemix_vl2.cli.loading import announce, check_model_flags, load_model, open_checkpoint
from paddlemix_vl2.cli.program import execute, fail, say


def main(argv: list[str] | None = None, prog: str | None = None, description: str | None = __doc__) -> int:
    return execute(argv, prog, description, add_arguments, run)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_flags(parser)
    parser.add_argument(
        "--image_files", nargs="+", default=[], metavar="FILE", help="pictures for the first question"
    )
    add_prompt_flags(parser)
    add_sampling_flags(parser)


def run(arguments: argparse.Namespace) -> int:
    """Load and converse.

    Raises:
        ValueError, OSError: what the user has to change, in one line.
    """
    pictures = [_open(file) for file in arguments.image_files]
    dtype = check_model_flags(arguments)
    options = sampling_options(arguments)
    folder, config, processor = open_checkpoint(arguments.model_path)
    announce(folder, dtype)
    model = load_model(arguments, folder)
    chat = ChatSession(model, processor, config.language_config.max_sequence_length, arguments, options)
    chat.pictures += pictures
    is_interactive = sys.stdin.isatty()
    if is_interactive:
        say("a question, or /image FILE, /reset, /quit")
    failed = converse(chat, _typed_lines() if is_interactive else sys.stdin)
    return 1 if failed and not is_interactive else 0


@dataclass
class ChatSession:
    """Questions and answers so far.

    Attributes:
        model, processor: that answer.
        limit: positions of the model.
        arguments: the flags of a prompt.
        options: sampling arguments of ``generate``.
        messages: of user and assistant, alternating.
        pictures: for the next question.
    """

    model: object
    processor: object
    limit: int
    arguments: argparse.Namespace
    options: dict
    messages: list[dict] = field(default_factory=list)
    pictures: list = field(default_factory=list)

    def ask(self, question: str) -> None:
        """Write the answer to the standard output as it comes; Ctrl-C ends it.

        Raises:
            ValueError: the question is not acceptable, or the conversation is too long; it stays as it was.
        """
        from paddlemix_vl2.generation.streaming import TextStreamer
        from paddlemix_vl2.processing.conversation import place_pictures

        content = place_pictures(question, len(self.pictures), self.processor.image_token)
        asked = [*self.messages, {"role": "user", "content": content, "images": self.pictures}]
        batch = self.processor(conversations=asked, system_prompt=self.arguments.system_prompt)
        room = self.limit - batch["input_ids"].shape[1]
        if room < 1:
            raise ValueError(
                f"the conversation has {self.limit - room} tokens, but the model has {self.limit} positions; "
                "/reset begins anew"
            )
        streamer = TextStreamer(self.processor.tokenizer)
        longest = min(self.arguments.max_new_tokens, room)
        lengths = {"max_new_tokens": longest, "chunk_size": self.arguments.chunk_size}
        try:
            self.model.generate(**batch, **self.options, **lengths, streamer=streamer)
        except KeyboardInterrupt:
            say("stopped")
        answer = streamer.texts[0].strip()
        if answer:
            self.messages = [*asked, {"role": "assistant", "content": answer}]
            self.pictures = []

    def obey(self, line: str) -> bool:
        """Run the command of a line that begins with a slash; whether the conversation continues.

        Raises:
            ValueError: there is no such command, or the picture cannot be read.
        """
        name, _, rest = line.partition(" ")
        if name == "/image" and rest.strip():
            self.pictures.append(_open(rest.strip()))
        elif line == "/reset":
            self.messages, self.pictures = [], []
        elif line != "/quit":
            raise ValueError(f"{line}: not a command; there are /image FILE, /reset and /quit")
        return line != "/quit"


def converse(chat: ChatSession, lines) -> int:
    """Answer line after line.

    Returns:
        how many lines could not be answered.
    """
    failed = 0
    for line in map(str.strip, lines):
        try:
            if line.startswith("/"):
                if not chat.obey(line):
                    break
            elif line:
                chat.ask(line)
        except (ValueError, OSError) as error:
            fail(error)
            failed += 1
    return failed


def _typed_lines() -> Iterator[str]:
    """Lines as they are typed, up to the end of the input (Ctrl-D)."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # lines can be edited, and called back
    while True:
        try:
            yield input("> ")
        except EOFError:
            return


def _open(file: str):
    from paddlemix_vl2.processing.pictures import open_picture

    return open_picture(file)
