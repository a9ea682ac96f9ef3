"""The mixture of experts that takes the place of an MLP.

Source: published ``DeepseekV2MoE``; DeepSeekMoE (arXiv 2401.06066), DeepSeek-V2 (arXiv 2405.04434, section
2.2).
"""

import paddle
from paddle import nn

from paddlemix_vl2.config.language import DeepseekV2Config
from paddlemix_vl2.models.layers.execution import ExecutionConfig
from paddlemix_vl2.models.layers.mlp import DeepseekV2MLP, Experts
from paddlemix_vl2.models.moe.context import RoutingContext
from paddlemix_vl2.models.moe.dispatch import ExpertDispatcher
from paddlemix_vl2.models.moe.losses import AddAuxiliaryLoss, BalanceLosses, Segments
from paddlemix_vl2.models.moe.registry import make_router
from paddlemix_vl2.models.moe.routing import DispatchedTokens, Routing


class DeepseekV2MoE(nn.Layer):
    """Routed experts, weighted and added to the shared experts; one path for training and inference.

    ::

        hidden_states --gate--> routing --dispatch--> rows sorted by expert --experts--> --combine--> output
                      \\--shared_experts (one MLP of n_shared_experts times the width)--------------/

    Args:
        config: the language model's.
        execution: how it computes; Paddle's operators where absent.
        dispatcher: where other processes hold the experts that this one does not.
    """

    def __init__(
        self,
        config: DeepseekV2Config,
        execution: ExecutionConfig | None = None,
        dispatcher: ExpertDispatcher | None = None,
    ):
        super().__init__()
        self.config, self.dispatcher = config, dispatcher
        self.gate = make_router(config)
        self.experts = Experts(config, dispatcher.experts if dispatcher else range(config.num_routed_experts))
        self.shared_experts = None
        if config.n_shared_experts:
            width = config.moe_intermediate_size * config.n_shared_experts
            self.shared_experts = DeepseekV2MLP(config.hidden_size, width)

    def forward(self, hidden_states: paddle.Tensor) -> paddle.Tensor:
        """[B, T, H] -> [B, T, H]. In training the config's balance loss is trained on without being part of
        the output, as in the published class; a model sums those of its layers itself, see :meth:`run`."""
        output, routing = self.run(hidden_states)
        if self.training and paddle.is_grad_enabled():
            losses = BalanceLosses.of_config(self.config)
            aux_loss = losses.total([routing], Segments.of_rows(*hidden_states.shape[:2]))
            if aux_loss is not None:
                output = AddAuxiliaryLoss.apply(output, aux_loss)
        return output

    def run(
        self, hidden_states: paddle.Tensor, context: RoutingContext | None = None
    ) -> tuple[paddle.Tensor, Routing]:
        """[B, T, H] -> [B, T, H], and the routing for losses and statistics."""
        routing = self.gate.route(hidden_states, context)
        if context is not None and context.capacity is not None and self.training:
            routing = context.capacity.limit(routing)
        tokens = hidden_states.flatten(stop_axis=1)
        if self.experts.grouped and self.experts.takes_grouped(routing.topk_idx.size):
            output = routing.combine(self.experts.run_grouped(tokens, routing.topk_idx))
        else:
            dispatched = routing.dispatch(tokens)
            output = routing.combine(self._run_experts(dispatched), dispatched.order)
        output = output.astype(tokens.dtype).reshape(hidden_states.shape)
        if self.shared_experts is not None:
            output = output + self.shared_experts(hidden_states)
        return output, routing

    def _run_experts(self, routed: DispatchedTokens) -> paddle.Tensor:
        """The experts' outputs [R, H] in the order of the rows, also of experts in other processes."""
        if self.dispatcher is None:
            return self.experts(routed.rows, routed.counts)
        here = self.dispatcher.dispatch(routed.rows, routed.tokens_per_expert)
        return self.dispatcher.combine(self.experts(here.rows, here.counts), here)
