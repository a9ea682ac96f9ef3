"""Train or fine-tune by a recipe.

    python examples/train.py configs/train/demo_stage1_align.yaml
    python examples/train.py configs/train/demo_stage1_align.yaml max_steps=20 vision.mode=frozen
    python examples/train.py configs/train/tiny_stage1_align.yaml --dry_run --processes 128
    python -m paddle.distributed.launch --nproc_per_node 2 --backend gloo examples/train.py RECIPE

Shows a progress bar and a line of losses, rates and router statistics every ``logging_steps``, writes the
same to ``metrics.jsonl`` and for VisualDL, and leaves the model in ``output_dir``, where every other example
reads it. ``resume_from_checkpoint=auto`` resumes an interrupted run. ``--dry_run`` plans without training: it
prints what would be trained, for how long and in how much memory, and needs neither weights nor data.
"""

import sys

try:
    from paddlemix_vl2.cli.train import main
except ModuleNotFoundError as error:
    todo = "in the repository run: make demo && source .venv/bin/activate"
    print(f"error: {error.name} is not installed; {todo}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    sys.exit(main(description=__doc__))
