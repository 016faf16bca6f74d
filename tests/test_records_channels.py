"""Which channels of a file are ECG leads, in every format: names, other signals, rates, pulses, segments."""

import base64
from datetime import datetime

import device_files
import numpy as np
import pytest
from device_files import LEADS
from wfdb_files import checksums, edit, encode, header_lines, random_samples, write_record

from ecgfm_hf.records import ECGReadError, read_ecg
from ecgfm_hf.records.reading import recognise
from ecgfm_hf.records.store_rows import record_from_row, row_from_record
from ecgfm_hf.synthetic import SyntheticCohort

X = device_files.samples()


def put(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def with_pulse(x, rate=500, counts=200, at_start=False):
    """(leads, samples) with 0.1 s of a line, a pulse of 0.2 s and 0.1 s of the line, each with a count of noise."""
    line = np.zeros(round(0.1 * rate))
    pulse = np.concatenate([line, np.full(round(0.2 * rate), counts), line])
    pulse = pulse + np.random.default_rng(0).integers(-1, 2, (len(x), len(pulse)))
    return np.concatenate([pulse, x] if at_start else [x, pulse], axis=1).astype(np.int16)


@pytest.mark.parametrize("at_start", [False, True])
def test_a_calibration_pulse_is_cut_off_with_its_line_and_named(tmp_path, at_start):
    x = device_files.samples(count=5000)
    path = put(tmp_path / "a.xml", device_files.sierra(with_pulse(x, at_start=at_start)))
    record = read_ecg(path)
    assert np.array_equal(record.samples, x)
    assert "calibration pulse of 1 mV in all leads" in record.warnings[0]
    assert f"0.4 s at the {'beginning' if at_start else 'end'}" in record.warnings[0]
    again = record_from_row(row_from_record(record, path="a.xml", source="table"))
    assert record.start_s == again.start_s == (0.4 if at_start else 0)
    path, _ = write_record(tmp_path, with_pulse(x, at_start=at_start), calibration="200(0)/mV")
    assert np.array_equal(read_ecg(path).samples, x)


def test_nothing_is_cut_without_a_pulse_in_all_leads(tmp_path):
    x = device_files.samples(count=5000)
    whole = with_pulse(x)
    whole[7, -200:] = 0  # one lead has none
    path, _ = write_record(tmp_path, whole, calibration="200(0)/mV")
    assert np.array_equal(read_ecg(path).samples, whole)
    half = with_pulse(x, counts=100)
    path, _ = write_record(tmp_path, half, calibration="200(0)/mV")
    assert np.array_equal(read_ecg(path).samples, half)
    paced = np.zeros((12, 5000), np.int16)
    paced[:, 250::500] = 400  # spikes, wide complexes and flat lines between them
    for start in range(260, 5000, 500):
        paced[:, start : start + 80] = np.linspace(0, 200, 80) * np.linspace(0.5, 1.5, 12)[:, None]
    path, _ = write_record(tmp_path, paced, calibration="200(0)/mV")
    assert np.array_equal(read_ecg(path).samples, paced)


def test_nothing_is_cut_from_the_synthetic_cohort(tmp_path):
    written = SyntheticCohort(12, seed=3).write_wfdb(tmp_path / "cohort")
    headers = sorted((tmp_path / "cohort").rglob("*.hea"))
    assert len(headers) >= 12, written
    assert not any(read_ecg(header).warnings for header in headers)


def test_other_signals_are_left_out_and_named(tmp_path):
    x = random_samples(leads=13)
    path, _ = write_record(tmp_path, x, leads=(*LEADS, "RESP"))
    record = read_ecg(path)
    assert record.lead_names == LEADS
    assert record.warnings == ("channel 'RESP' is excluded: not an ECG signal",)
    lines = header_lines(x, leads=(*LEADS, "ABP"))
    lines[-1] = lines[-1].replace("/mV", "/mmHg")
    path.write_text("\n".join(lines) + "\n")
    assert read_ecg(path).lead_names == LEADS
    assert "'ABP' is excluded: unknown unit 'mmHg'" in read_ecg(path).warnings[0]
    edit(path, "1000.0(0)/mV", "1000.0(0)/mmHg")
    with pytest.raises(ECGReadError, match="lead I: unknown unit 'mmHg'"):
        read_ecg(path)


def test_leads_are_renamed_and_picked(tmp_path):
    x = random_samples(leads=2)
    path, _ = write_record(tmp_path, x, leads=("ECG", "MLII"))
    record = read_ecg(path, rename_leads={"ECG": "I", "mlii": "II", "none": "V1"})
    assert record.lead_names == ("I", "II")
    assert record.warnings[0] == "channel 'ECG' is read as lead I (rename_leads)"
    assert read_ecg(path, rename_leads="ECG=I,MLII=II", leads=["II"]).lead_names == ("II",)
    with pytest.raises(ECGReadError, match="found no lead 'V1' to pick; the file has I, MLII"):
        read_ecg(path, rename_leads={"ECG": "I"}, leads=["V1"])
    with pytest.raises(ECGReadError, match="lead I occurs twice"):
        read_ecg(path, rename_leads={"ECG": "I", "MLII": "I"})
    with pytest.raises(ECGReadError, match="expected pairs such as ECG=I"):
        read_ecg(path, rename_leads="ECG")


# WFDB


def test_frames_of_several_samples_are_read_at_the_leads_own_rate(tmp_path):
    ecg, slow = random_samples(leads=2, samples=400), random_samples(leads=1, samples=100, seed=1)
    frames = np.concatenate([ecg[0].reshape(100, 4), ecg[1].reshape(100, 4), slow.T], axis=1)
    lines = ["rec 3 125 100"]
    for name, row, kind in zip(("I", "II", "V1"), (*ecg, *slow), ("16x4", "16x4", "16"), strict=True):
        lines.append(f"rec.dat {kind} 1000/mV 16 0 {row[0]} {checksums(row[None])[0]} 0 {name}")
    put(tmp_path / "rec.hea", "\n".join(lines) + "\n")
    put(tmp_path / "rec.dat", encode(frames, "16"))
    record = read_ecg(tmp_path / "rec.hea")
    assert (record.lead_names, record.sampling_rate) == (("I", "II"), 500.0)
    assert np.array_equal(record.samples, ecg)
    assert "'V1' is excluded: 125 Hz, where the ECG has 500 Hz" in record.warnings[0]


def test_a_skew_is_undone_and_its_end_is_missing(tmp_path):
    path, x = write_record(tmp_path, random_samples(leads=2), leads=("I", "II"))
    text = path.read_text().splitlines()
    text[2] = text[2].replace(" 16 1000", " 16:3 1000")
    put(path, "\n".join(text) + "\n")
    signal = read_ecg(path).signal
    assert np.array_equal(signal[0], x[0] / 1000)
    assert np.array_equal(signal[1, :-3], x[1, 3:] / 1000)
    assert np.isnan(signal[1, -3:]).all()
    # Format 8 has no value of its own for a missing sample.
    path, x = write_record(tmp_path, random_samples("8", leads=2), format_="8", leads=("I", "II"))
    lines = path.read_text().splitlines()
    put(path, "\n".join([*lines[:2], lines[2].replace(" 8 1000", " 8:3 1000")]))
    signal = read_ecg(path).signal
    assert np.array_equal(signal[1, :-3], x[1, 3:] / 1000)
    assert np.isnan(signal[1, -3:]).all()


def test_checksums_that_are_absent_or_0_are_a_warning_and_wrong_ones_an_error(tmp_path):
    path, x = write_record(tmp_path)
    whole = path.read_text()
    lines = whole.splitlines()
    put(path, "\n".join([lines[0], *(" ".join([*line.split()[:6], "0", *line.split()[7:]]) for line in lines[1:])]))
    assert np.array_equal(read_ecg(path).samples, x)
    assert "all checksums in the header are 0" in read_ecg(path).warnings[0]
    put(path, "\n".join([lines[0], *(" ".join(line.split()[:3]) for line in lines[1:])]))
    assert read_ecg(path).lead_names == tuple(f"channel {number}" for number in range(1, 13))
    assert "no checksum" in read_ecg(path).warnings[0]
    put(path, whole.replace(f" {checksums(x)[3]} 0 aVR", " 7 0 aVR"))
    with pytest.raises(ECGReadError, match=r"lead aVR: found the checksum.*checksums='ignore'"):
        read_ecg(path)
    record = read_ecg(path, checksums="ignore")
    assert np.array_equal(record.samples, x)
    assert "lead aVR: found the checksum" in record.warnings[0]


def test_a_header_without_length_and_with_a_byte_order_mark_is_read(tmp_path):
    path, x = write_record(tmp_path)
    put(path, "\ufeff" + path.read_text().replace("rec 12 500 500", "rec 12 500"))
    assert np.array_equal(read_ecg(path).samples, x)
    assert "no number of samples" in read_ecg(path).warnings[0]
    put(tmp_path / "rec.dat", (tmp_path / "rec.dat").read_bytes()[:-1])
    with pytest.raises(ECGReadError, match="truncated"):
        read_ecg(path)


def test_segments_are_joined_and_gaps_are_missing(tmp_path):
    x = random_samples(samples=800)
    for number, part in enumerate((x[:, :500], x[:, 500:]), start=1):
        write_record(tmp_path, part, name=f"s_{number}")
    put(tmp_path / "fixed.hea", "fixed/2 12 500 800\ns_1 500\ns_2 300\n")
    assert np.array_equal(read_ecg(tmp_path / "fixed.hea").samples, x)
    names = "".join(f"~ 0 1000/mV 16 0 0 0 0 {name}\n" for name in LEADS)
    put(tmp_path / "layout.hea", f"layout 12 500 0\n{names}")
    put(tmp_path / "variable.hea", "variable/4 12 500 1000\nlayout 0\ns_1 500\n~ 200\ns_2 300\n")
    record = read_ecg(tmp_path / "variable.hea")
    assert np.array_equal(record.signal[:, :500], x[:, :500] / 1000)
    assert np.isnan(record.signal[:, 500:700]).all()
    assert np.array_equal(record.signal[:, 700:], x[:, 500:] / 1000)
    assert record.warnings == ("between segments nothing was recorded: 0.4 s at 1 s",)
    with pytest.raises(ECGReadError, match="layout header"):
        read_ecg(tmp_path / "layout.hea")
    assert (recognise(str(tmp_path / "layout.hea")), recognise(str(tmp_path / "s_1.hea"))) == (None, "WFDB")
    put(tmp_path / "gap.hea", "gap/3 12 500 99999999999\nlayout 0\ns_1 500\n~ 99999999499\n")
    with pytest.raises(ECGReadError, match="nearly all of them in gaps"):
        read_ecg(tmp_path / "gap.hea")
    put(tmp_path / "out.hea", "out/1 12 500 500\n../s_1 500\n")
    with pytest.raises(ECGReadError, match="header's own folder"):
        read_ecg(tmp_path / "out.hea")


def test_signal_files_of_several_formats_are_read(tmp_path):
    x, y = random_samples("16", leads=1), random_samples("24", leads=1, seed=2)
    x[0, 5] = -(2**15)  # a missing sample
    lines = ["rec 2 500 500"]
    for suffix, kind, row, name in (("a", "16", x[0], "I"), ("b", "24", y[0], "II")):
        put(tmp_path / f"{suffix}.dat", encode(row[:, None], kind))
        lines.append(f"{suffix}.dat {kind} 1000/mV 24 0 {row[0]} {checksums(row[None])[0]} 0 {name}")
    put(tmp_path / "rec.hea", "\n".join(lines) + "\n")
    record = read_ecg(tmp_path / "rec.hea")
    assert np.isnan(record.signal[0, 5])
    assert np.array_equal(np.delete(record.samples, 5, axis=1), np.delete(np.concatenate([x, y]), 5, axis=1))


def test_a_folder_in_the_records_name_is_the_headers_own(tmp_path):
    folder = tmp_path / "beats"
    folder.mkdir()
    path, x = write_record(folder)
    put(path, path.read_text().replace("rec.dat", "beats/rec.dat").replace("rec 12", "beats/rec 12"))
    assert np.array_equal(read_ecg(path).samples, x)


# Other formats


@pytest.mark.parametrize("xli", [False, True])
def test_spare_channels_of_sierra_are_never_looked_at(tmp_path, xli):
    content = device_files.sierra(X, xli=xli)
    start, end = content.rindex(b'">') + 2, content.rindex(b"</parsedwaveforms>")
    spare = b"\x10\0\0\0\0\0\0\0" + bytes(range(240, 256)) if xli else bytes(2 * X.shape[1] * 4)
    packed = base64.b64encode(base64.b64decode(content[start:end]) + spare)
    record = read_ecg(put(tmp_path / "a.xml", content[:start] + packed + content[end:]))
    assert np.array_equal(record.samples, X)


def test_cardiosoft_and_schiller_xml_are_read_without_their_median_beats(tmp_path):
    path = put(tmp_path / "a.xml", device_files.cardiosoft(X))
    record = read_ecg(path)
    assert np.array_equal(record.samples, X)
    assert np.allclose(record.signal, X * 0.005)
    with pytest.raises(ECGReadError, match="lead I: found 500 samples, expected 501"):
        read_ecg(put(path, path.read_text().replace("Total>500<", "Total>501<")))
    record = read_ecg(put(path, device_files.schiller(X)))
    assert np.allclose(record.signal, X / 1000)
    assert record.sampling_rate == 500


def test_ishne_gives_back_what_was_written_and_its_checksum_counts(tmp_path):
    content = device_files.ishne(X)
    record = read_ecg(put(tmp_path / "a.ecg", content))
    assert np.array_equal(record.samples, X)
    assert np.allclose(record.signal, X * 0.0025, rtol=1e-14)
    assert (record.lead_names, record.sampling_rate, record.sex) == (LEADS, 500, "F")
    assert record.time == datetime(2019, 3, 5, 10, 20, 30)
    assert device_files.NAME not in repr(record)
    damaged = put(tmp_path / "b.ecg", content[:30] + b"?" + content[31:])
    with pytest.raises(ECGReadError, match="checksum"):
        read_ecg(damaged)
    assert np.array_equal(read_ecg(damaged, checksums="ignore").samples, X)
    for cut in (1, 24, 6000):
        with pytest.raises(ECGReadError, match="truncated"):
            read_ecg(put(tmp_path / "c.ecg", content[:-cut]))
    assert np.array_equal(read_ecg(tmp_path / "c.ecg", checksums="ignore").samples, X[:, :250])


def test_scp_ranges_from_0_and_damaged_statements_are_read(tmp_path):
    content = device_files.scp(X)
    ranges = bytearray(content)
    at = content.index((1).to_bytes(4, "little") + (500).to_bytes(4, "little"))
    for lead in range(12):
        ranges[at + 9 * lead : at + 9 * lead + 8] = (0).to_bytes(4, "little") + (499).to_bytes(4, "little")
    record = read_ecg(put(tmp_path / "a.scp", bytes(ranges)), checksums="ignore")
    assert np.array_equal(record.samples, X)
    with pytest.raises(ECGReadError, match="CRC of section 3"):
        read_ecg(tmp_path / "a.scp")
    for index in (2, 10**6):  # where the table of sections has the patient's
        moved = content[:38] + index.to_bytes(4, "little") + content[42:]
        record = read_ecg(put(tmp_path / "b.scp", moved), checksums="ignore")
        assert np.array_equal(record.samples, X)
        assert "section 1 (patient and time) is damaged and not used" in record.warnings


def test_files_that_are_not_read_are_named_with_what_to_do(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    write_record(tmp_path)
    put(tmp_path / "rec.dat", pointer)
    for name, content, message in [
        ("rec.hea", None, "git lfs pull"),
        ("a.xml", pointer, "git lfs pull"),
        ("a.mwf", b"@ MFR something", "MFER file, which is not supported; export it as DICOM"),
        ("a.bdf", b"\xffBIOSEMI", "BDF file"),
        ("a.ECG", b"90A", "without the mark ISHNE1.0 .* export it as DICOM"),
        ("a.SCP", b"0\x9d\0\0\xf0r@\xfd\0\0L\0", "not by EN 1064 .* export it as DICOM"),
        ("b.xml", "<html><body/></html>", "XML whose root element 'html'"),
    ]:
        if content is not None:
            put(tmp_path / name, content)
        with pytest.raises(ECGReadError, match=message):
            read_ecg(tmp_path / name)
    assert recognise(str(tmp_path / "a.xml")) == "Git LFS pointer"
    assert recognise(str(tmp_path / "a.mwf")) is not None
    assert recognise(str(tmp_path / "b.xml")) is None


def test_a_csv_without_names_and_a_stack_of_arrays_are_read_as_described(tmp_path):
    described = {"sampling_rate": 500, "units": "uV", "lead_names": ["I", "II"]}
    path = put(tmp_path / "a.csv", "\n".join(f"{i}.25,{-i}.50" for i in range(60)))
    assert read_ecg(path, **described).samples[:, 2].tolist() == [2.25, -2.5]
    with pytest.raises(ECGReadError, match="truncated, the last line ends"):
        read_ecg(put(path, path.read_bytes()[:-1]), **described)
    stack = np.arange(60).reshape(3, 2, 10)
    np.save(tmp_path / "a.npy", stack)
    record = read_ecg(tmp_path / "a.npy", exam_id=1, **described)
    assert (record.samples.tolist(), record.recording_id) == (stack[1].tolist(), "a-1")


def test_a_watchs_export_is_read_with_its_lead_unit_and_rate(tmp_path):
    head = "Name,X\nRecorded Date,2020-01-15 20:11:34 +0100\nSample Rate,512 hertz\n\nLead,Lead I\nUnit,µV\n\n"
    record = read_ecg(put(tmp_path / "a.csv", head + "\n".join(f"{value}.000" for value in range(30))))
    assert (record.lead_names, record.sampling_rate, record.units) == (("I",), 512.0, ("µV",))
    assert np.allclose(record.signal[0], np.arange(30) / 1000)
    assert recognise(str(tmp_path / "a.csv")) == "watch export"


def test_a_record_is_shown_in_short_and_as_a_picture(tmp_path):
    path, _ = write_record(tmp_path)
    record = read_ecg(path)
    assert len(repr(record)) < 250
    assert "12 leads (I, II, III" in repr(record)
    assert record._repr_html_().count("<polyline") == 12
