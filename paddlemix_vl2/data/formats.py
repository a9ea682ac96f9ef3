"""What an entry of a data file says: messages or text, checked.

Each function takes an entry (a JSON object) and gives a conversation in the processor's form or a text. The
same functions check every entry when a file is opened (``read=False``: no picture is touched) and read one
when it is drawn. Errors name the field; the caller puts file and line in front.
"""

import math
import os
from typing import Any

from PIL import Image

from paddlemix_vl2.generation.grounding import LARGEST_COORDINATE, format_boxes
from paddlemix_vl2.processing.conversation import ASSISTANT, ROLES, SYSTEM, USER, build_pieces
from paddlemix_vl2.processing.pictures import decode_base64, open_picture
from paddlemix_vl2.processing.tokenizer import ASSISTANT_TOKEN, GROUNDING_TOKENS, IMAGE_TOKEN, USER_TOKEN

_PUBLISHED_ROLES = {SYSTEM: SYSTEM, USER: USER_TOKEN, ASSISTANT: ASSISTANT_TOKEN}
_LLAVA_ROLES = {"human": USER_TOKEN, "gpt": ASSISTANT_TOKEN, "system": SYSTEM}
_KINDS = {str: "text", list: "a list", dict: "an object", bool: "true or false"}
# Published boxes are often rounded up to just outside the picture; more than this is another picture's box.
_PIXELS_OUTSIDE = 1.0

Content = tuple[list[dict] | None, str | None]


def read_entry(format: str, entry: dict, folder: str, read: bool = True) -> Content:
    """The messages or the text of an entry; the other one is None.

    Args:
        format: "llava", "messages", "grounding" or "text".
        folder: what relative paths of pictures start from.
        read: whether to decode pictures that stand in the file and to turn pixels into coordinates.

    Raises:
        ValueError: a field is missing or wrong; with ``read`` also a picture that cannot be read.
    """
    if format == "text":
        return None, _plain_text(entry)
    build = {"llava": _from_llava, "messages": read_messages, "grounding": _from_grounding}[format]
    return build(entry, folder, read), None


def share_pictures(
    messages: list[dict], pictures: list | None, field: str, inference_mode: bool = False
) -> list[dict]:
    """Check a conversation and give each message its pictures.

    Args:
        pictures: of the whole conversation, in order; None where the messages have their own.
        field: what errors call the conversation.
        inference_mode: as of :func:`build_pieces`; a training conversation otherwise.

    Returns:
        messages of the published roles; those with pictures have ``images``.

    Raises:
        ValueError: an unknown role, a turn out of order, an empty message, or another number of ``<image>``
            than of pictures.
    """
    if pictures is not None and any(isinstance(m, dict) and m.get("images") for m in messages):
        raise ValueError("'images' stands beside the messages and in them; keep one of the two")
    try:
        pieces = build_pieces(messages, pictures, IMAGE_TOKEN, inference_mode)
    except ValueError as error:
        raise ValueError(f"{field!r}: {error}") from None
    shared = []
    for message, piece in zip(messages, pieces, strict=True):
        one = {"role": _PUBLISHED_ROLES[ROLES[message["role"]]], "content": message["content"]}
        shared.append({**one, "images": piece.pictures} if piece.pictures else one)
    return shared


def _from_llava(entry: dict, folder: str, read: bool) -> list[dict]:
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
    return _with_files(share_pictures(messages, pictures, "conversations"), "image", folder, read)


def read_messages(entry: dict, folder: str, read: bool = True, inference_mode: bool = False) -> list[dict]:
    """The conversation of an entry of the format "messages"; as :func:`read_entry`.

    Args:
        inference_mode: the conversation is left open for the model to continue.
    """
    pictures = entry.get("images")
    if pictures is not None and not isinstance(pictures, list):
        raise ValueError(f"'images' is a list, not {type(pictures).__name__}")
    messages = share_pictures(_field(entry, "messages", list), pictures, "messages", inference_mode)
    return _with_files(messages, "images", folder, read)


def _with_files(messages: list[dict], field: str, folder: str, read: bool) -> list[dict]:
    for message in messages:
        if "images" in message:
            message["images"] = [read_picture(name, field, folder, read) for name in message["images"]]
    return messages


def _plain_text(entry: dict) -> str:
    text = _field(entry, "text", str)
    if not text.strip():
        raise ValueError("'text' is empty")
    if IMAGE_TOKEN in text:
        raise ValueError(f"'text' has {IMAGE_TOKEN}; use the format 'messages' for text with pictures")
    return text


# ---- boxes ----


def _from_grounding(entry: dict, folder: str, read: bool) -> list[dict]:
    """One turn per object; the picture stands in the first."""
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
        question = {"role": USER_TOKEN, "content": question if index else f"{IMAGE_TOKEN}\n{question}"}
        messages += [
            question if index else {**question, "images": [picture]},
            {"role": ASSISTANT_TOKEN, "content": format_boxes(label, boxes)},
        ]
    return messages


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
    if in_pixels and size is None:
        limits, unit = (math.inf, math.inf), "pixels"
    elif in_pixels:
        limits, unit = size, f"the picture of {size[0]} x {size[1]} pixels"
    else:
        limits, unit = (LARGEST_COORDINATE, LARGEST_COORDINATE), f"0 to {LARGEST_COORDINATE}"
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
    if name.startswith(("http://", "https://")):
        raise ValueError(f"{field!r}: {name[:80]} is not a file; download it first")
    if not name.startswith("data:"):
        return os.path.join(folder, name)
    header, comma, content = name.partition(",")
    if not comma or not header.endswith(";base64"):
        raise ValueError(f"{field!r}: a data URL is data:image/...;base64,..., not {name[:40]!r}")
    if not read:
        return name
    return decode_base64(content, f"{field!r}: the data URL {name[:40]!r}")
