"""The page's widgets: what is where, and which event calls what.

Nothing is fetched from elsewhere: gradio's telemetry is off, and fonts are the system's.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import gradio as gr

from paddlemix_vl2.web.chat import Chat, Settings
from paddlemix_vl2.web.display import plain, to_messages
from paddlemix_vl2.web.session import Interruptions, Progress, respond
from paddlemix_vl2.web.wording import EXAMPLES, LANGUAGES, choose_language, say

SETTINGS = ("temperature", "top_p", "repetition_penalty", "max_new_tokens")
_SECONDS_PER_HOUR = 3600
# gradio's button to share a message uploads its pictures to a server of gradio's makers.
_CSS = """
.gradio-container {max-width: 1280px !important; margin: auto}
#chat .user img {max-height: 130px; width: auto}
#chat .bot img {max-height: 340px; width: auto}
#chat button[title="Share"] {display: none}
#chat .icon-button-wrapper:has(> button[title="Share"]:only-child) {display: none}
#notice {min-height: 1.6em; padding: 0 4px}
"""


class Page:
    """Widgets around a :class:`Chat`.

    Args:
        chat: answers.
        model_name: what the page calls the model.
        examples: folder with the pictures of :data:`EXAMPLES`.
        is_demo: whether to say that the model knows synthetic pictures only.

    Attributes:
        blocks: gradio's page.
    """

    def __init__(self, chat: Chat, model_name: str, examples: Path, is_demo: bool = False):
        self._chat = chat
        self._model_name = model_name
        self._examples = examples
        self._is_demo = is_demo
        self._interruptions = Interruptions()
        # Uploads and pictures with boxes are deleted after a day; every hour it is checked.
        cache = (_SECONDS_PER_HOUR, 24 * _SECONDS_PER_HOUR)
        options = {"analytics_enabled": False, "delete_cache": cache, "fill_width": True}
        with gr.Blocks(title="DeepSeek-VL2", **options) as self.blocks:
            self._turns = gr.State([])
            self._place_widgets()
            self._connect()
        self.blocks.queue(api_open=False)

    def launch(self, host: str, port: int | None, share: bool = False) -> str:
        """Serve the page from a thread of its own.

        Args:
            port: None takes the first free one from 7860 on.
            share: also on a public address of gradio's makers.

        Returns:
            the local address.

        Raises:
            OSError: the port is taken.
        """
        # gradio asks its own server whether it is there; the client logs each request.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
        _, address, _ = self.blocks.launch(
            server_name=host,
            server_port=port,
            share=share,
            quiet=True,
            prevent_thread_lock=True,
            allowed_paths=[str(self._examples)],
            footer_links=[],
            ssr_mode=False,
            theme=gr.themes.Default(primary_hue="blue", **fonts),
            css=_CSS,
        )
        return address

    def close(self) -> None:
        """Serve it no more."""
        self.blocks.close(verbose=False)

    def wait(self) -> None:
        """Until the process is interrupted."""
        self.blocks.block_thread()

    # ---- what is where ----

    def _place_widgets(self) -> None:
        text = self._texts("en")
        with gr.Row():
            self._heading = gr.Markdown(**text["heading"])
            names = list(LANGUAGES)
            self._language = gr.Radio(names, value=names[0], scale=0, min_width=230, **text["language"])
        with gr.Row():
            with gr.Column(scale=3, min_width=400):
                self._place_conversation(text)
            with gr.Column(scale=1, min_width=300):
                self._place_settings(text)

    def _place_conversation(self, text: dict[str, dict]) -> None:
        self._chatbot = gr.Chatbot(
            height="calc(100vh - 350px)",
            min_height=420,
            elem_id="chat",
            buttons=["copy"],
            allow_file_downloads=False,
            allow_tags=False,
        )
        self._notice = gr.Markdown(elem_id="notice")
        self._question = gr.MultimodalTextbox(
            file_types=["image"],
            file_count="multiple",
            show_label=False,
            elem_id="question",
            **text["question"],
        )
        with gr.Row():
            self._stop = gr.Button(variant="stop", interactive=False, elem_id="stop", **text["stop"])
            self._retry = gr.Button(elem_id="retry", **text["retry"])
            self._clear = gr.Button(elem_id="clear", **text["clear"])

    def _place_settings(self, text: dict[str, dict]) -> None:
        default = Settings()
        longest = max(1, self._chat.limit - 1)
        with gr.Accordion(**text["settings"]) as self._settings:
            self._sliders = [
                gr.Slider(0, 2, value=default.temperature, step=0.05, **text["temperature"]),
                gr.Slider(0.05, 1, value=default.top_p, step=0.05, **text["top_p"]),
                gr.Slider(1, 2, value=default.repetition_penalty, step=0.05, **text["repetition_penalty"]),
                gr.Slider(
                    1, longest, value=min(default.max_new_tokens, longest), step=1, **text["max_new_tokens"]
                ),
            ]
        self._help = gr.Markdown(**text["help"])

    def _texts(self, language: str) -> dict[str, dict]:
        """What depends on the language: arguments of the widgets, by name."""
        heading = f"# {say(language, 'title')}\n{say(language, 'subtitle', model=self._model_name)}"
        if self._is_demo:
            heading += " " + say(language, "demo_note")
        texts = {"heading": {"value": heading}, "help": {"value": say(language, "help")}}
        texts |= {name: {"label": say(language, name)} for name in ("language", "settings")}
        texts |= {name: {"value": say(language, name)} for name in ("stop", "retry", "clear")}
        texts |= {
            name: {"label": say(language, name), "info": say(language, f"{name}_info")} for name in SETTINGS
        }
        return texts | {"question": {"placeholder": say(language, "placeholder")}}

    def _proposals(self, language: str) -> list[dict]:
        """The examples as cards of the empty chat."""
        icons = [self._examples / example.pictures[0] for example in EXAMPLES[language]]
        return [
            {"text": example.question, "icon": self._chatbot.serve_static_file(icon)}
            for example, icon in zip(EXAMPLES[language], icons, strict=True)
        ]

    # ---- which event calls what ----

    def _connect(self) -> None:
        quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        # One answer at a time; who asks meanwhile waits.
        slow = {**quick, "queue": True, "concurrency_id": "answer", "concurrency_limit": 1}
        known = [self._turns, self._language, *self._sliders]
        shown = [self._chatbot, self._turns, self._question, self._notice, self._stop, self._retry]
        self._question.submit(self._on_question, [self._question, *known], shown, **slow)
        self._chatbot.example_select(self._on_example, known, shown, **slow)
        self._retry.click(self._on_retry, known, shown, **slow)
        self._stop.click(self._on_stop, None, None, **quick)
        for clear in (self._clear.click, self._chatbot.clear):
            clear(self._on_clear, None, shown, **quick)
        widgets = {"heading": self._heading, "language": self._language, "question": self._question}
        widgets |= {"stop": self._stop, "retry": self._retry, "clear": self._clear, "help": self._help}
        widgets |= {"settings": self._settings, **dict(zip(SETTINGS, self._sliders, strict=True))}
        translate = [lambda language: self._on_language(language, list(widgets)), self._language]
        self._language.change(*translate, [self._chatbot, *widgets.values()], **quick)
        self.blocks.load(self._on_load, None, [self._language, self._chatbot], **quick)
        self.blocks.unload(self._on_stop)

    def _on_question(self, request: gr.Request, message: dict, turns, language, *settings):
        question, files = message["text"] or "", message["files"] or []
        yield from self._answer(turns, question, files, language, settings, request)

    def _on_example(self, request: gr.Request, event: gr.SelectData, turns, language, *settings):
        # By its number: file names from the browser are not trusted.
        example = EXAMPLES[LANGUAGES[language]][event.index]
        files = [self._examples / name for name in example.pictures]
        yield from self._answer(turns, example.question, files, language, settings, request)

    def _on_retry(self, request: gr.Request, turns, language, *settings):
        if not turns:
            nothing = Progress(turns, say(LANGUAGES[language], "nothing_to_retry"))
            yield self._show(nothing, gr.skip())
            return
        last = turns[-1]
        yield from self._answer(turns[:-1], last.question, last.pictures, language, settings, request)

    def _answer(self, turns, question, files, language, settings, request) -> Iterator[tuple]:
        """All that changes on the page, at each moment of one answer."""
        window = request.session_hash
        options = dict(zip(SETTINGS, settings, strict=True))
        interruption = self._interruptions.begin(window)
        typed = {"text": question, "files": [str(file) for file in files]}
        try:
            progresses = respond(
                self._chat, turns, question, files, options, LANGUAGES[language], interruption
            )
            for number, progress in enumerate(progresses):
                box = gr.skip()
                if not number:
                    box = gr.update(value=None)
                elif progress.is_refused:
                    box = gr.update(value=typed)
                yield self._show(progress, box, only_text=progress.is_running and number > 1)
        finally:
            self._interruptions.end(window)

    def _show(self, progress: Progress, box, only_text: bool = False) -> tuple:
        """Values for the widgets: chat, turns, question, notice, stop, retry."""
        messages = to_messages(progress.turns)
        if only_text:
            return messages, progress.turns, *[gr.skip()] * 4
        busy, free = (
            gr.update(interactive=progress.is_running),
            gr.update(interactive=not progress.is_running),
        )
        return messages, progress.turns, box, plain(progress.notice), busy, free

    def _on_stop(self, request: gr.Request) -> None:
        self._interruptions.interrupt(request.session_hash)

    def _on_clear(self, request: gr.Request) -> tuple:
        self._interruptions.interrupt(request.session_hash, clear=True)
        return self._show(Progress([]), gr.skip())

    def _on_load(self, request: gr.Request) -> tuple:
        code = choose_language(request.headers.get("accept-language", ""))
        name = next(name for name, value in LANGUAGES.items() if value == code)
        return name, self._show_chat(code)

    def _on_language(self, language: str, names: list[str]) -> list:
        code = LANGUAGES[language]
        texts = self._texts(code)
        return [self._show_chat(code), *(gr.update(**texts[name]) for name in names)]

    def _show_chat(self, code: str):
        return gr.update(label=say(code, "chat"), examples=self._proposals(code))
