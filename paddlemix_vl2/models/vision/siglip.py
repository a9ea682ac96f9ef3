"""The vision encoder: SigLIP's ViT (SO400M, patch 14, 384 pixels, in the published models).

Source: published ``VisionTransformer`` (``siglip_vit.py``). Its GELU is the tanh approximation, and the
final norm is applied. ``attn_pool`` is part of the checkpoint and of no forward pass; it is kept so that a
save is complete.
"""

import paddle
import paddle.nn.functional as F
from paddle import nn

from paddlemix_vl2.config.vision import VisionEncoderConfig
from paddlemix_vl2.models.layers.attention_ops import full_attention
from paddlemix_vl2.models.layers.execution import ExecutionConfig, paddle_execution
from paddlemix_vl2.models.layers.recompute import recompute_layer

LAYER_NORM_EPS = 1e-6


class VisionTransformer(nn.Layer):
    """Pre-norm ViT without class token; learned positions on a fixed grid."""

    def __init__(self, config: VisionEncoderConfig, execution: ExecutionConfig | None = None):
        super().__init__()
        execution = execution or paddle_execution()
        self.patch_embed = PatchEmbed(config)
        self.pos_embed = self.create_parameter(
            [1, config.patches_per_side**2, config.width], default_initializer=nn.initializer.Normal(std=0.02)
        )
        self.blocks = nn.LayerList([VisionBlock(config, execution) for _ in range(config.layers)])
        self.norm = nn.LayerNorm(config.width, epsilon=LAYER_NORM_EPS)
        self.attn_pool = AttentionPoolLatent(config)

    def forward(self, tiles: paddle.Tensor) -> paddle.Tensor:
        """Normalised pixels [I, 3, side, side] -> patch features [I, P, W]."""
        hidden_states = self.patch_embed(tiles) + self.pos_embed
        for block in self.blocks:
            if block.enable_recompute and block.training:
                hidden_states = recompute_layer(block, hidden_states)
            else:
                hidden_states = block(hidden_states)
        return self.norm(hidden_states)


class PatchEmbed(nn.Layer):
    """Cuts tiles into patches; pixels right and below of the last whole patch are left out."""

    def __init__(self, config: VisionEncoderConfig):
        super().__init__()
        self.proj = nn.Conv2D(3, config.width, config.patch_size, stride=config.patch_size)

    def forward(self, tiles: paddle.Tensor) -> paddle.Tensor:
        """[I, 3, side, side] -> [I, P, W]."""
        return self.proj(tiles).flatten(start_axis=2).transpose([0, 2, 1])


class VisionBlock(nn.Layer):
    """``x + attn(norm1(x))``, then ``x + mlp(norm2(x))``."""

    def __init__(self, config: VisionEncoderConfig, execution: ExecutionConfig):
        super().__init__()
        self.enable_recompute = False  # PaddleNLP's Trainer sets it
        self.norm1 = nn.LayerNorm(config.width, epsilon=LAYER_NORM_EPS)
        self.attn = VisionAttention(config, execution)
        self.norm2 = nn.LayerNorm(config.width, epsilon=LAYER_NORM_EPS)
        self.mlp = VisionMLP(config)

    def forward(self, hidden_states: paddle.Tensor) -> paddle.Tensor:
        """[I, P, W] -> [I, P, W]."""
        hidden_states = hidden_states + self.attn(self.norm1(hidden_states))
        return hidden_states + self.mlp(self.norm2(hidden_states))


class VisionAttention(nn.Layer):
    """Multi-head attention of all patches of a tile with each other."""

    def __init__(self, config: VisionEncoderConfig, execution: ExecutionConfig):
        super().__init__()
        self.num_heads = config.heads
        self.fused = execution.fused_attention
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, hidden_states: paddle.Tensor) -> paddle.Tensor:
        """[I, P, W] -> [I, P, W]."""
        tiles, patches, width = hidden_states.shape
        shape = [tiles, patches, self.num_heads, -1]
        queries, keys, values = (x.reshape(shape) for x in self.qkv(hidden_states).split(3, axis=-1))
        output = full_attention(queries, keys, values, self.fused)
        return self.proj(output.reshape([tiles, patches, width]))


class VisionMLP(nn.Layer):
    """Two linear layers around a tanh GELU."""

    def __init__(self, config: VisionEncoderConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, hidden_states: paddle.Tensor) -> paddle.Tensor:
        """[..., W] -> [..., W]."""
        return self.fc2(F.gelu(self.fc1(hidden_states), approximate=True))


class AttentionPoolLatent(nn.Layer):
    """The parameters of SigLIP's pooling head. DeepSeek-VL2 reads patch features and never runs it."""

    def __init__(self, config: VisionEncoderConfig):
        super().__init__()
        width = config.width
        self.latent = self.create_parameter(
            [1, 1, width], default_initializer=nn.initializer.Normal(std=width**-0.5)
        )
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, epsilon=LAYER_NORM_EPS)
        self.mlp = VisionMLP(config)
