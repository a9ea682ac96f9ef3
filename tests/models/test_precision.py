"""Functions that keep float32 leave amp, and only when it is on."""

import contextlib

import paddle
import pytest

from paddlemix_vl2.models import dot_product, rope
from paddlemix_vl2.models.layers import DeepseekV2RMSNorm
from paddlemix_vl2.models.moe import MoEGate
from paddlemix_vl2.models.precision import keeps_float32


@pytest.fixture
def amp_switches(monkeypatch):
    """Paddle's autocast does nothing on the CPU: pretend that it is on, and record what is switched."""
    switched = []

    @contextlib.contextmanager
    def auto_cast(enable=True, **_):
        switched.append(enable)
        yield

    monkeypatch.setattr(paddle.amp, "is_autocast_enabled", lambda: True)
    monkeypatch.setattr(paddle.amp, "auto_cast", auto_cast)
    return switched


def test_amp_is_left_and_the_result_passed_on(amp_switches):
    assert keeps_float32(lambda x, y: x - y)(5, y=3) == 2
    assert amp_switches == [False]


def test_without_amp_nothing_is_switched(amp_switches, monkeypatch):
    monkeypatch.setattr(paddle.amp, "is_autocast_enabled", lambda: False)
    assert keeps_float32(lambda: 1)() == 1
    assert amp_switches == []


def test_what_the_published_model_computes_in_float32(amp_switches, language_config):
    config = language_config()
    rotary = rope.RotaryEmbedding(8, config).lookup(paddle.to_tensor([[0, 1]]), 2, num_heads=1)
    calls = [
        lambda: DeepseekV2RMSNorm(4)(paddle.ones([1, 4])),
        lambda: MoEGate(config)(paddle.ones([1, 2, config.hidden_size])),
        lambda: rope.rotate(paddle.ones([1, 2, 1, 8]), rotary, interleaved=True),
        lambda: dot_product.biased_softmax(paddle.ones([1, 4]), paddle.zeros([4]), 1.0),
    ]
    for call in calls:
        amp_switches.clear()
        call()
        assert amp_switches == [False]
