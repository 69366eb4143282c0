"""Where the sounds come from: your own files, Speech Commands, a synthesiser."""

import csv
import hashlib
import io
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile
import torch
from espeakng_loader import get_data_path

from src import ROOT
from src.audio import spoken_words
from src.audio.recordings import Recording, read_recording
from src.audio.speech import LANGUAGES, VOICES, spoken_digits
from src.audio.spoken_words import SpokenWordsDataModule, part_of
from src.engine.parts import remote
from src.engine.system.errors import InputError
from tests.audio.helpers import RATE, TONES, own_sounds, tone
from tests.conftest import Run, in_copy, serving
from tests.contract import check_prepare


@pytest.fixture(autouse=True)
def _no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fetched from where the recordings really live."""
    monkeypatch.setattr(spoken_words, "COMMANDS_URL", "http://127.0.0.1:9/mini_speech_commands.zip")


def ready(**arguments: object) -> SpokenWordsDataModule:
    data = SpokenWordsDataModule(**arguments)  # type: ignore[arg-type]
    data.setup("fit")
    return data


# Your own


def table_of(folder: Path, rows: list[tuple[str, str]]) -> Path:
    with (folder / "own.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    return folder / "own.csv"


def test_folders_and_tables_give_the_same_sounds(tmp_path: Path, messages: list[str]) -> None:
    folder = own_sounds(tmp_path / "sounds")
    found = ready(path=str(folder), image_size=16)
    assert found.labels == ["high", "low"]
    assert [len(one) for one in (found.train_set, found.val_set, found.test_set)] == [32, 4, 4]
    assert any("Skipped files that are not .wav or .flac files: 1 .txt" in line for line in messages)
    files = sorted(folder.rglob("*.[wfW]*"))
    rows = [(str(file.relative_to(tmp_path)), file.parent.name) for file in files]
    own = ready(path=str(table_of(tmp_path, rows)), image_size=16)
    assert torch.equal(found.train_set.waveforms, own.train_set.waveforms)
    assert torch.equal(found.test_set.targets, own.test_set.targets)


def test_folders_named_like_parts_are_refused(tmp_path: Path) -> None:
    for name in ("train", "test"):
        own_sounds(tmp_path / name, 3)
    with pytest.raises(InputError, match=r"test, train are parts, not classes: give each by an option"):
        ready(path=str(tmp_path))


@pytest.mark.slow
def test_folders_and_tables_may_be_at_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ROOT", tmp_path / "project")
    folder = own_sounds(tmp_path / "web" / "sounds", 3)
    files = [file.relative_to(folder.parent) for file in folder.rglob("*.[wfW]*")]
    table_of(folder.parent, [(str(file), file.parent.name) for file in files])
    with serving(folder.parent) as url:
        for path in (f"{url}sounds/", f"{url}own.csv"):
            data = ready(path=path, image_size=16)
            assert [len(one) for one in (data.train_set, data.val_set, data.test_set)] == [2, 2, 2]


def test_other_rates_and_channels_are_said_once(tmp_path: Path, messages: list[str]) -> None:
    folder = own_sounds(tmp_path / "sounds")
    for number in range(3):
        soundfile.write(folder / "low" / f"other{number}.wav", tone(300 + number, 1, 44100, 2), 44100)
    ready(path=str(folder))
    said = [line for line in messages if "changed" in line]
    assert len(said) == 2
    assert re.search(r"3 recordings are changed, such as .*other0\.wav: resampled from 44,100 to 16,000 Hz$", said[0])
    assert re.search(r"3 recordings are changed, such as .*other0\.wav: mean of 2 channels$", said[1])


def test_silent_recordings_are_reported(tmp_path: Path, messages: list[str]) -> None:
    folder = own_sounds(tmp_path / "sounds")
    soundfile.write(folder / "low" / "dead.wav", torch.zeros(8000).numpy(), 16000)
    ready(path=str(folder))
    assert any(re.search(r"1 recordings are silent, such as .*dead\.wav: silent$", line) for line in messages)


def test_a_silent_recording_has_a_note() -> None:
    silence = Recording(torch.zeros(8000).numpy(), 8000, 1)
    assert SpokenWordsDataModule().notes([silence]) == ["resampled from 8,000 to 16,000 Hz; silent"]


def test_copies_in_several_parts_are_reported(tmp_path: Path, messages: list[str]) -> None:
    folder = own_sounds(tmp_path / "sounds", 4)
    for file in list((folder / "low").glob("[0-9]*")):
        (folder / "low" / f"copy{file.name}").write_bytes(file.read_bytes())
    ready(path=str(folder))
    (line,) = [line for line in messages if "sounds are also" in line and "test" in line.split(" are ")[0]]
    assert re.search(r"^1 test sounds are also training sounds, such as .*\.\w+, the same as ", line)


def test_prepare_gives_what_the_network_is_tested_on(tmp_path: Path) -> None:
    folder = own_sounds(tmp_path / "sounds")
    rows = [(str(file), file.parent.name) for file in sorted(folder.rglob("*.[wfW]*"))]
    data = ready(path=str(table_of(tmp_path, rows)), batch_size=50)
    waves = [data.prepare([read_recording(Path(name))])[0] for name, _ in rows]
    wanted = [wave / 1.0 for wave in data.test_set.__getitems__(list(range(4)))[0]]
    order = [next(i for i, wave in enumerate(waves) if torch.equal(wave, one)) for one in wanted]
    check_prepare(data, [read_recording(Path(rows[index][0])) for index in order])


def broken(folder: Path) -> dict[str, bytes]:
    whole = (folder / "low" / "3.wav").read_bytes()
    return {"empty.wav": b"", "cut.wav": whole[:3000], "text.flac": b"words", "none.wav": whole[:44]}


@pytest.mark.parametrize("name", ["empty.wav", "cut.wav", "text.flac", "none.wav", "gone.wav"])
def test_a_file_that_cannot_be_used_is_named_with_its_row(
    name: str, tmp_path: Path, error_of: Callable[..., str]
) -> None:
    folder = own_sounds(tmp_path / "sounds")
    content = broken(folder).get(name)
    if content is not None:
        (folder / "low" / name).write_bytes(content)
        found = error_of(*TONES, f"--data.path={folder}")
        assert re.match(rf"1 of 41 files cannot be used: {folder}/low/{name} \([^)]+\)$", found)
    files = sorted(folder.rglob("[0-9]*.[wfW]*"))
    rows = [(f"sounds/{file.parent.name}/{file.name}", file.parent.name) for file in files]
    rows.insert(6, (f"sounds/low/{name}", "low"))
    found = error_of(*TONES, f"--data.path={table_of(tmp_path, rows)}")
    reason = {"empty.wav": "the file is empty", "gone.wav": "no such file", "cut.wav": "the file is truncated"}
    assert f"1 of 41 files cannot be used: {tmp_path}/own.csv, row 7: sounds/low/{name} (" in found
    assert reason.get(name, "") in found


def test_a_class_of_too_few_recordings_is_named_with_file_and_row(tmp_path: Path, error_of: Callable[..., str]) -> None:
    folder = own_sounds(tmp_path / "sounds")
    rows = [(str(file), file.parent.name) for file in sorted(folder.rglob("*.[wfW]*"))]
    rows[9] = (rows[9][0], "lonely")
    found = error_of(*TONES, f"--data.path={table_of(tmp_path, rows)}")
    named = f"{tmp_path}/own.csv, row 10: {rows[9][0]}"
    assert f"class lonely has too few files, 1 of 3, such as {named}: give one for each part" in found
    for number in range(2, 20):
        next((folder / "low").glob(f"{number}.*")).unlink()
    found = error_of(*TONES, f"--data.path={folder}")
    assert f"class low has too few files, 2 of 3, such as {folder}/low/0.wav: give one for each part" in found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data.path=nowhere", "--data.path nowhere: no such folder or table"),
        ("--data.path=configs", "--data.path configs: no .wav or .flac files in its folders"),
        ("--data.max_mask=1", "max_mask 1.0 is out of range: give a share of at least 0 and below 1"),
        ("--data.max_speed=-0.1", "max_speed -0.1 is out of range"),
        ("--data.seconds=0", "seconds 0.0 is out of range: give 0.001 to 1048"),
        ("--data.seconds=.nan", "seconds nan is out of range"),
        ("--data.seconds=1e9", "seconds 1000000000.0 is out of range: give 0.001 to"),
        ("--data.sample_rate=1000", "sample_rate 1000 is too small: give at least 2000"),
        ("--data.max_shift=-1", "max_shift -1.0 is too small: give at least 0"),
        ("--data.val_share=0", "val_share 0.0 and test_share 0.1 are out of range: give"),
    ],
)
def test_a_wrong_option_is_one_line(words: str, message: str, error_of: Callable[..., str]) -> None:
    assert message in error_of(*TONES, words)


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_the_limits_that_are_named_can_be_given(rate: int) -> None:
    with pytest.raises(InputError) as caught:
        SpokenWordsDataModule(seconds=1e9, sample_rate=rate)
    for seconds in re.findall(r"give (\S+) to (\S+)$", str(caught.value))[0]:
        SpokenWordsDataModule(seconds=float(seconds), sample_rate=rate)


def test_labels_of_a_checkpoint_stay_and_others_are_an_error(tmp_path: Path) -> None:
    folder = own_sounds(tmp_path / "sounds")
    data = SpokenWordsDataModule(str(folder))
    data.load_state_dict({"labels": ["low", "high", "other"]})
    data.setup("fit")
    assert data.labels == ["low", "high", "other"]
    assert data.test_set.targets.unique().tolist() == [0, 1]
    other = SpokenWordsDataModule(str(folder))
    other.load_state_dict({"labels": ["low", "loud"]})
    with pytest.raises(InputError, match=r"class 'high' is not in the training data: use only loud, low"):
        other.setup("fit")


@pytest.mark.slow
def test_sounds_are_changed_in_training_only_and_alike_in_each_run(tmp_path: Path, train: Callable[..., Run]) -> None:
    words = (*TONES, f"--data.path={own_sounds(tmp_path / 'sounds')}", "--max_epochs=1", "--seed_everything=3")
    first = train(*words)
    second = train(*words)
    assert all(torch.equal(value, second.weights[name]) for name, value in first.weights.items())
    still = train(*words, "--data.max_noise=0", "--data.max_shift=0", "--data.max_speed=0", "--data.max_mask=0")
    assert any(not torch.equal(value, still.weights[name]) for name, value in first.weights.items())
    data = first.cli.datamodule
    waves, _ = data.train_set.__getitems__([0, 1])
    assert torch.equal(data.spectrograms(waves), data.features(waves))  # after training


# Speech Commands


def archive(folder: Path) -> bytes:
    """A small file like that of Speech Commands."""
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / "mini_speech_commands.zip", "w") as file:
        file.writestr("mini_speech_commands/README.md", "read me")
        file.writestr("__MACOSX/mini_speech_commands/no/._speaker0_nohash_0.wav", "junk")
        for word, hertz in (("no", 300), ("yes", 3000)):
            for speaker in range(40):
                sound = io.BytesIO()
                soundfile.write(sound, tone(hertz + speaker, 0.3), RATE, format="WAV")
                file.writestr(f"mini_speech_commands/{word}/speaker{speaker}_nohash_0.wav", sound.getvalue())
    return (folder / "mini_speech_commands.zip").read_bytes()


def test_speech_commands_is_downloaded_checked_and_split_by_speaker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = archive(tmp_path / "server")
    monkeypatch.setattr(spoken_words, "COMMANDS_SHA256", hashlib.sha256(content).hexdigest())
    home = tmp_path / "data"
    with pytest.raises(InputError, match=r"could not be downloaded \(.*\): put mini_speech_commands\.zip there, or"):
        ready(source="speech_commands", data_dir=str(home))
    assert not home.exists()
    with serving(tmp_path / "server") as url:
        monkeypatch.setattr(spoken_words, "COMMANDS_URL", f"{url}mini_speech_commands.zip")
        data = ready(source="auto", data_dir=str(home))
    assert [path.name for path in home.iterdir()] == ["mini_speech_commands.zip"]
    assert (data.data_source, data.labels) == ("speech_commands", ["no", "yes"])
    parts = [part_of(f"speaker{number}") for number in range(40)]
    assert [len(one) for one in (data.train_set, data.val_set, data.test_set)] == [
        2 * parts.count(part) for part in ("train", "val", "test")
    ]
    ready(source="speech_commands", data_dir=str(home))  # without network
    (home / "mini_speech_commands.zip").write_bytes(content[:-1])
    with pytest.raises(InputError, match=r"mini_speech_commands\.zip is not the published file \(its"):
        ready(source="speech_commands", data_dir=str(home))


def test_another_file_at_the_address_is_refused_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive(tmp_path / "server")
    with serving(tmp_path / "server") as url:
        monkeypatch.setattr(spoken_words, "COMMANDS_URL", f"{url}mini_speech_commands.zip")
        with pytest.raises(InputError, match="invalid hash value"):
            ready(source="speech_commands", data_dir=str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()


def test_a_tenth_of_the_speakers_is_for_validation_and_a_tenth_for_test() -> None:
    parts = [part_of(f"{number:08x}") for number in range(4000)]
    assert all(320 < parts.count(part) < 480 for part in ("val", "test"))


# The synthesiser


@pytest.mark.slow
def test_without_network_digits_are_spoken_and_announced_as_synthetic(tmp_path: Path, messages: list[str]) -> None:
    data = ready(data_dir=str(tmp_path / "data"))
    assert not (tmp_path / "data").exists()
    (loud,) = [line for line in messages if line.startswith("***")]
    assert loud.startswith("*** SYNTHETIC SPEECH, NOT RECORDINGS: digits by 53 voices;")
    assert data.data_source == "synthetic"
    assert data.labels == [str(digit) for digit in range(10)]
    for part, found in zip(VOICES, (data.train_set, data.val_set, data.test_set), strict=True):
        assert found.targets.bincount().tolist() == [len(VOICES[part]) * len(LANGUAGES)] * 10
        assert found.waveforms.abs().amax(dim=1).min() > 1000
    lengths = [len(one.samples) / one.rate for one, _ in spoken_digits()["train"]]
    assert 0.1 < min(lengths) < 0.5 * max(lengths)  # rates differ


def test_no_voice_is_in_two_parts() -> None:
    voices = [voice for part in VOICES.values() for voice in part]
    assert len(set(voices)) == len(voices)
    assert {path.name for path in Path(get_data_path(), "voices", "!v").iterdir()} >= set(voices)  # else all are one
    assert not {voice.rstrip("0123456789") for voice in VOICES["test"]} & {
        voice.rstrip("0123456789") for voice in VOICES["train"] if len(voice.rstrip("0123456789")) > 1
    }


@pytest.mark.slow
def test_every_process_hears_the_same_sounds() -> None:
    code = (
        "import hashlib; from src.audio.speech import spoken_digits; found = sum(spoken_digits().values(), []);"
        "print(hashlib.sha256(b''.join(one.samples.tobytes() for one, _ in found)).hexdigest())"
    )
    # The second process has drawn random numbers before.
    said = {in_copy(ROOT, "-c", f"{before}{code}") for before in ("", "import ctypes; ctypes.CDLL(None).rand(); ")}
    assert len(said) == 1
    assert re.fullmatch(r"[0-9a-f]{64}\n", said.pop())


def test_without_the_packages_an_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    spoken_digits.cache_clear()
    with pytest.raises(
        InputError, match=r"give your own with --data\.path, or install .*: pip install espeakng-loader"
    ):
        ready(source="synthetic")
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(InputError, match="sound files need the package soundfile: pip install soundfile"):
        ready(path=str(own_sounds(tmp_path / "sounds")))


def test_speakers_of_many_words_are_in_one_part_each(tmp_path: Path) -> None:
    folder = own_sounds(tmp_path / "sounds")
    files = sorted(folder.rglob("*.[wfW]*"))
    rows = [f"{file},{file.parent.name},speaker {number % 10}" for number, file in enumerate(files)]
    (tmp_path / "own.csv").write_text("\n".join(["path,label,speaker", *rows]))
    given = {"path_column": "path", "label_column": "label", "group_column": "speaker"}
    data = ready(path=str(tmp_path / "own.csv"), **given)
    count = len(files)
    assert len(data.train_set) >= 0.7 * count
    assert len(data.val_set) > 0
    assert len(data.test_set) > 0
    (tmp_path / "few.csv").write_text("\n".join(["path,label,speaker", *(row[:-1] + "0" for row in rows)]))
    with pytest.raises(InputError, match="1 groups are too few for a validation part: give more"):
        ready(path=str(tmp_path / "few.csv"), **given)
