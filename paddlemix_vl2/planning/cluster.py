"""What a recipe takes on a cluster, by arithmetic: memory, operations, traffic and days.

Operations are upper bounds (see :func:`~paddlemix_vl2.planning.flops.training_row_flops` and
:func:`most_tiles`). The time is these operations at a share of the devices' peak, the utilisation. It cannot
be known without a run; the default is the geometric mean of what the paper's days for its three models
imply, see :func:`compare_with_paper`. Where the traffic alone takes longer at full bandwidth, that is the
time.
"""

from dataclasses import dataclass
from pathlib import Path

from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.data.sources import SourceSpec
from paddlemix_vl2.planning import flops as costs
from paddlemix_vl2.planning import training_memory as memory
from paddlemix_vl2.planning.parameters import CONFIGS, find_config, plan_parameters
from paddlemix_vl2.training.recipe import VL2TrainingArguments, load_recipe

_DAY = 24 * 3600
# Both ways, in the forward and in the backward pass; both ways once more where layers are recomputed.
_EXCHANGES, _RECOMPUTED_EXCHANGES = 4, 6


@dataclass(frozen=True)
class Cluster:
    """Nodes of like devices; the defaults are those of a DGX A100 with 80 GB per device.

    Attributes:
        nodes, devices_per_node: how many.
        memory: bytes of a device.
        peak_flops: operations per second of a device in bfloat16.
        node_bandwidth, network_bandwidth: bytes per second that a device sends within its node (NVLink: half
            of 600 GB/s) and to other nodes (one 200 Gbit/s adapter per device).
        utilisation: share of the peak that a step reaches, everything included.
    """

    nodes: int = 1
    devices_per_node: int = 8
    memory: float = 80e9
    peak_flops: float = 312e12
    node_bandwidth: float = 300e9
    network_bandwidth: float = 25e9
    utilisation: float = 0.28

    @property
    def devices(self) -> int:
        """All of them."""
        return self.nodes * self.devices_per_node


@dataclass(frozen=True)
class ClusterPlan:
    """A recipe on a cluster.

    Attributes:
        rows, accumulation: rows of an optimizer step, and micro-batches of a device that make it.
        tiles: of a row, on the average.
        memory: bytes of a device by what they are for.
        flops: operations of a step on all devices, by part.
        exchange_bytes: what a device sends in a step to experts on others and back.
        gradient_bytes: what a device sends in a step to add up gradients.
        compute_seconds, traffic_seconds: of a step, each without the other.
        steps: of the recipe.
    """

    rows: int
    accumulation: int
    tiles: float
    memory: dict[str, float]
    flops: dict[str, float]
    exchange_bytes: float
    gradient_bytes: float
    compute_seconds: float
    traffic_seconds: float
    steps: int

    @property
    def step_seconds(self) -> float:
        """The longer of the two."""
        return max(self.compute_seconds, self.traffic_seconds)

    @property
    def days(self) -> float:
        """Of all steps."""
        return self.steps * self.step_seconds / _DAY


def plan_cluster(
    arguments: VL2TrainingArguments,
    cluster: Cluster,
    expert_parallel_degree: int = 1,
    rows: int | None = None,
    tiles: float | None = None,
) -> ClusterPlan:
    """The plan of a recipe.

    Args:
        rows: of a step; as many as the recipe's batch and accumulation give on this cluster where absent.
        tiles: of a row on the average; :func:`most_tiles` where absent.

    Raises:
        ValueError: devices, experts or rows cannot be divided so.
        FileNotFoundError: nothing says what the model looks like.
    """
    config, _ = find_config(arguments)
    batch, accumulation = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    _check_division(config, cluster, expert_parallel_degree)
    devices = cluster.devices
    rows = rows or batch * accumulation * devices
    if rows % (batch * devices):
        raise ValueError(f"{rows} rows per step are no multiple of {batch} per device x {devices} devices")
    tiles = most_tiles(config, arguments) if tiles is None else tiles
    flops = step_flops(config, arguments, rows, tiles)
    parameters = plan_parameters(config, arguments)
    states = memory.divided_state_bytes(parameters, arguments.bf16_wanted, expert_parallel_degree)
    exchange = _exchange_bytes(config, arguments, rows / devices, expert_parallel_degree)
    gradient = _gradient_bytes(parameters, arguments.bf16_wanted, devices, expert_parallel_degree)
    return ClusterPlan(
        rows=rows,
        accumulation=rows // (batch * devices),
        tiles=tiles,
        memory={**states, **_activations(config, arguments)},
        flops=flops,
        exchange_bytes=exchange,
        gradient_bytes=gradient,
        compute_seconds=sum(flops.values()) / (devices * cluster.peak_flops * cluster.utilisation),
        traffic_seconds=_traffic_seconds(cluster, expert_parallel_degree, exchange, gradient),
        steps=arguments.max_steps,
    )


def _check_division(config: DeepseekVLV2Config, cluster: Cluster, degree: int) -> None:
    experts = config.language_config.n_routed_experts or 0
    if cluster.devices % degree:
        raise ValueError(f"{cluster.devices} devices are no multiple of expert_parallel_degree {degree}")
    if experts % degree:
        raise ValueError(f"{degree} devices cannot share {experts} routed experts evenly")


def most_tiles(config: DeepseekVLV2Config, arguments: VL2TrainingArguments) -> float:
    """Tiles of a row at most, on the average over the sources: as if every token of the sources with pictures
    were an image token. The paper does not state the number."""
    sources = [SourceSpec.from_dict(entry, "train_dataset") for entry in arguments.train_dataset]
    with_pictures = sum(source.weight for source in sources if source.format != "text")
    share = with_pictures / sum(source.weight for source in sources)
    return share * memory.tiles_per_row(config, arguments.max_seq_length)


def step_flops(
    config: DeepseekVLV2Config, arguments: VL2TrainingArguments, rows: int, tiles: float
) -> dict[str, float]:
    """Operations of a step, forward and backward, by part. The backward pass takes two forward passes where
    weights train and one where only gradients pass; layers that are recomputed are not counted again."""
    row = costs.training_row_flops(config, arguments.max_seq_length, 1)
    vision, language = arguments.vision.mode, arguments.language.mode
    below = vision != "frozen" or arguments.projector.mode != "frozen"
    passes = {
        "vision": {"full": 3, "lora": 2, "frozen": 1}[vision],
        "language": {"full": 3, "lora": 2, "frozen": 2 if below else 1}[language],
    }
    return {
        "vision": rows * tiles * row["vision"] * passes["vision"],
        "language": rows * row["language"] * passes["language"],
    }


def _activations(config: DeepseekVLV2Config, arguments: VL2TrainingArguments) -> dict[str, float]:
    """As the recipe has it."""
    recompute = bool(arguments.recompute)
    size = memory.activation_bytes(config, arguments, arguments.bf16_wanted, recompute)
    return {f"activations {'with' if recompute else 'without'} recompute": size}


def _exchange_bytes(
    config: DeepseekVLV2Config, arguments: VL2TrainingArguments, rows: float, degree: int
) -> float:
    """Bytes that a device with ``rows`` rows sends to the other holders of experts, loads being even."""
    if degree == 1:
        return 0
    width = 2 if arguments.bf16_wanted else 4
    once = costs.dispatched_bytes(config.language_config, arguments.max_seq_length, width) * rows
    times = _RECOMPUTED_EXCHANGES if arguments.recompute else _EXCHANGES
    return once * times * (1 - 1 / degree)


def _gradient_bytes(parameters: dict, bf16: bool, devices: int, degree: int) -> float:
    """A ring sends every gradient twice; what a device holds alone is not sent."""
    held_by_several = {
        name: parameter
        for name, parameter in parameters.items()
        if devices > (degree if memory.is_routed(name) else 1)
    }
    return 2 * memory.divided_state_bytes(held_by_several, bf16, degree)["gradients"]


def _traffic_seconds(cluster: Cluster, degree: int, exchange: float, gradient: float) -> float:
    """At full bandwidth, one after the other."""
    inside = min(degree, cluster.devices_per_node)
    outside = (degree - inside) / max(degree - 1, 1)  # share that goes to other nodes
    seconds = exchange * (outside / cluster.network_bandwidth + (1 - outside) / cluster.node_bandwidth)
    return seconds + gradient / (cluster.network_bandwidth if cluster.nodes > 1 else cluster.node_bandwidth)


# ---- the paper's own runs ----


@dataclass(frozen=True)
class PaperRun:
    """Nodes of eight A100, days for all stages, and rows of a step in the three stages (arXiv 2412.10302,
    table 2)."""

    nodes: int
    days: float
    rows: tuple[int, int, int]


PAPER_RUNS = {
    "tiny": PaperRun(16, 7, (256, 2304, 64)),
    "small": PaperRun(33, 10, (256, 2304, 64)),
    "base": PaperRun(42, 14, (256, 3360, 64)),
}


@dataclass(frozen=True)
class Comparison:
    """The paper's run and ours by arithmetic.

    Attributes:
        run: the paper's.
        flops: operations of the three stages with :func:`most_tiles`.
        days: at the cluster's utilisation.
        least_utilisation, utilisation: what the paper's days imply, without any tile and with the most.
    """

    run: PaperRun
    flops: float
    days: float
    least_utilisation: float
    utilisation: float


def compare_with_paper(model: str, utilisation: float = Cluster.utilisation) -> Comparison:
    """All three stages of ``tiny``, ``small`` or ``base`` on the paper's cluster."""
    run = PAPER_RUNS[model]
    files = sorted((Path(CONFIGS) / "train").glob(f"{model}_stage?_*.yaml"))
    without = most = 0.0
    for file, rows in zip(files, run.rows, strict=True):
        arguments = load_recipe(file)
        config, _ = find_config(arguments)
        flops = step_flops(config, arguments, rows, most_tiles(config, arguments))
        without += arguments.max_steps * flops["language"]
        most += arguments.max_steps * sum(flops.values())
    at_peak = Cluster(run.nodes).devices * Cluster.peak_flops * _DAY  # operations of a day
    return Comparison(
        run=run,
        flops=most,
        days=most / at_peak / utilisation,
        least_utilisation=without / at_peak / run.days,
        utilisation=most / at_peak / run.days,
    )
