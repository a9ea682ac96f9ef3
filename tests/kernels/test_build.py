"""What the kernels need, and what is said where it is missing."""

import shutil
from pathlib import Path

import pytest

from paddlemix_vl2.kernels import build
from paddlemix_vl2.kernels.build import KernelsUnavailable

FLAGS = "flags : sse avx2 avx512f avx512bw avx512vl"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv(build.SWITCH_VARIABLE, raising=False)
    build.find_library.cache_clear()
    yield
    build.find_library.cache_clear()


def test_processors():
    build.check_processor(f"{FLAGS} avx512_bf16 amx_tile")
    with pytest.raises(KernelsUnavailable, match=r"the processor has no avx512_bf16$"):
        build.check_processor(FLAGS)
    with pytest.raises(KernelsUnavailable, match="no avx512f, avx512bw"):
        build.check_processor("flags : sse avx2")


def test_the_extra_brings_the_headers_that_are_named():
    setup = (Path(__file__).resolve().parents[2] / "setup.py").read_text(encoding="utf-8")
    assert f'"{build.HEADERS};' in setup


def test_another_machine(monkeypatch):
    monkeypatch.setattr(build.platform, "machine", lambda: "aarch64")
    with pytest.raises(KernelsUnavailable, match="on aarch64; they need Linux on x86-64"):
        build.check_processor(FLAGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("shutil", "which", lambda name: None), "no C\\+\\+ compiler"),
        (
            ("metadata", "files", lambda name: []),
            "no oneDNN headers \\(pip install onednn-devel-",
        ),
    ],
)
def test_missing_parts(change, message, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(build, "check_processor", lambda: None)
    module, name, value = change
    monkeypatch.setattr(getattr(build, module), name, value)
    with pytest.raises(KernelsUnavailable, match=message):
        build.find_library()


def test_a_compiler_that_fails_leaves_nothing(monkeypatch, tmp_path):
    broken = tmp_path / "broken.cpp"
    broken.write_text("int main( {")
    library = tmp_path / "cache" / "kernels.so"
    if not shutil.which("g++"):
        pytest.skip("no g++")
    with pytest.raises(KernelsUnavailable, match=r"g\+\+ failed: .*error"):
        build.compile_to(library, "g++", tmp_path, tmp_path, [str(broken)])
    assert not list(library.parent.iterdir())


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(KernelsUnavailable, match="could not be compiled"):
        build.compile_to(tmp_path / "cache" / "kernels.so", "g++", tmp_path, tmp_path, [])


def test_compiled_once(monkeypatch, tmp_path):
    """The second process finds what the first has made, under a name with source and machine."""
    monkeypatch.setattr(build, "check_processor", lambda: None)
    monkeypatch.setenv(build.CACHE_VARIABLE, str(tmp_path))
    compiled = []
    monkeypatch.setattr(
        build, "compile_to", lambda library, *others: (compiled.append(library), _touch(library))
    )
    try:
        first = build.find_library()
    except KernelsUnavailable as error:
        pytest.skip(str(error))
    build.find_library.cache_clear()
    assert build.find_library() == first and compiled == [first]
    monkeypatch.setattr(build, "FLAGS", [*build.FLAGS, "-g"])
    build.find_library.cache_clear()
    assert build.find_library() != first


def _touch(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"")
