"""Train or fine-tune by a recipe.

    paddlemix-vl2 train configs/train/demo_stage1_align.yaml
    paddlemix-vl2 train configs/train/demo_stage1_align.yaml max_steps=20 vision.mode=frozen
    paddlemix-vl2 train configs/train/tiny_stage1_align.yaml --dry_run --processes 128
    python -m paddle.distributed.launch --nproc_per_node 2 --backend gloo examples/train.py RECIPE

Shows a progress bar and a line of losses, rates and router statistics every logging_steps, writes the same to
metrics.jsonl and for VisualDL, and leaves the model in output_dir, where every other command reads it.
resume_from_checkpoint=auto resumes an interrupted run. --dry_run plans without training: it prints what would
be trained, for how long and in how much memory, and needs neither weights nor data.
"""

import argparse

from paddlemix_vl2.cli.program import execute, show


def main(argv: list[str] | None = None, prog: str | None = None, description: str | None = __doc__) -> int:
    # key=value also after --dry_run.
    return execute(argv, prog, description, add_arguments, run, intermixed=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("recipe", help="YAML file, see configs/train")
    add("changes", nargs="*", metavar="key=value", help="in place of the recipe's values")
    add("--dry_run", action="store_true", help="print the plan and stop")
    add("--processes", type=int, help="with --dry_run: how many would train together")


def run(arguments: argparse.Namespace) -> int:
    """Train, or print the plan.

    Raises:
        ValueError, OSError: what the user has to change, in one line.
    """
    processes = arguments.processes
    if processes is not None and (processes < 1 or not arguments.dry_run):
        raise ValueError("--processes belongs to --dry_run and is at least 1")
    from paddlemix_vl2.training.recipe import load_recipe

    recipe = load_recipe(arguments.recipe, arguments.changes)
    if arguments.dry_run:
        from paddlemix_vl2.planning.dry_run import describe

        show(describe(recipe, processes))
    else:
        from paddlemix_vl2.training.run import train

        show(f"The trained model is in {train(recipe)}")
    return 0
