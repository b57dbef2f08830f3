"""Recordings from files, bytes and arrays, and the same samples as from the feature extractor of wav2vec 2.0."""

import io

import numpy as np
import pytest
import soundfile
from transformers import ASTFeatureExtractor

from hf_distill.data.sounds import ExtractorReader, sound_reader
from hf_distill.sounds import Waveform, check_sound, read_sound
from tests.sounds import RATE, make_extractor, make_sound


def as_bytes(samples, rate=RATE, format="WAV", subtype=None):
    written = io.BytesIO()
    soundfile.write(written, samples, rate, format=format, subtype=subtype)
    return written.getvalue()


def test_a_recording_in_every_form(tmp_path):
    sound = make_sound("low")
    content = as_bytes(sound, subtype="FLOAT")
    (tmp_path / "low.wav").write_bytes(content)
    for form in (tmp_path / "low.wav", str(tmp_path / "low.wav"), content, sound, sound.astype(np.float64)):
        np.testing.assert_array_equal(read_sound(form, RATE), sound)
    np.testing.assert_allclose(read_sound(as_bytes(sound, format="FLAC"), RATE), sound, atol=1e-4)


def test_channels_are_averaged():
    left, right = make_sound("low"), make_sound("high")
    both = as_bytes(np.stack([left, right], axis=1), subtype="FLOAT")
    np.testing.assert_allclose(read_sound(both, RATE), (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("rate", [1600, 4410, 8000, 16000])
def test_a_recording_at_another_rate(rate):
    """A tone below half of both rates stays what it is, and one above half of the model's rate is removed."""
    time, own_time = np.arange(RATE) / RATE, np.arange(rate) / rate
    tone = read_sound(as_bytes(0.5 * np.sin(2 * np.pi * 300 * own_time), rate, subtype="FLOAT"), RATE)
    assert len(tone) == pytest.approx(RATE, abs=1)
    middle = slice(RATE // 4, 3 * RATE // 4)
    np.testing.assert_allclose(tone[middle], 0.5 * np.sin(2 * np.pi * 300 * time)[middle], atol=2e-3)
    if rate > 4000:
        above = read_sound(as_bytes(0.5 * np.sin(2 * np.pi * 1700 * own_time), rate, subtype="FLOAT"), RATE)
        assert np.abs(above[middle]).max() < 2e-2


@pytest.mark.parametrize(
    ("sound", "message"),
    [
        (b"", "is empty: replace or remove it"),
        (b"no recording at all", r"is not a recording of a format such as WAV, FLAC, MP3 or OGG \("),
        (as_bytes(make_sound("low"))[:200], "is truncated: replace or remove it"),
        (as_bytes(make_sound("low"), format="FLAC")[:120], "is (truncated|not a recording)"),
        (as_bytes(np.zeros(0)), "has no samples"),
        (as_bytes(np.full(10, np.nan), subtype="FLOAT"), "has samples that are not finite"),
        ("nowhere.wav", "is not a file: check the name"),
        (np.zeros((2, 10), np.float32), r"is a float32 array \[2, 10\], but must be floating point \[samples\]"),
        (np.zeros(10, np.int16), r"is a int16 array \[10\]"),
        (3, "must be a file name, bytes or a NumPy array, but is int"),
    ],
    ids=range(10),  # bytes as ids would differ between processes: a header may hold the time
)
def test_what_is_no_recording(sound, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        read_sound(sound, RATE)
    if isinstance(sound, bytes):
        with pytest.raises(ValueError, match=f"^{message}"):
            check_sound(sound)


@pytest.mark.parametrize("has_mask", [False, True])
@pytest.mark.parametrize("seconds", [0.05, 0.1, 0.2])
def test_the_same_inputs_as_its_extractor(has_mask, seconds):
    """The extractor normalizes without padding where there is no mask, as in training with a padding collator."""
    extractor, sound = make_extractor(has_mask), make_sound("low", seconds=seconds)
    inputs = sound_reader(extractor, 0.1).inputs(sound)
    options = {"padding": "max_length", "max_length": 200, "truncation": True} if has_mask else {}
    expected = extractor(sound[:200], sampling_rate=RATE, return_tensors="np", **options)
    values = expected["input_values"][0]
    np.testing.assert_array_equal(inputs["input_values"], np.pad(values, (0, 200 - len(values))))
    assert inputs["input_values"].dtype == np.float32
    if has_mask:
        np.testing.assert_array_equal(inputs["attention_mask"], expected["attention_mask"][0])
    assert inputs.keys() == ({"input_values", "attention_mask"} if has_mask else {"input_values"})


def test_spectrograms_come_from_the_extractor():
    extractor = ASTFeatureExtractor(sampling_rate=16000, num_mel_bins=16, max_length=32)
    reader = sound_reader(extractor, 1.0)
    assert isinstance(reader, ExtractorReader)
    sound = make_sound("low", rate=16000)
    expected = extractor(sound, sampling_rate=16000, return_tensors="np")["input_values"][0]
    np.testing.assert_array_equal(reader.inputs(sound)["input_values"], expected)
    assert isinstance(sound_reader(make_extractor(), 1.0), Waveform)
