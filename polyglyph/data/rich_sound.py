"""Sounds for training a codec that is to carry real ones: procedural music, many voices.

Each sound is a pure function of (modality, seed, index): one second, mono, float32 at 16 kHz.
`music` plays notes and chords of several timbres with envelopes and vibrato, drums and coloured
noise; `voices` reads random sentences of words and pseudo-words in espeak-ng's languages, variants,
speeds and pitches. HELD_OUT_SPEAKERS and HELD_OUT_SENTENCES never train: codecs are judged on them.
No recording is used. Knows nothing of codecs.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from polyglyph.data.shapes.sound import N_SAMPLES, SAMPLE_RATE
from polyglyph.data.shapes.speech import SAMPLE_RATE as SPOKEN_RATE
from polyglyph.data.shapes.speech import Speaker, speech_samples
from polyglyph.data.training_media import pick

_Array = np.ndarray
_PEAK = 0.98
_MUSIC, _CUTS, _TEXTS = 11, 12, 13  # streams of random numbers
_GROUP, _REUSE = 8, 8  # utterances that are alive together, and cuts of each


def _rng(seed: int, stream: int, index: int) -> np.random.Generator:
    return np.random.default_rng((seed, stream, index))


# --- music -------------------------------------------------------------------------------------


def music(modality: str, seed: int, index: int) -> _Array:
    """One second of procedural music, (1, S) in [-1, 1]; InputError for another modality."""
    return pick({"audio": _music}, "music", modality)(seed, index)


def _music(seed: int, index: int) -> _Array:
    rng = _rng(seed, _MUSIC, index)
    out = np.zeros(N_SAMPLES, np.float32)
    kind = rng.random()
    if kind < 0.8:
        _play(out, rng)
    if 0.55 < kind < 0.95:
        _beat(out, rng)
    if kind > 0.9 or rng.random() < 0.1:
        level = 10 ** rng.uniform(-2.5, -0.7)
        out += level * _coloured(rng, N_SAMPLES) * _swell(rng, N_SAMPLES)
    return _levelled(out, rng)


def _levelled(x: _Array, rng: np.random.Generator) -> _Array:
    """At a random level, most often near full scale; (1, S)."""
    peak = float(np.abs(x).max())
    loud = 10 ** -abs(rng.normal(0, 0.35)) * _PEAK
    return (x * np.float32(loud / max(peak, 1e-4))).astype(np.float32)[None]


def _play(out: _Array, rng: np.random.Generator) -> None:
    """Adds notes of one or two timbres from a scale, some together as chords, in place."""
    root = 55 * 2 ** rng.uniform(0, 2.5)
    scale = ((0, 2, 4, 7, 9), (0, 3, 5, 7, 10), (0, 2, 4, 5, 7, 9, 11))[rng.integers(3)]
    beat = int(rng.uniform(0.11, 0.5) * SAMPLE_RATE)
    timbres = [_Timbre(rng) for _ in range(rng.integers(1, 3))]
    start = -int(rng.integers(0, beat))
    while start < N_SAMPLES:
        timbre = timbres[rng.integers(len(timbres))]
        n = int(beat * rng.choice([0.5, 1, 1, 2]))
        for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
            step = scale[rng.integers(len(scale))] + 12 * rng.integers(0, 3)
            note = timbre.note(root * 2 ** (step / 12), n, rng)
            heard = note[max(0, -start) : N_SAMPLES - start]
            out[max(0, start) : max(0, start) + len(heard)] += heard
        start += beat


class _Timbre:
    """An instrument: partials, their inharmonicity and decay, an envelope, a vibrato."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.n_partials = int(rng.integers(1, 13))
        self.tilt = rng.uniform(0.3, 2.2)
        self.weights = rng.exponential(1.0, self.n_partials) ** 0.7
        if rng.random() < 0.25:
            self.weights[1::2] = 0  # odd ones alone, as of a clarinet
        self.stretch = rng.choice([0.0, 0.0, 2e-4, 5e-3, 0.12])
        self.attack_s = 10 ** rng.uniform(-2.7, -0.9)
        self.decay_s = 10 ** rng.uniform(-1.3, 0.5)
        self.vibrato = rng.choice([0.0, 0.0, rng.uniform(0.002, 0.012)])
        self.vibrato_hz = rng.uniform(3.5, 7.5)
        self.breath = rng.choice([0.0, 0.0, 0.02, 0.08])

    def note(self, hz: float, n: int, rng: np.random.Generator) -> _Array:
        """(n,) float32, about unit peak."""
        t = np.arange(n, dtype=np.float32) / SAMPLE_RATE
        phase = 2 * math.pi * hz * t
        if self.vibrato:
            turn = 2 * math.pi * self.vibrato_hz
            phase += hz * self.vibrato * 2 * math.pi / turn * np.sin(turn * t)
        k = np.arange(1, self.n_partials + 1)
        ratio = k * np.sqrt(1 + self.stretch * k**2)
        kept = ratio * hz < 0.47 * SAMPLE_RATE
        gain = (self.weights * k**-self.tilt)[kept]
        waves = np.sin(ratio[kept, None].astype(np.float32) * phase
                       + rng.uniform(0, 6.28, (int(kept.sum()), 1)).astype(np.float32))  # fmt: skip
        wave = gain.astype(np.float32) @ waves / np.float32(gain.sum() + 1e-6)
        if self.breath:
            wave += self.breath * rng.normal(0, 1, n).astype(np.float32)
        release = np.minimum(1, np.arange(n, 0, -1) / (0.02 * SAMPLE_RATE))
        envelope = np.minimum(1, t / self.attack_s) * np.exp(-t / self.decay_s) * release
        return (wave * envelope * rng.uniform(0.3, 1)).astype(np.float32)


def _beat(out: _Array, rng: np.random.Generator) -> None:
    """Adds a bar of drums in place: kick, snare and hat on a grid of sixteenths."""
    step = int(rng.uniform(0.07, 0.16) * SAMPLE_RATE)
    drums = (_kick(rng), _noise_hit(rng, 0.08, 0.5), _noise_hit(rng, 0.03, 0.95))
    level = rng.uniform(0.3, 1.2)
    for i, start in enumerate(range(0, N_SAMPLES, step)):
        chances = (0.8 if i % 4 == 0 else 0.1, 0.8 if i % 8 == 4 else 0.08, 0.5)
        for drum, chance in zip(drums, chances, strict=True):
            if rng.random() < chance:
                part = out[start : start + len(drum)]
                part += np.float32(level * rng.uniform(0.5, 1)) * drum[: len(part)]


def _kick(rng: np.random.Generator) -> _Array:
    t = np.arange(int(0.25 * SAMPLE_RATE), dtype=np.float32) / SAMPLE_RATE
    low, fall = rng.uniform(40, 70), rng.uniform(0.015, 0.05)
    phase = 2 * math.pi * (low * t + 120 * fall * (1 - np.exp(-t / fall)))
    return (np.sin(phase) * np.exp(-t / rng.uniform(0.05, 0.12))).astype(np.float32)


def _noise_hit(rng: np.random.Generator, decay_s: float, edge: float) -> _Array:
    """A burst of noise; `edge`, up to 1, takes its low half away."""
    n = int(0.25 * SAMPLE_RATE)
    noise = rng.normal(0, 0.35, n + 1).astype(np.float32)
    noise = noise[1:] - np.float32(edge) * noise[:-1]
    fall = np.arange(n) / (SAMPLE_RATE * decay_s * rng.uniform(0.5, 2))
    return (noise * np.exp(-fall)).astype(np.float32)


def _coloured(rng: np.random.Generator, n: int) -> _Array:
    """(n,) noise with a random slope, 0 to -12 dB an octave, and now and then a band."""
    spectrum = np.fft.rfft(rng.normal(0, 1, n))
    hertz = np.fft.rfftfreq(n, 1 / SAMPLE_RATE) + 20
    gain = hertz ** -rng.uniform(0, 2)
    if rng.random() < 0.4:
        gain *= np.exp(-(np.log2(hertz / 200 / 2 ** rng.uniform(0, 5)) ** 2) / 0.3)
    wave = np.fft.irfft(spectrum * gain, n)
    return (wave / (np.abs(wave).max() + 1e-9)).astype(np.float32)


def _swell(rng: np.random.Generator, n: int) -> _Array:
    """(n,) a smooth random level in [0, 1]."""
    points = rng.uniform(0, 1, rng.integers(2, 9)) ** 2
    return np.interp(np.linspace(0, len(points) - 1, n), np.arange(len(points)), points)


# --- voices ------------------------------------------------------------------------------------

_LANGUAGES = (
    "en-us en-us en-us en en-us-nyc en-029 de fr es it pt pl nl sv fi hu tr ro cs id sw la eo"
)
_VARIANTS = (
    "m1 m2 m3 m5 m6 m7 f1 f2 f3 f5 klatt klatt2 klatt4 Alex Andrea Annie Diogo Gene Hugo Jacky "
    "Lee Mario Mike adam anika aunty belinda boris david ed edward grandma gustave "
    "iven john linda marcelo max miguel norbert pablo paul quincy rob robert sandro steph travis "
    "victor zac whisper UniRobot"
)
"""Of espeak-ng's variants two, Reed and caleb, say a text differently from one time to the next."""

HELD_OUT_SPEAKERS = (
    Speaker(),
    Speaker("en-gb-x-rp+Michael", words_a_minute=150, pitch=42),
    Speaker("en-gb-scotland+Alicia", words_a_minute=180, pitch=60),
    Speaker("en-gb-x-gbclan+m4", words_a_minute=160, pitch=35),
    Speaker("en-us+f4", words_a_minute=170, pitch=55),
    Speaker("da+Marco", words_a_minute=155, pitch=48),
)
"""Speakers to judge codecs by. The first is the one of the library's `speech`, whose plain voice
trains too; the voices of the others never do."""

HELD_OUT_SENTENCES = (
    "A gentle breeze carried the smell of bread across the harbour.",
    "Seven engineers argued about the bridge until midnight.",
    "Please leave your umbrella beside the wooden door.",
    "The orchestra finished its concert with a lively dance.",
    "Nobody expected the train to arrive before sunrise.",
    "Fresh snow covered the quiet valley during the night.",
    "My grandmother keeps old letters in a velvet box.",
    "The judge asked whether the witness had seen the car.",
    "Thick fog delayed every flight to the northern islands.",
    "Children chased the yellow kite over the sandy hill.",
    "He sharpened six pencils and began to draw the castle.",
    "Which of these recipes needs both ginger and lemon?",
    "The museum shows a clock that runs for a hundred years.",
    "Her brother repairs violins in a workshop near the square.",
    "Rain fell softly on the roof while they played chess.",
    "We should measure the width of the shelf once more.",
    "An owl watched the mouse from the branch of an oak.",
    "They paddled the canoe through reeds and shallow water.",
    "Zoology students counted thirty geese on the frozen lake.",
    "Could you explain how the engine turns heat into motion?",
    "Strong coffee and a warm scarf made the morning easier.",
    "The village choir sang beneath the chestnut trees.",
    "Every puzzle in this book has exactly one solution.",
    "Voices echoed from the far side of the deep quarry.",
)

_WORDS = (
    "time person year way day thing man world life hand part child eye woman place work week case "
    "point company number group problem fact be have do say get make go know take see come think "
    "look want give use find tell ask seem feel try call good new first last long great little own "
    "other old right big high different small large next early young important few public bad same "
    "able to of in for on with at by from up about into over after the and a that it not he as you "
    "this but his they her she or an will my one all would there their what so out if who which me "
    "when can like no just him people some could them than then now only its also back two how our "
    "well even because any these most us house water school story music letter paper yellow circle "
    "seventeen thousand Thursday February judge measure vision thing singing thought father zebra"
)
_ONSETS = (
    "b bl br d dr f fl fr g gl gr h j k kl kr l m n p pl pr r s sh sk sl sp st str t th tr v w y z "
    "ch"
)
_NUCLEI = "a e i o u ai ee oo ou ar er or ea"
_CODAS = "- - - b d f g k l m n ng p r s sh t th v x z nd nt st lk mp ks"  # -: none


def held_out_speech(number: int) -> _Array:
    """Sentence `number` of HELD_OUT_SENTENCES, by the speakers in turn: (S,) float32 at 16 kHz."""
    who = HELD_OUT_SPEAKERS[number % len(HELD_OUT_SPEAKERS)]
    return _said(HELD_OUT_SENTENCES[number], who)


def voices(modality: str, seed: int, index: int) -> _Array:
    """One second of someone reading, (1, S) in [-1, 1].

    InputError for another modality; MissingExtraError without the extra `speech`."""
    return pick({"audio": _voices}, "voices", modality)(seed, index)


def _voices(seed: int, index: int) -> _Array:
    block, within = divmod(index, _GROUP * _REUSE)
    samples = _utterance(seed, block * _GROUP + within % _GROUP)
    rng = _rng(seed, _CUTS, index)
    start = int(rng.integers(0, len(samples) - N_SAMPLES + 1))
    cut = samples[start : start + N_SAMPLES].astype(np.float32) / 32768
    # Half as loud as it comes, at most: to the level at which the library speaks and below.
    cut = cut * np.float32(10 ** -abs(rng.normal(0, 0.25)) * rng.choice([1, 1.3]))
    return np.clip(cut, -_PEAK, _PEAK)[None]


def speaker(seed: int, number: int) -> Speaker:
    """Who reads the utterance: a language, a variant of the voice, a speed and a pitch."""
    rng = _rng(seed, _TEXTS, number)
    name = str(rng.choice(_LANGUAGES.split()))
    if rng.random() < 0.75:
        name = f"{name}+{rng.choice(_VARIANTS.split())}"
    if rng.random() < 0.15:
        return Speaker("en-us")
    return Speaker(
        name,
        words_a_minute=int(rng.integers(120, 240)),
        pitch=int(np.clip(rng.normal(50, 18), 0, 99)),
        pitch_range=int(np.clip(rng.normal(50, 20), 0, 99)),
    )


def sentences(seed: int, number: int) -> str:
    """What is read: some twenty words and pseudo-words."""
    rng = _rng(seed, _TEXTS + 1, number)
    share = rng.choice([0.1, 0.5, 0.9])
    words = []
    for i in range(int(rng.integers(14, 24))):
        word = str(rng.choice(_WORDS.split())) if rng.random() > share else _pseudo_word(rng)
        words.append(word + (rng.choice([",", ".", "?", ""]) if i % 6 == 5 else ""))
    return " ".join(words) + "."


def _pseudo_word(rng: np.random.Generator) -> str:
    parts = [part.split() for part in (_ONSETS, _NUCLEI, _CODAS)]
    n_syllables = int(rng.integers(1, 4))
    sounds = [str(rng.choice(part)) for _ in range(n_syllables) for part in parts]
    return "".join(sounds).replace("-", "")


@lru_cache(maxsize=64)
def _utterance(seed: int, number: int) -> _Array:
    """Some seven seconds of one speaker, int16 (S,) at 16 kHz, at least a second."""
    samples = _said(sentences(seed, number), speaker(seed, number))
    samples = np.pad(samples, (0, max(0, N_SAMPLES - len(samples))))
    return np.round(np.clip(samples, -1, 1) * 32767).astype(np.int16)


def _said(text: str, who: Speaker) -> _Array:
    """(S,) float32 at 16 kHz."""
    from polyglyph.media import resample

    return resample(speech_samples(text, who)[None], SPOKEN_RATE, SAMPLE_RATE)[0]
