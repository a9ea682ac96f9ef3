"""Checks of a recipe against its model."""

from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.config.language import DeepseekV2Config
from paddlemix_vl2.distributed import check_experts
from paddlemix_vl2.training.recipe import VL2TrainingArguments


def check_balance(config: DeepseekVLV2Config, arguments: VL2TrainingArguments) -> None:
    """ValueError where the recipe's way of balancing or dividing the experts does not fit the model."""
    language = config.language_config
    if arguments.bias_update_speed and language.topk_method != "noaux_tc":
        raise ValueError(
            f"bias_update_speed is {arguments.bias_update_speed:g}, but this model routes by "
            f"{language.topk_method}: only noaux_tc has a bias to move"
        )
    if arguments.bias_update_speed and arguments.language.mode == "frozen":
        raise ValueError(
            f"bias_update_speed is {arguments.bias_update_speed:g}, but the language model is frozen and the "
            "bias a part of it"
        )
    check_experts(arguments.expert_parallel_degree, language.n_routed_experts)
    _check_devices(language, arguments)


def _check_devices(language: DeepseekV2Config, arguments: VL2TrainingArguments) -> None:
    """ValueError where ``expert_groups`` does not fit the model's experts, groups and processes."""
    devices, groups = arguments.expert_groups, language.n_group or 1
    if (language.n_routed_experts or 0) % devices:
        raise ValueError(
            f"expert_groups is {devices}; it must divide the model's {language.n_routed_experts} routed "
            "experts"
        )
    if arguments.capacity_factor and devices == 1:
        raise ValueError(
            f"capacity_factor is {arguments.capacity_factor:g}, but expert_groups is 1: one device has to "
            "compute everything, and nothing would be dropped"
        )
    # Device-limited routing is group_limited_greedy whose groups are devices, or parts of one; so are the
    # experts of a process.
    if language.topk_method != "greedy":
        _check_multiple(
            devices, groups, f"this model limits its routing to some of {groups} groups of experts"
        )
    held = arguments.expert_parallel_degree
    _check_multiple(devices, max(held, 1), f"expert_parallel_degree is {held}")


def _check_multiple(devices: int, blocks: int, reason: str) -> None:
    if devices % blocks and blocks % devices:
        raise ValueError(
            f"expert_groups is {devices}, but {reason}: one must be a multiple of the other, or the groups "
            "would lie across each other"
        )
