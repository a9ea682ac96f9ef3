"""Execute notebooks from start to end and keep what their cells print and plot.

    python tools/run_notebooks.py examples/notebooks/*.ipynb

writes each back with its new outputs. What cells say on the standard error (progress bars, notes of
libraries) is not kept. Models compute in float32, so that machines with and without the CPU kernels agree.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from paddlemix_vl2.cli.arguments import OneLineParser
from paddlemix_vl2.cli.program import exit_code, say
from paddlemix_vl2.files import replace_file

MAX_CELL = 600  # seconds
KERNELS_VARIABLE = "PADDLEMIX_VL2_KERNELS"


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: run(make_parser().parse_args(argv)))


def make_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(__doc__)
    parser.add_argument("notebooks", nargs="+", type=Path, metavar="FILE", help="they are overwritten")
    return parser


def run(arguments: argparse.Namespace) -> None:
    """Execute and write, one after the other.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a cell fails; its notebook is left as it was.
    """
    for file in arguments.notebooks:
        notebook = execute(file)
        with replace_file(file) as temporary:
            nbformat.write(notebook, temporary)
        say(f"written: {file}")


def execute(file: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs; what its cells write to the folder they run in is thrown away.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a cell fails.
    """
    notebook = nbformat.read(file, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=MAX_CELL,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            coalesce_streams=True,
            extra_arguments=["--log-level=40"],  # errors of the kernel itself
        )
        try:
            client.execute(env={**os.environ, KERNELS_VARIABLE: "0"})
        except CellExecutionError as error:
            raise ValueError(f"{file}: a cell fails: {error.ename}: {error.evalue}") from None
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times, which differ from run to run
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.data.pop("image/jpeg", None)  # the same picture again
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return notebook


if __name__ == "__main__":
    sys.exit(main())
