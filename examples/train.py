"""Train or fine-tune by a recipe.

    python examples/train.py configs/train/demo_stage1_align.yaml
    python examples/train.py configs/train/demo_stage1_align.yaml max_steps=20 vision.mode=frozen
    python examples/train.py configs/train/tiny_stage1.yaml --dry_run
    python -m paddle.distributed.launch --nproc_per_node 2 --backend gloo examples/train.py RECIPE

Shows a progress bar and a line of losses, rates and router statistics every ``logging_steps``, writes the
same to ``metrics.jsonl`` and for VisualDL, and leaves the model in ``output_dir``, where every other example
reads it. ``resume_from_checkpoint=auto`` goes on where an interrupted run stopped. ``--dry_run`` prints what
would be trained, for how long and in how much memory, without training.
"""

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("recipe", help="YAML file, see configs/train")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="in place of the recipe's values")
    parser.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    arguments = parser.parse_args(argv)
    try:
        from paddlemix_vl2.training import recipe, run

        settings = recipe.load_recipe(arguments.recipe, arguments.changes)
        print(f"The trained model is in {run.train(settings)}")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
