"""What pictures are made of, and its names in English and Chinese."""

LANGUAGES = ("en", "zh")

# English name -> Chinese name
SHAPES = {
    "circle": "圆形",
    "square": "正方形",
    "triangle": "三角形",
    "star": "五角星",
    "cross": "十字",
}
PLURALS = {
    "circle": "circles",
    "square": "squares",
    "triangle": "triangles",
    "star": "stars",
    "cross": "crosses",
}
COLORS = {
    "red": "红色",
    "green": "绿色",
    "blue": "蓝色",
    "yellow": "黄色",
    "purple": "紫色",
    "orange": "橙色",
    "black": "黑色",
}
# Far enough apart that a jitter of some levels does not make one look like another.
COLOR_VALUES = {
    "red": (214, 28, 36),
    "green": (26, 150, 52),
    "blue": (32, 76, 216),
    "yellow": (240, 206, 16),
    "purple": (136, 36, 168),
    "orange": (246, 128, 16),
    "black": (20, 20, 22),
}
# Yellow letters on a light ground cannot be read.
TEXT_COLORS = tuple(color for color in COLORS if color != "yellow")
BACKGROUNDS = (
    (255, 255, 255),
    (236, 236, 238),
    (226, 236, 250),
    (230, 246, 230),
    (252, 234, 238),
    (250, 246, 226),
)

# The cells of a 3 x 3 grid, row by row.
POSITIONS = {
    "top left": "左上",
    "top": "上方",
    "top right": "右上",
    "left": "左侧",
    "centre": "中央",
    "right": "右侧",
    "bottom left": "左下",
    "bottom": "下方",
    "bottom right": "右下",
}

_WORDS = """
apple bird boat book bread cake cat city cloud desk dog door fish fox hand hat house ice king lake lemon milk
moon night park queen rain river ship snow tree zebra
"""
WORDS = tuple(_WORDS.split())

# Files below matplotlib's fonts/ttf.
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSansMono.ttf",
)
