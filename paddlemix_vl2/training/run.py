"""Builds model, data and trainer from a recipe, and trains."""

import itertools
from pathlib import Path

import paddle
from paddle import distributed, nn
from paddlenlp.utils.log import logger

from paddlemix_vl2 import hub, process_tuning
from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.data import (
    BatchLoader,
    Mixture,
    SourceSpec,
    check_fingerprint,
    data_fingerprint,
    open_source,
)
from paddlemix_vl2.distributed import AllToAllTokenDispatcher, ExpertMesh, make_mesh
from paddlemix_vl2.distributed.collectives import gather_objects, sum_tensor, wait_for_all
from paddlemix_vl2.distributed.faults import lost_processes_named
from paddlemix_vl2.models.families.deepseek_vl2 import DeepseekVLV2ForCausalLM
from paddlemix_vl2.processing import DeepseekVLV2Processor
from paddlemix_vl2.training import checkpoint
from paddlemix_vl2.training.checks import check_balance
from paddlemix_vl2.training.expert_balance import make_balance_losses
from paddlemix_vl2.training.lora import add_recipe_adapters, wants_adapters
from paddlemix_vl2.training.parts import initialize, set_trainable
from paddlemix_vl2.training.recipe import VL2TrainingArguments
from paddlemix_vl2.training.trainer import VL2Trainer

AUTO = "auto"


def train(arguments: VL2TrainingArguments) -> Path:
    """Run the recipe and write the trained model into its ``output_dir``.

    Returns:
        the folder of the trained model.

    Raises:
        FileNotFoundError, ValueError: a file of the recipe is not there or not right, or the checkpoint to
            resume from is of another model or other data; nothing has been trained then.
        ConnectionError: another process of the run is gone.
    """
    logger.set_level("INFO")  # PaddleNLP lists all of its settings otherwise
    process_tuning.flush_denormals()
    resume_from = find_resume(arguments)
    check_folder(arguments, resume_from)
    processor = make_processor(arguments)
    sources = open_sources(arguments.train_dataset, "train_dataset")
    make_evaluation = evaluation_maker(arguments, processor)
    fingerprint = data_fingerprint(sources, arguments.seed)
    paddle.seed(arguments.seed)
    read_config(arguments)  # before the processes meet: then all report the same error
    mesh = make_mesh(arguments.expert_parallel_degree)
    model = make_model(arguments, mesh)
    geometry = checkpoint.geometry(model)
    start = 0
    if resume_from:
        state = checkpoint.read_run_state(resume_from)
        checkpoint.check_geometry(state["geometry"], geometry, resume_from)
        check_fingerprint(state["data"], fingerprint)
        if checkpoint.read_step(resume_from) >= arguments.max_steps:
            return finish(model, processor, arguments, resume_from, mesh)
        start = next_index(state["next_indices"])
    with make_loader(arguments, processor, sources, start) as loader:
        trainer = VL2Trainer(
            model,
            arguments,
            processor,
            loader,
            make_evaluation,
            run_state={"geometry": geometry, "data": fingerprint},
            mesh=mesh,
        )
        # Alike until here, also by PaddleNLP's Trainer; dropout differs between processes.
        paddle.seed(arguments.seed + distributed.get_rank())
        with lost_processes_named():
            trainer.train(resume_from_checkpoint=str(resume_from) if resume_from else None)
            trainer.save_model()
    wait_for_all()  # the process that leaves first may hold the store through which the others meet
    return Path(arguments.output_dir)


def finish(
    model, processor, arguments: VL2TrainingArguments, last: Path, mesh: ExpertMesh | None = None
) -> Path:
    """A run whose last step is in the checkpoint ``last``: only the trained model may be missing. PaddleNLP's
    loop would train a step more."""
    logger.info(f"{last} holds the last step already")
    checkpoint.read_model(model, last)
    checkpoint.write_model(model, processor, Path(arguments.output_dir), mesh)
    wait_for_all()
    return Path(arguments.output_dir)


def next_index(next_indices: list[int]) -> int:
    """The sample index that this process starts from, given those of all processes of the interrupted run.
    With another number of processes now, the first of these: some samples may be seen again, none is left
    out."""
    if len(next_indices) == distributed.get_world_size():
        return next_indices[distributed.get_rank()]
    return min(next_indices)


def check_folder(arguments: VL2TrainingArguments, resume_from: Path | None) -> None:
    """ValueError where a new run would mix its checkpoints with those of an old one."""
    found = checkpoint.last_checkpoint(arguments.output_dir)
    if found and (resume_from is None or resume_from.parent.resolve() != found.parent.resolve()):
        raise ValueError(
            f"{found} is of another run: resume_from_checkpoint=auto goes on with it; for a new run choose "
            "another output_dir or remove the checkpoints there"
        )


def find_resume(arguments: VL2TrainingArguments) -> Path | None:
    """The checkpoint that ``resume_from_checkpoint`` names: a folder, ``auto`` for the last one if there is
    any, or nothing."""
    wanted = arguments.resume_from_checkpoint
    if not wanted:
        return None
    if wanted == AUTO:
        return checkpoint.last_checkpoint(arguments.output_dir)
    if not Path(wanted).is_dir():
        raise FileNotFoundError(f"resume_from_checkpoint: {wanted}: no such folder")
    return Path(wanted)


def make_processor(arguments: VL2TrainingArguments) -> DeepseekVLV2Processor:
    """The checkpoint's processor, which is also saved beside the trained model."""
    return DeepseekVLV2Processor.from_pretrained(arguments.processor_path or arguments.model_name_or_path)


def read_config(arguments: VL2TrainingArguments) -> DeepseekVLV2Config:
    """Of the model to train.

    Raises:
        FileNotFoundError, ValueError: there is none, or the recipe balances or divides its experts in a way
            that does not fit.
    """
    name = arguments.model_name_or_path
    config = DeepseekVLV2Config.from_json(hub.resolve_checkpoint(name) if name else arguments.model_config)
    check_balance(config, arguments)
    return config


def make_model(arguments: VL2TrainingArguments, mesh: ExpertMesh | None = None) -> nn.Layer:
    """The model to train, with adapters where the recipe wants them, and what trains marked. With a mesh it
    holds the experts of this process only."""
    config = read_config(arguments)
    language = config.language_config
    dispatcher = AllToAllTokenDispatcher(mesh, language.n_routed_experts) if mesh else None
    all_reduce = sum_tensor if distributed.get_world_size() > 1 else None
    balance = make_balance_losses(language, arguments, all_reduce)
    if arguments.model_name_or_path:
        model = DeepseekVLV2ForCausalLM.from_pretrained(
            arguments.model_name_or_path,
            dtype="bfloat16" if arguments.bf16 else "float32",
            backend="paddle",
            dispatcher=dispatcher,
            balance=balance,
        )
    else:
        model = DeepseekVLV2ForCausalLM(config, dispatcher=dispatcher, balance=balance)
        initialize(model, language.initializer_range)
    if arguments.aux_loss_alpha is not None:
        model.config.language_config.update(aux_loss_alpha=arguments.aux_loss_alpha)
    set_trainable(model, arguments)
    if wants_adapters(arguments):
        add_recipe_adapters(model, arguments)
    return model


def open_sources(entries: list[dict], key: str) -> list:
    """The sources of a recipe's list, checked."""
    return [open_source(SourceSpec.from_dict(entry, f"{key}[{i}]")) for i, entry in enumerate(entries)]


def make_loader(arguments: VL2TrainingArguments, processor, sources: list, start: int) -> BatchLoader:
    """Training batches of this process, from sample index ``start`` on."""
    return _load(
        arguments,
        processor,
        sources,
        batch_size=arguments.per_device_train_batch_size,
        packing=arguments.packing,
        overlong=arguments.overlong,
        num_workers=arguments.dataloader_num_workers,
        start=start,
        accumulation=arguments.gradient_accumulation_steps,
        exchange=gather_objects if arguments.balance_tiles else None,
    )


def evaluation_maker(arguments: VL2TrainingArguments, processor):
    """A function that gives the first ``max_evaluate_steps`` (16) batches of the evaluation data."""
    if not arguments.eval_dataset:
        return None
    sources = open_sources(arguments.eval_dataset, "eval_dataset")
    steps = arguments.max_evaluate_steps if arguments.max_evaluate_steps > 0 else 16

    def batches():
        with _load(arguments, processor, sources, batch_size=arguments.per_device_eval_batch_size) as loader:
            yield from itertools.islice(loader, steps)

    return batches


def _load(arguments: VL2TrainingArguments, processor, sources: list, **settings) -> BatchLoader:
    """This process's share of the sources' mixture, learned as the recipe says."""
    weights = [source.spec.weight for source in sources]
    return BatchLoader(
        sources,
        Mixture([len(source) for source in sources], weights, arguments.seed),
        processor.with_settings(mask_prompt=arguments.train_on == "completions"),
        sequence_length=arguments.max_seq_length,
        rank=distributed.get_rank(),
        world_size=distributed.get_world_size(),
        **settings,
    )
