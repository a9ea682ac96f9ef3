"""Which router a config asks for: one row per value of ``topk_method``."""

from collections.abc import Callable
from typing import Protocol, TypeVar

import paddle
from paddle import nn

from paddlemix_vl2.config.checks import check_choice
from paddlemix_vl2.config.language import TOPK_METHODS, DeepseekV2Config
from paddlemix_vl2.models.moe.context import RoutingContext
from paddlemix_vl2.models.moe.routing import Routing


class Router(Protocol):
    """What a layer asks of its router, an ``nn.Layer`` that is made from the config."""

    def route(self, hidden_states: paddle.Tensor, context: RoutingContext | None = None) -> Routing:
        """[B, T, H] -> the experts of each token."""


RouterClass = TypeVar("RouterClass", bound=Callable[[DeepseekV2Config], nn.Layer])
ROUTERS: dict[str, Callable[[DeepseekV2Config], nn.Layer]] = {}


def register_router(*topk_methods: str) -> Callable[[RouterClass], RouterClass]:
    """Class decorator: the router of these values of ``topk_method``, which a config may have from now on."""

    def register(router: RouterClass) -> RouterClass:
        for name in topk_methods:
            ROUTERS[name] = router
            if name not in TOPK_METHODS:
                TOPK_METHODS.append(name)
        return router

    return register


def make_router(config: DeepseekV2Config) -> nn.Layer:
    """The router of a config."""
    check_choice("topk_method", config.topk_method, list(ROUTERS))
    return ROUTERS[config.topk_method](config)
