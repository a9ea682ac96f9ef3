"""Base class of all models: loading, saving, and the choice of execution."""

from pathlib import Path
from typing import ClassVar, TypeVar

import paddle
from paddle import nn

from paddlemix_vl2 import checkpoints, device, hub
from paddlemix_vl2.checkpoints import ParameterSpec, ShardPlan, parameter_specs
from paddlemix_vl2.config.base import PublishedConfig
from paddlemix_vl2.deprecation import rename_arguments
from paddlemix_vl2.models.adapters import AdapterConfig
from paddlemix_vl2.models.cpu_backend import WeightPacker, choose_weights, convert_model, kernel_execution
from paddlemix_vl2.models.layers.execution import ExecutionConfig, paddle_execution
from paddlemix_vl2.models.layers.mlp import Experts
from paddlemix_vl2.models.moe.dispatch import ExpertDispatcher
from paddlemix_vl2.models.moe.losses import BalanceLosses

Model = TypeVar("Model", bound="PretrainedModel")


def plan_execution(
    dtype: str = "auto", backend: str = "auto", single_process: bool = True
) -> ExecutionConfig:
    """Where and how a model computes, from what the user asks for and what is here.

    Args:
        dtype, backend: as in :meth:`PretrainedModel.from_pretrained`.
        single_process: whether all experts are here; the kernels run all of them in one call.

    Raises:
        ValueError: an unknown name, or something that cannot be had here.
    """
    if not single_process:
        if backend == "cpu_kernels" or dtype == "int8":
            raise ValueError(
                "the backend 'cpu_kernels' (and dtype 'int8') runs all experts in one process; use the "
                "backend 'paddle' with expert parallelism"
            )
        return paddle_execution(device.resolve_dtype(dtype))
    weights = choose_weights(dtype, backend)
    if weights:
        return kernel_execution(weights)
    return paddle_execution(device.resolve_dtype(dtype), backend == "auto" and device.is_gpu())


class PretrainedModel(nn.Layer):
    """What every family inherits.

    Args:
        config: geometry of all parts.
        execution: how it computes; Paddle's operators on the current device where absent.
        dispatcher: brings tokens to the experts that other processes hold; see
            :mod:`paddlemix_vl2.distributed`. Without it all experts are here.
        balance: the balance losses of training; the config's where absent.

    Attributes:
        local_experts: global indices of the routed experts that are here, where other processes have the
            others; None: all.
    """

    config_class: ClassVar[type[PublishedConfig]]

    def __init__(
        self,
        config,
        execution: ExecutionConfig | None = None,
        dispatcher: ExpertDispatcher | None = None,
        balance: BalanceLosses | None = None,
    ):
        super().__init__()
        self.config, self.execution, self.balance = config, execution or paddle_execution(), balance
        self.local_experts = dispatcher.experts if dispatcher else None
        self._adapter_config: AdapterConfig | None = None

    @property
    def weight_dtype(self) -> str:
        """dtype of what Paddle's operators compute with, as ``float32``; the router's correction bias is
        float32 whatever it is."""
        return str(self.language.model.norm.weight.dtype).removeprefix("paddle.")

    @property
    def adapter_config(self) -> AdapterConfig | None:
        """Of the adapters that the model has; None without."""
        return self._adapter_config

    def set_adapter_config(self, config: AdapterConfig | None) -> None:
        """Called by :mod:`.adapters` when it has added adapters or removed them."""
        self._adapter_config = config

    def parameter_specs(self) -> dict[str, ParameterSpec]:
        """Published name, shape and layout of every tensor of a checkpoint, those of experts in other
        processes included."""
        if self.local_experts is None:
            return parameter_specs(self)
        with paddle.LazyGuard():
            return parameter_specs(type(self)(self.config))

    @classmethod
    def from_pretrained(
        cls: type[Model],
        path: str | Path,
        dtype: str = "auto",
        backend: str = "auto",
        progress: bool = True,
        dispatcher: ExpertDispatcher | None = None,
        balance: BalanceLosses | None = None,
        **renamed,
    ) -> Model:
        """Load a checkpoint in the published layout (or with PaddleMIX's transposed matrices), tensor by
        tensor.

        Args:
            path: folder with ``config.json`` and safetensors files, or a hub name such as
                ``deepseek-ai/deepseek-vl2-tiny``.
            dtype: of the weights: ``auto``, ``float32``, ``bfloat16``, ``float16``, ``int8``. ``auto`` is
                bfloat16 or float16 on a GPU; on the CPU bfloat16 with the backend ``cpu_kernels``, else
                float32.
            backend: ``paddle``: Paddle's operators; ``cpu_kernels``: those of :mod:`paddlemix_vl2.kernels`,
                for inference on the CPU only, with weights in bfloat16 or int8; ``auto``: the kernels where
                they can be used and the dtype does not say otherwise.
            progress: show a bar while a large checkpoint loads.
            dispatcher: where experts are spread over processes: only this one's are read. ``auto`` is the
                backend ``paddle`` then.
            balance: the balance losses of training; the config's where absent.

        Returns:
            the model in evaluation mode.

        Raises:
            FileNotFoundError, ValueError: no such checkpoint, one of another family, or one that does not fit
                its config; every missing, unexpected and misshapen tensor is named.
        """
        backend = rename_arguments("from_pretrained", renamed).get("backend", backend)
        folder = hub.resolve_checkpoint(path)
        config = cls.config_class.from_json(folder)
        execution = plan_execution(dtype, backend, single_process=dispatcher is None)
        config.dtype = execution.parameter_dtype
        with paddle.LazyGuard():  # parameters get no memory and no initial value before their tensor is read
            model = cls(config, execution, dispatcher, balance)
        packer = WeightPacker(model, execution.weight_dtype) if execution.packed else None
        take = packer.take if packer else None
        model.load_weights(folder, execution.parameter_dtype, progress, take)
        if packer:
            convert_model(model, packer)
        if execution.group_experts:
            for layer in model.sublayers():
                if isinstance(layer, Experts):
                    layer.group_weights()
        model.eval()
        return model

    def load_weights(
        self, folder: str | Path, dtype: str | None = None, progress: bool = False, take=None
    ) -> None:
        """Fill the model from a checkpoint of its geometry, in its own dtype where absent; see
        :func:`~paddlemix_vl2.checkpoints.load_checkpoint`."""
        specs = self.parameter_specs()
        checkpoints.load_checkpoint(self, specs, folder, dtype or self.weight_dtype, progress, take)

    def save_pretrained(
        self,
        folder: str | Path,
        dtype: str | None = None,
        max_shard_bytes: int = 5_000_000_000,
        shard_plan: ShardPlan | None = None,
    ) -> None:
        """Write the published layout: safetensors with the torch matrices, an index where sharded,
        ``config.json``.

        Args:
            dtype: dtype of the file; that of the weights where absent.
            shard_plan: the processes that hold the model together, where each has some of the experts; all of
                them call this.

        Raises:
            ValueError: the model runs on packed weights, has adapters, or has some of the experts and there
                is no plan.
        """
        if self.execution.packed:
            raise ValueError("a model on packed weights cannot be saved; load it with backend='paddle'")
        if self.adapter_config is not None:
            raise ValueError(
                "a model with adapters cannot be saved as a checkpoint; merge them first (merge_adapter), or "
                "write them alone (write_adapter)"
            )
        if self.local_experts is not None and shard_plan is None:
            raise ValueError(
                "this process holds some of the experts only; save with shard_plan=, in all processes"
            )
        checkpoints.save_checkpoint(
            self,
            self.parameter_specs(),
            self.config,
            folder,
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
            shard_plan=shard_plan or checkpoints.SINGLE_PROCESS,
        )
