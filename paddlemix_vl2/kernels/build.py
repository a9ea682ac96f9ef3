"""The kernels of ``native/`` as a shared library, compiled on first use into the user's cache.

They need an x86-64 Linux with AVX512-BF16, a C++ compiler, the oneDNN library inside Paddle, and oneDNN's
headers, which Paddle's wheel lacks: those of a 3.x release without its experimental parts, as 3.1 or 3.6.
Where something is missing, :func:`find_library` says what, and everything works without them.
"""

import hashlib
import os
import platform
import shutil
import subprocess
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import paddle

from paddlemix_vl2 import process_tuning
from paddlemix_vl2.files import replace_file

SOURCES = Path(__file__).with_name("native")
NEEDED_FLAGS = ("avx512f", "avx512bw", "avx512vl", "avx512_bf16")
# Not -ffast-math: linking with it makes the whole process flush denormals.
FLAGS = [
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"),
    *("-fassociative-math", "-freciprocal-math"),
]
# The second brings 2 GB of compilers' libraries.
HEADER_PACKAGES = ("onednn-devel-cpu-gomp", "onednn-devel")
HEADERS = "onednn-devel-cpu-gomp==2023.1.0"
CACHE_VARIABLE, SWITCH_VARIABLE = "XDG_CACHE_HOME", "PADDLEMIX_VL2_KERNELS"


class KernelsUnavailable(RuntimeError):
    """Why there are no kernels here, in one line."""


@lru_cache(maxsize=1)
def find_library() -> Path:
    """The compiled library; compiled now where this processor, Paddle and source have none yet (some 10 s).

    Raises:
        KernelsUnavailable: something that it needs is missing, or the compiler failed.
    """
    check_processor()
    compiler = os.environ.get("CXX") or shutil.which("g++")
    if not compiler:
        raise KernelsUnavailable("no C++ compiler (g++)")
    headers, libraries = find_headers(), find_paddle_libraries()
    sources = sorted(SOURCES.iterdir())
    library = cache_folder() / f"kernels-{_fingerprint(sources, compiler)}.so"
    if not library.is_file():
        compile_to(library, compiler, headers, libraries, [str(f) for f in sources if f.suffix == ".cpp"])
    return library


def check_processor(cpuinfo: str | None = None) -> None:
    """KernelsUnavailable where the processor or the system is another."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise KernelsUnavailable(f"{platform.system()} on {platform.machine()}; they need Linux on x86-64")
    missing = [flag for flag in NEEDED_FLAGS if flag not in process_tuning.processor_flags(cpuinfo)]
    if missing:
        raise KernelsUnavailable(f"the processor has no {', '.join(missing)}")


def find_headers() -> Path:
    """The folder with ``dnnl.hpp``."""
    for package in HEADER_PACKAGES:
        try:
            files = metadata.files(package) or []
        except metadata.PackageNotFoundError:
            continue
        for file in files:
            if file.name == "dnnl.hpp" and file.parent.name == "include":
                return Path(file.locate()).resolve().parent
    raise KernelsUnavailable(f"no oneDNN headers (pip install {HEADERS})")


def find_paddle_libraries() -> Path:
    """The folder with the oneDNN and OpenMP libraries that Paddle itself has loaded."""
    folder = Path(paddle.__file__).parent / "libs"
    for name in ("libdnnl.so.3", "libiomp5.so"):
        if not (folder / name).is_file():
            raise KernelsUnavailable(f"this Paddle has no {name}")
    return folder


def cache_folder() -> Path:
    return Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".cache") / "paddlemix_vl2"


def compile_to(library: Path, compiler: str, headers: Path, libraries: Path, sources: list[str]) -> None:
    """Compile; as :func:`paddlemix_vl2.files.replace_file`.

    Raises:
        KernelsUnavailable: with the compiler's first error.
    """
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(library) as made:
            links = [f"-L{libraries}", "-l:libdnnl.so.3", "-l:libiomp5.so", f"-Wl,-rpath,{libraries}"]
            command = [compiler, *FLAGS, f"-I{headers}", *sources, "-o", str(made), *links]
            result = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if result.returncode != 0:
                errors = [line for line in result.stderr.splitlines() if "error" in line] or ["no message"]
                raise KernelsUnavailable(f"{compiler} failed: {errors[0]}")
    except (OSError, subprocess.TimeoutExpired) as error:
        raise KernelsUnavailable(f"they could not be compiled: {error}") from error


def _fingerprint(sources: list[Path], compiler: str) -> str:
    """Changes with whatever the library depends on."""
    digest = hashlib.sha256()
    for file in sources:
        digest.update(file.read_bytes())
    flags = " ".join(sorted(process_tuning.processor_flags()))
    for text in (*FLAGS, compiler, paddle.__version__, paddle.__file__, flags):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]
