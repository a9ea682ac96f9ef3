"""The processor as a whole: samples, batches, files, and what users get wrong."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from paddlemix_vl2.layouts.tiles import num_image_tokens
from paddlemix_vl2.processing import DeepseekTokenizer, DeepseekVLV2Processor

ROOT = Path(__file__).parents[2]


def draw(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * 1000 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ask(text: str, answer: str = "", pictures=None) -> list[dict]:
    question = {"role": "<|User|>", "content": text}
    question = question if pictures is None else {**question, "images": pictures}
    return [question, {"role": "<|Assistant|>", "content": answer}]


CONVERSATIONS = [
    ask("Why is the sky blue?", "Because."),
    ask("<image>\nWhat is this?", "A long answer about nothing.", [draw(200, 90)]),
    ask("<image> or <image>?", "Neither", [draw(50, 300), draw(40, 40)]),
    ask("<image><image><image>", "Three", [draw(400, 50), draw(50, 400), draw(300, 300)]),
]


def test_importing_needs_no_paddlenlp():
    code = "import sys, paddlemix_vl2.processing; print({'paddlenlp'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---- samples ----


def test_tokens_follow_the_tile_size(small_processor):
    """2 x 2 tokens per view: 2 * 3 of the global view, a separator, 2 * rows of 2 * columns + 1."""
    sample = small_processor.process_one(ask("<image>", pictures=[draw(112, 56)]))
    assert sample.images.shape == (3, 3, 56, 56)
    assert sample.images_spatial_crop.tolist() == [[2, 1]]
    assert sample.num_image_tokens == [6 + 1 + 2 * 5]
    assert sample.images_seq_mask.sum() == 17


def test_text_only_picture_tensor_follows_the_tile_size(small_processor):
    sample = small_processor.process_one(CONVERSATIONS[0])
    assert sample.images.shape == (1, 3, 56, 56)
    assert not sample.images.any()
    assert sample.images_spatial_crop.tolist() == [[0, 0]]


def test_more_than_two_pictures_are_not_tiled(small_processor):
    assert small_processor.process_one(CONVERSATIONS[3]).images_spatial_crop.tolist() == [[1, 1]] * 3


@pytest.mark.parametrize("size", [(56, 56), (40, 33), (7, 50), (300, 290), (900, 20)])
@pytest.mark.parametrize("cropping", [True, False])
def test_the_layout_knows_which_tile_repeats_the_global_view(small_processor, size, cropping):
    tokens = small_processor.tokenize_with_images("<image>", [draw(*size)], cropping=cropping)
    (views,), (grid,) = tokens.images, tokens.images_spatial_crop
    equal = [view for view in range(1, len(views)) if np.array_equal(views[view], views[view - 1])]
    assert list(small_processor.layout.repeated_views(grid)) == equal
    assert len(views) == small_processor.layout.num_views(grid)


def test_third_picture_in_a_later_message_counts(small_processor):
    wide = draw(112, 56)
    two = [*ask("<image>", "a", [wide]), *ask("<image>", pictures=[wide])]
    three = [*ask("<image>", "a", [wide]), *ask("<image><image>", pictures=[wide, wide])]
    assert small_processor.process_one(two).images_spatial_crop.tolist() == [[2, 1]] * 2
    assert small_processor.process_one(three).images_spatial_crop.tolist() == [[1, 1]] * 3


def test_given_pictures_equal_named_ones(small_processor, tmp_path):
    draw(90, 60).save(tmp_path / "a.png")
    path = str(tmp_path / "a.png")
    named = small_processor.process_one(ask("<image>", pictures=[path]))
    for source in (path, tmp_path / "a.png", Image.open(path)):
        given = small_processor.process_one(ask("<image>"), images=[source])
        assert np.array_equal(given.images, named.images)
        assert np.array_equal(given.input_ids, named.input_ids)


def test_system_prompt_is_in_the_ids(small_processor):
    plain = small_processor.process_one(ask("Hi")).input_ids
    ids = small_processor.process_one(ask("Hi"), system_prompt="You are kind.").input_ids
    expected = small_processor.tokenizer.encode("You are kind.")
    assert ids.tolist() == [plain[0], *expected, *plain[1:]]


def test_the_ids_of_a_conversation_are_those_of_its_template(small_processor):
    sample = small_processor.process_one(ask("Hi", "Hello"), system_prompt="Be kind.", inference_mode=False)
    decoded = small_processor.tokenizer.decode(sample.input_ids, skip_special_tokens=False)
    text = "Be kind.<|User|>: Hi\n\n<|Assistant|>:Hello"
    assert decoded == f"<｜begin▁of▁sentence｜>{text}<｜end▁of▁sentence｜>"


def test_begun_answer_is_continued(small_processor):
    opened = small_processor.process_one(ask("Hi")).input_ids.tolist()
    begun = small_processor.process_one(ask("Hi", "The answer")).input_ids.tolist()
    assert begun == opened + small_processor.tokenizer.encode("The answer")
    assert small_processor.process_one(ask("Hi")[:1]).input_ids.tolist() == opened


def test_labels_of_answers_only(tokenizers):
    processor = DeepseekVLV2Processor(tokenizers["128k"], [(56, 56)], mask_prompt=True, ignore_id=-1)
    conversation = [*ask("<image> a", "One.", [draw(9, 9)]), *ask("b", "Two.")]
    sample = processor.process_one(conversation, inference_mode=False)
    learned = sample.labels[1:][sample.labels[1:] != -1]  # position 0 is never predicted
    eos = "<｜end▁of▁sentence｜>"
    assert processor.tokenizer.decode(learned) == f"One.{eos}Two.{eos}"
    assert np.array_equal(sample.input_ids[sample.labels != -1], sample.labels[sample.labels != -1])


def test_prompt_is_taken_as_it_is(small_processor):
    text = "<|User|>: <image>\nHi\n\n<|Assistant|>:"
    picture = draw(112, 56)
    by_prompt = small_processor.process_one(prompt=text, images=[picture])
    by_conversation = small_processor.process_one(ask("<image>\nHi", pictures=[picture]))
    assert np.array_equal(by_prompt.input_ids, by_conversation.input_ids)
    closed = small_processor.process_one(prompt="Once upon a time", inference_mode=False)
    assert closed.input_ids[-1] == small_processor.tokenizer.eos_token_id
    assert np.array_equal(closed.labels, closed.input_ids)


def test_tokenize_with_images(small_processor):
    t = small_processor.tokenizer
    ids, images, mask, grids, counts = small_processor.tokenize_with_images("a<image>b", [draw(112, 56)])
    assert ids == [t.bos_token_id, *t.encode("a"), *[t.image_token_id] * 17, *t.encode("b"), t.eos_token_id]
    assert mask == [id_ == t.image_token_id for id_ in ids]
    assert (images[0].shape, grids, counts) == ((3, 3, 56, 56), [(2, 1)], [17])
    bare = small_processor.tokenize_with_images(
        "a<image>", [draw(112, 56)], bos=False, eos=False, cropping=False
    )
    assert bare.input_ids == [*t.encode("a"), *[t.image_token_id] * num_image_tokens(1, 1, side=2)]


@pytest.mark.parametrize("size", [(1, 1), (20000, 1), (1, 20000)])
def test_extreme_pictures(processor, size):
    sample = processor.process_one(ask("<image>"), images=[Image.new("RGB", size, (255, 255, 255))])
    assert sample.images_spatial_crop.tolist() == [[1, 1]]
    assert sample.images.shape == (2, 3, 384, 384)
    assert (sample.images == 1).any(), "something of the picture is left"


# ---- batches ----


@pytest.mark.parametrize("inference_mode", [True, False])
def test_alone_equals_padded_batch(small_processor, inference_mode):
    batch = small_processor(CONVERSATIONS, inference_mode=inference_mode)
    longest = batch["input_ids"].shape[1]
    assert len({len(small_processor.process_one(one).input_ids) for one in CONVERSATIONS}) == len(
        CONVERSATIONS
    )
    for row, conversation in enumerate(CONVERSATIONS):
        alone = small_processor(conversation, inference_mode=inference_mode)
        assert set(alone) == set(batch)
        tokens = alone["input_ids"].shape[1]
        padding = longest - tokens
        for name in set(batch) - {"images", "images_spatial_crop", "plan"}:
            assert np.array_equal(batch[name].numpy()[row, padding:], alone[name].numpy()[0]), name
        for name in ("images", "images_spatial_crop"):
            used = alone[name].shape[1]
            assert np.array_equal(batch[name].numpy()[row, :used], alone[name].numpy()[0]), name
            assert not batch[name].numpy()[row, used:].any(), name
        assert (batch["input_ids"].numpy()[row, :padding] == small_processor.tokenizer.pad_token_id).all()
        assert batch["attention_mask"].numpy()[row].tolist() == [0] * padding + [1] * tokens
        assert not batch["images_seq_mask"].numpy()[row, :padding].any()
        if not inference_mode:
            assert (batch["labels"].numpy()[row, :padding] == -100).all()
        plan = alone["plan"]
        assert batch["plan"].padding[row] == padding and plan.padding[0] == 0
        assert np.array_equal(batch["plan"].position_ids[row, padding:], plan.position_ids[0])


def test_batch_names_shapes_and_types(small_processor):
    batch = small_processor(CONVERSATIONS, inference_mode=False)
    tensors = {name: value for name, value in batch.items() if name != "plan"}
    found = {name: (str(one.dtype).removeprefix("paddle."), one.ndim) for name, one in tensors.items()}
    assert found == {
        "input_ids": ("int64", 2),
        "attention_mask": ("int64", 2),
        "images": ("float32", 5),
        "images_seq_mask": ("bool", 2),
        "images_spatial_crop": ("int64", 3),
        "labels": ("int64", 2),
    }
    assert "labels" not in small_processor(CONVERSATIONS)


def test_batch_of_prompts_and_given_pictures(small_processor):
    picture = draw(112, 56)
    batch = small_processor(prompt=["Hello", "<image>"], images=[None, [picture]])
    assert batch["images_spatial_crop"].numpy().tolist() == [[[0, 0]], [[2, 1]]]
    assert batch["input_ids"].shape == [2, 18]


# ---- files ----


def test_saved_folder_reads_back_the_same(processor, published_settings, tmp_path):
    processor.save_pretrained(tmp_path / "new" / "folder")
    file = tmp_path / "new" / "folder" / "processor_config.json"
    assert json.loads(file.read_text()) == {"processor_class": "DeepseekVLV2Processor", **published_settings}
    again = DeepseekVLV2Processor.from_pretrained(file.parent)
    before, after = (p.process_one(CONVERSATIONS[1]) for p in (processor, again))
    assert np.array_equal(before.input_ids, after.input_ids)
    assert np.array_equal(before.images, after.images)


def test_settings_can_be_replaced_on_reading(small_processor, tmp_path):
    small_processor.save_pretrained(tmp_path)
    assert DeepseekVLV2Processor.from_pretrained(str(tmp_path), mask_prompt=True).mask_prompt
    with pytest.raises(ValueError, match=r"unknown key 'mask_promt' \(did you mean 'mask_prompt'\?\)"):
        DeepseekVLV2Processor.from_pretrained(tmp_path, mask_promt=True)


def test_missing_folder_and_files(small_processor, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"deepseek-ai/deepseek-vl2-tiny: no such folder, and as a name on the hub"
    ):
        DeepseekVLV2Processor.from_pretrained("deepseek-ai/deepseek-vl2-tiny")
    with pytest.raises(FileNotFoundError, match=r"processor_config\.json: no such file"):
        DeepseekVLV2Processor.from_pretrained(tmp_path)
    small_processor.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: no such file"):
        DeepseekVLV2Processor.from_pretrained(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"candidate_resolutions": None}, "the key candidate_resolutions is missing"),
        (
            {"candidate_resolution": 3},
            r"unknown key 'candidate_resolution' \(did you mean 'candidate_resolutions'",
        ),
        ({"colour": 3}, r"unknown key 'colour' \(known keys: candidate_resolutions, "),
        ({"candidate_resolutions": [[384, 300]]}, "first must be one square tile"),
        ({"candidate_resolutions": 384}, "candidate_resolutions must be a list of sizes, not 384"),
        ({"sft_format": "plain"}, r"sft_format is 'plain'; it must be one of \['deepseek'\]"),
        ({"add_special_token": True}, "add_special_token true is not used"),
        ({"normalize": "yes"}, "normalize is 'yes'; it must be of type bool"),
        ({"image_mean": [0.5]}, r"image_mean is \[0.5\]; it must be three numbers"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std .* must be above 0"),
        ({"patch_size": 400}, "patch_size 400"),
        ({"patch_size": "14"}, "patch_size is '14'; it must be of type int"),
        ({"image_std": ["a", "b", "c"]}, "processor_config.json: could not convert string to float: 'a'"),
    ],
)
def test_bad_settings_name_the_file(small_processor, tmp_path, change, message):
    small_processor.save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    values = {**json.loads(file.read_text()), **change}
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
    with pytest.raises(ValueError, match=message) as caught:
        DeepseekVLV2Processor.from_pretrained(tmp_path)
    assert str(file) in str(caught.value)


def test_other_tools_keys_are_allowed(small_processor, tmp_path):
    small_processor.save_pretrained(tmp_path)
    file = tmp_path / "processor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "auto_map": {}}))
    assert DeepseekVLV2Processor.from_pretrained(tmp_path).tile_size == 56


def test_tokenizer_with_another_image_token(tokenizer_folders):
    tokenizer = DeepseekTokenizer.from_pretrained(tokenizer_folders["100k"], image_token="<picture>")
    with pytest.raises(
        ValueError, match="image_token is '<image>' in the processor and '<picture>' in its tokenizer"
    ):
        DeepseekVLV2Processor(tokenizer, [(56, 56)])
    processor = DeepseekVLV2Processor(tokenizer, [(56, 56)], image_token="<picture>")
    assert processor.process_one(ask("<picture>"), images=[draw(9, 9)]).num_image_tokens == [13]


def test_can_be_sent_to_another_process(small_processor):
    copy = pickle.loads(pickle.dumps(small_processor))
    assert np.array_equal(
        copy.process_one(CONVERSATIONS[2]).images, small_processor.process_one(CONVERSATIONS[2]).images
    )


# ---- what users get wrong ----


def test_picture_errors_reach_the_user(small_processor, tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.jpg: no such file"):
        small_processor(ask("<image>", pictures=[str(tmp_path / "nowhere.jpg")]))
    with pytest.raises(ValueError, match=r"picture 1 \(a PIL image\): .*0 x 3 pixels"):
        small_processor(ask("<image><image>"), images=[draw(3, 3), Image.new("RGB", (0, 3))])


def test_count_mismatch(small_processor):
    with pytest.raises(ValueError, match=r"has 2 <image> .*but images= holds 1 picture"):
        small_processor(ask("<image><image>"), images=[draw(3, 3)])
    with pytest.raises(ValueError, match="the text has 1 <image> but 0 picture"):
        small_processor(prompt="<image>")


def test_batch_errors_say_which(small_processor):
    with pytest.raises(
        ValueError, match=r"conversation 2: message 0 \(<\|User\|>\): 1 <image> in the text but 0"
    ):
        small_processor([*CONVERSATIONS[:2], ask("<image>")])
    with pytest.raises(ValueError, match="2 conversations but images= holds 1 lists"):
        small_processor(CONVERSATIONS[:2], images=[None])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either conversations or prompt"),
        ({"conversations": ask("Hi"), "prompt": "Hi"}, "give either conversations or prompt"),
        ({"conversations": CONVERSATIONS[:1], "prompt": ["Hi"]}, "give either conversations or prompt"),
        ({"prompt": []}, "at least one sample"),
        ({"prompt": 3}, "prompt is text, not int"),
        ({"conversations": []}, "the conversation is empty"),
        ({"prompt": "Hi", "system_prompt": "Be kind."}, "system_prompt belongs to conversations"),
        ({"conversations": ask("<image>"), "images": draw(3, 3)}, "images is a list of pictures, not Image"),
        ({"conversations": ask("<image>"), "images": "a.jpg"}, "images is a list of pictures, not str"),
    ],
)
def test_bad_arguments(small_processor, arguments, message):
    with pytest.raises(ValueError, match=message):
        small_processor(**arguments)
