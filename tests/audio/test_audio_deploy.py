"""Sounds in the commands that predict, export and serve."""

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from src.audio.spoken_words import SpokenWordsDataModule
from src.engine.deploy.predicting import predict
from tests.audio.helpers import RATE, own_sounds, tone
from tests.engine.deploy.exports import SUFFIXES, check_format, check_int8
from tests.engine.deploy.served import bars_of, browser, service


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {Path(row["input"]).name: row for row in csv.DictReader(file)}


@pytest.mark.slow
def test_files_are_predicted_and_those_that_cannot_be_used_say_why(
    tones: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    soundfile.write(folder / "a.wav", tone(3100), RATE)
    soundfile.write(folder / "b.flac", tone(310, 3, 44100, 2), 44100)
    (folder / "c.wav").write_bytes(b"")
    (folder / "d.wav").write_bytes((folder / "a.wav").read_bytes()[:3000])
    (folder / "notes.txt").write_text("no sound")
    output = tmp_path / "out.csv"
    assert predict(["--ckpt_path", tones, str(folder), "gone.wav", "--output", str(output)]) == 3
    rows = rows_of(output)
    assert [row["label"] for row in rows.values()] == ["high", "low", "", "", ""]
    assert [row["note"] for row in rows.values()] == [
        "",
        "resampled from 44,100 to 16,000 Hz; mean of 2 channels",
        *[""] * 3,
    ]
    said = ["", "", "the file is empty", "the file is truncated: it ends before its sound does", "no such file"]
    assert [row["error"] for row in rows.values()] == said
    assert "1 .txt" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    assert predict(["--ckpt_path", tones, str(tmp_path / "none"), "--output", str(tmp_path / "none.csv")]) == 3
    assert rows_of(tmp_path / "none.csv")["none"]["error"] == "no .wav or .flac file in this folder"


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_sounds_are_predicted_with_weights_of_another_type(precision: str, tones: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(3100), RATE)
    soundfile.write(tmp_path / "b.wav", 1000 * tone(310), RATE, subtype="FLOAT")
    words = ["--ckpt_path", tones, str(tmp_path), "--output", str(tmp_path / "out.csv"), "--accelerator=cpu"]
    assert predict([*words, f"--precision={precision}"]) == 0
    assert [row["label"] for row in rows_of(tmp_path / "out.csv").values()] == ["high", "low"]


def test_folders_are_the_true_classes(tones: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(own_sounds(tmp_path / "sounds"))
    assert predict(["--ckpt_path", tones, folder, "--truth", "folder", "--output", str(tmp_path / "out.csv")]) == 0
    (accuracy,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("acc ")]
    assert float(accuracy.split()[1]) > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("form", SUFFIXES)
def test_a_network_is_exported_with_its_spectrogram(
    form: str, tones: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new.wav"
    soundfile.write(path, tone(3050), RATE)
    (tmp_path / "model").mkdir()
    more = ("--data.path", str(own_sounds(tmp_path / "sounds")))
    shown = check_format(tones, form, tmp_path / "model", path, monkeypatch, *more)
    if form != "safetensors":
        assert shown == "high"


@pytest.mark.parametrize("place", ["short", "long"])
def test_the_program_beside_an_exported_model_hears_what_the_service_does(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silence = np.zeros((2 * RATE, 1))
    sound = tone(500, 0.4) if place == "short" else np.concatenate([silence, tone(500, 0.7), silence[:500]])
    soundfile.write(tmp_path / "a.wav", sound, RATE)
    soundfile.write(tmp_path / "b.wav", sound, RATE // 2)
    data = SpokenWordsDataModule(source="synthetic")
    (expected,) = data.prepare([data.read_file(tmp_path / "a.wav")])
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "a.wav")])
    names: dict[str, Any] = {"np": np, "sys": sys}
    exec("\n".join(data.file_example), names)
    assert np.abs(names["values"][0] - expected.numpy()).max() < 1e-4
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "b.wav")])
    with pytest.raises(AssertionError, match="8000 Hz: give 16000"):
        exec("\n".join(data.file_example), names)


@pytest.mark.slow
def test_a_network_of_int8_is_as_good(tones: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    check_int8(tones, tmp_path / "model", 80, "--data.path", str(own_sounds(tmp_path / "sounds")))


def as_file(sound: object, rate: int = RATE, form: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound, rate, format=form)
    return file.getvalue()


@pytest.mark.slow
def test_a_sound_is_recorded_in_the_page_and_files_are_sent(tones: str, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "high.wav", tone(3000, 4, 48000), 48000)
    soundfile.write(tmp_path / "low.flac", tone(300), RATE)
    fake = (
        "--use-fake-device-for-media-stream --use-fake-ui-for-media-stream --autoplay-policy=no-user-gesture-required"
    )
    with service(tones, "--max_body_mb", "1") as one:
        with browser(*fake.split(), f"--use-file-for-fake-audio-capture={tmp_path / 'high.wav'}") as page:
            page.goto(f"http://127.0.0.1:{one.port}/")
            page.click("#record")
            page.wait_for_function("document.getElementById('record').textContent === 'Stop'")
            page.wait_for_timeout(1500)
            page.click("#record")
            bars = bars_of(page)
            assert max(bars, key=lambda label: bars[label].probability) == "high"
            page.set_input_files("#file", tmp_path / "low.flac")
            page.wait_for_selector(".best[data-label=low]")
        assert one.predict(as_file(tone(300))).json["label"] == "low"
        answer = one.predict(as_file(tone(3000, 1, 8000, 2), 8000)).json
        assert (answer["label"], answer["note"]) == ("high", "resampled from 8,000 to 16,000 Hz; mean of 2 channels")
        form = (
            b'--x\r\nContent-Disposition: form-data; name="f"; filename="a.wav"\r\n\r\n'
            + as_file(tone(300))
            + b"\r\n--x--\r\n"
        )
        assert one.predict(form, Content_Type="multipart/form-data; boundary=x").json["label"] == "low"
        for body, reason in (
            (b"", "the body is empty: send a file: .wav, .flac"),
            (b"words", "not a usable file: not a sound that can be read to its end"),
            (json.dumps({"text": "one"}).encode(), "not a usable file"),
            (as_file(tone(300))[:500], "the file is truncated"),
            (as_file(np.zeros((2**24 + 1, 1)), form="FLAC"), "it is longer than 1,048.58 s"),
        ):
            answer = one.predict(body)
            assert answer.status == 422
            assert reason in answer.json["detail"]


@pytest.mark.slow
def test_a_page_without_a_microphone_says_so(tones: str) -> None:
    with service(tones) as one, browser() as page:
        page.goto(f"http://127.0.0.1:{one.port}/")
        page.click("#record")
        page.wait_for_function("document.getElementById('message').textContent.includes('microphone cannot be used')")
