"""`ecgfm inspect`: what a recording contains and what preprocessing would do, to read, as JSON and as a page."""

import json

import device_files
import numpy as np
from inference_cases import write_model
from wfdb_files import random_samples, write_record

from ecgfm_hf.cli.main import main


def inspect(capsys, *arguments):
    """Exit status and the lines printed on standard output."""
    status = main(["inspect", *map(str, arguments)])
    return status, capsys.readouterr().out.splitlines()


def test_a_recording_is_described_with_what_preprocessing_would_do(tmp_path, capsys):
    samples = random_samples(samples=2750)
    samples[11] = 7
    path, _ = write_record(tmp_path, samples, rate="250")
    status, lines = inspect(capsys, path)
    assert status == 0
    assert lines == [
        str(path),
        "  format         WFDB",
        "  leads          12: I, II, III, aVR, aVL, aVF, V1, V2, V3, V4, V5, V6",
        "  units          mV",
        "  sampling rate  250 Hz",
        "  length         11 s (2750 samples)",
        "  preprocessing  2 segments of 5 s at 500 Hz, resampled from 250 Hz",
        "  flat leads     V6",
        *[line for line in lines if line.startswith("  warning  ")],
    ]
    assert "  warning        the last 1 s are dropped: shorter than a segment" in lines


def test_derived_leads_and_a_calibration_pulse_are_named(tmp_path, capsys):
    x = device_files.samples(count=5000)
    line, pulse = np.zeros((12, 50), np.int16), np.full((12, 100), 200, np.int16)
    path = tmp_path / "a.xml"
    path.write_bytes(device_files.sierra(np.concatenate([x, line, pulse, line], axis=1)))
    status, lines = inspect(capsys, path, "--leads", "I,II,V1,V2,V3,V4,V5,V6")
    assert status == 0
    assert any("calibration pulse of 1 mV" in line for line in lines)
    assert "  derived leads  III, aVR, aVL, aVF" in lines


def test_json_has_every_recording_of_a_folder_and_the_reasons_of_those_that_cannot_be_scored(tmp_path, capsys):
    write_record(tmp_path, random_samples(samples=2500), name="good")
    write_record(tmp_path, random_samples(samples=100), name="short")
    (tmp_path / "broken.hea").write_text("broken 12 500 2500\n")
    status, lines = inspect(capsys, tmp_path, "--json")
    broken, good, short = sorted(json.loads("\n".join(lines)), key=lambda found: found["recording"])
    assert status == 1
    assert broken.keys() == {"recording", "error"}
    assert (good["format"], good["samples"], good["seconds"]) == ("WFDB", 2500, 5.0)
    assert good["preprocessing"]["segments"] == 1
    assert "are shorter than 5 s" in short["preprocessing"]["refused"]


def test_remedies_are_options_of_the_command(tmp_path, capsys):
    path, _ = write_record(tmp_path, random_samples(leads=1, samples=2500), leads=["ECG"])
    status, lines = inspect(capsys, path)
    assert status == 1
    assert "--rename-leads ECG=I" in lines[-1]
    assert "--missing-leads zero" in lines[-1]


def test_the_page_of_one_recording_is_drawn(tmp_path, capsys):
    path, _ = write_record(tmp_path, random_samples(leads=1, samples=2500), leads=["MLII"])
    arguments = ("--missing-leads", "zero", "--rename-leads", "MLII=II", "--plot", tmp_path / "a.png")
    assert inspect(capsys, path, *arguments)[0] == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert main(["inspect", str(path), "--plot", str(tmp_path / "a.txt")]) == 2
    other, _ = write_record(tmp_path, random_samples(samples=2500), name="other")
    assert main(["inspect", str(path), str(other), "--plot", str(tmp_path / "b.pdf")]) == 2
    assert not (tmp_path / "b.pdf").exists()


def test_the_preprocessing_is_the_models(tmp_path, capsys, tiny_config):
    write_model(tmp_path / "model", tiny_config(), segment_seconds=2.0)
    path, _ = write_record(tmp_path, random_samples(samples=2500))
    assert "  preprocessing  2 segments of 2 s at 500 Hz" in inspect(capsys, path, "--model", tmp_path / "model")[1]
