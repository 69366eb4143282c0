"""Labelled texts to start with: one set to download, and one from a package."""

import tarfile
import tempfile
from collections import defaultdict
from pathlib import Path

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from src.engine.data.download import download, write_atomically
from src.engine.system.errors import InputError

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


def rt_polarity(data_dir: Path) -> dict[str, list[tuple[str, str]]]:
    """Text and label of 10,662 sentences from film reviews (Pang and Lee 2005), in three parts.

    In each file, counting from 0, line numbers that end in 8 are for validation, in 9 for test, the rest for training.

    Raises:
        DownloadError: the files are missing and cannot be downloaded.
        InputError: the folder cannot be written, or a file is incomplete.
    """
    paths = {suffix: data_dir / "rt_polarity" / f"rt-polarity.{suffix}" for suffix in POLARITY_LABELS}
    if not all(path.exists() for path in paths.values()):
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "rt-polaritydata.tar.gz"
            download(POLARITY_URL, POLARITY_SHA256, archive)
            with tarfile.open(archive) as tar:
                for suffix, path in paths.items():
                    member = tar.extractfile(f"rt-polaritydata/rt-polarity.{suffix}")
                    assert member is not None  # the checksum guarantees it
                    write_atomically(path, member.read().decode("latin-1").encode("utf-8"))
    parts: dict[str, list[tuple[str, str]]] = {"train": [], "val": [], "test": []}
    for suffix, path in paths.items():
        content = path.read_bytes()
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError:  # as it is published
            text = content.decode("latin-1")
        lines = text.removesuffix("\n").split("\n")
        if len(lines) != POLARITY_LINES:
            raise InputError(f"{path} has {len(lines)} lines, not {POLARITY_LINES}: remove {path.parent}")
        for number, line in enumerate(lines):
            part = {8: "val", 9: "test"}.get(number % 10, "train")
            parts[part].append((line.strip(), POLARITY_LABELS[suffix]))
    return parts


def language_names() -> list[tuple[str, str]]:
    """Names of territories, languages and currencies, each with the English name of its language, from the CLDR.

    Names that several of the 34 languages share are left out.

    Raises:
        InputError: the package Babel, which contains them, is not installed.
    """
    try:
        from babel import Locale
    except ImportError as error:
        raise InputError("language_names needs the package Babel: pip install Babel, or give --data.path") from error
    found: dict[str, set[str]] = defaultdict(set)
    for code in LANGUAGES:
        locale = Locale(code)
        for names in (locale.territories, locale.languages, locale.currencies):
            for name in names.values():
                if len(name) > 3 or not name.isascii():  # short ones are codes
                    found[name].add(str(locale.english_name))
    unique = [(name, languages.pop()) for name, languages in sorted(found.items()) if len(languages) == 1]
    rank_zero_info(f"Left out {len(found) - len(unique):,} names that exist in several languages")
    return unique
