"""Which expert colours which token and which square of the picture."""

import numpy as np
import pytest
from PIL import Image

from paddlemix_vl2 import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor
from paddlemix_vl2.demo.samples import make_question
from paddlemix_vl2.figures import router, router_figure
from paddlemix_vl2.layouts.tiles import image_token_sources


def test_the_first_expert_has_the_largest_weight():
    """With a correction bias the first column is the best by score plus bias, not by weight."""
    experts = np.array([[4, 1], [2, 3], [0, 5]])
    weights = np.array([[0.1, 0.6], [0.5, 0.2], [0.3, 0.3]], np.float32)
    assert router.first_experts(experts, weights).tolist() == [1, 2, 0]


def test_image_cells_of_two_tiles_by_hand():
    """Tokens of a 2 x 1 grid, 2 x 2 per view: global rows with newlines, separator, one row over both tiles
    with its newline. The value of a token is its number."""
    values = np.arange(len(image_token_sources(2, 1, 2)))
    of_view, of_tiles = router_figure.image_cells(values, (2, 1), 2)
    assert of_view.tolist() == [[0, 1], [3, 4]]  # 2 and 5 are newlines, 6 the separator
    assert of_tiles.tolist() == [[7, 8, 9, 10], [12, 13, 14, 15]]  # 11 and 16 are newlines


def test_a_tinted_view_has_its_experts_colours():
    """Four pixels of two by two cells: black pixels show half of the colour."""
    colors = {0: (1.0, 0.0, 0.0), 1: (0.0, 1.0, 0.0)}
    tinted = router_figure.tint(np.zeros([4, 4, 3], np.uint8), np.array([[0, 1], [1, 0]]), 2, colors)
    assert tinted[0, 0].tolist() == [0.5, 0, 0] and tinted[3, 0].tolist() == [0, 0.5, 0]
    assert tinted[2].tolist() == [[1, 1, 1]] * 4  # the edge between the cells


def test_experts_without_a_colour_are_the_rare_ones():
    firsts = np.repeat(np.arange(30), np.arange(30))
    colors = router_figure.expert_colors(firsts, num_experts=30)
    assert list(colors) == list(range(30 - len(router_figure.PALETTE), 30))


def test_letters_without_a_font_are_named():
    figure = router_figure
    fonts = [("one", set(map(ord, "ab"))), ("two", set(map(ord, "bc")))]
    assert figure.cover({"a"}, fonts) == (["one"], set())
    assert figure.cover(set("abc好"), fonts) == (["one", "two"], {"好"})
    assert figure.readable("\ufffd", 77) == "#77" and figure.readable("a\n", 1) == "a↵"
    assert figure.place_words(["好好", "ab", "c"], columns=5) == [(0, 0), (1, 0), (1, 2)]


@pytest.fixture(scope="module")
def demo(golden):
    folder = golden.parents[1] / "paddlemix_vl2" / "demo" / "checkpoint"
    model = DeepseekVLV2ForCausalLM.from_pretrained(folder, backend="paddle")
    return model, DeepseekVLV2Processor.from_pretrained(folder)


def test_a_reading_is_of_the_models_own_routing(demo):
    """Against the routings of a whole forward pass: shares, first experts, which tokens are the picture's."""
    model, processor = demo
    (picture,), _ = make_question("describe", "test", 0, "en")
    messages = [{"role": "user", "content": "<image>\nWhat is this?", "images": [picture]}]
    batch = processor.batchify([processor.process_one(messages)])
    layers, layer = router.choose_layer(model.config.language_config, None)
    reading = router.read_router(model, batch, layers, layer)
    routings = model(**batch).routings
    assert len(routings) == len(layers)
    num_experts = model.config.language_config.n_routed_experts
    choices = [routing.topk_idx.numpy().ravel() for routing in routings]
    counts = np.stack([np.bincount(chosen, minlength=num_experts) for chosen in choices])
    np.testing.assert_allclose(reading.expert_share, counts / counts.sum(axis=1, keepdims=True), atol=1e-6)
    shown = routings[layers.index(layer)]
    best = shown.topk_weight.numpy().argmax(axis=1)
    assert reading.firsts.tolist() == shown.topk_idx.numpy()[np.arange(len(best)), best].tolist()
    assert reading.is_image.tolist() == batch["images_seq_mask"][0].tolist()


def test_layers_without_experts_are_refused(demo):
    with pytest.raises(
        ValueError, match="layer 0: there are no experts; the layers with experts are 1, 2, 3"
    ):
        router.choose_layer(demo[0].config.language_config, 0)


def test_views_are_the_pictures_pixels(demo):
    """Undoing the normalisation gives the pixels of a picture that needs no scaling."""
    processor = demo[1]
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, [84, 168, 3], np.uint8))
    messages = [{"role": "user", "content": "<image>\nWhat is this?", "images": [picture]}]
    views = router.picture_views(processor, processor.process_one(messages))
    assert (views.grid, views.side, views.cell) == ((2, 1), 3, 28)
    assert np.array_equal(np.concatenate(views.views[1:], axis=1), np.asarray(picture))
