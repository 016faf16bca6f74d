"""`read_ecg` on DICOM files: the real 12-lead recording inside the pydicom package, and changed copies of it."""

import zlib
from copy import deepcopy
from datetime import datetime

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from wfdb_files import LEADS

from ecgfm_hf.records import ECGReadError, read_ecg

REAL = get_testdata_file("waveform_ecg.dcm", download=False)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, about values that are damaged on purpose


@pytest.fixture(scope="module")
def real():
    return pydicom.dcmread(REAL)


@pytest.fixture
def small(real):
    """The first 100 samples of the real rhythm, without the other 200 kilobytes of the file."""
    dataset = Dataset()
    dataset.file_meta = deepcopy(real.file_meta)
    for keyword in ("SOPClassUID", "SOPInstanceUID", "PatientName", "PatientBirthDate", "PatientAge", "PatientSex"):
        dataset[keyword] = deepcopy(real[keyword])
    dataset.WaveformSequence = [deepcopy(real.WaveformSequence[0])]
    group = dataset.WaveformSequence[0]
    group.NumberOfWaveformSamples = 100
    group.WaveformData = group.WaveformData[: 100 * 24]
    return dataset


def group_and_lead(dataset, lead=1):
    return dataset.WaveformSequence[0], dataset.WaveformSequence[0].ChannelDefinitionSequence[lead]


def saved(dataset, tmp_path, syntax=ExplicitVRLittleEndian, name="changed.dcm"):
    dataset.file_meta.TransferSyntaxUID = syntax
    path = tmp_path / name
    encoding = {"implicit_vr": syntax == ImplicitVRLittleEndian, "little_endian": syntax != ExplicitVRBigEndian}
    pydicom.dcmwrite(path, dataset, **encoding, enforce_file_format=True)
    return path


def refused(dataset, tmp_path, *messages):
    path = saved(dataset, tmp_path)
    with pytest.raises(ECGReadError) as caught:
        read_ecg(path)
    for message in (str(path), *messages):
        assert message in str(caught.value)


def test_the_real_recording_is_read(real):
    record = read_ecg(REAL)
    assert (record.recording_id, record.path) == ("waveform_ecg", REAL)
    assert (record.samples.shape, record.samples.dtype) == ((12, 10_000), np.int16)
    assert (record.sampling_rate, record.lead_names, record.units) == (1000.0, LEADS, ("uV",) * 12)
    assert (record.age, record.sex, record.time) == (42.0, "F", datetime(2013, 1, 25, 10, 59, 19))
    assert np.allclose(record.signal, real.waveform_array(0).T / 1000, rtol=1e-12)
    signal = dict(zip(record.lead_names, record.signal, strict=True))
    tolerance = 0.01 * np.ptp(signal["II"])
    assert 0.5 < np.ptp(signal["II"]) < 3  # mV
    assert np.abs(signal["I"] + signal["III"] - signal["II"]).max() < tolerance
    assert np.abs(signal["aVR"] + (signal["I"] + signal["II"]) / 2).max() < tolerance
    assert np.abs(signal["aVL"] - (signal["I"] - signal["III"]) / 2).max() < tolerance
    assert np.abs(signal["aVF"] - (signal["II"] + signal["III"]) / 2).max() < tolerance


def test_names_and_birth_dates_are_not_even_parsed(small, tmp_path, monkeypatch):
    parsed = []
    original = pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda *a, **k: parsed.append(original(*a, **k)) or parsed[-1])
    small.PatientName = "Doe^Jane"
    small.PatientID = small.AccessionNumber = "Doe4711"
    small.PatientAddress = small.PatientComments = small.StudyDescription = "Doe's"
    record = read_ecg(saved(small, tmp_path))
    found = {element.keyword for element in parsed[0]}
    assert found <= {"SOPClassUID", "PatientAge", "PatientSex", "WaveformSequence", "SpecificCharacterSet"}
    assert "Doe" not in repr(record)
    assert (record.patient_id, record.report) == (None, None)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_every_uncompressed_encoding_gives_the_same_samples(small, tmp_path, syntax):
    samples = read_ecg(saved(small, tmp_path)).samples
    group, _ = group_and_lead(small)
    group.add_new("WaveformPaddingValue", "OW", b"\x12\x34")
    if syntax == ExplicitVRBigEndian:
        group.WaveformData = np.frombuffer(group.WaveformData, "<i2").astype(">i2").tobytes()
    record = read_ecg(saved(small, tmp_path, syntax, name="no_suffix"))
    assert np.array_equal(record.samples, samples)
    padding = 0x1234 if syntax == ExplicitVRBigEndian else 0x3412
    assert record.missing_value is None  # no sample has it
    frames = (
        np.frombuffer(group.WaveformData, ">i2" if syntax == ExplicitVRBigEndian else "<i2").reshape(100, 12).copy()
    )
    frames[-20:] = padding
    group.WaveformData = frames.tobytes()
    record = read_ecg(saved(small, tmp_path, syntax, name="no_suffix"))
    assert record.missing_value == padding
    assert np.isnan(record.signal[:, -20:]).all()
    assert not np.isnan(record.signal[:, :-20]).any()


@pytest.mark.parametrize(
    ("kind", "bits", "stored"),
    [("SB", 8, "i1"), ("UB", 8, "u1"), ("SS", 16, "<i2"), ("US", 16, "<u2"), ("SL", 32, "<i4")],
)
def test_every_linear_kind_of_sample_is_read(small, tmp_path, kind, bits, stored):
    group, _ = group_and_lead(small)
    limits = np.iinfo(stored)
    frames = np.random.default_rng(0).integers(limits.min, limits.max, (33, 1), endpoint=True).astype(stored)
    del group.ChannelDefinitionSequence[1:]
    group.NumberOfWaveformChannels, group.NumberOfWaveformSamples = 1, 33
    group.WaveformSampleInterpretation, group.WaveformBitsAllocated = kind, bits
    group["WaveformData"].VR = "OB" if bits == 8 else "OW"
    group.WaveformData = frames.tobytes() + bytes(frames.nbytes % 2)
    record = read_ecg(saved(small, tmp_path))
    assert np.array_equal(record.samples, frames.T)
    group.WaveformSampleInterpretation = "MB"
    refused(small, tmp_path, "'MB'", "'SS', 16")


def test_sensitivity_correction_and_baseline_give_the_voltage(small, tmp_path):
    before = read_ecg(saved(small, tmp_path))
    _, lead = group_and_lead(small)
    lead.ChannelSensitivity, lead.ChannelSensitivityCorrectionFactor, lead.ChannelBaseline = "2.5", "0.98", "-30"
    record = read_ecg(saved(small, tmp_path))
    assert np.allclose(record.signal[1], (before.samples[1] * 2.5 * 0.98 - 30) / 1000)
    assert np.array_equal(record.signal[0], before.signal[0])
    lead.ChannelSensitivityUnitsSequence[0].CodeValue = "mV"
    assert np.allclose(read_ecg(saved(small, tmp_path)).signal[1], before.samples[1] * 2.5 * 0.98 - 30)


def test_padding_is_missing(small, tmp_path):
    group, _ = group_and_lead(small)
    samples = np.frombuffer(group.WaveformData, "<i2").reshape(100, 12).copy()
    samples[5, 2] = samples[7, 11] = -32768
    group.WaveformData = samples.tobytes()
    group.add_new("WaveformPaddingValue", "OW", b"\x00\x80")
    record = read_ecg(saved(small, tmp_path))
    assert np.array_equal(record.samples, samples.T)
    assert np.array_equal(np.argwhere(np.isnan(record.signal)), [[2, 5], [11, 7]])


@pytest.mark.parametrize(
    ("code", "meaning", "label", "expected"),
    [
        ("2:2", "", None, "II"),
        ("2:61", "", None, "III"),
        ("5.6.3-9-64", "aVF", None, "aVF"),
        ("MDC_ECG_LEAD_AVR", "", None, "aVR"),
        ("other", "Lead II", None, "II"),
        ("other", "LEAD aVL (Goldberger)", None, "aVL"),
        ("other", "something", "V5", "V5"),
        ("2:131", "Belt", None, "Belt"),
        ("2:131", "", None, "2:131"),
    ],
)
def test_leads_are_named_by_code_meaning_or_label(small, tmp_path, code, meaning, label, expected):
    group, lead = group_and_lead(small, 0)
    del group.ChannelDefinitionSequence[1:]
    group.NumberOfWaveformChannels, group.NumberOfWaveformSamples = 1, 1200
    source = lead.ChannelSourceSequence[0]
    source.CodeValue, source.CodeMeaning = code, meaning
    if label:
        lead.ChannelLabel = label
    assert read_ecg(saved(small, tmp_path)).lead_names == (expected,)


def test_names_that_contradict_or_miss_are_refused(small, tmp_path):
    _, lead = group_and_lead(small)
    lead.ChannelSourceSequence[0].CodeMeaning = "Lead V1"
    refused(small, tmp_path, "channel 2 is lead II and lead V1 at once")
    del lead.ChannelSourceSequence
    refused(small, tmp_path, "channel 2 has no lead name")
    lead.ChannelLabel = "I"
    refused(small, tmp_path, "lead I occurs twice")


@pytest.mark.parametrize("scheme", ["2:", "5.6.3-9-"])
def test_other_leads_are_never_taken_for_standard_ones(small, tmp_path, scheme):
    _, lead = group_and_lead(small)
    source = lead.ChannelSourceSequence[0]
    for number, meaning, name in (
        *((24, "Lead I (Frank)", "Lead I (Frank)"), (65, "Lead -aVR", "-aVR"), (10, "Lead V2R", "V2R")),
        *((2, "Lead II (Goldberger)", "II"), (0, "Lead II", "II"), (32, "Lead II", "II")),
        (31, "Derived Lead I", "Derived Lead I"),
    ):
        source.CodeValue, source.CodeMeaning = f"{scheme}{number}", meaning
        assert read_ecg(saved(small, tmp_path)).lead_names[1] == name
    source.CodeValue, source.CodeMeaning = f"{scheme}65", "Lead aVR"
    refused(small, tmp_path, "lead -aVR and lead aVR at once")
    source.CodeValue, source.CodeMeaning = f"{scheme}24", "Lead II"
    refused(small, tmp_path, "lead II and lead number 24 of EN 1064 at once")


def with_group(dataset, **changes):
    group = deepcopy(dataset.WaveformSequence[0])
    for keyword, value in changes.items():
        setattr(group, keyword, value)
    dataset.WaveformSequence.append(group)
    return group


def test_the_original_recording_is_taken_regardless_of_the_order(small, tmp_path):
    samples = read_ecg(saved(small, tmp_path)).samples
    beat = with_group(small, WaveformOriginality="DERIVED", MultiplexGroupLabel="MEDIAN BEAT")
    beat.WaveformData = bytes(2400)
    short = with_group(small, NumberOfWaveformSamples=50)
    short.WaveformData = bytes(1200)
    small.WaveformSequence = [beat, short, small.WaveformSequence[0]]
    assert np.array_equal(read_ecg(saved(small, tmp_path)).samples, samples)


def test_no_or_several_original_recordings_are_refused(small, tmp_path):
    group = with_group(small, MultiplexGroupLabel="SECOND")
    refused(small, tmp_path, "expected one ORIGINAL group", "RHYTHM: ORIGINAL, 12 channels of 100", "SECOND: ORIGINAL")
    # A rhythm strip that is longer than the twelve leads: neither is the whole recording.
    del group.ChannelDefinitionSequence[1:]
    group.NumberOfWaveformChannels, group.NumberOfWaveformSamples = 1, 1200
    refused(small, tmp_path, "expected one ORIGINAL group", "SECOND: ORIGINAL, 1 channels of 1200")
    for group in small.WaveformSequence:
        group.WaveformOriginality = "DERIVED"
    refused(small, tmp_path, "RHYTHM: DERIVED")


def test_waveform_data_of_another_length_is_refused(small, tmp_path):
    group, _ = group_and_lead(small)
    whole = group.WaveformData
    for content in (whole[:-2], whole[:100], b"", whole + b"\0\0"):
        group.WaveformData = content
        refused(small, tmp_path, f"found {len(content)} bytes of waveform data, expected 2400")
    group.WaveformData = whole
    group.NumberOfWaveformSamples = 2**32 - 1
    refused(small, tmp_path, "expected 103079215080")
    del group.WaveformData
    refused(small, tmp_path, "found 0 bytes")


def test_a_file_cut_off_is_refused(real, tmp_path):
    path = tmp_path / "cut.dcm"
    with open(REAL, "rb") as file:
        whole = file.read()
    for length in (132, 200, 5_000, 100_000, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(ECGReadError, match=r"cut\.dcm"):
            read_ecg(path)


@pytest.mark.parametrize(
    ("keyword", "value", "message"),
    [
        ("ChannelSensitivity", None, "lead II: no sensitivity"),
        ("ChannelSensitivityUnitsSequence", None, "lead II: no sensitivity"),
        ("ChannelSensitivity", "0", "lead II: sensitivity times correction is 0"),
        ("ChannelSensitivityCorrectionFactor", "0", "lead II: sensitivity times correction is 0"),
        ("ChannelSensitivity", "1e300", "lead II has gain 1e-300"),
        ("ChannelSampleSkew", "3", "lead II: skewed by 3 samples"),
        ("ChannelTimeSkew", "0.5", "lead II: skewed by 500 samples"),
    ],
)
def test_a_lead_without_a_voltage_or_out_of_step_is_refused(small, tmp_path, keyword, value, message):
    _, lead = group_and_lead(small)
    if value is None:
        delattr(lead, keyword)
    else:
        setattr(lead, keyword, value)
    refused(small, tmp_path, message)


def test_other_contradictions_are_refused(small, tmp_path):
    group, lead = group_and_lead(small)
    lead.ChannelSensitivityUnitsSequence[0].CodeValue = "mm[Hg]"
    refused(small, tmp_path, "lead II", "'mm[Hg]'")
    lead.ChannelSensitivityUnitsSequence[0].CodeValue = "uV"
    for rate in ("0", "-500", None):
        group.SamplingFrequency = rate
        refused(small, tmp_path, "SamplingFrequency")
    group.SamplingFrequency = "1e9"
    refused(small, tmp_path, "sampling rate of 1e+09 Hz")
    group.SamplingFrequency = "1000"
    group.NumberOfWaveformChannels = 11
    refused(small, tmp_path, "11 channels declared, 12 channels defined")
    del small.WaveformSequence
    refused(small, tmp_path, "a DICOM file without a waveform (12-lead ECG Waveform Storage)")


@pytest.mark.parametrize(
    ("age", "sex", "expected"),
    [("045Y", "M", (45.0, "M")), ("006M", "F", (0.5, "F")), ("", "O", (None, None)), ("old", "", (None, None))],
)
def test_age_and_sex(small, tmp_path, age, sex, expected):
    small.PatientAge, small.PatientSex = age, sex
    record = read_ecg(saved(small, tmp_path))
    assert (record.age, record.sex) == expected


def test_a_second_transfer_syntax_does_not_make_pydicom_unpack_the_file(tmp_path, monkeypatch):
    with open(get_testdata_file("image_dfl.dcm", download=False), "rb") as file:
        content = file.read()
    at = content.index(b"\x02\x00\x10\x00UI")
    deflated = content[at : at + 8 + 22]
    plain = b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\0"
    unpacked = []
    original = zlib.decompress
    monkeypatch.setattr(zlib, "decompress", lambda *a, **k: unpacked.append(a) or original(*a, **k))
    path = tmp_path / "double.dcm"
    for first, second in ((plain, deflated), (deflated, plain)):
        path.write_bytes(content[:at] + first + second + content[at + 8 + 22 :])
        with pytest.raises(ECGReadError):
            read_ecg(path)
        assert not unpacked
    path.write_bytes(content)
    pydicom.dcmread(path)
    assert unpacked  # so the spy sees what it is meant to see


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CT_small.dcm", "without a waveform (CT Image Storage)"),
        ("JPEG2000.dcm", "JPEG 2000 Image Compression"),
        ("image_dfl.dcm", "Deflated Explicit VR Little Endian"),
    ],
)
def test_dicom_files_of_another_kind_are_refused(name, message):
    with pytest.raises(ECGReadError) as caught:
        read_ecg(get_testdata_file(name, download=False))
    assert message in str(caught.value)
    assert name in str(caught.value)
