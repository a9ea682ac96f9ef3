"""Several processes that answer one question together, each with some of the experts."""

import argparse
import contextlib
import io
import os
import sys
from collections.abc import Iterator


def check_flags(arguments: argparse.Namespace) -> None:
    """Complain of flags that do not go with ``--expert_parallel_degree``.

    Raises:
        ValueError: in one line.
    """
    if arguments.expert_parallel_degree == 1:
        return
    if arguments.backend == "cpu_kernels" or arguments.dtype == "int8":
        raise ValueError(
            "--backend cpu_kernels and --dtype int8 run all experts in one process; leave them out with "
            "--expert_parallel_degree"
        )
    if arguments.adapter_path:
        raise ValueError(
            "--adapter_path does not go with --expert_parallel_degree; merge the adapter first "
            "(paddlemix-vl2 merge)"
        )


@contextlib.contextmanager
def together(arguments: argparse.Namespace, num_experts: int | None) -> Iterator:
    """Join the processes that were started with this one; all leave together.

    Only the first process prints and writes. All use the same random numbers.

    Returns:
        a context: the dispatcher for the model, or None where this process answers alone.

    Raises:
        ValueError: the degree fits neither the processes nor the experts.
    """
    degree = arguments.expert_parallel_degree
    if degree == 1:
        yield None
        return
    import secrets

    from paddlemix_vl2.distributed import AllReduceTokenDispatcher, check_experts, make_mesh
    from paddlemix_vl2.distributed.collectives import gather_objects, num_processes, wait_for_all

    # Before the processes meet: where one has left already, the others would report that instead.
    check_experts(degree, num_experts)
    if num_processes() != degree:
        raise ValueError(
            f"--expert_parallel_degree is {degree}, but the number of processes is {num_processes()}; they "
            "answer one question together, so the two must be equal: python -m paddle.distributed.launch "
            f"--nproc_per_node {degree} ..."
        )
    mesh = make_mesh(degree)
    dispatcher = AllReduceTokenDispatcher(mesh, num_experts)
    arguments.seed = gather_objects(secrets.randbits(31) if arguments.seed is None else arguments.seed)[0]
    with contextlib.ExitStack() as stack:
        if mesh.rank:
            arguments.output = None
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        yield dispatcher
        wait_for_all()


def leave_together(code: int) -> None:
    """End this program with the exit code where it is one of several processes; return where it is alone.

    One of several ends without Python's teardown: the threads of gloo and of Paddle's store are still at work
    then, and now and then abort a process that has written everything; the launcher would take that for a
    failure of the run.
    """
    if int(os.environ.get("PADDLE_TRAINERS_NUM", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
