"""What the page says, in English and Chinese, and the questions that it proposes."""

from typing import NamedTuple

LANGUAGES = {"English": "en", "中文": "zh"}

TEXTS = {
    "en": {
        # labels
        "title": "DeepSeek-VL2",
        "subtitle": "Questions about pictures, answered by `{model}`.",
        "demo_note": (
            "This small model knows drawings like those of the examples; photographs need a published "
            "model, `--model_path deepseek-ai/deepseek-vl2-tiny`."
        ),
        "language": "Language",
        "chat": "Conversation",
        "placeholder": "Add pictures and type a question",
        "stop": "Stop",
        "retry": "Answer again",
        "clear": "New conversation",
        "settings": "Settings",
        "temperature": "Temperature",
        "temperature_info": "0: always the likeliest token",
        "top_p": "Top-p",
        "top_p_info": "has an effect above temperature 0",
        "repetition_penalty": "Repetition penalty",
        "repetition_penalty_info": "above 1: repeat less",
        "max_new_tokens": "Longest answer",
        "max_new_tokens_info": "in tokens",
        "help": (
            "**Pictures** stay in the conversation. With more than two of them each is seen as a whole, "
            "without local tiles.\n\n"
            "**To find something**, write `Locate <|ref|>the red circle<|/ref|> in the given image.`; for a "
            "description with boxes, begin with `<|grounding|>`. Boxes are drawn on the last picture."
        ),
        # sentences
        "reading": "Reading the question and the pictures.",
        "answering": "Answering.",
        "stopped": "Stopped.",
        "used": "The conversation takes {tokens:,} of {limit:,} tokens.",
        "cut": "The answer reached its longest length; the settings can raise it.",
        "left_out": "Not drawn: {detail}.",
        "empty": "Type a question.",
        "picture": "A picture cannot be read: {detail}.",
        "placeholders": (
            "The question says <image> {placeholders} times, and {pictures} pictures came with it; leave "
            "<image> out, or write it once for each picture."
        ),
        "overlong": (
            "Question and pictures take {tokens:,} tokens, and the model has {limit:,}; send fewer or "
            "smaller pictures."
        ),
        "full": (
            "The conversation is full: {tokens:,} tokens, and the model has {limit:,}. Begin a new one, or "
            "send fewer or smaller pictures."
        ),
        "failed": "The question could not be answered: {detail}",
        "nothing_to_retry": "There is no question yet.",
    },
    "zh": {
        "title": "DeepSeek-VL2",
        "subtitle": "就图片提问，由 `{model}` 回答。",
        "demo_note": (
            "这个小模型只认识与示例类似的图画；照片需要正式发布的模型："
            "`--model_path deepseek-ai/deepseek-vl2-tiny`。"
        ),
        "language": "语言",
        "chat": "对话",
        "placeholder": "添加图片并输入问题",
        "stop": "停止",
        "retry": "重新回答",
        "clear": "新对话",
        "settings": "设置",
        "temperature": "温度",
        "temperature_info": "0：总是取概率最大的词元",
        "top_p": "Top-p",
        "top_p_info": "温度大于 0 时有效",
        "repetition_penalty": "重复惩罚",
        "repetition_penalty_info": "大于 1 时减少重复",
        "max_new_tokens": "回答的最大长度",
        "max_new_tokens_info": "以词元计",
        "help": (
            "**图片**会保留在对话中。超过两张时，每张只看整体，不再切分成局部图块。\n\n"
            "**要定位某物**，请写 `在图中定位<|ref|>红色圆形<|/ref|>。`；以 `<|grounding|>` "
            "开头可得到带框的描述。框画在最后一张图片上。"
        ),
        "reading": "正在阅读问题和图片。",
        "answering": "正在回答。",
        "stopped": "已停止。",
        "used": "对话占用 {limit:,} 个词元中的 {tokens:,} 个。",
        "cut": "回答达到了最大长度，可在设置中调大。",
        "left_out": "未画出：{detail}。",
        "empty": "请输入问题。",
        "picture": "图片无法读取：{detail}。",
        "placeholders": (
            "问题中有 {placeholders} 个 <image>，而图片有 {pictures} 张；请去掉 <image>，或每张图片写一个。"
        ),
        "overlong": "问题和图片共 {tokens:,} 个词元，超过模型的 {limit:,} 个；请减少或缩小图片。",
        "full": "对话已满：共 {tokens:,} 个词元，模型最多 {limit:,} 个。请开始新对话，或减少、缩小图片。",
        "failed": "无法回答这个问题：{detail}",
        "nothing_to_retry": "还没有问题。",
    },
}


class Example(NamedTuple):
    """A question to try.

    Attributes:
        pictures: names in the folder of example pictures.
    """

    question: str
    pictures: tuple[str, ...]


EXAMPLES = {
    "en": (
        Example("Read the text.", ("words.png",)),
        Example("Locate <|ref|>the red circle<|/ref|> in the given image.", ("red_circle.png",)),
        Example("<|grounding|>Can you describe the content of the image?", ("shapes.png",)),
        Example("Do the two pictures show the same shape?", ("red_circle.png", "blue_square.png")),
    ),
    "zh": (
        Example("图中写着什么？", ("words.png",)),
        Example("在图中定位<|ref|>红色圆形<|/ref|>。", ("red_circle.png",)),
        Example("<|grounding|>请描述图片的内容。", ("shapes.png",)),
        Example("两张图的形状相同吗？", ("red_circle.png", "blue_square.png")),
    ),
}


def say(language: str, key: str, **values) -> str:
    """A text of the page.

    >>> say("en", "used", tokens=1500, limit=4096)
    'The conversation takes 1,500 of 4,096 tokens.'
    """
    return TEXTS[language][key].format(**values)


def choose_language(accepted: str) -> str:
    """The language for a browser that sends this ``Accept-Language``: Chinese where it comes first.

    >>> choose_language("zh-CN,zh;q=0.9,en;q=0.8"), choose_language("")
    ('zh', 'en')
    """
    return "zh" if accepted.strip().lower().startswith("zh") else "en"
