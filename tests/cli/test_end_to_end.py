"""The examples with a real, small model of random weights: they answer as the Python interface does."""

from pathlib import Path

import paddle
import pytest
from PIL import Image

from paddlemix_vl2 import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor
from paddlemix_vl2.generation.streaming import TextIteratorStreamer

pytestmark = pytest.mark.slow

PICTURES = Path(__file__).resolve().parents[2] / "examples" / "images"
QUESTION = "Which shapes are in this picture?"
TOKENS = 8


@pytest.fixture(scope="module")
def processor(random_checkpoint):
    return DeepseekVLV2Processor.from_pretrained(random_checkpoint)


@pytest.fixture(scope="module")
def model(random_checkpoint):
    return DeepseekVLV2ForCausalLM.from_pretrained(random_checkpoint)


@pytest.fixture
def run(example, random_checkpoint, capsys):
    def run_script(name, *flags):
        common = ["--model_path", random_checkpoint, "--question", QUESTION, "--max_new_tokens", TOKENS]
        assert example(name).main([str(flag) for flag in [*common, *flags]]) == 0
        return capsys.readouterr().out

    return run_script


def make_batch(processor, *names):
    content = "<image>\n" * len(names) + QUESTION
    pictures = [str(PICTURES / name) for name in names]
    conversation = [
        {"role": "<|User|>", "content": content, "images": pictures},
        {"role": "<|Assistant|>", "content": ""},
    ]
    return processor(conversations=conversation)


def test_one_picture_whole_and_in_chunks(run, processor, model):
    ids, _ = model.generate(**make_batch(processor, "shapes.png"), max_new_tokens=TOKENS)
    expected = processor.tokenizer.decode(ids[0].tolist()) + "\n"
    picture = ["--image_file", PICTURES / "shapes.png"]
    assert run("single_image_infer", *picture) == expected
    assert run("increment_prefilling_infer", *picture, "--chunk_size", 100) == expected


def test_several_pictures_in_their_order(run, processor, model):
    names = ["red_circle.png", "blue_square.png", "shapes.png"]
    ids, _ = model.generate(**make_batch(processor, *names), max_new_tokens=TOKENS)
    expected = processor.tokenizer.decode(ids[0].tolist()) + "\n"
    files = [PICTURES / name for name in names]
    numbered = [part for i, file in enumerate(files, 1) for part in (f"--image_file_{i}", file)]
    assert run("multi_image_infer", *numbered) == expected
    assert run("multi_image_infer", "--image_files", *files) == expected


def test_a_seed_reproduces_a_sampled_answer(run):
    flags = ["--image_file", PICTURES / "red_circle.png", "--temperature", 1.5, "--top_p", 0.95]
    first = run("single_image_infer", *flags, "--seed", 3)
    assert run("single_image_infer", *flags, "--seed", 3) == first
    assert run("single_image_infer", *flags, "--seed", 4) != first


def test_streaming_from_a_thread_gives_the_same_answer(processor, model):
    batch = make_batch(processor, "red_circle.png")
    expected, scores = model.generate(**batch, max_new_tokens=TOKENS)
    streamer = TextIteratorStreamer(processor.tokenizer)
    text = "".join(streamer.run(model.generate, **batch, max_new_tokens=TOKENS))
    ids, streamed_scores = streamer.result
    assert ids.tolist() == expected.tolist()
    assert streamed_scores.item() == pytest.approx(scores.item(), abs=1e-4)
    assert text == processor.tokenizer.decode(ids[0].tolist())


def test_errors_of_generate_reach_the_reader_of_a_stream(processor, model):
    batch = make_batch(processor, "red_circle.png")
    with pytest.raises(ValueError, match="max_position_embeddings"):
        list(TextIteratorStreamer(processor.tokenizer).run(model.generate, **batch, max_new_tokens=5000))


def test_the_picture_matters(processor, model):
    """A picture that reaches the model changes the logits; one that does not would leave them."""
    red, blue = (make_batch(processor, name) for name in ("red_circle.png", "blue_square.png"))
    assert red["input_ids"].tolist() == blue["input_ids"].tolist()
    with paddle.no_grad():
        difference = (model(**red).logits[:, -1] - model(**blue).logits[:, -1]).abs().max()
    assert float(difference) > 1e-3


def test_the_repository_pictures_are_small():
    files = sorted(PICTURES.rglob("*.png"))
    assert len(files) > 5
    for file in files:
        assert file.stat().st_size < 256 * 1024
        with Image.open(file) as picture:
            assert max(picture.size) <= 800
