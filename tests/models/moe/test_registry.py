"""Routers by the name that a config has."""

import pytest
from paddle import nn

from paddlemix_vl2.config import language
from paddlemix_vl2.models.moe import registry
from paddlemix_vl2.models.moe.registry import ROUTERS, make_router, register_router
from paddlemix_vl2.models.moe.routers import MoEGate


@pytest.fixture
def as_before(monkeypatch):
    monkeypatch.setattr(registry, "ROUTERS", dict(ROUTERS))
    monkeypatch.setattr(registry, "TOPK_METHODS", methods := list(language.TOPK_METHODS))
    monkeypatch.setattr(language, "TOPK_METHODS", methods)


@pytest.mark.parametrize("method", ["greedy", "group_limited_greedy", "noaux_tc"])
def test_the_published_ones(method, language_config):
    assert type(make_router(language_config(topk_method=method))) is MoEGate


def test_another_router_becomes_a_value_of_the_config(as_before, language_config):
    with pytest.raises(ValueError, match="topk_method is 'first'"):
        language_config(topk_method="first")

    @register_router("first")
    class FirstExperts(nn.Layer):
        def __init__(self, config):
            super().__init__()
            self.top_k = config.num_experts_per_tok

    config = language_config(topk_method="first", num_experts_per_tok=2)
    assert make_router(config).top_k == 2


def test_a_name_without_a_router(language_config):
    config = language_config()
    config.topk_method = "second"
    with pytest.raises(ValueError, match=r"topk_method is 'second'; it must be one of \['greedy', "):
        make_router(config)
