"""The decode loop on a scripted model that has the two methods only."""

from types import SimpleNamespace

import numpy as np
import paddle
import pytest

from paddlemix_vl2.generation.decoding import generate

VOCAB, EOS = 12, 1


class ScriptedModel:
    """Prefers, step after step, the tokens of its script [rows, steps]; the probability of each is known."""

    def __init__(self, script, max_positions=100):
        self.script = np.asarray(script)
        self.config = SimpleNamespace(
            language_config=SimpleNamespace(max_sequence_length=max_positions, eos_token_id=EOS)
        )
        self.training = True
        self.fed, self.modes, self.prefills = [], [], []

    def eval(self):
        self.training = False

    def train(self):
        self.training = True

    def prefill(self, batch, capacity, chunk_size):
        self.prefills.append((capacity, chunk_size))
        self.modes.append(self.training)
        return self.logits(0), SimpleNamespace(step=0)

    def decode_step(self, token_ids, cache):
        self.fed.append(token_ids[:, 0].tolist())
        cache.step += 1
        return self.logits(cache.step)

    def logits(self, step):
        rows = np.zeros([len(self.script), VOCAB], np.float32)
        rows[np.arange(len(self.script)), self.script[:, step]] = 3.0
        return paddle.to_tensor(rows)


# exp(3) against eleven others at exp(0)
LOG_PROB = 3 - np.log(np.exp(3) + VOCAB - 1)
PROMPT = paddle.to_tensor([[4, 5, 6], [4, 5, 6]])


class Collector:
    def __init__(self):
        self.steps, self.ended = [], 0

    def put(self, tokens):
        assert tokens.dtype == np.int64
        self.steps.append(tokens.tolist())

    def end(self):
        self.ended += 1


def test_rows_end_on_their_own_and_scores_count_their_tokens_only():
    model, streamer = ScriptedModel([[7, EOS, 9, 9], [7, 8, 9, EOS]]), Collector()
    ids, scores = generate(model, PROMPT, max_new_tokens=10, streamer=streamer)
    assert ids.tolist() == [[7, EOS, EOS, EOS], [7, 8, 9, EOS]]
    assert ids.dtype == paddle.int64
    assert scores.numpy() == pytest.approx(np.array([[2], [4]]) * LOG_PROB, rel=1e-5)
    assert model.fed == [[7, 7], [EOS, 8], [EOS, 9]]
    assert streamer.steps == [[7, 7], [EOS, 8], [EOS, 9], [EOS, EOS]] and streamer.ended == 1
    assert model.modes == [False] and model.training, "evaluation mode while generating only"
    assert model.prefills == [(13, None)]


def test_stops_at_max_new_tokens_without_a_useless_step():
    model = ScriptedModel([[7, 8, 9, 9]])
    ids, _ = generate(model, PROMPT[:1], max_new_tokens=2)
    assert ids.tolist() == [[7, 8]] and model.fed == [[7]]


def test_other_stop_tokens_and_none():
    script = [[7, EOS, 9, 9], [8, 8, 8, 8]]
    ids, _ = generate(ScriptedModel(script), PROMPT, max_new_tokens=3, eos_token_id=[9, 8])
    assert ids.tolist() == [[7, EOS, 9], [8, 8, 8]]
    ids, _ = generate(ScriptedModel(script), PROMPT, max_new_tokens=3, eos_token_id=[])
    assert ids.tolist() == [[7, EOS, 9], [8, 8, 8]]


def test_streamer_ends_after_an_error():
    class Failing(Collector):
        def put(self, tokens):
            raise OSError("the pipe is gone")

    streamer = Failing()
    with pytest.raises(OSError, match="pipe"):
        generate(ScriptedModel([[7, 7]]), PROMPT[:1], max_new_tokens=2, streamer=streamer)
    assert streamer.ended == 1


def test_sampling_is_reproducible_by_seed():
    def sample(seed):
        model = ScriptedModel(np.full([2, 20], 7))
        ids, _ = generate(model, PROMPT, max_new_tokens=20, do_sample=True, seed=seed, eos_token_id=[])
        return ids.tolist()

    assert sample(5) == sample(5) != sample(6)
    assert sample(5)[0] != sample(5)[1], "rows draw their own numbers"


def test_repetition_penalty_leaves_padding_and_image_positions_out():
    """Token 7 is in the prompt: at a text position the penalty brings its logit 3 down to 0.3, below the
    1 of token 8; at an image or padding position it keeps its lead."""

    class TwoChoices(ScriptedModel):
        def logits(self, step):
            row = np.zeros([1, VOCAB], np.float32)
            row[0, 7], row[0, 8] = 3.0, 1.0
            return paddle.to_tensor(row)

    def first_token(**masks):
        prompt = paddle.to_tensor([[7, 4]])
        model = TwoChoices([[7]])
        return generate(model, prompt, max_new_tokens=1, repetition_penalty=10.0, **masks)[0].item()

    assert first_token() == 8
    assert first_token(attention_mask=paddle.to_tensor([[0, 1]])) == 7
    assert first_token(images_seq_mask=paddle.to_tensor([[True, False]])) == 7


def test_more_positions_than_there_are_is_refused_with_all_numbers():
    numbers = r"3 tokens and max_new_tokens is 98, together 101, .* 100 positions"
    with pytest.raises(ValueError, match=numbers):
        generate(ScriptedModel([[7]]), PROMPT[:1], max_new_tokens=98)


@pytest.mark.parametrize(("key", "value"), [("max_new_tokens", 0), ("chunk_size", 0), ("temperature", 0.0)])
def test_values_out_of_range(key, value):
    with pytest.raises(ValueError, match=key):
        generate(ScriptedModel([[7]]), PROMPT[:1], do_sample=True, **{"max_new_tokens": 5, key: value})


def test_damaged_weights_are_said():
    class Damaged(ScriptedModel):
        def logits(self, step):
            return super().logits(step) * float("nan")

    with pytest.raises(ValueError, match="logits are not finite"):
        generate(Damaged([[7]]), PROMPT[:1], max_new_tokens=1)
