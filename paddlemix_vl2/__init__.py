"""DeepSeek-VL2 on PaddlePaddle. The public names are loaded on first use, so that ``import paddlemix_vl2``
is quick."""

import importlib

from paddlemix_vl2.device import tune_process

__version__ = "0.1.0"

tune_process()

_PUBLIC = {
    "DeepseekVLV2Config": "paddlemix_vl2.configuration",
    "DeepseekVLV2ForCausalLM": "paddlemix_vl2.models.vl2",
    "DeepseekVLV2Processor": "paddlemix_vl2.processing.processor",
    "TextIteratorStreamer": "paddlemix_vl2.generation.streaming",
    "TextStreamer": "paddlemix_vl2.generation.streaming",
    "parse_boxes": "paddlemix_vl2.generation.grounding",
    "draw_boxes": "paddlemix_vl2.generation.grounding",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
