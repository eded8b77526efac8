"""Voices by formula: harmonics of a pitch through the formants of vowels, as the spectra that encoders hear.

A speaker has a pitch, a length of the vocal tract, which scales all formants, and a fall of the harmonics;
an utterance is three vowels that run into one another, with a wavering pitch and a little noise.

Reference: Peterson and Barney, "Control Methods Used in a Study of the Vowels", 1952,
https://doi.org/10.1121/1.1906875, table II (formants of men, in Hz).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["utterances"]

_RATE, _SAMPLES, _WINDOW, _STEP, _BANDS = 16000, 8000, 400, 160, 40
_FORMANTS = torch.tensor(
    [
        [270.0, 2290.0, 3010.0],
        [390.0, 1990.0, 2550.0],
        [530.0, 1840.0, 2480.0],
        [660.0, 1720.0, 2410.0],
        [730.0, 1090.0, 2440.0],
        [570.0, 840.0, 2410.0],
        [440.0, 1020.0, 2240.0],
        [300.0, 870.0, 2240.0],
        [640.0, 1190.0, 2390.0],
        [490.0, 1350.0, 1690.0],
    ]
)
_WIDTHS = torch.tensor([80.0, 120.0, 160.0])[:, None]  # of resonances, in Hz
_LEVEL = 10 ** (-30 / 20)  # to which the encoder's authors bring every recording


def utterances(each: int, *, speakers: int = 10, seed: int) -> tuple[Tensor, Tensor]:
    """Return mel spectra, shape (n, frames, 40), and their speakers' numbers, shape (n,).

    Args:
        each: Utterances of each speaker.
        speakers: The first so many; they are the same for every ``seed``.
        seed: Of what they say.
    """
    voices = torch.rand(speakers, 3, generator=torch.Generator().manual_seed(100))
    said = torch.Generator().manual_seed(seed)
    spectra = [_mel(_utterance(voice, said)) for voice in voices for _ in range(each)]
    return torch.stack(spectra), torch.arange(speakers).repeat_interleave(each)


def _utterance(voice: Tensor, said: torch.Generator) -> Tensor:
    least, span = torch.tensor([100.0, 0.85, 0.6]), torch.tensor([130.0, 0.35, 0.8])
    pitch, tract, fall = (least + span * voice).tolist()
    vowels = _FORMANTS[torch.randint(len(_FORMANTS), (3,), generator=said)] * tract
    formants = F.interpolate(vowels.T[None], _SAMPLES, mode="linear", align_corners=True)[0]
    speed, begin = torch.rand(2, generator=said).tolist()
    time = torch.arange(_SAMPLES) / _RATE
    wavering = 1 + 0.1 * torch.sin(2 * math.pi * (4 * speed * time + begin))
    frequency = pitch * wavering * (1 + 0.05 * torch.randn(1, generator=said))
    phase = 2 * math.pi * torch.cumsum(frequency / _RATE, 0)
    wave = torch.zeros(_SAMPLES)
    for harmonic in range(1, int(4000 / pitch)):
        resonance = (1 / (1 + ((harmonic * frequency - formants) / _WIDTHS) ** 2)).sum(0)
        wave += harmonic**-fall * resonance * torch.sin(harmonic * phase)
    wave = wave / wave.std() + 0.02 * torch.randn(_SAMPLES, generator=said)
    return wave / wave.std() * _LEVEL


def _mel(wave: Tensor) -> Tensor:
    """Return the power in 40 bands, 100 times a second: linear in pitch to 1 kHz, logarithmic above."""
    window = torch.hann_window(_WINDOW)
    power = torch.stft(wave, _WINDOW, _STEP, window=window, return_complex=True).abs() ** 2
    mels = torch.linspace(0.0, 15 + 27 * math.log(8) / math.log(6.4), _BANDS + 2)
    edges = torch.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    bins = torch.linspace(0.0, _RATE / 2, _WINDOW // 2 + 1)
    triangles = torch.minimum((bins - low) / (middle - low), (high - bins) / (high - middle)).clamp(min=0)
    return ((triangles * 2 / (high - low)) @ power).T
