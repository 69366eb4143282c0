"""Named texts: where they come from, and the real texts that stand in where there is no network."""

import hashlib
import os
import tarfile
import tempfile
import uuid
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

import torch
from filelock import FileLock

from src.engine.data.download import downloading
from src.engine.system.errors import InputError

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
# Sentence polarity dataset v1.0 (Pang and Lee 2005).
POLARITY_URL = "https://storage.googleapis.com/seldon-datasets/sentence_polarity_v1/rt-polaritydata.tar.gz"
POLARITY_SHA256 = "a05befe52aafda71d458d188a1c54506a998b1308613ba76bbda2e5029409ce9"
POLARITY_LABELS = {"neg": "negative", "pos": "positive"}
POLARITY_LINES = 5331  # in each of the two files

# Languages of the CLDR names; 20 of the 34 are written in Latin script.
LANGUAGES = (
    *("cs", "cy", "de", "es", "et", "eu", "fi", "fr", "hu", "is", "it", "lt", "nl", "pl", "pt", "sq", "sv", "sw"),
    *("tr", "vi", "am", "ar", "el", "he", "hi", "hy", "ja", "ka", "ko", "ru", "ta", "th", "uk", "zh"),
)


def tiny_shakespeare(data_dir: Path) -> Path:
    """The file of tiny Shakespeare (Karpathy 2015), downloaded where it is not there and checked.

    Raises:
        DownloadError: it is not there and cannot be fetched.
        InputError: the folder cannot be written, or the file there is not the published one.
    """
    path = data_dir / "tiny_shakespeare" / "input.txt"
    if not path.is_file():
        _fetch(SHAKESPEARE_URL, SHAKESPEARE_SHA256, path)
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != SHAKESPEARE_SHA256:
            raise InputError(
                f"{path} is not the published tiny Shakespeare (its SHA-256 differs): take it away, or give it as"
                f" your own text with --data.path {path}"
            )
    return path


def rt_polarity(data_dir: Path) -> dict[str, list[tuple[str, str]]]:
    """Text and label of 10,662 sentences from film reviews (Pang and Lee 2005), in three parts.

    In each file, line numbers from 0 that end in 8 validate, in 9 test, the rest train.

    Raises:
        DownloadError: the files are not there and cannot be fetched.
        InputError: the folder cannot be written, or a file is not whole.
    """
    paths = {suffix: data_dir / "rt_polarity" / f"rt-polarity.{suffix}" for suffix in POLARITY_LABELS}
    if not any(path.exists() for path in paths.values()):
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "rt-polaritydata.tar.gz"
            _fetch(POLARITY_URL, POLARITY_SHA256, archive)
            with tarfile.open(archive) as tar:
                for suffix, path in paths.items():
                    member = tar.extractfile(f"rt-polaritydata/rt-polarity.{suffix}")
                    assert member is not None  # the checksum says so
                    write_whole(path, member.read().decode("latin-1").encode("utf-8"))
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "val": [], "test": []}
    for suffix, path in paths.items():
        try:
            lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path} cannot be read ({error}): take {path.parent} away to fetch it anew") from error
        if len(lines) != POLARITY_LINES:
            raise InputError(f"{path} has {len(lines)} lines, not {POLARITY_LINES}: take {path.parent} away")
        for number, line in enumerate(lines):
            part = {8: "val", 9: "test"}.get(number % 10, "train")
            parts[part].append((line.strip(), POLARITY_LABELS[suffix]))
    return parts


def python_reference() -> str:
    """The language reference that ships inside every Python, about half a million characters of real text."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"


def language_names() -> tuple[list[tuple[str, str]], int]:
    """Names of territories, languages and currencies with the language they are in, from the CLDR.

    Returns:
        Text and English name of its language, and how many names were left out because two languages share them.

    Raises:
        InputError: the package that carries them is not installed.
    """
    try:
        from babel import Locale
    except ImportError as error:
        raise InputError(
            "no data given and no sample: give --data.path a file, or install the sample with: pip install Babel"
        ) from error
    spoken: dict[str, set[str]] = defaultdict(set)
    for code in LANGUAGES:
        locale = Locale(code)
        for names in (locale.territories, locale.languages, locale.currencies):
            for name in names.values():
                if len(name) > 3 or not name.isascii():  # short ones are codes
                    spoken[name].add(str(locale.english_name))
    own = [(name, languages.pop()) for name, languages in sorted(spoken.items()) if len(languages) == 1]
    return own, len(spoken) - len(own)


def _fetch(url: str, sha256: str, path: Path) -> None:
    """Download a file whose checksum is known; it gets its name only when whole."""
    made = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not path.is_file():
                with downloading():
                    torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256)
    except OSError as error:
        raise unwritable(path.parent, error) from error
    finally:
        with suppress(OSError):
            path.with_name(f".{path.name}.lock").unlink()
        for folder in made:
            try:
                folder.rmdir()
            except OSError:  # it holds something, or was never made
                break


def write_whole(path: Path, content: bytes, option: str = "data_dir") -> None:
    """Write a file that gets its name only when whole.

    Raises:
        InputError: its folder, which `option` names, cannot be written.
    """
    partial = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:
        raise unwritable(path.parent, error, option) from error
    finally:
        with suppress(OSError):  # it has its name
            partial.unlink()


def unwritable(folder: Path, error: OSError, option: str = "data_dir") -> InputError:
    """The error of a folder that cannot be written."""
    return InputError(
        f"data folder {folder} cannot be written ({error.strerror}): give one that can with --data.{option}"
    )
