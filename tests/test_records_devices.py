"""`read_ecg` on the files of ECG devices: EDF, aECG, MUSE XML, Sierra XML and SCP-ECG, which ecgdatakit parses."""

import base64
import re
import tracemalloc
from datetime import datetime

import device_files
import numpy as np
import pytest
from device_files import DEVICES, LEADS, NAME

from ecgfm_hf.records import ECGReadError, read_ecg

pytest.importorskip("ecgdatakit", reason="needs the extra [formats]: pip install ecgfm-hf[formats]")

X = device_files.samples()


def refused(path, *messages, **arguments):
    with pytest.raises(ECGReadError) as caught:
        read_ecg(path, **arguments)
    assert str(caught.value).startswith(f"{path}: ")
    for message in messages:
        assert message in str(caught.value)
    assert NAME not in str(caught.value)


def put(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", DEVICES)
def test_device_files_give_back_what_was_written(tmp_path, kind):
    write, leads, microvolts, rate = DEVICES[kind]
    x = X[: len(leads)]
    record = read_ecg(put(tmp_path / "somefile", write(x)))
    assert np.array_equal(record.samples, x)
    assert record.samples.dtype == np.int16
    assert np.allclose(record.signal, x * microvolts / 1000, rtol=1e-14, atol=0)
    assert (record.lead_names, record.sampling_rate, record.recording_id) == (leads, rate, "somefile")
    assert (record.age, record.sex, record.time) == (67.0, "F", datetime(2019, 3, 5, 10, 20, 30))
    assert (record.report, record.patient_id, record.diagnoses) == (None, None, ())
    assert NAME not in repr(record)
    assert "1951" not in repr(record)
    refused(record.path, "units=", units="mV")


@pytest.mark.parametrize("labels", ["I II III AVR AVL AVF", "i ii iii avr avl avf", "D1 D2 D3 LEAD_aVR aVL ECG-aVF"])
def test_limb_leads_are_unpacked_however_they_are_spelled(tmp_path, labels):
    labels = f"{labels} {' '.join(LEADS[6:])}"
    record = read_ecg(put(tmp_path / "a.xml", device_files.sierra(X, xli=True, leadlabels=labels)))
    assert record.lead_names == LEADS
    assert np.array_equal(record.samples, X)


def test_compressed_leads_that_are_not_the_limb_leads_first_are_refused(tmp_path):
    for labels in (LEADS[6:] + LEADS[:6], ("I", "III", "II", *LEADS[3:])):
        content = device_files.sierra(X, xli=True, leadlabels=" ".join(labels))
        refused(put(tmp_path / "a.xml", content), "expected I, II, III, aVR, aVL, aVF first")
    refused(put(tmp_path / "b.xml", device_files.sierra(X, xli=True, numberofleads=3)), "of the leads I, II, III,")


@pytest.mark.parametrize("kind", ["muse", "aecg", "mortara"])
@pytest.mark.parametrize("end", [b"", b" "])
def test_a_wrong_declaration_of_utf_16_does_not_matter(tmp_path, kind, end):
    write, leads, *_ = DEVICES[kind]
    content = re.sub(
        rb"^\s*<\?xml[^>]*\?>", b'<?xml version="1.0" encoding="utf-16"?>', write(X[: len(leads)]), count=1
    )
    if b"utf-16" not in content:
        content = b'<?xml version="1.0" encoding="utf-16"?>' + content
    assert np.array_equal(read_ecg(put(tmp_path / "a.xml", content + end)).samples, X[: len(leads)])


@pytest.mark.parametrize(("units", "age"), [("", 67.0), (' units="Years"', 67.0), (' units="MONTHS"', None)])
def test_an_age_in_another_unit_than_years_is_unknown_in_cardiosoft(tmp_path, units, age):
    content = device_files.cardiosoft(X).replace(
        b"<StripData>", f"<PatientInfo><Age{units}>67</Age></PatientInfo><StripData>".encode()
    )
    assert read_ecg(put(tmp_path / "a.xml", content)).age == age


@pytest.mark.parametrize(
    ("age", "unit", "years"),
    [("30", "YEARS", 30), ("58", "MONTHS", 58 / 12), ("5", "WEEKS", 35 / 365.25), ("3", "days", 3 / 365.25)],
)
def test_ages_of_infants_are_fractions_of_a_year_in_muse(tmp_path, age, unit, years):
    content = device_files.muse(X[:8]).replace(b"<PatientAge>67<", f"<PatientAge>{age}<".encode())
    content = content.replace(b"<AgeUnits>YEARS<", f"<AgeUnits>{unit}<".encode())
    assert read_ecg(put(tmp_path / "a.xml", content)).age == pytest.approx(years, abs=1e-12)


def test_calibrations_and_rates_of_device_files_are_exact(tmp_path):
    path = tmp_path / "a"
    put(path, device_files.edf(X, unit="mV", physical=(-5, 11.384), digital=(0, 16384), rate=500, seconds=0.5))
    record = read_ecg(path)
    assert np.allclose(record.signal, X * 0.001 - 5, rtol=0, atol=1e-12)
    assert (record.sampling_rate, set(record.units)) == (500.0, {"mV"})
    assert read_ecg(put(path, device_files.edf(X, rate=257, seconds=1.5))).sampling_rate == 386 / 1.5
    put(path, device_files.edf(X, labels=[f"ECG {n.upper()}" for n in LEADS]))
    assert read_ecg(path).lead_names == LEADS
    record = read_ecg(put(path, device_files.aecg(X, step="1.953125 ms", scale="0.5 mV", origin="250 uV")))
    assert record.sampling_rate == 512.0
    assert np.allclose(record.signal, X * 0.5 + 0.25, rtol=0, atol=1e-10)
    record = read_ecg(put(path, device_files.aecg(X, step="4 ms")))
    assert record.sampling_rate == 250.0
    assert read_ecg(put(path, device_files.scp(X, interval=1024))).sampling_rate == 1e6 / 1024
    record = read_ecg(put(path, device_files.muse(X[:2] * 9, leads=("II", "aVF"), scale="1", unit="MILLIVOLTS")))
    assert np.array_equal(record.signal, X[:2] * 9)
    assert record.lead_names == ("II", "aVF")
    for encoding in ("utf-8", "utf-16"):
        text = device_files.sierra(X).decode().replace('encoding="UTF-8"', f'encoding="{encoding}"')
        assert np.array_equal(read_ecg(put(path, text.encode(encoding))).samples, X)
    assert np.array_equal(read_ecg(put(path, device_files.aecg(X).replace(NAME.encode(), b"Z\xfc"))).samples, X)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: device_files.edf(X)[:-1], "truncated"),
        (lambda: device_files.edf(X) + b"\0\0", "after the last data record"),
        (lambda: device_files.edf(X, records=-1), "not closed"),
        (lambda: device_files.edf(X, unit="mmHg"), "lead I: unknown unit 'mmHg'"),
        (lambda: device_files.edf(X, unit="MV"), "lead I: unknown unit 'MV'"),
        (lambda: device_files.edf(X, unit=""), "lead I: found the unit '', expected one of a voltage"),
        (lambda: device_files.edf(X, digital=(5, 5)), "invalid range"),
        (lambda: device_files.edf(X, labels=["I", "II", "II", *LEADS[3:]]), "lead II occurs twice"),
        (lambda: device_files.edf(X).replace(b"+1\x14\x14", b"+7\x14\x14"), "gaps between data records"),
        (lambda: b"\xffBIOSEMI" + device_files.edf(X)[8:], "BDF"),
        (
            lambda: device_files.aecg(X).replace(b'unit="uV"', b""),
            "lead I: found the unit '', expected one of a voltage",
        ),
        (lambda: device_files.aecg(X, scale="2.5 MV"), "lead I: unknown unit 'MV'"),
        (lambda: device_files.aecg(X, step="2 fortnights"), "fortnights"),
        (lambda: device_files.aecg(X).replace(b"</digits>", b" 1</digits>", 1), "leads of different lengths (I 501"),
        (lambda: device_files.aecg(X).replace(b"</digits>", b"NaN</digits>", 1), "found 'N' in a number of digits"),
        (lambda: device_files.aecg(X).replace(b"LEAD_V1", b"LEAD_I"), "lead I occurs twice"),
        (lambda: device_files.aecg(X)[:-30], "malformed XML"),
        (lambda: device_files.muse(X[:8], unit="QUARKS"), "QUARKS"),
        (lambda: device_files.muse(X[:8], base="499.5"), "sampling rate of 499.5 Hz"),
        (lambda: device_files.muse(X[:8]).replace(b"Exponent>0", b"Exponent>999"), "SampleExponent"),
        (lambda: re.sub(rb"(CRC32>)\d", rb"\g<1>", device_files.muse(X[:8]), count=1), "CRC32"),
        (lambda: device_files.muse(X[:8]).replace(b"Offset>0<", b"Offset>8<", 1), "lead I: shifted in time"),
        (lambda: device_files.muse(X[:8]).replace(b"Baseline>0", b"Baseline>5", 1), "FirstSampleBaseline"),
        (lambda: device_files.sierra(X).replace(b"<resolution>5</resolution>", b""), "found the signal resolution ''"),
        (lambda: device_files.sierra(X, numberofleads=9999999999), "9999999999 leads"),
        (lambda: device_files.sierra(X, durationperchannel=1002), "parsedwaveforms holds"),
        (lambda: device_files.sierra(X, durationperchannel=998), "holds 6000 samples, expected 5988"),
        (lambda: device_files.sierra(X, numberofleads=13), "labels of 12 leads, expected 13"),
        (
            lambda: device_files.sierra(X, xli=True, durationperchannel=998),
            "lead I: found more than 499 compressed samples",
        ),
        (lambda: device_files.sierra(X, compression="ZIP"), "ZIP"),
        (lambda: device_files.scp(X)[:-2], "cannot read SCP-ECG"),
        (lambda: device_files.scp(X)[:-2] + b"!!", "CRC"),
        (lambda: device_files.scp(X, nanovolts=0), "multiplier is 0"),
        (lambda: device_files.scp(X, interval=0), "interval is 0"),
        (lambda: device_files.scp(X, huffman=True, end=2**32 - 1), "12 leads of 4294967295 to 4.29497e+09 samples"),
        (lambda: device_files.scp(X, huffman=True, reference=65535, flags=1), "reference beat of 32768 samples"),
    ],
)
def test_a_device_file_that_is_damaged_or_says_too_little_is_refused(tmp_path, content, message):
    refused(put(tmp_path / "a", content()), message)


ENTITIES = '<!DOCTYPE RestingECG [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]>'
OUTSIDE = '<!DOCTYPE RestingECG [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
PARAMETER = '<!DOCTYPE RestingECG [<!ENTITY % a SYSTEM "file:///etc/passwd"> %a;]>'


@pytest.mark.parametrize("doctype", [ENTITIES, OUTSIDE, PARAMETER])
def test_xml_with_entities_is_refused(tmp_path, doctype):
    for content in (device_files.muse(X[:8]), device_files.aecg(X), device_files.sierra(X)):
        content = re.sub(rb"<!DOCTYPE.*>\n", b"", content).replace(b"?>", b"?>" + doctype.encode(), 1)
        refused(put(tmp_path / "a.xml", content), "declares XML entities")


def test_xml_that_is_too_much_is_refused(tmp_path):
    deep = device_files.aecg(X).replace(b"<componentOf>", b"<x>" * 5000 + b"</x>" * 5000 + b"<componentOf>", 1)
    refused(put(tmp_path / "a.xml", deep), "64 levels")
    many = device_files.aecg(X).replace(b"<componentOf>", b"<x/>" * 600_000 + b"<componentOf>", 1)
    refused(put(tmp_path / "a.xml", many), "500000 elements")
    with open(tmp_path / "a.xml", "ab") as file:
        file.truncate(1 << 30)
    refused(tmp_path / "a.xml", "expected at most")


def test_compressed_samples_do_not_unpack_without_bounds(tmp_path):
    from ecgdatakit.parsing.codecs import LzwDecoder

    from ecgfm_hf.records.xml_formats import unpack_lzw

    rng = np.random.default_rng(0)
    for _ in range(200):
        chunk = rng.bytes(int(rng.integers(1, 400)))
        try:
            expected = LzwDecoder(chunk, bits=10).read_all()
        except Exception:
            continue
        assert unpack_lzw(chunk, 1 << 40) == expected
    bits = "".join(f"{code:010b}" for code in [0, *range(256, 1023), *[1022] * 40_000])
    bomb = int(bits + "0" * (-len(bits) % 8), 2).to_bytes((len(bits) + 7) // 8, "big")
    content = base64.b64encode(len(bomb).to_bytes(4, "little") + bytes(4) + bomb)
    xml = re.sub(rb"\n[A-Za-z0-9+/=]+</parsed", b"\n" + content + b"</parsed", device_files.sierra(X, xli=True))
    tracemalloc.start()
    try:
        refused(put(tmp_path / "a.xml", xml), "found more than 500 compressed samples")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_no_name_of_a_file_hides_that_its_checksum_is_wrong(tmp_path):
    damaged = re.sub(rb"(CRC32>)\d", rb"\g<1>", device_files.muse(X[:8]), count=1)
    harmless = ["median beats", "representative beat", "not an integer; rounded to", "not recognised; value ignored"]
    for name in ("a", *harmless, "3 representative beat series found; only the first is read"):
        refused(put(tmp_path / f"{name}.xml", damaged), "CRC32")


@pytest.mark.parametrize(
    "content",
    [
        lambda one: device_files.aecg(X).replace(b"<digits>", f"<digits>{one} ".encode(), 1),
        lambda one: device_files.aecg(X, scale=f"{one} uV"),
        lambda one: device_files.aecg(X, origin=f"{one} uV"),
        lambda one: device_files.aecg(X, step=f"{one} ms"),
        lambda one: device_files.muse(X[:8]).replace(b">4.88<", f">{one}<".encode(), 1),
        lambda one: device_files.muse(X[:8]).replace(b"SampleBase>500<", f"SampleBase>{one}<".encode()),
        lambda one: device_files.sierra(X).replace(b"<resolution>5<", f"<resolution>{one}<".encode()),
        lambda one: device_files.sierra(X, numberofleads=one),
    ],
)
@pytest.mark.parametrize("number", ["1_0", "\uff11\uff12", "\u0663"])
def test_numbers_in_xml_are_plain(tmp_path, content, number):
    changed = content(number)
    changed = changed if isinstance(changed, bytes) else changed.encode()
    refused(put(tmp_path / "a.xml", changed), "expected plain decimal numbers")
