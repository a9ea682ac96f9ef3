import pytest

from paddlemix_vl2.models.engine import build, conversion


@pytest.fixture
def native(monkeypatch):
    """The kernels, which the other tests go without; skips where this machine cannot have them."""
    monkeypatch.delenv(build.SWITCH_VARIABLE, raising=False)
    problem = conversion.kernels_problem()
    if problem:
        pytest.skip(f"no kernels here: {problem}")
