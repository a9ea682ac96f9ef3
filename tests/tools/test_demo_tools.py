"""The tools around the demo model: its example pictures, its processor, its ablations."""

import json

import numpy as np
import paddle
import pytest
from PIL import Image

from paddlemix_vl2 import DeepseekVLV2ForCausalLM, DeepseekVLV2Processor
from paddlemix_vl2.demo.samples import make_sample

pytestmark = pytest.mark.slow


def test_the_example_pictures_are_what_the_tool_renders(load_tool, tmp_path):
    tool = load_tool("render_examples")
    assert tool.main([str(tmp_path)]) == 0
    for name in tool.PICTURES:
        rendered, committed = (
            np.asarray(Image.open(folder / f"{name}.png"), np.int16)
            for folder in (tmp_path, tool.Path(__file__).parents[2] / "examples" / "images" / "drawn")
        )
        # Another release of Pillow may round the edges of letters and shapes another way.
        assert np.abs(rendered - committed).mean() < 1, name


def test_the_processor_fits_the_demo_config(load_tool, tmp_path, capsys):
    assert load_tool("make_demo_processor").main([str(tmp_path)]) == 0
    processor = DeepseekVLV2Processor.from_pretrained(tmp_path)
    assert processor.tile_size == 84
    sample = make_sample("mixed", "train", 5)
    ids = processor.process_one(sample["messages"], inference_mode=False).input_ids
    assert ids.max() < 576


@paddle.no_grad()
def test_a_zero_bias_changes_no_answer(load_tool, golden, tmp_path):
    """The loss-free ablation begins from the same model."""
    tool = load_tool("run_ablations")
    biased = tool.with_router_bias(golden / "mla_greedy", tmp_path / "biased")
    assert json.loads((biased / "config.json").read_text())["language_config"]["topk_method"] == "noaux_tc"
    ids = paddle.arange(3, 60).unsqueeze(0)
    logits = [
        DeepseekVLV2ForCausalLM.from_pretrained(folder, dtype="float32", progress=False)(ids).logits
        for folder in (golden / "mla_greedy", biased)
    ]
    assert float((logits[0] - logits[1]).abs().max()) < 1e-5  # the same numbers by the same operators


def test_ablations_are_summed_up_from_the_log(load_tool, tmp_path, capsys):
    tool = load_tool("run_ablations")
    records = [
        {"global_step": 100, "loss": 9.0, "max_vio": 9.0},
        {"global_step": 180, "loss": 1.0, "max_vio": 0.5},
        {"global_step": 200, "loss": 2.0, "max_vio": 1.5},
        {"global_step": 200, "eval_loss": 3.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    assert tool.summarize(tmp_path) == (3.0, 1.0, 1.5)
    assert tool.main([str(tmp_path)]) == 2
    assert "no checkpoint there; make train-demo writes it" in capsys.readouterr().err


def test_a_trained_model_is_packed(load_tool, golden, tmp_path):
    """Rounded to bfloat16, and otherwise the same; with the processor's files and the curves."""
    processor = tmp_path / "processor"
    load_tool("make_demo_processor").main([str(processor)])
    trained = tmp_path / "trained"
    model = DeepseekVLV2ForCausalLM.from_pretrained(golden / "mla_greedy", dtype="float32", progress=False)
    model.save_pretrained(trained)
    DeepseekVLV2Processor.from_pretrained(processor).save_pretrained(trained)
    run = tmp_path / "run"
    run.mkdir()
    keys = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "max_vio", "entropy")
    records = [{"global_step": step, **dict.fromkeys(keys, 0.1 * step)} for step in (1, 2)]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    packed = tmp_path / "packed"
    assert load_tool("pack_demo").main([str(trained), str(packed), "--runs", str(run)]) == 0
    assert Image.open(packed / "curves.png").size[0] > 100
    again = DeepseekVLV2ForCausalLM.from_pretrained(packed, dtype="float32", progress=False)
    for (name, before), after in zip(model.named_parameters(), again.parameters(), strict=True):
        rounded = before if name.endswith("e_score_correction_bias") else before.astype("bfloat16")
        assert bool((rounded.astype("float32") == after).all()), name
    assert DeepseekVLV2Processor.from_pretrained(packed).tile_size == 84
