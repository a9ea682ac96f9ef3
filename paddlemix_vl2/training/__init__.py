"""Training: recipes (YAML) in, checkpoints in the published layout out.

::

    recipe.py          YAML and key=value -> VL2TrainingArguments, every key checked
    parts.py           what trains: vision, projector, language; full, lora or frozen
    optimizer.py       AdamW with a learning rate per part, and its schedules
    lora.py            which layers get low-rank adapters in the parts of mode lora
    losses.py          the loss of a micro-batch as a share of its step
    trainer.py         one step: losses, gradients of all processes, optimizer, logs
    gradients.py       the gradients of all processes as one, clipped
    expert_balance.py  balance losses of a recipe, the bias that levels the experts, protected samples
    metrics.py         what a run logs
    checks.py          checks of a recipe against its model
    checkpoint.py      what a run needs to resume exactly
    run.py             builds all of these from a recipe and trains
"""
