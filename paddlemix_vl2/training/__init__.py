"""Training: recipes (YAML) in, checkpoints in the published layout out.

::

    recipe.py      YAML and key=value -> VL2TrainingArguments, every key checked
    parts.py       what trains: vision, projector, language; full, lora or frozen
    optimizer.py   AdamW with a learning rate per part, and its schedules
    lora.py        low-rank adapters in the parts of mode lora
    adapters.py    adapters as files; loading and merging them
    trainer.py     one step: losses, gradients of all processes, optimizer, logs
    balance.py     the router's loads: statistics, and the bias that levels them
    checkpoint.py  what a run needs to go on exactly where it stopped
    run.py         builds all of these from a recipe and trains
    plan.py        what a recipe would do, without doing it
    outline.py     a model's names and shapes in its place, for plans
    memory.py      what a training process keeps in memory, by arithmetic
"""
