"""``VL2Trainer``: PaddleNLP's Trainer around this model's losses, data and checkpoints.

::

    micro-batch --compute_loss--> next-token loss (+ balance losses, as gradient only) --backward-->
    accumulated --finish_gradients--> mean over processes --AdamW--> --finish_step--> router bias, statistics
"""

import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import paddle
from paddle import nn
from paddlenlp.trainer import Trainer, TrainerCallback
from paddlenlp.trainer.trainer import TRAINER_STATE_NAME

from paddlemix_vl2.data import BatchLoader
from paddlemix_vl2.distributed import ExpertMesh
from paddlemix_vl2.distributed.collectives import gather_objects, sum_number, sum_tensor, wait_for_all
from paddlemix_vl2.models.balance import (
    batch_loads,
    communication_balance_loss,
    device_balance_loss,
    expert_balance_loss,
    number_segments,
)
from paddlemix_vl2.models.dropping import TokenDropping
from paddlemix_vl2.processing import DeepseekVLV2Processor
from paddlemix_vl2.training import checkpoint
from paddlemix_vl2.training.balance import (
    RouterLoads,
    gates,
    most_devices,
    protect,
    set_dropping,
    update_bias,
)
from paddlemix_vl2.training.gradients import average_gradients, clip_gradients
from paddlemix_vl2.training.optimizer import make_optimizer, make_schedule
from paddlemix_vl2.training.parts import trained
from paddlemix_vl2.training.recipe import PARTS, VL2TrainingArguments

METRICS_FILE = "metrics.jsonl"


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
        self.router = RouterLoads()
        self.seconds = defaultdict(float)
        self._tokens = 0
        self._last_end = None
        self._next_index = None
        self._num_broken = self._broken_before = 0
        self._gradient_norm = None
        self._tile_imbalances = []  # of the steps since the last line of the log

    # ---- data ----

    def get_train_dataloader(self):
        """The endless loader as it is; the steps are counted by ``max_steps``."""
        return _WithMeta(self.loader)

    def _prepare_inputs(self, inputs: dict) -> dict:
        return {name: paddle.to_tensor(array) for name, array in inputs.items()}

    # ---- one step ----

    def training_step(self, model: nn.Layer, inputs: dict, step_control: int = 0) -> paddle.Tensor:
        """Forward and backward of one micro-batch; returns its share of the step's loss."""
        begin = time.perf_counter()
        if self._last_end is not None:
            self.seconds["data"] += begin - self._last_end
        model.train()
        meta = inputs.pop("meta")
        self._note(meta)
        if step_control == 0:  # the same for all micro-batches of a step
            self._step_supervised = sum_number(meta.step_supervised)
            self._step_samples = sum_number(meta.step_samples)
            if meta.tile_imbalance:
                self._tile_imbalances.append(meta.tile_imbalance)
        if self.args.capacity_factor:
            set_dropping(model, self._dropping(inputs["segment_ids"], meta.draws))
        inputs = self._prepare_inputs(inputs)
        with self.autocast_smart_context_manager():
            loss = self._micro_loss(model, inputs, meta)
        value = float(loss)  # also waits for the device, so that the times below are right
        forward_end = time.perf_counter()
        loss.backward()
        end = time.perf_counter()
        self.seconds["forward"] += forward_end - begin
        self.seconds["backward"] += end - forward_end
        self._last_end = end
        return paddle.to_tensor(value)

    def _micro_loss(self, model, inputs: dict, meta) -> paddle.Tensor:
        """The micro-batch's part of the step's loss.

        The step's loss is the mean over all supervised tokens of all micro-batches and processes, so a
        micro-batch counts by its tokens; the balance loss per sample is the mean over all samples, so it
        counts by its samples. Balance losses over a batch count evenly.
        """
        output = model(**inputs)
        accumulation, processes = self.args.gradient_accumulation_steps, self.args.world_size
        by_tokens = meta.num_supervised * processes / max(self._step_supervised, 1)
        self.router.add(output.routings or (), inputs["segment_ids"])
        by_samples = meta.num_samples * processes / self._step_samples
        loss = output.next_token_loss * by_tokens
        balance = self._batch_balance(output.routings, inputs["segment_ids"])
        if output.aux_loss is not None:
            per_sample = self.model.config.language_config.seq_aux
            balance = balance + output.aux_loss * (by_samples if per_sample else 1 / accumulation)
        if isinstance(balance, paddle.Tensor):
            loss = loss + (balance - balance.detach())
        return loss

    def _batch_balance(self, routings, segment_ids) -> paddle.Tensor | float:
        """DeepSeek-V2's balance losses over the micro-batches of all processes together, by the loads of all
        and this process's scores."""
        args = self.args
        alphas = args.expert_balance_alpha, args.device_balance_alpha, args.communication_balance_alpha
        if not routings or not any(alphas):
            return 0.0
        # model.config is the base model's also through PaddleNLP's LoRAModel.
        config, devices = self.model.config.language_config, args.balance_devices
        most, segments = most_devices(config, devices), number_segments(segment_ids)
        loads = [batch_loads(r.experts, segments, config.n_routed_experts, devices) for r in routings]
        loads, total = sum_tensor(paddle.stack(loads)), 0.0  # [layers, E + D + 2]
        for routing, load in zip(routings, loads, strict=True):
            layer = routing.scores, segments, load
            total = total + alphas[0] * expert_balance_loss(*layer)
            total = total + alphas[1] * device_balance_loss(*layer, devices)
            total = total + alphas[2] * communication_balance_loss(*layer, devices, most)
        return total / args.gradient_accumulation_steps

    def _dropping(self, segment_ids: np.ndarray, draws) -> TokenDropping:
        """What DeepSeek-V2's token dropping leaves out of this micro-batch."""
        args = self.args
        protected = protect(draws, segment_ids, args.protected_share, args.seed)
        marks = [paddle.to_tensor(mask.flatten()) for mask in (segment_ids > 0, protected)]
        return TokenDropping(args.balance_devices, args.capacity_factor, *marks)

    def finish_gradients(self) -> None:
        """Before the optimizer: one gradient for all processes, clipped."""
        begin = time.perf_counter()
        parameters = list(trained(self.model))
        average_gradients(parameters, self.args.world_size, self.mesh)
        self._gradient_norm = clip_gradients(parameters, self.args.max_grad_norm, self.mesh)
        self._learning_rate = self.optimizer.get_lr()
        self._optimizer_begin = begin

    def finish_step(self) -> None:
        """After the optimizer: the router's bias."""
        if self.router.loads is not None and self.args.world_size > 1:
            self.router.reduce()
        if self.args.bias_update_speed and self.router.loads is not None:
            update_bias(self.model, self.router.loads, self.args.bias_update_speed)
        self._statistics = self.router.statistics() if self.router.loads is not None else {}
        self.router = RouterLoads()
        self._last_end = time.perf_counter()
        self.seconds["optimizer"] += self._last_end - self._optimizer_begin

    def _note(self, meta) -> None:
        self._tokens += meta.num_tokens
        self._next_index, self._num_broken = meta.next_index, self._broken_before + meta.num_broken

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
        record = {}
        if "loss" in logs:
            logs, record = self._step_logs(logs)
        super().log(logs, **kwargs)
        if self.is_world_process_zero():
            self._draw_router(record)
            line = json.dumps({**logs, **record, "global_step": self.state.global_step})
            with open(Path(self.args.output_dir) / METRICS_FILE, "a", encoding="utf-8") as file:
                file.write(line + "\n")

    def _step_logs(self, logs: dict) -> tuple[dict, dict]:
        """Scalars for the log line and VisualDL, and what is too long for them."""
        total = sum(self.seconds.values()) or 1.0
        logs.pop("progress_or_epoch", None)
        logs["learning_rate"] = self._learning_rate  # of this step; PaddleNLP's is that of the next one
        if self._gradient_norm is not None:
            logs["grad_norm"] = round(self._gradient_norm, 4)
        logs["tokens_per_second"] = round(self._tokens * self.args.world_size / total, 1)
        for phase, seconds in self.seconds.items():
            logs[f"share_{phase}"] = round(seconds / total, 3)
        for part in PARTS:
            recipe = getattr(self.args, part)
            if recipe.mode != "frozen":
                logs[f"lr_{part}"] = self._learning_rate * recipe.learning_rate_multiplier
        if self._num_broken:
            logs["broken_samples"] = self._num_broken
        if self._tile_imbalances:
            before, after = np.mean(self._tile_imbalances, axis=0)
            logs["tile_imbalance_before"], logs["tile_imbalance"] = round(before, 4), round(after, 4)
            self._tile_imbalances.clear()
        record = {}
        if self._statistics:
            names = ("max_vio", "entropy", *(["dropped_share"] if self.args.capacity_factor else []))
            for name in names:
                values = self._statistics[name]
                logs[name] = round(float(np.mean(values)), 4)
                record[f"{name}_per_layer"] = [round(value, 4) for value in values]
            record["load_per_layer"] = [[round(x, 4) for x in layer] for layer in self._statistics["load"]]
        record["seconds"] = {phase: round(seconds, 3) for phase, seconds in self.seconds.items()}
        self.seconds.clear()
        self._tokens = 0
        return logs, record

    def _draw_router(self, record: dict) -> None:
        """The router's statistics layer by layer in VisualDL, where it is on."""
        writers = [getattr(callback, "vdl_writer", None) for callback in self.callback_handler.callbacks]
        step = self.state.global_step
        for writer in filter(None, writers):
            for name in ("max_vio", "entropy", "dropped_share"):
                for layer, value in enumerate(record.get(f"{name}_per_layer", [])):
                    writer.add_scalar(f"router/{name}/mixture_layer_{layer}", value, step)
            for layer, loads in enumerate(record.get("load_per_layer", [])):
                for expert, load in enumerate(loads):
                    writer.add_scalar(f"router/load/mixture_layer_{layer}/expert_{expert}", load, step)

    # ---- evaluation ----

    @paddle.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict:
        """Mean next-token loss over the supervised tokens of the evaluation data."""
        self.model.eval()
        total = tokens = 0.0
        for batch, meta in self.make_evaluation():
            with self.autocast_smart_context_manager():
                loss = self.model(**self._prepare_inputs(batch), return_logits=False).loss
            total += float(loss) * meta.num_supervised
            tokens += meta.num_supervised
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
            state = {**self.run_state, "next_indices": next_indices, "broken_samples": self._num_broken}
            checkpoint.write_run_state(temporary, **state)
            checkpoint.finish_folder(temporary, folder)
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
    """Puts the loader's meta data into the batch: PaddleNLP's loop passes one object on."""

    def __init__(self, loader: BatchLoader):
        self._loader = loader

    def __iter__(self):
        for batch, meta in self._loader:
            yield {**batch, "meta": meta}


class _StepHooks(TrainerCallback):
    """Calls the trainer before and after the optimizer."""

    def __init__(self, trainer: VL2Trainer):
        self._trainer = trainer

    def on_optimizer_begin(self, args, state, control, **kwargs):
        self._trainer.finish_gradients()

    def on_optimizer_end(self, args, state, control, **kwargs):
        self._trainer.finish_step()
