"""``VL2Trainer``: PaddleNLP's Trainer around this model's losses, data and checkpoints.

::

    micro-batch --micro_loss--> next-token loss (+ balance losses, as gradient only) --backward-->
    accumulated --finish_gradients--> mean over processes --AdamW--> --finish_step--> router bias, statistics
"""

import time
from pathlib import Path

import numpy as np
import paddle
from paddle import nn
from paddlenlp.trainer import Trainer, TrainerCallback
from paddlenlp.trainer.trainer import TRAINER_STATE_NAME

from paddlemix_vl2 import files
from paddlemix_vl2.data import BatchLoader, BatchMeta
from paddlemix_vl2.distributed import ExpertMesh
from paddlemix_vl2.distributed.collectives import gather_objects, sum_number, wait_for_all
from paddlemix_vl2.models.moe.capacity import CapacityLimiter
from paddlemix_vl2.models.moe.context import RoutingContext
from paddlemix_vl2.models.moe.statistics import RouterStatistics
from paddlemix_vl2.processing.batching import Batch
from paddlemix_vl2.processing.deepseek_vl2 import DeepseekVLV2Processor
from paddlemix_vl2.training import checkpoint
from paddlemix_vl2.training.expert_balance import gates, protect, update_bias
from paddlemix_vl2.training.gradients import average_gradients, clip_gradients
from paddlemix_vl2.training.losses import StepShares, micro_loss
from paddlemix_vl2.training.metrics import StepMetrics, add_router_scalars, append_metrics
from paddlemix_vl2.training.optimizer import make_optimizer, make_schedule
from paddlemix_vl2.training.parts import trained
from paddlemix_vl2.training.recipe import PARTS, VL2TrainingArguments


class VL2Trainer(Trainer):
    """Trains what is marked as trained.

    Args:
        model: in training dtype; ``parts.set_trainable`` and adapters have been applied.
        arguments: the recipe.
        processor: is saved beside the model.
        loader: endless micro-batches, at the right place already.
        make_evaluation: gives the (finite) micro-batches of an evaluation.
        run_state: plain values to keep in checkpoints, compared on resuming.
        mesh: where the experts are spread over processes.
    """

    def __init__(
        self,
        model: nn.Layer,
        arguments: VL2TrainingArguments,
        processor: DeepseekVLV2Processor,
        loader: BatchLoader,
        make_evaluation=None,
        run_state: dict | None = None,
        mesh: ExpertMesh | None = None,
    ):
        super().__init__(model=model, args=arguments, callbacks=[_StepHooks(self)])
        self.processor = processor
        self.loader = loader
        self.make_evaluation = make_evaluation
        self.run_state = dict(run_state or {})
        self.mesh = mesh
        self.router = RouterStatistics()
        self.metrics = StepMetrics()
        self._step_targets = self._step_samples = 0.0  # of the optimizer step, over all processes
        self._last_end: float | None = None
        self._next_index: int | None = None
        self._broken_before = 0

    # ---- data ----

    def get_train_dataloader(self):
        """The endless loader as it is; the steps are counted by ``max_steps``."""
        return _WithMeta(self.loader)

    # ---- one step ----

    def training_step(self, model: nn.Layer, inputs: dict, step_control: int = 0) -> paddle.Tensor:
        """Forward and backward of one micro-batch; returns its share of the step's loss."""
        begin = time.perf_counter()
        if self._last_end is not None:
            self.metrics.add_seconds("data", begin - self._last_end)
        model.train()
        batch, meta = inputs["batch"], inputs["meta"]
        self._note(meta, is_first=step_control == 0)
        with self.autocast_smart_context_manager():
            loss = self._micro_loss(model, batch, meta)
        value = float(loss)  # also waits for the device, so that the times below are right
        forward_end = time.perf_counter()
        loss.backward()
        end = time.perf_counter()
        self.metrics.add_seconds("forward", forward_end - begin)
        self.metrics.add_seconds("backward", end - forward_end)
        self._last_end = end
        return paddle.to_tensor(value)

    def _micro_loss(self, model: nn.Layer, batch: Batch, meta: BatchMeta) -> paddle.Tensor:
        """The micro-batch's part of the step's loss, and the routers' statistics."""
        context = None
        if self.args.capacity_factor:
            context = RoutingContext(self._capacity_limiter(batch.segment_ids, meta.sample_indices))
        tensors = batch.to_tensors()
        output = model(**tensors, context=context)
        self.router.add(output.routings or (), tensors.segment_ids)
        shares = StepShares(
            meta.num_targets,
            meta.num_samples,
            self._step_targets,
            self._step_samples,
            self.args.gradient_accumulation_steps,
            self.args.world_size,
        )
        return micro_loss(output, shares)

    def _capacity_limiter(self, segment_ids: np.ndarray, sample_indices) -> CapacityLimiter:
        """What DeepSeek-V2's token dropping leaves out of this micro-batch."""
        args = self.args
        protected = protect(sample_indices, segment_ids, args.protected_share, args.seed)
        marks = [paddle.to_tensor(mask.flatten()) for mask in (segment_ids > 0, protected)]
        return CapacityLimiter(args.expert_groups, args.capacity_factor, *marks)

    def finish_gradients(self) -> None:
        """Before the optimizer: one gradient for all processes, clipped."""
        begin = time.perf_counter()
        parameters = list(trained(self.model))
        average_gradients(parameters, self.args.world_size, self.mesh)
        norm = clip_gradients(parameters, self.args.max_grad_norm, self.mesh)
        self.metrics.set_update(norm, self.optimizer.get_lr())
        self._last_end = begin

    def finish_step(self) -> None:
        """After the optimizer: the router's bias."""
        if not self.router.is_empty:
            if self.args.world_size > 1:
                self.router.reduce(paddle.distributed.all_reduce)
            if self.args.bias_update_speed:
                update_bias(self.model, self.router.tokens_per_expert, self.args.bias_update_speed)
        self.metrics.set_router(self.router.values())
        self.router = RouterStatistics()
        begin, self._last_end = self._last_end, time.perf_counter()
        self.metrics.add_seconds("optimizer", self._last_end - begin)

    def _note(self, meta: BatchMeta, is_first: bool) -> None:
        if is_first:  # the same for all micro-batches of a step
            self._step_targets = sum_number(meta.step_targets)
            self._step_samples = sum_number(meta.step_samples)
            self.metrics.add_tile_imbalance(meta.tile_imbalance)
        self.metrics.add_batch(meta.num_tokens, self._broken_before + meta.num_broken)
        self._next_index = meta.next_index

    def _wrap_model(self, model: nn.Layer, training: bool = True) -> nn.Layer:
        """The model itself: gradients are averaged in :meth:`finish_gradients`, where parameters without a
        gradient (experts that no token chose, vision on text) are known."""
        return model

    def _decorate_exclude_layers(self, model: nn.Layer) -> list[nn.Layer]:
        """Routers stay in float32 when the rest is cast: the steps of their bias are lost in 16 bits."""
        return gates(model)

    # ---- optimizer ----

    def create_scheduler(self, num_training_steps: int):
        self.lr_scheduler = make_schedule(self.args)
        return self.lr_scheduler

    def create_optimizer(self, lr_scheduler=None):
        self.optimizer = make_optimizer(self.model, self.args, self.lr_scheduler)
        return self.optimizer

    # ---- logs ----

    def log(self, logs: dict, **kwargs) -> None:
        """PaddleNLP's log line with ours in it, and the same as a line of ``metrics.jsonl``."""
        # A resumed run's train_loss would be the sum of its own losses over the steps of both runs.
        logs = {key: value for key, value in logs.items() if not key.startswith(("interval_", "train_loss"))}
        record: dict = {}
        if "loss" in logs:
            logs.pop("progress_or_epoch", None)
            scalars, record = self.metrics.take(self.args.world_size, bool(self.args.capacity_factor))
            # learning_rate is that of this step; PaddleNLP's is that of the next one.
            logs |= scalars | self._part_rates()
        super().log(logs, **kwargs)
        if self.is_world_process_zero():
            writers = [getattr(callback, "vdl_writer", None) for callback in self.callback_handler.callbacks]
            add_router_scalars(filter(None, writers), record, self.state.global_step)
            append_metrics(self.args.output_dir, {**logs, **record, "global_step": self.state.global_step})

    def _part_rates(self) -> dict[str, float]:
        parts = {part: getattr(self.args, part) for part in PARTS}
        return {
            f"lr_{name}": self.metrics.learning_rate * part.learning_rate_multiplier
            for name, part in parts.items()
            if part.mode != "frozen"
        }

    # ---- evaluation ----

    @paddle.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict:
        """Mean next-token loss over the targets of the evaluation data."""
        self.model.eval()
        total = tokens = 0.0
        for batch, meta in self.make_evaluation():
            with self.autocast_smart_context_manager():
                loss = self.model(**batch.to_tensors(), return_logits=False).loss
            total += float(loss) * meta.num_targets
            tokens += meta.num_targets
        self.model.train()
        total, tokens = sum_number(total), sum_number(tokens)
        metrics = {f"{metric_key_prefix}_loss": round(total / max(tokens, 1), 6)}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._last_end = None
        return metrics

    # ---- checkpoints ----

    def save_model(self, output_dir: str | None = None, merge_tensor_parallel: bool = False) -> None:
        """Model and processor, as the examples read them; every process calls it."""
        folder = Path(output_dir or self.args.output_dir)
        checkpoint.write_model(self.model, self.processor, folder, self.mesh)

    def _save_checkpoint(self, model, metrics=None) -> None:
        folder = Path(self.args.output_dir) / f"{checkpoint.PREFIX}{self.state.global_step}"
        next_indices = gather_objects(self._next_index)
        random_states = gather_objects(checkpoint.random_state())
        is_first = self.is_world_process_zero()
        temporary = checkpoint.begin_folder(folder, is_first)
        checkpoint.write_model(self.model, self.processor, temporary, self.mesh)
        checkpoint.write_optimizer(self.model, self.optimizer, temporary, self.mesh)
        wait_for_all()
        if is_first:
            paddle.save(self.lr_scheduler.state_dict(), str(temporary / checkpoint.SCHEDULER_FILE))
            checkpoint.write_random_states(temporary, random_states)
            self.state.save_to_json(str(temporary / TRAINER_STATE_NAME))
            broken = self.metrics.num_broken
            state = {**self.run_state, "next_indices": next_indices, "broken_samples": broken}
            checkpoint.write_run_state(temporary, **state)
            files.finish_folder(folder)
            checkpoint.remove_oldest(self.args.output_dir, self.args.save_total_limit)
        wait_for_all()
        self._last_end = None

    def _load_from_checkpoint(self, resume_from_checkpoint=None) -> None:
        if resume_from_checkpoint:
            checkpoint.read_model(self.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, resume_from_checkpoint) -> None:
        if resume_from_checkpoint:
            folder = Path(resume_from_checkpoint)
            checkpoint.read_optimizer(self.model, self.optimizer, folder)
            self.lr_scheduler.set_state_dict(paddle.load(str(folder / checkpoint.SCHEDULER_FILE)))
            checkpoint.read_random_state(folder, self.args.process_index)
            self._broken_before = checkpoint.read_run_state(folder)["broken_samples"]


class _WithMeta:
    """Batch and meta data as one object: PaddleNLP's loop passes one on."""

    def __init__(self, loader: BatchLoader):
        self._loader = loader

    def __iter__(self):
        for batch, meta in self._loader:
            yield {"batch": batch, "meta": meta}


class _StepHooks(TrainerCallback):
    """Calls the trainer before and after the optimizer."""

    def __init__(self, trainer: VL2Trainer):
        self._trainer = trainer

    def on_optimizer_begin(self, args, state, control, **kwargs):
        self._trainer.finish_gradients()

    def on_optimizer_end(self, args, state, control, **kwargs):
        self._trainer.finish_step()
