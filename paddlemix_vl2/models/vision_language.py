"""A vision-language model: pictures and text to next-token logits.

::

    images -- vision -- projector --+
                                    +-- place_image_tokens -- language -- logits, losses
    input_ids -- embed_tokens ------+

A family (:mod:`paddlemix_vl2.models.families`) has its own vision encoder, projector, learned vectors and
layout; everything else is here.
"""

from dataclasses import dataclass, field

import numpy as np
import paddle

from paddlemix_vl2 import device
from paddlemix_vl2.generation import decoding
from paddlemix_vl2.layouts.batch_plan import BatchPlan, plan_rows, plan_segments
from paddlemix_vl2.layouts.fusion_plan import FusionPlan, Layout, plan_fusion
from paddlemix_vl2.models.fusion import place_image_tokens
from paddlemix_vl2.models.layers.attention_mask import (
    AttentionMask,
    left_padding,
    padding_mask,
    segment_mask,
)
from paddlemix_vl2.models.layers.execution import ExecutionConfig
from paddlemix_vl2.models.layers.kv_cache import ModelCache
from paddlemix_vl2.models.loss import next_token_loss
from paddlemix_vl2.models.moe.context import RoutingContext
from paddlemix_vl2.models.moe.dispatch import ExpertDispatcher
from paddlemix_vl2.models.moe.losses import BalanceLosses, Segments
from paddlemix_vl2.models.pretrained import PretrainedModel

# Prefix of the parameters that are in the checkpoints and in no forward pass, so that nothing can train them
# (:mod:`paddlemix_vl2.models.vision.siglip`).
UNUSED_PARAMETERS = "vision.attn_pool."


@dataclass
class VisionLanguageOutput:
    """Attributes:
    loss: float32 scalar where labels were given: the next-token loss. In training its gradient is that of
        the balance losses too, as in the published code.
    next_token_loss: the same without their gradient.
    balance_losses: name -> float32 scalar, weighted, in training with labels.
    logits: [B, T, V]; None in training with labels, where they are never built as a whole.
    past_key_values: the cache that was passed in, now longer.
    hidden_states: embeddings, each layer's output, the last after the final norm, each [B, T, H].
    routings: one ``Routing`` per MoE layer.
    """

    loss: paddle.Tensor | None = None
    next_token_loss: paddle.Tensor | None = None
    balance_losses: dict[str, paddle.Tensor] = field(default_factory=dict)
    logits: paddle.Tensor | None = None
    past_key_values: ModelCache | None = None
    hidden_states: tuple[paddle.Tensor, ...] | None = None
    routings: tuple | None = None

    @property
    def aux_loss(self) -> paddle.Tensor | None:
        """The sum of the balance losses; None where there is none."""
        return paddle.add_n(list(self.balance_losses.values())) if self.balance_losses else None


class VisionLanguageModel(PretrainedModel):
    """The whole model: ``model(**batch)`` takes what the processor returns, ``generate(**batch)`` answers.

    A subclass makes ``vision``, ``projector`` and ``language``, in the order of their published tensors, and
    defines :meth:`layout` and :meth:`image_vectors`. See :class:`PretrainedModel` for the arguments.
    """

    def __init__(
        self,
        config,
        execution: ExecutionConfig | None = None,
        dispatcher: ExpertDispatcher | None = None,
        balance: BalanceLosses | None = None,
    ):
        super().__init__(config, execution, dispatcher, balance)
        self.max_views_per_pass = device.tiles_per_pass(config.vision_config.patches_per_side**2)

    @property
    def layout(self) -> Layout:
        """Number and order of the image tokens."""
        raise NotImplementedError

    @property
    def image_vectors(self) -> list[paddle.Tensor]:
        """The learned vectors of the layout, [H] each."""
        raise NotImplementedError

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
        plan: BatchPlan | None = None,
        context: RoutingContext | None = None,
        output_hidden_states: bool = False,
        return_logits: bool | None = None,
    ) -> VisionLanguageOutput:
        """Logits of all positions, and the losses where labels are given.

        Args:
            input_ids: int64 [B, T]; ids at image positions do not matter.
            attention_mask: [B, T], 0 on (left) padding; all ones where absent.
            images: normalised views [B, max_views, 3, side, side].
            images_seq_mask: bool [B, T], True on image tokens.
            images_spatial_crop: int64 [B, max_images, 2], width and height in tiles.
            labels: int64 [B, T], not shifted, -100 where nothing is learned.
            segment_ids: int64 [B, T] instead of ``attention_mask``, for rows of several samples: 0 on
                padding, 1, 2, ... for a row's samples, none of which sees another. The balance loss is then
                one per sample and leaves padding out.
            inputs_embeds: [B, T, H] instead of ids and images.
            position_ids: int64 [B, T]; counted in every sample where absent.
            past_key_values: from :meth:`new_cache`; the call continues behind its filled part.
                ``attention_mask`` may be left out then, as the cache knows its padding.
            plan: what the host knows of the batch; the processor and the loader make it. Read from the
                tensors where absent.
            context: what the routers of the MoE layers must respect.
            return_logits: False spares the memory of [B, T, vocabulary]; by default that is so while
                training on labels.

        Raises:
            ValueError: pictures, mask and grids of the batch do not fit each other, or the device cannot
                compute in the weights' dtype.
        """
        device.check_compute_dtype(self.weight_dtype)
        given = input_ids if inputs_embeds is None else inputs_embeds
        if given is None:
            raise ValueError("forward: neither input_ids nor inputs_embeds; pass one of them")
        if plan is None:
            pictures = (images, images_seq_mask, images_spatial_crop)
            plan = self.plan_batch(given.shape[:2], attention_mask, segment_ids, *pictures)
        if inputs_embeds is None:
            inputs_embeds = self.embed(given, images, plan.fusion)
        mask, positions = None, position_ids
        if past_key_values is not None:
            past_key_values.check_mask(attention_mask)
            if positions is None:
                positions = past_key_values.next_positions(inputs_embeds.shape[1])
        else:
            mask = self.make_mask(plan)
            if positions is None:
                positions = device.to_tensor(plan.position_ids)
        output = self.language.model(
            inputs_embeds, positions, mask, past_key_values, context, output_hidden_states
        )
        losses = {}
        if labels is not None:
            losses = self._losses(output.last_hidden_state, output.routings, labels, plan)
        if return_logits is None:
            return_logits = labels is None or not self.training
        return VisionLanguageOutput(
            **losses,
            logits=self.language.lm_head(output.last_hidden_state) if return_logits else None,
            past_key_values=past_key_values,
            hidden_states=output.hidden_states or None,
            routings=output.routings or None,
        )

    def _losses(self, hidden_states, routings, labels, plan: BatchPlan) -> dict:
        """The losses of :class:`VisionLanguageOutput`."""
        loss = next_token = next_token_loss(hidden_states, labels, self.language.lm_head, plan.targets)
        balance = {}
        if self.training:
            losses = self.balance or BalanceLosses.of_config(self.config.language_config)
            segments = Segments(device.to_tensor(plan.segments), plan.num_segments)
            balance = losses(routings, segments)
        for aux_loss in balance.values():
            loss = loss + (aux_loss - aux_loss.detach())  # its gradient, not its value
        return {"loss": loss, "next_token_loss": next_token, "balance_losses": balance}

    def plan_batch(
        self, shape, attention_mask, segment_ids, images, images_seq_mask, images_spatial_crop
    ) -> BatchPlan:
        """The plan of a batch of tensors, which are read from the device."""
        crop = np.zeros([1, 1, 2], np.int64)
        marks = np.zeros(list(shape), bool)
        if images_seq_mask is not None:
            marks = images_seq_mask.astype("bool").numpy()
        if images is not None and images_spatial_crop is not None:
            crop = images_spatial_crop.numpy()
        fusion = plan_fusion(self.layout, crop, marks, 0 if images is None else images.shape[1])
        if segment_ids is not None:
            return plan_segments(segment_ids.numpy(), fusion)
        padding = np.zeros(shape[0], np.int64)
        if attention_mask is not None and attention_mask.shape[1] == shape[1]:
            padding = left_padding(attention_mask.astype("bool").numpy())
        return plan_rows(padding, shape[1], fusion)

    def make_mask(self, plan: BatchPlan) -> AttentionMask:
        """The attention mask of all layers."""
        if plan.seqlens:
            return segment_mask(plan.seqlens)
        return padding_mask(plan.padding, plan.position_ids.shape[1])

    def embed(
        self, input_ids: paddle.Tensor, images: paddle.Tensor | None, fusion: FusionPlan | None
    ) -> paddle.Tensor:
        """Text embeddings with the image tokens in their places, [B, T, H]."""
        embeddings = self.language.model.embed_tokens(input_ids)
        if fusion is None:
            return embeddings
        if images is None:
            raise ValueError("the batch's plan has pictures, but images is absent; pass both of one batch")
        views, sources, positions = device.to_tensors(fusion.views, fusion.sources, fusion.positions)
        features = self.encode_views(paddle.gather(images.flatten(stop_axis=1), views))
        return place_image_tokens(embeddings, features, self.image_vectors, sources, positions)

    def prepare_inputs_embeds(
        self,
        input_ids: paddle.Tensor,
        images: paddle.Tensor | None = None,
        images_seq_mask: paddle.Tensor | None = None,
        images_spatial_crop: paddle.Tensor | None = None,
        plan: BatchPlan | None = None,
    ) -> paddle.Tensor:
        """:meth:`embed` for a batch as in :meth:`forward`."""
        if plan is None:
            pictures = (images, images_seq_mask, images_spatial_crop)
            plan = self.plan_batch(input_ids.shape, None, None, *pictures)
        return self.embed(input_ids, images, plan.fusion)

    def encode_views(self, views: paddle.Tensor) -> paddle.Tensor:
        """Vision encoder and projector over [I, 3, side, side] -> [I, num_features, H], a bounded number at
        once."""
        views = views.astype(self.language.model.norm.weight.dtype)
        step = self.max_views_per_pass
        parts = [
            self.projector(self.vision(views[first : first + step]))
            for first in range(0, views.shape[0], step)
        ]
        return parts[0] if len(parts) == 1 else paddle.concat(parts)

    def new_cache(self, padding, prompt_length: int, capacity: int) -> ModelCache:
        """An empty cache for prompts with this padding in front of each row, and up to ``capacity``
        positions, answers included."""
        dtype = self.execution.cache_dtype
        return ModelCache(self.config.language_config, padding, prompt_length, capacity, dtype)

    @paddle.no_grad()
    def prefill(
        self, batch: dict, capacity: int, chunk_size: int | None = None
    ) -> tuple[paddle.Tensor, ModelCache]:
        """Read the prompts, ``chunk_size`` positions at a time, and return the logits of their last position.

        Args:
            batch: as the processor gives it, or ``input_ids``, ``attention_mask`` and the picture tensors.
            capacity: positions of the cache.

        Returns:
            logits [B, V] and the filled cache.
        """
        device.check_compute_dtype(self.weight_dtype)
        input_ids, plan = batch["input_ids"], batch.get("plan")
        if plan is None:
            names = ("images", "images_seq_mask", "images_spatial_crop")
            pictures = (batch.get(name) for name in names)
            plan = self.plan_batch(input_ids.shape, batch.get("attention_mask"), None, *pictures)
        embeddings = self.embed(input_ids, batch.get("images"), plan.fusion)
        length = embeddings.shape[1]
        cache = self.new_cache(plan.padding, length, capacity)
        chunk_size = chunk_size or length
        for first in range(0, length, chunk_size):
            chunk = embeddings[:, first : first + chunk_size]
            positions = cache.next_positions(chunk.shape[1])
            output = self.language.model(chunk, positions, past_key_values=cache)
        return self.language.lm_head(output.last_hidden_state[:, -1]), cache

    @paddle.no_grad()
    def decode_step(self, token_ids: paddle.Tensor, cache: ModelCache) -> paddle.Tensor:
        """Append one token per row, int64 [B, 1], and return the next logits [B, V]."""
        embeddings = self.language.model.embed_tokens(token_ids)
        output = self.language.model(embeddings, cache.next_positions(1), past_key_values=cache)
        return self.language.lm_head(output.last_hidden_state[:, -1])

    def generate(self, input_ids: paddle.Tensor, **kwargs) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Answer a batch; see :func:`paddlemix_vl2.generation.decoding.generate` for the arguments."""
        return decoding.generate(self, input_ids=input_ids, **kwargs)
