"""What an entry of a data file says: a conversation or a text, checked.

Each function takes an entry (a JSON object) and gives a conversation or a text. The
same functions check every entry when a file is opened (``read=False``: no picture is touched) and read one
when its sample is needed. Errors name the field; the caller puts file and line in front.
"""

import math
import os
from typing import Any

from PIL import Image

from paddlemix_vl2.processing.boxes import LARGEST_COORDINATE, format_boxes
from paddlemix_vl2.processing.conversation import Conversation
from paddlemix_vl2.processing.pictures import (
    decode_base64,
    is_data_url,
    is_remote,
    open_picture,
    split_data_url,
)
from paddlemix_vl2.processing.tokenizer import ASSISTANT_TOKEN, GROUNDING_TOKENS, IMAGE_TOKEN, USER_TOKEN

_LLAVA_ROLES = {"human": USER_TOKEN, "gpt": ASSISTANT_TOKEN, "system": "system"}
_KINDS = {str: "text", list: "a list", dict: "an object", bool: "true or false"}
# Published boxes are often rounded up to just outside the picture; more than this is another picture's box.
_PIXELS_OUTSIDE = 1.0

Content = tuple[Conversation | None, str | None]


def read_entry(format: str, entry: dict, folder: str, read: bool = True) -> Content:
    """The conversation or the text of an entry; the other one is None.

    Args:
        format: "llava", "messages", "grounding" or "text".
        folder: what relative paths of pictures start from.
        read: whether to decode pictures that are in the file and to convert pixels to coordinates.

    Raises:
        ValueError: a field is missing or wrong; with ``read`` also a picture that cannot be read.
    """
    if format == "text":
        return None, _plain_text(entry)
    build = {"llava": _from_llava, "messages": read_messages, "grounding": _from_grounding}[format]
    return build(entry, folder, read), None


def parse_messages(
    messages: list[dict], images: list | None, field: str, inference_mode: bool = False
) -> Conversation:
    """Check the messages of an entry.

    Args:
        images: of the whole conversation, in order; None where the messages have their own.
        field: what errors call the conversation.
        inference_mode: as of :class:`Conversation`; a training conversation otherwise.

    Raises:
        ValueError: an unknown role, a turn out of order, an empty message, or another number of ``<image>``
            than of pictures.
    """
    if images is not None and any(isinstance(m, dict) and m.get("images") for m in messages):
        raise ValueError("'images' stands beside the messages and in them; keep one of the two")
    try:
        return Conversation.parse(messages, images, inference_mode)
    except ValueError as error:
        raise ValueError(f"{field!r}: {error}") from None


def _from_llava(entry: dict, folder: str, read: bool) -> Conversation:
    messages = []
    for index, turn in enumerate(_field(entry, "conversations", list)):
        if not isinstance(turn, dict) or "from" not in turn or "value" not in turn:
            raise ValueError(f"'conversations': turn {index} is an object with 'from' and 'value'")
        if not isinstance(turn["from"], str) or turn["from"] not in _LLAVA_ROLES:
            roles = ", ".join(_LLAVA_ROLES)
            raise ValueError(f"'conversations': turn {index}: unknown 'from' {turn['from']!r}; use {roles}")
        messages.append({"role": _LLAVA_ROLES[turn["from"]], "content": turn["value"]})
    pictures = entry.get("image")
    if not isinstance(pictures, list):
        pictures = [] if pictures is None else [pictures]
    conversation = parse_messages(messages, pictures, "conversations")
    return conversation.map_images(lambda name: read_picture(name, "image", folder, read))


def read_messages(entry: dict, folder: str, read: bool = True, inference_mode: bool = False) -> Conversation:
    """The conversation of an entry of the format "messages"; as :func:`read_entry`.

    Args:
        inference_mode: the conversation is left open for the model to continue.
    """
    pictures = entry.get("images")
    if pictures is not None and not isinstance(pictures, list):
        raise ValueError(f"'images' is a list, not {type(pictures).__name__}")
    conversation = parse_messages(_field(entry, "messages", list), pictures, "messages", inference_mode)
    return conversation.map_images(lambda name: read_picture(name, "images", folder, read))


def _plain_text(entry: dict) -> str:
    text = _field(entry, "text", str)
    if not text.strip():
        raise ValueError("'text' is empty")
    if IMAGE_TOKEN in text:
        raise ValueError(f"'text' has {IMAGE_TOKEN}; use the format 'messages' for text with pictures")
    return text


# ---- boxes ----


def _from_grounding(entry: dict, folder: str, read: bool) -> Conversation:
    """One turn per object; the picture is in the first."""
    picture, size = read_picture(_field(entry, "image", str), "image", folder, read), None
    in_pixels = entry.get("pixels", True)
    if not isinstance(in_pixels, bool):
        raise ValueError(f"'pixels' is {_KINDS[bool]}, not {in_pixels!r}")
    objects = _field(entry, "objects", list)
    if not objects:
        raise ValueError("'objects' is empty")
    if in_pixels and read:
        # The upright picture is the one that the model sees and that its boxes refer to.
        picture = open_picture(picture)
        size = picture.size
    ref, end_ref = GROUNDING_TOKENS[:2]
    messages = []
    for index, one in enumerate(objects):
        label, boxes = _read_object(one, f"'objects': object {index}", in_pixels, size)
        question = f"Locate {ref}{label}{end_ref} in the given image."
        messages += [
            {"role": USER_TOKEN, "content": question if index else f"{IMAGE_TOKEN}\n{question}"},
            {"role": ASSISTANT_TOKEN, "content": format_boxes(label, boxes)},
        ]
    return parse_messages(messages, [picture], "objects")


def _read_object(one: Any, where: str, in_pixels: bool, size: tuple[int, int] | None) -> tuple[str, list]:
    if not isinstance(one, dict):
        raise ValueError(f"{where} is an object with 'ref' and 'boxes'")
    try:
        label, boxes = _field(one, "ref", str).strip(), _field(one, "boxes", list)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if not label or any(token in label for token in (*GROUNDING_TOKENS, IMAGE_TOKEN)):
        raise ValueError(f"{where}: 'ref' is a short description without special tokens, not {label!r}")
    if not boxes:
        raise ValueError(f"{where}: 'boxes' is empty")
    return label, [_read_box(box, f"{where}: 'boxes'", in_pixels, size) for box in boxes]


def _read_box(box: Any, where: str, in_pixels: bool, size: tuple[int, int] | None) -> list[int]:
    """Four coordinates from 0 to 999. Boxes in pixels are only checked where ``size`` is not known yet."""
    is_four = isinstance(box, list) and len(box) == 4
    if not is_four or any(type(value) not in (int, float) or not math.isfinite(value) for value in box):
        raise ValueError(f"{where}: a box is [left, top, right, bottom], not {box!r}")
    left, top, right, bottom = box
    if left > right or top > bottom:
        raise ValueError(f"{where}: the corners of {box} are the wrong way round")
    limits: tuple[float, float]
    if not in_pixels:
        limits, unit = (LARGEST_COORDINATE, LARGEST_COORDINATE), f"0 to {LARGEST_COORDINATE}"
    elif size is None:
        limits, unit = (math.inf, math.inf), "pixels"
    else:
        limits, unit = size, f"the picture of {size[0]} x {size[1]} pixels"
    slack = _PIXELS_OUTSIDE if in_pixels else 0
    if min(left, top) < -slack or right > limits[0] + slack or bottom > limits[1] + slack:
        raise ValueError(f"{where}: {box} is not inside {unit}")
    if in_pixels and size is None:
        return []
    scaled = [value / limits[axis % 2] * LARGEST_COORDINATE for axis, value in enumerate(box)]
    return [min(max(round(value), 0), LARGEST_COORDINATE) for value in scaled]


# ---- fields and pictures ----


def _field(entry: dict, name: str, kind: type) -> Any:
    if name not in entry:
        raise ValueError(f"{name!r} is missing; it must be {_KINDS[kind]}")
    if not isinstance(entry[name], kind):
        raise ValueError(f"{name!r} is {_KINDS[kind]}, not {type(entry[name]).__name__}")
    return entry[name]


def read_picture(name: Any, field: str, folder: str, read: bool = True) -> str | Image.Image:
    """A picture's path, or with ``read`` the picture itself where the file holds it as a data URL.

    Raises:
        ValueError: neither of the two, or no picture in the data URL.
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"{field!r}: a picture is a path or a data URL, not {name!r}")
    if is_remote(name):
        raise ValueError(f"{field!r}: {name[:80]} is not a file; download it first")
    if not is_data_url(name):
        return os.path.join(folder, name)
    try:
        content = split_data_url(name)
    except ValueError as error:
        raise ValueError(f"{field!r}: {error}") from None
    if not read:
        return name
    return decode_base64(content, f"{field!r}: the data URL {name[:40]!r}")
