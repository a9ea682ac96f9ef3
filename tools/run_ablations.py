"""Train the demo's second stage on a short schedule, whole and with one thing changed, and compare.

    python tools/run_ablations.py .cache/demo-training --steps 200 --output ablations.md

Runs, one after the other, two processes each, from the checkpoints of ``make train-demo``:

    as released       from stage 1, balance loss 0.001
    without stage 1   from the first looks straight to everything
    no balance loss   aux_loss_alpha 0
    loss-free         aux_loss_alpha 0, a correction bias per expert instead (noaux_tc, arXiv 2408.15664)

and prints a table of evaluation losses and of the router's MaxVio (0: all experts evenly loaded). A run that
is finished is not run again.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from paddlemix_vl2.cli.arguments import OneLineParser
from paddlemix_vl2.cli.program import exit_code
from paddlemix_vl2.files import METRICS_FILE, write_text

ROOT = Path(__file__).parents[1]
RECIPE = "configs/train/demo_stage2_pretrain.yaml"
LAST_STEPS = 50
NAMES = ("as released", "without stage 1", "no balance loss", "loss-free")


def changes_of(name: str, work: Path) -> list[str]:
    """The recipe's values that a run changes."""
    if name == "without stage 1":
        return [f"model_name_or_path={work / 'stage0_look'}"]
    if name == "no balance loss":
        return ["aux_loss_alpha=0.0"]
    if name == "loss-free":
        base = with_router_bias(work / "stage1", work / "ablations" / "stage1-noaux_tc")
        return [f"model_name_or_path={base}", "aux_loss_alpha=0.0", "bias_update_speed=0.001"]
    return []


def with_router_bias(source: Path, target: Path) -> Path:
    """The same model with a router that has a correction bias, zero at first: it chooses the same experts."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("checkpoint-*", "runs", "*.jsonl"))
    config = json.loads((target / "config.json").read_text())
    config["language_config"]["topk_method"] = "noaux_tc"
    (target / "config.json").write_text(json.dumps(config))
    tensors = load_file(target / "model.safetensors")
    for name in [name for name in tensors if name.endswith("mlp.gate.weight")]:
        bias = np.zeros(len(tensors[name]), np.float32)
        tensors[name.replace("gate.weight", "gate.e_score_correction_bias")] = bias
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    return target


def run(name: str, work: Path, steps: int, processes: int) -> Path:
    """Train, if that is not done yet; returns the folder of the run."""
    folder = work / "ablations" / name.replace(" ", "_")
    if not (folder / "config.json").exists():
        launcher = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(processes)]
        launcher += ["--backend", "gloo", "--log_dir", str(folder / "logs")]
        settings = [
            f"output_dir={folder}",
            f"model_name_or_path={work / 'stage1'}",
            f"max_steps={steps}",
            f"save_steps={steps}",
            f"eval_steps={steps}",
            "max_evaluate_steps=64",
            "resume_from_checkpoint=auto",
        ]
        command = [sys.executable, "-W", "ignore", *launcher, "examples/train.py", RECIPE]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PADDLE_")}
        subprocess.run([*command, *settings, *changes_of(name, work)], cwd=ROOT, env=environment, check=True)
    return folder


def summarize(folder: Path) -> tuple[float, float, float]:
    """Evaluation loss, and MaxVio and training loss as means over the last steps' log lines."""
    records = [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]
    last = max(record["global_step"] for record in records) - LAST_STEPS
    logged = [record for record in records if "loss" in record and record["global_step"] > last]
    evaluation = [record["eval_loss"] for record in records if "eval_loss" in record][-1]
    means = (float(np.mean([record[key] for record in logged])) for key in ("max_vio", "loss"))
    return evaluation, *means


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: compare(argv))


def compare(argv: list[str] | None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("work", type=Path, help="folder with stage0_look and stage1 of make train-demo")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of each run (default 200)")
    parser.add_argument("--processes", type=int, default=2, help="of each run (default 2)")
    parser.add_argument("--output", type=Path, help="file for the table")
    arguments = parser.parse_args(argv)
    work = arguments.work.resolve()
    for stage in ("stage0_look", "stage1"):
        if not (work / stage / "config.json").is_file():
            raise FileNotFoundError(f"{work / stage}: no checkpoint there; make train-demo writes it")
    lines = [
        f"| {arguments.steps} steps of stage 2 | evaluation loss | training loss | MaxVio |",
        "|---|---|---|---|",
    ]
    for name in NAMES:
        folder = run(name, work, arguments.steps, arguments.processes)
        evaluation, max_vio, loss = summarize(folder)
        lines.append(f"| {name} | {evaluation:.4f} | {loss:.4f} | {max_vio:.2f} |")
    table = "\n".join(lines)
    print(table)
    if arguments.output:
        write_text(arguments.output, table + "\n")


if __name__ == "__main__":
    sys.exit(main())
