"""DeepSeek-VL2: pictures and text to next-token logits.

::

    images -- vision -- projector --+
                                    +-- place_image_tokens -- language -- logits, loss
    input_ids -- embed_tokens ------+

Source: published ``DeepseekVLV2ForCausalLM`` (``modeling_deepseek_vl_v2.py``); parameter paths are its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import paddle
from paddle import nn
from paddlenlp.transformers import PretrainedModel
from paddlenlp.transformers.model_outputs import ModelOutput

from paddlemix_vl2 import checkpoints, device, hub
from paddlemix_vl2.checkpoints import Writers
from paddlemix_vl2.configuration import DeepseekVLV2Config
from paddlemix_vl2.generation import decoding
from paddlemix_vl2.models.balance import (
    AddAuxiliaryLoss,
    batch_loads,
    expert_balance_loss,
    number_segments,
    sequence_balance_loss,
)
from paddlemix_vl2.models.cache import ModelCache
from paddlemix_vl2.models.dot_product import segment_visibility
from paddlemix_vl2.models.engine import PackWhileLoading, accelerate, choose_weights, is_accelerated
from paddlemix_vl2.models.fusion import equal_to_previous, place_image_tokens, plan_fusion
from paddlemix_vl2.models.language import (
    DeepseekV2ForCausalLM,
    mask_visibility,
    positions_from_mask,
    segment_positions,
)
from paddlemix_vl2.models.loss import next_token_loss
from paddlemix_vl2.models.moe import ExpertDispatcher, stack_experts
from paddlemix_vl2.models.projector import MlpProjector
from paddlemix_vl2.models.vision import VisionTransformer


@dataclass
class DeepseekVLV2Output(ModelOutput):
    """Attributes:
    loss: float32 scalar where labels were given: the next-token loss. In training its gradient is that of
        ``loss + aux_loss``.
    next_token_loss: the same value without the gradient of ``aux_loss``.
    aux_loss: float32 scalar in training with labels: the balance losses of all layers times their weight.
    logits: [B, T, V]; None in training with labels, where they are never built as a whole.
    past_key_values: the cache that was passed in, now longer.
    hidden_states: embeddings, each layer's output, the last after the final norm, each [B, T, H].
    routings: one ``Routing`` per mixture layer.
    """

    loss: paddle.Tensor | None = None
    logits: paddle.Tensor | None = None
    past_key_values: ModelCache | None = None
    hidden_states: tuple[paddle.Tensor, ...] | None = None
    routings: tuple | None = None
    aux_loss: paddle.Tensor | None = None
    next_token_loss: paddle.Tensor | None = None


class DeepseekVLV2ForCausalLM(PretrainedModel):
    """The whole model: ``model(**batch)`` takes what the processor returns, ``generate(**batch)`` answers.

    Args:
        config: geometry of all parts.
        dispatcher: brings tokens to the experts that other processes hold; see
            :mod:`paddlemix_vl2.distributed`. Without it all experts are here.
    """

    config_class = DeepseekVLV2Config
    base_model_prefix = "language"

    def __init__(self, config: DeepseekVLV2Config, dispatcher: ExpertDispatcher | None = None):
        super().__init__(config)
        self.local_experts: range | None = dispatcher.experts if dispatcher else None  # None: all
        # Sums a tensor over the processes that share a batch, for balance losses over it; training sets it.
        self.batch_total: Callable[[paddle.Tensor], paddle.Tensor] | None = None
        self.cache_dtype: str | None = None  # that of the activations, unless the kernels keep another
        self.max_tiles_per_pass = device.tiles_per_pass(config.vision_config.patches_per_side**2)
        hidden = config.language_config.hidden_size
        self.vision = VisionTransformer(config.vision_config)
        self.projector = MlpProjector(config.projector_config)
        vector = nn.initializer.Normal(std=hidden**-0.5)
        self.image_newline = self.create_parameter([hidden], default_initializer=vector)
        # Spelt so in the published checkpoints.
        self.view_seperator = self.create_parameter([hidden], default_initializer=vector)
        self.language = DeepseekV2ForCausalLM(config.language_config, dispatcher)

    def forward(
        self,
        input_ids: paddle.Tensor | None = None,
        attention_mask: paddle.Tensor | None = None,
        images: paddle.Tensor | None = None,
        images_seq_mask: paddle.Tensor | None = None,
        images_spatial_crop: paddle.Tensor | None = None,
        labels: paddle.Tensor | None = None,
        segment_ids: paddle.Tensor | None = None,
        inputs_embeds: paddle.Tensor | None = None,
        position_ids: paddle.Tensor | None = None,
        past_key_values: ModelCache | None = None,
        output_hidden_states: bool = False,
        return_logits: bool | None = None,
        return_dict: bool = True,
    ) -> DeepseekVLV2Output | tuple:
        """Logits of all positions, and the loss where labels are given.

        Args:
            input_ids: int64 [B, T]; ids at image positions do not matter.
            attention_mask: [B, T], 0 on (left) padding; all ones where absent.
            images: normalised tiles [B, max_tiles, 3, side, side].
            images_seq_mask: bool [B, T], True on image tokens.
            images_spatial_crop: int64 [B, max_images, 2], width and height in tiles.
            labels: int64 [B, T], not shifted, -100 where nothing is supervised.
            segment_ids: int64 [B, T] instead of ``attention_mask``, for rows of several samples: 0 on
                padding, 1, 2, ... for a row's samples, none of which sees another. The balance loss is then
                one per sample and leaves padding out.
            inputs_embeds: [B, T, H] instead of ids and images.
            position_ids: int64 [B, T]; from the mask where absent.
            past_key_values: from :meth:`new_cache`; the call continues behind its filled part.
                ``attention_mask`` may be left out then, as the cache knows its padding.
            return_logits: False spares the memory of [B, T, vocabulary]; by default that is so while
                training on labels.

        Raises:
            ValueError: pictures, mask and grids of the batch do not fit each other, or the device cannot
                compute in the weights' dtype.
        """
        device.check_compute_dtype(self.weight_dtype)
        if inputs_embeds is None:
            inputs_embeds = self.prepare_inputs_embeds(
                input_ids, images, images_seq_mask, images_spatial_crop
            )
        if past_key_values is not None:
            past_key_values.check_mask(attention_mask)
            visibility, positions = None, past_key_values.next_positions(inputs_embeds.shape[1])
        elif segment_ids is not None:
            visibility = segment_visibility(segment_ids)
            positions = segment_positions(segment_ids)
        else:
            if attention_mask is None:
                attention_mask = paddle.ones(inputs_embeds.shape[:2], "int64")
            visibility, positions = mask_visibility(attention_mask), positions_from_mask(attention_mask)
        output = self.language.model(
            inputs_embeds,
            positions if position_ids is None else position_ids,
            visibility=visibility,
            cache=past_key_values,
            output_hidden_states=output_hidden_states,
        )
        head = self.language.lm_head
        loss, aux_loss, next_token = None, None, None
        if return_logits is None:
            return_logits = labels is None or not self.training
        if labels is not None:
            loss = next_token = next_token_loss(output.hidden, labels, head)
            aux_loss = self._balance_loss(output.routings, segment_ids, labels.shape)
            if aux_loss is not None and not aux_loss.stop_gradient:
                loss = AddAuxiliaryLoss.apply(loss, aux_loss)
        result = DeepseekVLV2Output(
            loss=loss,
            logits=head(output.hidden) if return_logits else None,
            past_key_values=past_key_values,
            hidden_states=output.hidden_states or None,
            routings=output.routings or None,
            aux_loss=aux_loss,
            next_token_loss=next_token,
        )
        return result if return_dict else result.to_tuple()

    def _balance_loss(self, routings, segment_ids, shape) -> paddle.Tensor | None:
        """``aux_loss_alpha`` times the balance losses of all layers; None where none is trained on. Without
        segment ids every position of a row counts, as in the published code."""
        config = self.config.language_config
        if not (self.training and routings and config.aux_loss_alpha > 0):
            return None
        segments = number_segments(paddle.ones(shape, "int64") if segment_ids is None else segment_ids)
        if config.seq_aux:
            losses = [sequence_balance_loss(r.scores, r.experts, segments) for r in routings]
        else:
            loads = [batch_loads(r.experts, segments, config.n_routed_experts) for r in routings]
            loads = paddle.stack(loads) if self.batch_total is None else self.batch_total(paddle.stack(loads))
            losses = [
                expert_balance_loss(r.scores, segments, load) for r, load in zip(routings, loads, strict=True)
            ]
        return config.aux_loss_alpha * paddle.add_n(losses)

    def prepare_inputs_embeds(
        self,
        input_ids: paddle.Tensor,
        images: paddle.Tensor | None = None,
        images_seq_mask: paddle.Tensor | None = None,
        images_spatial_crop: paddle.Tensor | None = None,
    ) -> paddle.Tensor:
        """Text embeddings with the image tokens in their places, [B, T, H]; arguments as in
        :meth:`forward`."""
        embeddings = self.language.model.embed_tokens(input_ids)
        if images is None or images_spatial_crop is None or not bool(images_spatial_crop.any()):
            if images_seq_mask is not None and bool(images_seq_mask.any()):
                raise ValueError(
                    "images_seq_mask marks image tokens, but images or images_spatial_crop holds no picture"
                )
            return embeddings
        side = self.config.image_tokens_per_side
        plan = plan_fusion(
            images_spatial_crop.numpy(),
            images_seq_mask.astype("bool").numpy(),
            max_tiles=images.shape[1],
            side=side,
        )
        images = images.flatten(stop_axis=1)
        tiles = paddle.gather(images, device.to_tensor(plan.tiles))
        if (twins := equal_to_previous(tiles, plan.lone)).size:
            plan = plan.leave_out(twins, side)
            tiles = paddle.gather(images, device.to_tensor(plan.tiles))
        features = self.encode_tiles(tiles)
        return place_image_tokens(embeddings, features, self.image_newline, self.view_seperator, plan)

    def encode_tiles(self, tiles: paddle.Tensor) -> paddle.Tensor:
        """Vision tower and projector over [I, 3, side, side] -> [I, image tokens, H], a bounded number at
        once."""
        tiles = tiles.astype(self.weight_dtype)
        passes = range(0, tiles.shape[0], self.max_tiles_per_pass)
        parts = [
            self.projector(self.vision(tiles[first : first + self.max_tiles_per_pass])) for first in passes
        ]
        return parts[0] if len(parts) == 1 else paddle.concat(parts)

    def new_cache(self, attention_mask: paddle.Tensor, capacity: int) -> ModelCache:
        """An empty cache for prompts with this mask [B, T] and up to ``capacity`` positions, answers
        included."""
        return ModelCache(self.config.language_config, attention_mask, capacity, self.cache_dtype)

    @paddle.no_grad()
    def prefill(
        self, batch: dict, capacity: int, chunk_size: int | None = None
    ) -> tuple[paddle.Tensor, ModelCache]:
        """Read the prompts, ``chunk_size`` positions at a time, and return the logits of their last position.

        Args:
            batch: ``input_ids``, ``attention_mask`` and the picture tensors, as in :meth:`forward`.
            capacity: positions of the cache.

        Returns:
            logits [B, V] and the filled cache.
        """
        device.check_compute_dtype(self.weight_dtype)
        pictures = {key: batch.get(key) for key in ("images", "images_seq_mask", "images_spatial_crop")}
        embeddings = self.prepare_inputs_embeds(batch["input_ids"], **pictures)
        cache = self.new_cache(batch["attention_mask"], capacity)
        length = embeddings.shape[1]
        chunk_size = chunk_size or length
        for first in range(0, length, chunk_size):
            chunk = embeddings[:, first : first + chunk_size]
            output = self.language.model(chunk, cache.next_positions(chunk.shape[1]), cache=cache)
        return self.language.lm_head(output.hidden[:, -1]), cache

    @paddle.no_grad()
    def decode_step(self, token_ids: paddle.Tensor, cache: ModelCache) -> paddle.Tensor:
        """Append one token per sequence, int64 [B, 1], and return the next logits [B, V]."""
        embeddings = self.language.model.embed_tokens(token_ids)
        output = self.language.model(embeddings, cache.next_positions(1), cache=cache)
        return self.language.lm_head(output.hidden[:, -1])

    def generate(self, input_ids: paddle.Tensor, **kwargs) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Answer a batch; see :func:`paddlemix_vl2.generation.decoding.generate` for the arguments."""
        return decoding.generate(self, input_ids=input_ids, **kwargs)

    @property
    def weight_dtype(self) -> str:
        """dtype of the weights, as ``float32``; the router's correction bias is float32 whatever it is."""
        return str(self.image_newline.dtype).removeprefix("paddle.")

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        dtype: str = "auto",
        engine: str = "auto",
        progress: bool = True,
        dispatcher: ExpertDispatcher | None = None,
    ) -> "DeepseekVLV2ForCausalLM":
        """Load a checkpoint in the published layout (or with PaddleMIX's transposed matrices), tensor by
        tensor.

        Args:
            path: folder with ``config.json`` and safetensors files, or a hub name such as
                ``deepseek-ai/deepseek-vl2-tiny``.
            dtype: of the weights: ``auto``, ``float32``, ``bfloat16``, ``float16``, ``int8``. ``auto`` is
                bfloat16 or float16 on a GPU; on the CPU bfloat16 with the engine ``native``, else float32.
            engine: ``eager``: Paddle's operators; ``native``: the kernels of :mod:`.engine`, for inference on
                the CPU only, with weights in bfloat16 or int8; ``auto``: native where it can be used and the
                dtype does not say otherwise.
            progress: show a bar while a large checkpoint loads.
            dispatcher: where experts are spread over processes: only this one's are read. ``auto`` is the
                engine ``eager`` then.

        Returns:
            the model in evaluation mode.

        Raises:
            FileNotFoundError, ValueError: no such checkpoint, or one that does not fit its config; every
                missing, unexpected and misshapen tensor is named. Or a dispatcher for the engine ``native``.
        """
        if dispatcher:
            engine = _without_kernels(dtype, engine)
        folder = hub.resolve_checkpoint(path)
        config = DeepseekVLV2Config.from_json(folder)
        weights = choose_weights(dtype, engine)
        config.dtype = "bfloat16" if weights else device.resolve_dtype(dtype)
        with paddle.LazyGuard():  # parameters get no memory and no initial value before their tensor is read
            model = cls(config, dispatcher)
        take = PackWhileLoading(model, weights) if weights else None
        checkpoints.load_checkpoint(
            model, config, folder, config.dtype, progress, take, experts=model.local_experts
        )
        if weights:
            accelerate(model, weights)
        elif engine == "auto" and device.is_gpu():
            stack_experts(model)
        model.eval()
        return model

    def save_pretrained(
        self,
        folder: str | Path,
        dtype: str | None = None,
        max_shard_bytes: int = 5_000_000_000,
        writers: Writers | None = None,
    ) -> None:
        """Write the published layout: safetensors with the torch matrices, an index where sharded,
        ``config.json``.

        Args:
            dtype: dtype of the file; that of the weights where absent.
            writers: the processes that hold the model together, where each has some of the experts; all of
                them call this.

        Raises:
            ValueError: the model runs on packed weights, or has some of the experts and there are no writers.
        """
        if is_accelerated(self):
            raise ValueError("a model on packed weights cannot be saved; load it with engine='eager'")
        if self.local_experts is not None and writers is None:
            raise ValueError(
                "this process holds some of the experts only; save with writers=, in all processes"
            )
        checkpoints.save_checkpoint(
            self,
            self.config,
            folder,
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
            experts=self.local_experts,
            writers=writers or checkpoints.ALONE,
        )


def _without_kernels(dtype: str, engine: str) -> str:
    """The engine of a model whose experts are spread over processes: the kernels run all of them in one call.

    Raises:
        ValueError: the kernels are asked for.
    """
    if engine == "native" or dtype == "int8":
        raise ValueError(
            "the engine 'native' (and dtype 'int8') runs all experts in one process; use engine 'eager' with "
            "expert parallelism"
        )
    return "eager"
