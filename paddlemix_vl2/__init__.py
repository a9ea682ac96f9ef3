"""DeepSeek-VL2 on PaddlePaddle. The public names are loaded on first use, so that ``import paddlemix_vl2``
is quick."""

import importlib

from paddlemix_vl2.process_tuning import enable_fast_mkl

__version__ = "0.1.0"

enable_fast_mkl()  # MKL reads the setting when Paddle loads it

_PUBLIC = {
    "AutoConfig": "paddlemix_vl2.auto",
    "AutoModelForCausalLM": "paddlemix_vl2.auto",
    "AutoProcessor": "paddlemix_vl2.auto",
    "DeepseekVLV2Config": "paddlemix_vl2.config.deepseek_vl2",
    "DeepseekVLV2ForCausalLM": "paddlemix_vl2.models.families.deepseek_vl2",
    "DeepseekVLV2Processor": "paddlemix_vl2.processing.deepseek_vl2",
    "TextIteratorStreamer": "paddlemix_vl2.generation.streaming",
    "TextStreamer": "paddlemix_vl2.generation.streaming",
    "parse_boxes": "paddlemix_vl2.processing.boxes",
    "draw_boxes": "paddlemix_vl2.figures.boxes",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
