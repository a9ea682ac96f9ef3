"""``vision_config`` and ``projector_config``."""

from paddlemix_vl2.config.base import PublishedConfig
from paddlemix_vl2.config.checks import check_choice, check_positive

PROJECTOR_TYPES = ("downsample_mlp_gelu",)


class VisionEncoderConfig(PublishedConfig):
    """``vision_config``: the SigLIP encoder. ``mlp_ratio`` times ``width``, rounded down, is the MLP's
    width."""

    model_type = "vision"

    model_name: str = "siglip_so400m_patch14_384"
    image_size: int = 384
    patch_size: int = 14
    width: int = 1152
    layers: int = 27
    heads: int = 16
    mlp_ratio: float = 3.7362
    global_pool: str = "map"
    ignore_head: bool = True

    def check(self) -> None:
        check_positive(
            "vision_config", self, "image_size", "patch_size", "width", "layers", "heads", "mlp_ratio"
        )
        if self.global_pool != "map":
            raise ValueError(f"vision_config: global_pool is {self.global_pool!r}; only 'map' is supported")
        if self.width % self.heads:
            raise ValueError(f"vision_config: width {self.width} is not a multiple of heads {self.heads}")

    @property
    def mlp_width(self) -> int:
        return int(self.width * self.mlp_ratio)

    @property
    def patches_per_side(self) -> int:
        return self.image_size // self.patch_size


class MlpProjectorConfig(PublishedConfig):
    """``projector_config``: the 2x2 downsampling MLP between vision encoder and language model."""

    model_type = "mlp_projector"

    projector_type: str = "downsample_mlp_gelu"
    input_dim: int = 1152
    n_embed: int = 2048
    depth: int = 2
    mlp_ratio: int = 1
    downsample_ratio: int = 2

    def check(self) -> None:
        check_choice("projector_config.projector_type", self.projector_type, PROJECTOR_TYPES)
        if getattr(self, "token_pooling", False):
            raise ValueError(
                "projector_config: token_pooling is not used by any published model and not supported"
            )
        check_positive("projector_config", self, "input_dim", "n_embed", "mlp_ratio", "downsample_ratio")
        if self.depth < 2:
            raise ValueError(
                f"projector_config: depth is {self.depth}; {self.projector_type} has at least 2 layers"
            )
