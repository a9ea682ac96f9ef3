"""Puts image features among the text embeddings, at the places of a plan made on the host.

Not by an in-place ``masked_scatter_`` on a slice, which would lose the gradient and leave projector and
vision encoder untrained.
"""

import paddle


def place_image_tokens(
    embeddings: paddle.Tensor,
    features: paddle.Tensor,
    vectors: list[paddle.Tensor],
    sources: paddle.Tensor,
    positions: paddle.Tensor,
) -> paddle.Tensor:
    """Overwrite the marked positions with image tokens.

    Args:
        embeddings: text embeddings [B, T, H].
        features: projected views [I, num_features, H].
        vectors: the learned vectors of the layout, [H] each.
        sources, positions: of a :class:`~paddlemix_vl2.layouts.fusion_plan.FusionPlan`.

    Returns:
        [B, T, H], a new tensor.
    """
    rows = paddle.concat([features.flatten(stop_axis=1), *(vector.unsqueeze(0) for vector in vectors)])
    tokens = paddle.gather(rows, sources)
    return paddle.scatter(embeddings.flatten(stop_axis=1), positions, tokens).reshape(embeddings.shape)
