"""On the demo model, and its sums by hand."""

import numpy as np
import pytest

from paddlemix_vl2 import DeepseekVLV2Processor
from paddlemix_vl2.demo.questions import KINDS


@pytest.fixture(scope="module")
def tool(load_tool):
    return load_tool("compare_precisions")


def test_the_table(tool, native, capsys):
    assert tool.main(["paddlemix_vl2/demo/checkpoint", "--samples", "2"]) == 0
    captured = capsys.readouterr()
    rows = [line.strip("| ").split(" | ") for line in captured.out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["bfloat16", "int8"]
    mean_of_16, mean_of_8 = (float(row[1]) for row in rows)
    assert 0 < mean_of_16 < mean_of_8 < 0.5
    assert captured.err.endswith(" tokens of 2 answers\n")


def test_logits_are_those_of_the_answer(tool):
    processor = DeepseekVLV2Processor.from_pretrained("paddlemix_vl2/demo/checkpoint")
    arguments = tool.parse_arguments(["paddlemix_vl2/demo/checkpoint", "--samples", "2"])
    found = tool.logits_of(arguments, processor, "float32", "paddle")
    for logits, (_, answer) in zip(found, tool.questions(2), strict=True):
        assert len(logits) == len(processor.tokenizer.encode(answer))


def test_questions_are_of_all_kinds_and_languages(tool):
    prompts = {messages[0]["content"] for messages, _ in tool.questions(2 * len(KINDS))}
    assert len(prompts) > len(KINDS)


def test_sums_by_hand(tool):
    expected, found = np.array([[0.0, 4.0], [2.0, 2.5]]), np.array([[0.0, 3.0], [2.0, 1.5]])
    mean, largest, relative, changed = tool.compare([expected], [found])
    assert (mean, largest, changed) == (0.5, 1.0, "1 of 2")
    assert relative == pytest.approx(0.5 / np.std([0, 4, 2, 2.5]))


def test_mistakes_are_one_line(tool, capsys):
    assert tool.main(["nowhere"]) == 2 and "nowhere" in capsys.readouterr().err
    assert tool.main(["nowhere", "--samples", "0"]) == 2
    assert capsys.readouterr().err == "error: --samples 0: must be at least 1\n"
