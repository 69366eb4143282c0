"""Digits spoken by the speech synthesiser espeak-ng, for machines without recordings."""

import ctypes
import random
from functools import cache
from typing import Any

import numpy as np

from src.audio.recordings import Recording
from src.engine.system.errors import InputError

LANGUAGES = ("en-us", "de", "fr", "es", "it")
# Voices of espeak-ng whose first three formants are within 30 % of the language's own, as those of people are; without
# whispers. Those of validation and test are not heard in training.
VOICES = {
    "train": (
        *("Alex", "Andrea", "Diogo", "Gene", "Henrique", "Hugo", "Mario", "adam", "antonio", "benjamin", "ed"),
        *("edward", "f1", "grandma", "grandpa", "ian", "iven", "john", "klatt", "klatt4", "m1", "m2", "m4", "m6", "m8"),
        *("max", "michel", "miguel", "norbert", "pablo", "pedro", "quincy", "rob", "sandro", "steph"),
    ),
    "val": ("Mike", "Nguyen", "anika", "f4", "m5", "paul"),
    "test": ("Annie", "Denis", "Reed", "Storm", "announcer", "aunty", "david", "f2", "f5", "m3", "m7", "victor"),
}
RATES, PITCHES = (80, 150), (30, 70)  # words per minute; 0 to 99
# From espeak-ng's speak_lib.h.
SYNCHRONOUS, RATE, PITCH, UTF8 = 2, 1, 3, 1
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@cache
def spoken_digits() -> dict[str, list[tuple[Recording, str]]]:
    """For each part, all digits in all languages by all of its voices, at random rates and pitches.

    Made once per process: espeak-ng gives the same sounds only in the same order from its start. Raises InputError if
    the package espeakng-loader is not installed, or does not work here.
    """
    speak = Synthesiser()
    draw = random.Random(0)
    return {
        part: [
            (speak(digit, f"{language}+{voice}", draw.randint(*RATES), draw.randint(*PITCHES)), digit)
            for voice in voices
            for language in LANGUAGES
            for digit in "0123456789"
        ]
        for part, voices in VOICES.items()
    }


class Synthesiser:
    """Speaks with espeak-ng, in this process; raises InputError if it cannot."""

    def __init__(self) -> None:
        try:
            import espeakng_loader

            self.library = ctypes.CDLL(espeakng_loader.get_library_path())
            folder = espeakng_loader.get_data_path().encode()
        except (ImportError, OSError, RuntimeError) as error:
            raise InputError(
                f"no recordings given and no speech synthesiser ({error}): give your own with --data.path, or install"
                " the synthesiser: pip install espeakng-loader"
            ) from error
        self.sample_rate: int = self.library.espeak_Initialize(SYNCHRONOUS, 0, folder, 0)
        self.pieces: list[Any] = []
        self.callback = CALLBACK(self._collect)  # kept: the library calls it
        self.library.espeak_SetSynthCallback(self.callback)
        # Some voices use espeak-ng's own noise generator, seeded by the time; others use C's.
        self.seeds = [self.library.espeak_ng_SetRandSeed, getattr(self.library, "srand", lambda _: None)]

    def _collect(self, samples: Any, count: int, _: Any) -> int:
        if samples and count:
            self.pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def __call__(self, text: str, voice: str, rate: int, pitch: int) -> Recording:
        """Speak a text with a voice such as `de+f2`: a language and a speaker."""
        self.pieces.clear()
        library, said = self.library, text.encode()
        for seed in self.seeds:
            seed(ctypes.c_long(0))
        failed = library.espeak_SetVoiceByName(voice.encode())
        failed = failed or library.espeak_SetParameter(RATE, rate, 0) or library.espeak_SetParameter(PITCH, pitch, 0)
        size = ctypes.c_size_t(len(said) + 1)
        failed = failed or library.espeak_Synth(said, size, 0, 1, 0, UTF8, None, None)
        if failed or not self.pieces:
            raise InputError(
                f"espeak-ng cannot speak {text!r} with voice {voice}: give your own recordings with --data.path"
            )
        return Recording(np.concatenate(self.pieces).astype(np.float32) / 2**15, self.sample_rate, 1)
