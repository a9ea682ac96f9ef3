"""Where a checkpoint is: a local folder, or a name on the Hugging Face hub that is downloaded once."""

import os
import re
from pathlib import Path

# Of a checkpoint folder, as published.
CONFIG_FILE = "config.json"
PROCESSOR_FILE = "processor_config.json"
TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
# What this package reads, and nothing else of a repository (its pictures, other weight formats, code).
CHECKPOINT_FILES = [
    CONFIG_FILE,
    PROCESSOR_FILE,
    TOKENIZER_FILE,
    TOKENIZER_CONFIG_FILE,
    "special_tokens_map.json",
    "*.safetensors",
    "*.safetensors.index.json",
]
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def resolve_checkpoint(path_or_name: str | os.PathLike) -> Path:
    """The folder of a checkpoint: ``path_or_name`` itself, or the local copy of a hub repository such as
    ``deepseek-ai/deepseek-vl2-tiny``, downloaded where it is not there yet.

    The hub client's own settings count (``HF_HOME``, ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_OFFLINE``).

    Raises:
        FileNotFoundError: there is no such folder, and no such name could be downloaded.
    """
    folder = Path(path_or_name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise FileNotFoundError(f"{folder}: is a file; pass the checkpoint's folder")
    name = str(path_or_name)
    if not _HUB_NAME.fullmatch(name):
        raise FileNotFoundError(
            f"{folder}: no such folder, and not a hub name like deepseek-ai/deepseek-vl2-tiny either"
        )
    return Path(_download(name))


def _download(name: str) -> str:
    # On use only: a local folder needs no client.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        return snapshot_download(name, allow_patterns=CHECKPOINT_FILES)
    except GatedRepoError:
        reason = "access to this repository must be requested on its page; then set HF_TOKEN"
    except RepositoryNotFoundError:
        reason = "there is no such repository, or it needs HF_TOKEN"
    except Exception as error:  # the client passes on the errors of whichever transport it uses
        reason = (
            f"it could not be downloaded ({type(error).__name__}); without a connection, download its files "
            "elsewhere and pass their folder, or set HF_ENDPOINT to a mirror"
        )
    raise FileNotFoundError(f"{name}: no such folder, and as a name on the hub: {reason}") from None
