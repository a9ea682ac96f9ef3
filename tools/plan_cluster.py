"""Print what a recipe takes on a cluster: memory per device, operations, traffic, days, and how to launch it.

    python tools/plan_cluster.py configs/train/small_stage2_pretrain.yaml --nodes 4 --rows 2304 \\
        --expert_parallel_degree 8
    python tools/plan_cluster.py configs/train/clusters/*.yaml
    python tools/plan_cluster.py --paper

A recipe named alone is planned line by line, several as a Markdown table. A line "# Nodes: N" in a recipe is
the default of --nodes. --paper prints the paper's clusters and days beside those of the arithmetic. Neither
weights nor data need be there, and nothing is trained. paddlemix_vl2/planning/cluster.py has the arithmetic
and says what it assumes.
"""

import argparse
import re
import sys
from pathlib import Path

# Beside this file.
from paddlemix_vl2.cli.arguments import OneLineParser
from paddlemix_vl2.cli.program import exit_code
from paddlemix_vl2.planning.cluster import PAPER_RUNS, Cluster, ClusterPlan, compare_with_paper, plan_cluster
from paddlemix_vl2.training.recipe import VL2TrainingArguments, load_recipe

NAMES = {"tiny": "Tiny", "small": "Small", "base": "Base"}


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: run(parse_arguments(argv)))


def run(flags: argparse.Namespace) -> None:
    if flags.paper:
        print("\n".join(paper_table(flags.utilisation)))
    elif len(flags.recipes) == 1:
        print("\n".join(describe(flags.recipes[0], flags)))
    else:
        print("\n".join(table(flags.recipes, flags)))


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    add = parser.add_argument
    add("recipes", nargs="*", metavar="RECIPE", help="YAML files, see configs/train")
    add("--paper", action="store_true", help="the paper's clusters in place of a recipe's")
    add("--nodes", type=int, metavar="N", help="of the cluster (default: the recipe's, or 1)")
    add("--devices_per_node", type=int, default=8, metavar="N", help="default 8")
    add("--rows", type=int, metavar="N", help="of a step (default: as the recipe accumulates)")
    add("--tiles", type=float, metavar="N", help="of a row on the average (default: the most there can be)")
    add("--expert_parallel_degree", type=int, metavar="N", help="default: the recipe's, or 1")
    hardware = parser.add_argument_group("hardware", "of one device; the defaults are an A100's with 80 GB")
    add = hardware.add_argument
    add("--memory", type=float, default=80, metavar="GB", help="default 80")
    add("--peak", type=float, default=312, metavar="TFLOPS", help="in bfloat16 (default 312)")
    add("--node_bandwidth", type=float, default=300, metavar="GB/S", help="within a node, sent (default 300)")
    add("--network_bandwidth", type=float, default=25, metavar="GB/S", help="to other nodes (default 25)")
    add(
        "--utilisation",
        type=float,
        default=Cluster.utilisation,
        metavar="U",
        help=f"share of the peak that a step reaches (default {Cluster.utilisation}, from the paper's days)",
    )
    flags = parser.parse_args(argv)
    if flags.paper == bool(flags.recipes):
        raise ValueError("give either recipes or --paper; --help lists the flags")
    for name in ("nodes", "devices_per_node", "rows", "expert_parallel_degree"):
        if (value := getattr(flags, name)) is not None and value < 1:
            raise ValueError(f"--{name} is {value}; it must be at least 1")
    for name in ("memory", "peak", "node_bandwidth", "network_bandwidth", "utilisation"):
        if (value := getattr(flags, name)) <= 0:
            raise ValueError(f"--{name} is {value:g}; it must be above 0")
    return flags


def read(recipe: str, flags: argparse.Namespace) -> tuple[VL2TrainingArguments, Cluster, int]:
    """The recipe, the cluster and the expert parallel degree, as the flags or the recipe have them."""
    arguments = load_recipe(recipe)
    stated = re.search(r"^# Nodes: (\d+)", Path(recipe).read_text(encoding="utf-8"), re.MULTILINE)
    cluster = Cluster(
        nodes=flags.nodes or (int(stated[1]) if stated else 1),
        devices_per_node=flags.devices_per_node,
        memory=flags.memory * 1e9,
        peak_flops=flags.peak * 1e12,
        node_bandwidth=flags.node_bandwidth * 1e9,
        network_bandwidth=flags.network_bandwidth * 1e9,
        utilisation=flags.utilisation,
    )
    experts = flags.expert_parallel_degree or max(arguments.expert_parallel_degree, 1)
    return arguments, cluster, experts


def describe(recipe: str, flags: argparse.Namespace) -> list[str]:
    """The plan of one recipe, and its launch line."""
    arguments, cluster, experts = read(recipe, flags)
    plan = plan_cluster(arguments, cluster, experts, flags.rows, flags.tiles)
    batch, total = arguments.per_device_train_batch_size, sum(plan.memory.values())
    lines = [
        f"Cluster: {cluster.nodes} nodes x {cluster.devices_per_node} devices of {flags.memory:g} GB, "
        f"{flags.peak:g} TFLOPS, {flags.node_bandwidth:g} GB/s within a node and {flags.network_bandwidth:g} "
        "GB/s between nodes",
        f"Routed experts: over {experts} devices",
        f"Rows per step: {plan.rows:,} = {batch} per device x {plan.accumulation} accumulated x "
        f"{cluster.devices} devices",
        "Memory per device, estimated:",
        *[f"  {name:32}{size / 1e9:>9.2f} GB" for name, size in plan.memory.items()],
        f"  {'all':32}{total / 1e9:>9.2f} GB, {'fits' if total < cluster.memory else 'DOES NOT FIT'}",
        f"Operations per step: {sum(plan.flops.values()):.3g}, of them vision {plan.flops['vision']:.3g} "
        f"({plan.tiles:g} tiles per row)",
        f"Sent per step and device: {plan.exchange_bytes / 1e9:.1f} GB to experts and back, "
        f"{plan.gradient_bytes / 1e9:.1f} GB of gradients",
        f"Time per step: {plan.step_seconds:.1f} s; operations at {cluster.utilisation:.0%} of the peak "
        f"{plan.compute_seconds:.1f} s, traffic at full bandwidth {plan.traffic_seconds:.1f} s",
        f"Steps: {plan.steps:,}, {plan.days:.1f} days",
        "Launch on every node:",
    ]
    return [*lines, *launch_lines(recipe, arguments, cluster, experts, plan)]


def launch_lines(
    recipe: str,
    arguments: VL2TrainingArguments,
    cluster: Cluster,
    experts: int,
    plan: ClusterPlan,
) -> list[str]:
    """The command with the changes to the recipe that the plan asks for."""
    changes = {"gradient_accumulation_steps": plan.accumulation, "expert_parallel_degree": experts}
    changed = [f"{key}={value}" for key, value in changes.items() if max(getattr(arguments, key), 1) != value]
    devices = ",".join(map(str, range(cluster.devices_per_node)))
    nodes = f"--nnodes {cluster.nodes} --master HOST:PORT " if cluster.nodes > 1 else ""
    command = " ".join(["examples/train.py", recipe, *changed, "resume_from_checkpoint=auto"])
    return [f"  python -m paddle.distributed.launch {nodes}--devices {devices} \\", f"      {command}"]


def table(recipes: list[str], flags: argparse.Namespace) -> list[str]:
    """One row for each recipe, from the fewest nodes to the most."""
    lines = [
        "| recipe | nodes | experts over | rows per step | accumulated | memory | fits | s per step | days |",
        "|---|---:|---:|---:|---:|---:|---|---:|---:|",
    ]
    planned = [(Path(recipe).stem, *read(recipe, flags)) for recipe in recipes]
    planned.sort(key=lambda one: (one[1].output_dir, one[2].nodes))
    for name, arguments, cluster, experts in planned:
        plan = plan_cluster(arguments, cluster, experts, flags.rows, flags.tiles)
        total = sum(plan.memory.values())
        cells = [
            name,
            cluster.nodes,
            experts,
            f"{plan.rows:,}",
            plan.accumulation,
            f"{total / 1e9:.0f} GB",
            "yes" if total < cluster.memory else "no",
            f"{plan.step_seconds:.1f}",
            f"{plan.days:.0f}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def paper_table(utilisation: float) -> list[str]:
    """The paper's clusters and days beside those of the arithmetic."""
    lines = [
        f"| | nodes of 8 A100 | operations | days at {utilisation:.0%} | days in the paper | factor | "
        "the paper's days imply |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for model in PAPER_RUNS:
        one = compare_with_paper(model, utilisation)
        cells = [
            NAMES[model],
            one.run.nodes,
            f"{one.flops:.2g}",
            f"{one.days:.1f}",
            f"{one.run.days:g}",
            f"{one.days / one.run.days:.2f}",
            f"{one.least_utilisation:.0%} to {one.utilisation:.0%}",
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
