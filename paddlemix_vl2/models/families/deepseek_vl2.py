"""DeepSeek-VL2 (arXiv 2412.10302): SigLIP over dynamic tiles, a 2x2 projector, a mixture-of-experts decoder.

Source: published ``DeepseekVLV2ForCausalLM`` (``modeling_deepseek_vl_v2.py``); parameter paths are its own.
"""

import paddle
from paddle import nn

from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.layouts.tiles import TileLayout
from paddlemix_vl2.models.decoder import DeepseekV2ForCausalLM
from paddlemix_vl2.models.layers.execution import ExecutionConfig
from paddlemix_vl2.models.moe.dispatch import ExpertDispatcher
from paddlemix_vl2.models.moe.losses import BalanceLosses
from paddlemix_vl2.models.vision.projector import MlpProjector
from paddlemix_vl2.models.vision.siglip import VisionTransformer
from paddlemix_vl2.models.vision_language import VisionLanguageModel


class DeepseekVLV2ForCausalLM(VisionLanguageModel):
    """VL2-Tiny, VL2-Small and VL2; see :class:`.PretrainedModel` for the arguments."""

    config_class = DeepseekVLV2Config

    def __init__(
        self,
        config: DeepseekVLV2Config,
        execution: ExecutionConfig | None = None,
        dispatcher: ExpertDispatcher | None = None,
        balance: BalanceLosses | None = None,
    ):
        super().__init__(config, execution, dispatcher, balance)
        hidden_size = config.language_config.hidden_size
        self.vision = VisionTransformer(config.vision_config, self.execution)
        self.projector = MlpProjector(config.projector_config)
        vector = nn.initializer.Normal(std=hidden_size**-0.5)
        self.image_newline = self.create_parameter([hidden_size], default_initializer=vector)
        # Spelt so in the published checkpoints.
        self.view_seperator = self.create_parameter([hidden_size], default_initializer=vector)
        self.language = DeepseekV2ForCausalLM(config.language_config, self.execution, dispatcher)

    @property
    def layout(self) -> TileLayout:
        return TileLayout(self.config.image_tokens_per_side)

    @property
    def image_vectors(self) -> list[paddle.Tensor]:
        return [self.image_newline, self.view_seperator]
