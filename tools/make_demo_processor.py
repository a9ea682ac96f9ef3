"""Write the demo model's tokenizer and processor: a small vocabulary of the synthetic data's texts.

    python tools/make_demo_processor.py .cache/demo-training/processor

prints the folder and the size of the vocabulary. The files are the published ones: ``tokenizer.json``,
``tokenizer_config.json`` and ``processor_config.json``.
"""

import sys
from pathlib import Path

from paddlemix_vl2 import DeepseekVLV2Processor
from paddlemix_vl2.cli.arguments import OneLineParser
from paddlemix_vl2.cli.program import exit_code
from paddlemix_vl2.config.deepseek_vl2 import DeepseekVLV2Config
from paddlemix_vl2.demo.tokenizer import build_tokenizer, collect_texts

CONFIG = Path(__file__).parents[1] / "configs" / "model" / "demo.json"


def main(argv: list[str] | None = None) -> int:
    return exit_code(lambda: run(argv))


def run(argv: list[str] | None) -> None:
    parser = OneLineParser(__doc__)
    parser.add_argument("folder", type=Path, help="is created where it does not exist")
    arguments = parser.parse_args(argv)
    config = DeepseekVLV2Config.from_json(CONFIG)
    tokenizer = build_tokenizer(collect_texts(), config.language_config.vocab_size)
    processor = DeepseekVLV2Processor(
        tokenizer,
        config.candidate_resolutions,
        patch_size=config.vision_config.patch_size,
        downsample_ratio=config.projector_config.downsample_ratio,
    )
    arguments.folder.mkdir(parents=True, exist_ok=True)
    processor.save_pretrained(arguments.folder)
    print(f"{arguments.folder}: {tokenizer.backend.get_vocab_size()} tokens")


if __name__ == "__main__":
    sys.exit(main())
