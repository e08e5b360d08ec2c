"""Texts as speech, through espeak-ng: 22,050 Hz, mono, no system package.

The library comes with the wheel `espeakng-loader` (GPL; loaded at run time, extra `speech`) and is
called through ctypes. It has one state for the whole process, hence the lock. Knows nothing of
scenes or ids.
"""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from polyglyph.errors import InputError, MachineError, missing_extra

if TYPE_CHECKING:
    from polyglyph.media import Audio

SAMPLE_RATE = 22_050
WORDS_A_MINUTE = 165
MAX_CHARACTERS = 10_000
_RETRIEVAL, _UTF8, _BY_CHARACTER = 1, 1, 1  # constants of espeak's speak_lib.h
_RATE, _PITCH, _PITCH_RANGE = 1, 3, 4
_LOCK = threading.Lock()
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)


@dataclass(frozen=True)
class Speaker:
    """Who reads: a voice of espeak-ng's, alone ("en-us") or with a variant ("en-us+f3").

    pitch, pitch_range: 0 to 99, 50 is the voice's own."""

    voice: str = "en-us"
    words_a_minute: int = WORDS_A_MINUTE
    pitch: int = 50
    pitch_range: int = 50


class _Voice:
    """The library, freshly loaded, and what it says; `close` unloads it.

    It lives for one text: the variables that it keeps from one to the next (phase of the flutter,
    sign of the upper harmonics) would make samples depend on what was said before.
    """

    def __init__(self, speaker: Speaker) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise missing_extra("espeakng-loader", "speech") from error
        library: Any = espeakng_loader.load_library()
        if library is None:
            raise MachineError("espeak-ng's library does not load on this machine")
        home = Path(espeakng_loader.get_data_path()).parent
        rate = library.espeak_Initialize(_RETRIEVAL, 0, str(home).encode(), 0)
        if rate != SAMPLE_RATE:
            raise MachineError(f"espeak-ng should start at {SAMPLE_RATE} Hz; it said {rate}")
        self.library = library
        if library.espeak_SetVoiceByName(speaker.voice.encode()) != 0:
            self.close()  # a second start of a library that is loaded hangs
            raise MachineError(f"espeak-ng has no voice named {speaker.voice}")
        library.espeak_SetParameter(_RATE, speaker.words_a_minute, 0)
        library.espeak_SetParameter(_PITCH, speaker.pitch, 0)
        library.espeak_SetParameter(_PITCH_RANGE, speaker.pitch_range, 0)
        library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        self.parts: list[np.ndarray] = []
        self.keep = _CALLBACK(self.hear)
        library.espeak_SetSynthCallback(self.keep)

    def hear(self, wave: Any, n: int, events: Any) -> int:
        if wave and n > 0:
            self.parts.append(np.ctypeslib.as_array(wave, (n,)).copy())
        return 0

    def say(self, text: str) -> np.ndarray:
        raw = text.encode()
        status = self.library.espeak_Synth(
            raw, ctypes.c_size_t(len(raw) + 1), 0, _BY_CHARACTER, 0, _UTF8, None, None
        )
        if status != 0 or self.library.espeak_Synchronize() != 0:
            raise MachineError(f"espeak-ng failed with status {status}")
        return np.concatenate([np.zeros(0, np.int16), *self.parts])

    def close(self) -> None:
        import _ctypes

        self.library.espeak_Terminate()
        if hasattr(_ctypes, "dlclose"):
            _ctypes.dlclose(self.library._handle)


def speech_samples(text: str, speaker: Speaker = Speaker()) -> np.ndarray:
    """The text read aloud by `speaker`, float32 (S,) at 22,050 Hz in [-1, 1].

    InputError for text that gives no sound or has more than 10,000 characters;
    MissingExtraError without the extra `speech`.
    """
    if len(text) > MAX_CHARACTERS:
        raise InputError(
            f"speech takes up to {MAX_CHARACTERS} characters; got {len(text)}; split the text"
        )
    if "\0" in text or not text.strip():
        raise InputError(f"speech needs words; got {text[:40]!r}")
    with _LOCK:
        voice = _Voice(speaker)
        try:
            samples = voice.say(text)
        finally:
            voice.close()
    if not len(samples):
        raise InputError(f"speech needs words that can be spoken; got {text[:40]!r}")
    return samples.astype(np.float32) / 32768


def speech(text: str) -> Audio:
    """The text read aloud, as an Audio of one channel; errors as of `speech_samples`."""
    from polyglyph.media import Audio

    return Audio(speech_samples(text)[None], SAMPLE_RATE)
