"""From pictures and conversations to the tensors that the model takes.

pictures      a file or a PIL image -> an upright RGB picture
tiling        a picture -> global view and local tiles
conversation  messages -> a conversation, checked
templates     a conversation -> the pieces of the prompt
tokenizer     text <-> ids
batching      samples -> one left-padded batch
processor     all of it; deepseek_vl2: ``DeepseekVLV2Processor``

Nothing here imports PaddleNLP, and Paddle is imported only when a batch is turned into tensors: readers of
training data can run in processes without either.
"""

from paddlemix_vl2.processing.batching import Sample, pad_samples
from paddlemix_vl2.processing.deepseek_vl2 import DeepseekVLV2Processor
from paddlemix_vl2.processing.pictures import open_picture
from paddlemix_vl2.processing.tiling import select_best_resolution
from paddlemix_vl2.processing.tokenizer import DeepseekTokenizer

__all__ = [
    "DeepseekTokenizer",
    "DeepseekVLV2Processor",
    "Sample",
    "open_picture",
    "pad_samples",
    "select_best_resolution",
]
