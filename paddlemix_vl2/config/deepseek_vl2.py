"""Configuration of DeepSeek-VL2; every field is a key of the published ``config.json``.

Source: ``config.json`` of deepseek-vl2-tiny, deepseek-vl2-small and deepseek-vl2, and the defaults of the
published configuration classes for keys that those files leave out.
"""

from dataclasses import replace

from paddlemix_vl2.config.base import PublishedConfig, RepeatedLayers
from paddlemix_vl2.config.checks import check_choice
from paddlemix_vl2.config.language import DeepseekV2Config
from paddlemix_vl2.config.registry import check_family
from paddlemix_vl2.config.vision import MlpProjectorConfig, VisionEncoderConfig
from paddlemix_vl2.layouts.tiles import tokens_per_side


class DeepseekVLV2Config(PublishedConfig):
    """The whole ``config.json``: the three parts, the tile layout and the tile sizes to choose from."""

    model_type = "deepseek_vl_v2"
    architecture = "DeepseekVLV2ForCausalLM"

    tile_tag: str = "2D"
    global_view_pos: str = "head"
    candidate_resolutions: list | None = None
    vision_config: VisionEncoderConfig
    projector_config: MlpProjectorConfig
    language_config: DeepseekV2Config

    def check(self) -> None:
        check_choice("tile_tag", self.tile_tag, ("2D",))
        check_choice("global_view_pos", self.global_view_pos, ("head",))
        self.candidate_resolutions = [list(pair) for pair in self.candidate_resolutions or [(384, 384)]]
        self._check_widths()

    @classmethod
    def check_family(cls, values: dict, place) -> None:
        check_family(values, cls, place)

    def repeated_layers(self) -> list[RepeatedLayers]:
        (decoder,) = self.language_config.repeated_layers()
        return [
            RepeatedLayers("vision.blocks", (0,) * self.vision_config.layers, "vision_config", "layers"),
            replace(decoder, prefix=f"language.{decoder.prefix}", part="language_config"),
        ]

    def _check_widths(self) -> None:
        vision, projector, language = self.vision_config, self.projector_config, self.language_config
        if projector.input_dim != vision.width:
            raise ValueError(
                f"projector_config.input_dim {projector.input_dim} is not vision_config.width {vision.width}"
            )
        if projector.n_embed != language.hidden_size:
            raise ValueError(
                f"projector_config.n_embed {projector.n_embed} is not "
                f"language_config.hidden_size {language.hidden_size}"
            )

    @property
    def image_tokens_per_side(self) -> int:
        """Rows (= columns) of image tokens that one tile becomes: 14 for the published models."""
        vision = self.vision_config
        return tokens_per_side(vision.image_size, vision.patch_size, self.projector_config.downsample_ratio)
