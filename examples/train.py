"""Train or fine-tune by a recipe.

    python examples/train.py configs/train/demo_stage1_align.yaml
    python examples/train.py configs/train/demo_stage1_align.yaml max_steps=20 vision.mode=frozen
    python examples/train.py configs/train/tiny_stage1_align.yaml --dry_run --processes 128
    python -m paddle.distributed.launch --nproc_per_node 2 --backend gloo examples/train.py RECIPE

Shows a progress bar and a line of losses, rates and router statistics every ``logging_steps``, writes the
same to ``metrics.jsonl`` and for VisualDL, and leaves the model in ``output_dir``, where every other example
reads it. ``resume_from_checkpoint=auto`` goes on where an interrupted run stopped. ``--dry_run`` prints what
would be trained, for how long and in how much memory, without training; weights and data need not be there.
"""

import argparse

import inference_cli
import processes


def main(argv: list[str] | None = None) -> int:
    try:
        run(parse(argv))
    except (OSError, ValueError) as error:
        inference_cli.say("error: " + " ".join(str(error).split()))
        return 2
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = inference_cli.OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("recipe", help="YAML file, see configs/train")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="in place of the recipe's values")
    parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    parser.add_argument("--processes", type=int, help="with --dry_run: how many would train together")
    arguments = parser.parse_intermixed_args(argv)  # key=value also after --dry_run
    if arguments.processes is not None and (arguments.processes < 1 or not arguments.dry_run):
        raise ValueError("--processes belongs to --dry_run and is at least 1")
    return arguments


def run(arguments: argparse.Namespace) -> None:
    from paddlemix_vl2.training import plan, recipe, run

    settings = recipe.load_recipe(arguments.recipe, arguments.changes)
    if arguments.dry_run:
        print(plan.describe(settings, arguments.processes))
    else:
        print(f"The trained model is in {run.train(settings)}")


if __name__ == "__main__":
    processes.leave(main())
