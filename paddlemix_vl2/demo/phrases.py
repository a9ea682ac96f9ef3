"""The wording of questions and answers, in English and Chinese.

Every prompt of one row has the same answer. ``{0}`` is what is asked about.
"""

from paddlemix_vl2.demo.scenes import Bar, TextItem, Thing
from paddlemix_vl2.demo.vocabulary import COLORS, POSITIONS, SHAPES

PROMPTS = {
    "describe": {
        "en": ("Describe the picture.", "What can you see in the picture?"),
        "zh": ("描述这张图片。", "图中有什么？"),
    },
    "describe_pair": {
        "en": ("Describe the two pictures.", "What can you see in the two pictures?"),
        "zh": ("描述这两张图片。", "两张图中有什么？"),
    },
    "grounded_describe": {
        "en": ("<|grounding|>Can you describe the content of the image?",),
        "zh": ("<|grounding|>请描述图片的内容。",),
    },
    "ground": {
        "en": ("Locate <|ref|>{0}<|/ref|> in the given image.", "<|ref|>{0}<|/ref|>."),
        "zh": ("在图中定位<|ref|>{0}<|/ref|>。", "<|ref|>{0}<|/ref|>。"),
    },
    "colour": {
        "en": ("What colour is the {0}?", "Which colour is the {0}?"),
        "zh": ("{0}是什么颜色？", "{0}的颜色是什么？"),
    },
    "shape": {
        "en": ("What shape is {0}?", "Which shape is {0}?"),
        "zh": ("{0}的图形是什么形状？", "{0}的是什么图形？"),
    },
    "position": {
        "en": ("Where is {0}?", "In which part of the picture is {0}?"),
        "zh": ("{0}在哪里？", "{0}在图中什么位置？"),
    },
    "count": {
        "en": ("How many {0} are there?", "Count the {0}."),
        "zh": ("有几个{0}？", "数一数{0}。"),
    },
    "read": {
        "en": ("What does the picture say?", "Read the text."),
        "zh": ("图中写着什么？", "读出文字。"),
    },
    "read_word": {
        "en": ("Which word is in the picture?", "Read the word."),
        "zh": ("图中是哪个单词？", "读出单词。"),
    },
    "read_number": {
        "en": ("Which number is in the picture?", "Read the number."),
        "zh": ("图中是哪个数字？", "读出数字。"),
    },
    "read_line": {
        "en": ("Read the {0} line.", "What does the {0} line say?"),
        "zh": ("读出{0}行。", "{0}行写着什么？"),
    },
    "chart_max": {
        "en": ("Which bar is the {0}?", "What colour is the {0} bar?"),
        "zh": ("哪根柱{0}？", "{0}的柱是什么颜色？"),
    },
    "chart_value": {
        "en": ("What is the value of {0}?", "How tall is {0}?"),
        "zh": ("{0}的值是多少？", "{0}有多高？"),
    },
    "compare_same": {
        "en": ("Do the two pictures show the same {0}?", "Is the {0} the same in both pictures?"),
        "zh": ("两张图的{0}相同吗？", "两张图是同样的{0}吗？"),
    },
    "compare_which": {
        "en": ("Which picture shows the {0}?", "In which picture is the {0}?"),
        "zh": ("哪张图有{0}？", "{0}在哪张图里？"),
    },
    "compare_what": {
        "en": ("What is in the {0} picture?", "What does the {0} picture show?"),
        "zh": ("{0}张图里是什么？", "{0}张图有什么？"),
    },
    # {0} is a question of another row
    "other_language": {
        "en": ("{0} Answer in Chinese.", "{0} Say it in Chinese."),
        "zh": ("{0}请用英语回答。", "{0}用英语怎么说？"),
    },
}

ORDINALS = {"en": ("first", "second", "third"), "zh": ("第一", "第二", "第三")}
EXTREMES = {"en": ("tallest", "shortest"), "zh": ("最高", "最矮")}
YES_NO = {"en": ("yes", "no"), "zh": ("相同", "不同")}
ASPECTS = {"en": {"shape": "shape", "color": "colour"}, "zh": {"shape": "形状", "color": "颜色"}}

_ARTICLES = {"orange": "an"}
_PREPOSITIONS = {"left": "on the", "right": "on the", "centre": "in the"}


def translate(name: str, language: str) -> str:
    """A shape, a colour or a position of the vocabulary.

    >>> translate("red", "zh"), translate("red", "en")
    ('红色', 'red')
    """
    names = {**SHAPES, **COLORS, **POSITIONS}
    return names[name] if language == "zh" else name


def in_other_language(name: str) -> str:
    """The Chinese of an English name of the vocabulary, and the other way round.

    >>> in_other_language("red"), in_other_language("左上")
    ('红色', 'top left')
    """
    chinese = {**SHAPES, **COLORS, **POSITIONS}
    return {**chinese, **{value: key for key, value in chinese.items()}}[name]


def position_name(cell: int, language: str) -> str:
    return translate(list(POSITIONS)[cell], language)


def place(cell: int) -> str:
    """A cell of the grid with its preposition.

    >>> place(0), place(4)
    ('at the top left', 'in the centre')
    """
    name = list(POSITIONS)[cell]
    return f"{_PREPOSITIONS.get(name, 'at the')} {name}"


def bare(part: Thing | TextItem | Bar, language: str) -> str:
    """A part of a picture without an article: "red circle", "word apple", "red bar"."""
    if isinstance(part, TextItem):
        kind = ("数字" if part.is_number else "单词", "number " if part.is_number else "word ")
        return (kind[0] if language == "zh" else kind[1]) + part.text
    noun = translate(part.shape, language) if isinstance(part, Thing) else {"en": "bar", "zh": "柱"}[language]
    return translate(part.color, language) + (" " if language == "en" else "") + noun


def definite(part: Thing | TextItem | Bar, language: str) -> str:
    """The same as something that is known: "the red circle"."""
    return f"the {bare(part, language)}" if language == "en" else bare(part, language)


def indefinite(part: Thing | TextItem | Bar, language: str) -> str:
    """The same as something new: "a red circle"; what is written has its article either way."""
    if language == "zh" or isinstance(part, TextItem):
        return definite(part, language)
    return f"{_ARTICLES.get(part.color, 'a')} {bare(part, language)}"


def sentence(clauses: list[str], language: str) -> str:
    """Clauses, joined by commas, as a sentence."""
    if language == "zh":
        return "，".join(clauses) + "。"
    text = ", ".join(clauses) + "."
    return text[0].upper() + text[1:]
