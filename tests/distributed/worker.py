"""Started by conftest.py with several processes: computes everything that the tests compare, in one go.

Leaves ``rank{r}.npz`` with pairs of arrays: ``NAME/spread`` is what experts over processes give,
``NAME/alone`` what this process computes with all experts and the samples of all processes.
"""

import contextlib
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import paddle
from paddle import distributed

from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.distributed import AllReduceTokenDispatcher, AllToAllTokenDispatcher, make_mesh
from paddlemix_vl2.distributed.collectives import sum_tensor
from paddlemix_vl2.models.families.deepseek_vl2 import DeepseekVLV2ForCausalLM
from paddlemix_vl2.models.moe.layer import DeepseekV2MoE
from paddlemix_vl2.models.moe.losses import BalanceLosses
from paddlemix_vl2.models.moe.statistics import RouterStatistics
from paddlemix_vl2.training import checkpoint, run
from paddlemix_vl2.training.expert_balance import gates, update_bias
from paddlemix_vl2.training.gradients import average_gradients, clip_gradients
from paddlemix_vl2.training.optimizer import make_optimizer, make_schedule
from paddlemix_vl2.training.parts import trained
from paddlemix_vl2.training.recipe import load_recipe

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
CASES = ("mla_greedy", "mla_group_limited_yarn", "mla_noaux_tc")
DEGREE = 2
NUM_EXPERTS = 8
SKEWS = ("even", "one_block", "one_expert_short")


def config_of(case: str) -> DeepseekVLV2Config:
    return DeepseekVLV2Config.from_json(GOLDEN / case)


def named(model, prefix: str = "") -> list:
    return [(prefix + name, parameter) for name, parameter in model.named_parameters()]


def layers(mesh, found: dict) -> None:
    """One layer, processes with 3, 4, 5, ... tokens: outputs, gradients of the input and all parameters."""
    for case in CASES:
        for skew in SKEWS:
            one_layer(mesh, found, case, skew)


def one_layer(mesh, found: dict, case: str, skew: str) -> None:
    config = config_of(case).language_config
    experts = config.n_routed_experts
    paddle.seed(1)
    alone = DeepseekV2MoE(config)
    paddle.seed(1)
    spread = DeepseekV2MoE(config, dispatcher=AllToAllTokenDispatcher(mesh, experts))
    draw = np.random.default_rng(2)
    samples = [
        draw.normal(size=[1, 3 + rank, config.hidden_size]).astype(np.float32)
        for rank in range(mesh.world_size)
    ]
    if skew != "even":
        # The first feature is large everywhere and leads to one block, or to the first few experts.
        few = experts // DEGREE if skew == "one_block" else config.num_experts_per_tok
        weight = np.zeros([experts, config.hidden_size], np.float32)
        weight[:few, 0] = np.linspace(1.0, 1.5, few)
        for moe in (alone, spread):
            moe.gate.weight.set_value(weight)
        for sample in samples:
            sample[..., 0] = 3.0
    if skew == "one_expert_short":
        samples = [sample[:, :1] for sample in samples]
    weights = [draw.normal(size=sample.shape).astype(np.float32) for sample in samples]

    def run(moe, rank: int):
        hidden_states = paddle.to_tensor(samples[rank], stop_gradient=False)
        output, routing = moe.run(hidden_states)
        (output * paddle.to_tensor(weights[rank])).sum().backward()
        return output, hidden_states.grad, routing.tokens_per_expert

    runs = [run(alone, rank) for rank in range(mesh.world_size)]
    own = run(spread, mesh.rank)
    key = f"layer/{case}/{skew}"
    names = ("output", "input_gradient", "tokens_per_expert")
    for what, got, wanted in zip(names, own, runs[mesh.rank], strict=True):
        found[f"{key}/{what}/spread"], found[f"{key}/{what}/alone"] = got.numpy(), wanted.numpy()
    path = "language.model.layers.1.mlp."
    average_gradients(named(spread, path), mesh.world_size, mesh)
    wanted = dict(named(alone, path))
    for name, parameter in named(spread, path):
        grad = wanted[name].grad
        reference = np.zeros(parameter.shape, np.float32) if grad is None else grad.numpy() / mesh.world_size
        found[f"{key}/{name}/spread"], found[f"{key}/{name}/alone"] = parameter.grad.numpy(), reference
    found[f"{key}/arrived"] = sum(counts.numpy() for *_, counts in runs)[mesh.experts(experts)]


def models(mesh, found: dict) -> None:
    """A whole model, a text per process: losses, clipped gradients of every parameter, router, bias."""
    for case in CASES:
        for seq_aux in (True, False):
            one_model(mesh, found, case, seq_aux)


def one_model(mesh, found: dict, case: str, seq_aux: bool) -> None:
    experts = config_of(case).language_config.n_routed_experts
    draw = np.random.default_rng(3)
    rows = draw.integers(3, 400, [mesh.world_size, 24])

    def prepare(dispatcher, all_reduce):
        balance = BalanceLosses({"sequence" if seq_aux else "expert": 0.5}, all_reduce=all_reduce)
        model = DeepseekVLV2ForCausalLM.from_pretrained(
            GOLDEN / case, "float32", dispatcher=dispatcher, balance=balance
        )
        model.train()
        return model

    def step(model, ids, share: float):
        ids = paddle.to_tensor(ids)
        output = model(input_ids=ids, labels=ids)
        (output.loss * share).backward()
        statistics = RouterStatistics()
        statistics.add(output.routings, paddle.ones_like(ids))
        return output, statistics

    alone, spread = prepare(None, None), prepare(AllToAllTokenDispatcher(mesh, experts), sum_tensor)
    wanted, wanted_statistics = step(alone, rows, 1.0)
    got, statistics = step(spread, rows[mesh.rank : mesh.rank + 1], 1.0)
    key = f"model/{case}/{'sequence' if seq_aux else 'expert'}"
    for what in ("loss", "aux_loss"):
        found[f"{key}/{what}/spread"] = (sum_tensor(getattr(got, what)) / mesh.world_size).numpy()
        found[f"{key}/{what}/alone"] = getattr(wanted, what).numpy()
    average_gradients(named(spread), mesh.world_size, mesh)
    average_gradients(named(alone), 1)
    found[f"{key}/norm/spread"] = np.array(clip_gradients(named(spread), 1e-3, mesh))
    found[f"{key}/norm/alone"] = np.array(clip_gradients(named(alone), 1e-3))
    gradients = {name: parameter.grad for name, parameter in named(alone)}
    for name, parameter in named(spread):
        if not name.startswith("vision."):  # texts only: no gradient
            found[f"{key}/{name}/spread"] = parameter.grad.numpy()
            found[f"{key}/{name}/alone"] = gradients[name].numpy()
    statistics.reduce(paddle.distributed.all_reduce)
    of_each = (("spread", spread, statistics), ("alone", alone, wanted_statistics))
    for kind, _, own in of_each:
        found[f"{key}/tokens_per_expert/{kind}"] = own.tokens_per_expert.numpy()
    if case == "mla_noaux_tc":
        for kind, model, own in of_each:
            update_bias(model, own.tokens_per_expert, 0.01)
            biases = [gate.e_score_correction_bias.numpy() for gate in gates(model)]
            found[f"{key}/bias/{kind}"] = np.stack(biases)


def pictures_in_one_process(mesh, found: dict) -> None:
    """A frozen language model with recomputation, and a picture in the first process only: its gradient needs
    the experts of processes that have none of their own to compute."""
    case = "mla_greedy"
    dispatcher = AllToAllTokenDispatcher(mesh, config_of(case).language_config.n_routed_experts)
    model = DeepseekVLV2ForCausalLM.from_pretrained(GOLDEN / case, "float32", dispatcher=dispatcher)
    alone = DeepseekVLV2ForCausalLM.from_pretrained(GOLDEN / case, "float32")
    draw = np.random.default_rng(4)
    embeddings = draw.normal(size=[1, 12, model.image_newline.shape[0]]).astype(np.float32)
    labels = paddle.to_tensor(draw.integers(3, 400, [1, 12]))

    def run(model, with_gradient: bool):
        for parameter in model.parameters():
            parameter.stop_gradient = True
        for layer in model.sublayers():
            if hasattr(layer, "enable_recompute"):
                layer.enable_recompute = True
        model.train()
        inputs = paddle.to_tensor(embeddings, stop_gradient=not with_gradient)
        model(inputs_embeds=inputs, labels=labels).loss.backward()
        return inputs.grad

    grad = run(model, mesh.rank == 0)
    if mesh.rank == 0:
        found["pictures/gradient/spread"] = grad.numpy()
        found["pictures/gradient/alone"] = run(alone, True).numpy()


def answers(mesh, found: dict) -> None:
    """Greedy answers of all processes together, each running its own experts."""
    if mesh.world_size != mesh.degree:
        return
    ids = paddle.to_tensor([list(range(3, 23))])
    for case in CASES:
        dispatcher = AllReduceTokenDispatcher(mesh, config_of(case).language_config.n_routed_experts)
        model = DeepseekVLV2ForCausalLM.from_pretrained(GOLDEN / case, "float32", dispatcher=dispatcher)
        alone = DeepseekVLV2ForCausalLM.from_pretrained(GOLDEN / case, "float32")
        for kind, answering in (("spread", model), ("alone", alone)):
            tokens, scores = answering.generate(ids, max_new_tokens=8, eos_token_id=[])
            found[f"answer/{case}/tokens/{kind}"] = tokens.numpy()
            found[f"answer/{case}/scores/{kind}"] = scores.numpy()
            with paddle.no_grad():
                found[f"answer/{case}/logits/{kind}"] = answering(input_ids=ids).logits.numpy()


def checkpoints(mesh, folder: Path) -> None:
    """Published layout, read and written by all processes; shards of a few experts."""
    model = DeepseekVLV2ForCausalLM.from_pretrained(
        GOLDEN / "mla_noaux_tc", "float32", dispatcher=AllToAllTokenDispatcher(mesh, NUM_EXPERTS)
    )
    model.save_pretrained(folder / "saved", shard_plan=mesh.shard_plan(NUM_EXPERTS), max_shard_bytes=100_000)


def read_again(found: dict, saved: Path) -> None:
    """What other processes, as many as the degree, have saved: each takes its share of it."""
    mesh = make_mesh(distributed.get_world_size())
    dispatcher = AllToAllTokenDispatcher(mesh, NUM_EXPERTS)
    model = DeepseekVLV2ForCausalLM.from_pretrained(saved, "float32", dispatcher=dispatcher)
    for name, parameter in named(model):
        found[f"read/{name}"] = parameter.numpy()


def copy_checkpoint(recipe: str, source: Path, target: Path, degree: int) -> None:
    """Read a training checkpoint into a model and an optimizer of this degree, and write both."""
    arguments = load_recipe(recipe, [f"expert_parallel_degree={degree}"])
    mesh = make_mesh(degree)
    model = run.make_model(arguments, mesh)
    optimizer = make_optimizer(model, arguments, make_schedule(arguments))
    checkpoint.read_model(model, source)
    checkpoint.read_optimizer(model, optimizer, source)
    # Paddle gives what was read to the optimizer when it makes its moments, at the first step otherwise.
    block = paddle.base.framework.default_main_program().global_block()
    optimizer._create_accumulators(block, [parameter for _, parameter in trained(model)])
    target.mkdir(parents=True, exist_ok=True)
    checkpoint.write_model(model, run.make_processor(arguments), target, mesh)
    checkpoint.write_optimizer(model, optimizer, target, mesh)


def train(folder: Path, recipe: str, name: str, resume_from: Path | None = None, **changes) -> None:
    """A run into ``folder / name``; it resumes from a copy of a checkpoint where one is named."""
    if resume_from and distributed.get_rank() == 0:
        shutil.copytree(resume_from, folder / name / resume_from.name)
    distributed.barrier()
    changes = {
        "output_dir": folder / name,
        "per_device_train_batch_size": 4 // distributed.get_world_size(),
        "resume_from_checkpoint": "auto",
        **changes,
    }
    run.train(load_recipe(recipe, [f"{key}={value}" for key, value in changes.items()]))


def trainings(mesh, folder: Path, recipe: str, alone: Path) -> None:
    train(folder, recipe, "whole", expert_parallel_degree=DEGREE)
    train(folder, recipe, "half", folder / "whole" / "checkpoint-2", expert_parallel_degree=DEGREE)
    # On from what one process with all experts has saved, with as many blocks as processes.
    train(folder, recipe, "from_alone", alone / "checkpoint-2", expert_parallel_degree=mesh.world_size)
    if mesh.world_size == DEGREE:  # what is dropped depends on the number of processes, not on the degree
        dropping = {"capacity_factor": 1.0, "balance_tiles": True, "packing": True, "recompute": True}
        for degree in (1, DEGREE):
            name = f"dropping_degree{degree}"
            train(folder, recipe, name, max_steps=2, expert_parallel_degree=degree, **dropping)


def example(folder: Path) -> None:
    """The command of the README, with a seed that is not given: the processes must agree on one."""
    sys.path.insert(0, str(ROOT / "examples"))
    import single_image_infer

    picture = ROOT / "examples" / "images" / "drawn" / "words.png"
    flags = ["--image_file", str(picture), "--question", "Read the text.", "--max_new_tokens", "16"]
    degree = ["--expert_parallel_degree", str(distributed.get_world_size())]
    for name, more in (
        ("greedy", []),
        ("sampled", ["--temperature", "1.5"]),
        ("refused", ["--backend", "cpu_kernels"]),
    ):
        with (
            open(folder / f"{name}{distributed.get_rank()}.out", "w") as out,
            open(folder / f"{name}{distributed.get_rank()}.err", "w") as err,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = single_image_infer.main([*flags, *degree, *more])
            print(f"exit code {code}", file=err)


def main(folder: Path, recipe: str, alone: Path, saved: Path | None = None) -> None:
    """``recipe`` has been run by one process into ``alone``; ``saved`` is a checkpoint of other processes."""
    distributed.init_parallel_env()
    mesh = make_mesh(DEGREE)
    found: dict[str, np.ndarray] = {}
    for part in (layers, models, pictures_in_one_process, answers):
        part(mesh, found)
    checkpoints(mesh, folder)
    if saved:
        read_again(found, saved)
        whole = saved.parent / "whole" / "checkpoint-4"
        copy_checkpoint(recipe, whole, folder / "copied" / "checkpoint-4", distributed.get_world_size())
    if mesh.world_size == DEGREE:
        example(folder)
    np.savez(folder / f"rank{mesh.rank}.npz", **found)
    trainings(mesh, folder, recipe, alone)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(Path, sys.argv[3:]))
    os._exit(0)  # as paddlemix_vl2.cli.processes ends a program
