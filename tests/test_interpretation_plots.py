"""The 12-lead page: its scale on paper, what it shows of odd recordings, and the panel of scores."""

import dataclasses
import re
import sys
import zlib

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.image import imread

from ecgfm_hf import ECGFMConfig
from ecgfm_hf.cli.prediction_pages import plot_path, plot_recording
from ecgfm_hf.interpretation import Attribution, plot_ecg, plot_prediction, save_page
from ecgfm_hf.records import ECGRecord

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
DPI = 200
PX_PER_MM = DPI / 25.4


def made_up_record(seconds=10.0, rate=500, leads=LEADS, signal=None, **known):
    if signal is None:
        time = np.arange(round(seconds * rate)) / rate
        signal = np.stack([0.5 * np.sin(2 * np.pi * (1 + i / 10) * time) for i in range(len(leads))])
    return ECGRecord(
        recording_id=known.pop("recording_id", "E7"),
        path="E7",
        samples=signal,
        gain=np.ones(len(leads)),
        baseline=np.zeros(len(leads)),
        units=("mV",) * len(leads),
        sampling_rate=rate,
        lead_names=leads,
        **known,
    )


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def traces(figure):
    """Points (n, 2) in mm of every solid dark trace that is longer than a mark."""
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 20 and line.get_linestyle() == "-"]
    return [np.stack([line.get_xdata(), line.get_ydata()], axis=1) for line in lines]


def saliency_of(record, values=None, label="A", method="integrated_gradients"):
    nothing = np.zeros(1)
    return Attribution(
        values=np.zeros(record.samples.shape) if values is None else values,
        lead_names=record.lead_names,
        sampling_rate=record.sampling_rate,
        label=label,
        method=method,
        segments=(0,),
        logits=nothing,
        baseline_logits=nothing,
        deltas=nothing,
        elsewhere=nothing,
    )


@pytest.fixture
def config():
    return ECGFMConfig(
        id2label={0: "rhythm", 1: "beats"},
        label2id={"rhythm": 0, "beats": 1},
        label_thresholds={"rhythm": 0.25},
        label_notes={"beats": "counts only the early ones"},
    )


# ----------------------------------------------------------------------------------------------------------------------
# Scale
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("paper", "size"), [("a4", (297, 210)), ("letter", (279.4, 215.9))])
@pytest.mark.parametrize("mm_per_mv", [5, 10, 20])
def test_a_millivolt_is_10_mm_and_a_second_25_mm_of_the_sheet(paper, size, mm_per_mv):
    # A square wave between 0 and 1 mV, up for the half of a second, in lead II only.
    rate = 1000
    signal = np.tile(0.01 * np.sin(np.arange(10 * rate)), (12, 1))
    signal[1] = (np.arange(10 * rate) // (rate // 2)) % 2
    figure = plot_ecg(made_up_record(rate=rate, signal=signal), paper=paper, mm_per_mv=mm_per_mv)
    assert figure.get_size_inches() * 25.4 == pytest.approx(size)
    strip = max(traces(figure), key=lambda points: np.ptp(points[:, 0]))
    inches = figure.dpi_scale_trans.inverted().transform(figure.axes[0].transData.transform(strip))
    x, y = 25.4 * inches.T
    assert np.ptp(x) == pytest.approx(250, abs=0.05)
    assert np.ptp(y) == pytest.approx(mm_per_mv, abs=1e-6)
    ups = x[1:][np.diff(y) > mm_per_mv / 2]
    assert np.diff(ups) == pytest.approx(25, abs=1e-6)


def test_the_calibration_pulse_in_the_file_is_10_mm_high_and_5_mm_wide(tmp_path):
    save_page(plot_ecg(made_up_record()), tmp_path / "page.png")
    image = imread(tmp_path / "page.png")[..., :3]
    assert image.shape[:2] == pytest.approx((210 * PX_PER_MM, 297 * PX_PER_MM), abs=1)
    dark = image.max(axis=2) < 0.35
    # Nothing else that is dark stands to the left of the traces.
    pulse = dark[round(35 * PX_PER_MM) : round(52 * PX_PER_MM), round(19 * PX_PER_MM) : round(28.2 * PX_PER_MM)]
    rows, columns = np.flatnonzero(pulse.any(axis=1)), np.flatnonzero(pulse.any(axis=0))
    top = np.flatnonzero(pulse[rows[0] + 1])
    line = 0.3  # mm, of the pen
    assert (rows[-1] - rows[0] + 1) / PX_PER_MM - line == pytest.approx(10, abs=0.25)
    assert (top[-1] - top[0] + 1) / PX_PER_MM - line == pytest.approx(5, abs=0.25)
    assert len(columns) / PX_PER_MM > 6.5


def test_every_row_begins_with_a_calibration_pulse():
    axes = plot_ecg(made_up_record(), mm_per_mv=20).axes[0]
    pulses = [line for line in axes.lines if line.get_gid() == "calibration pulse"]
    assert [np.ptp(pulse.get_ydata()) for pulse in pulses] == [20.0] * 4


def test_the_grid_has_lines_every_millimetre_and_the_traces_begin_on_a_strong_one():
    figure = plot_ecg(made_up_record())
    fine, coarse = [c for c in figure.axes[0].collections if isinstance(c, LineCollection)][:2]
    upright = [
        sorted(path.vertices[0, 0] for path in c.get_paths() if np.ptp(path.vertices[:, 0]) == 0)
        for c in (fine, coarse)
    ]
    assert np.diff(sorted(upright[0] + upright[1])) == pytest.approx(1.0)
    assert np.diff(upright[1]) == pytest.approx(5.0)
    begin = min(points[0, 0] for points in traces(figure))
    assert np.abs(np.array(upright[1]) - begin).min() < 1e-9


# ----------------------------------------------------------------------------------------------------------------------
# Layout
# ----------------------------------------------------------------------------------------------------------------------


def test_leads_stand_in_four_columns_of_three_above_a_strip_of_lead_ii():
    axes = plot_ecg(made_up_record()).axes[0]
    positions = [(text.get_text(), *text.get_position()) for text in axes.texts if text.get_text() in LEADS]
    rows = sorted({round(y, 3) for *_, y in positions})
    layout = [[name for name, x, y in sorted(positions, key=lambda p: p[1]) if round(y, 3) == row] for row in rows]
    assert layout == [["I", "aVR", "V1", "V4"], ["II", "aVL", "V2", "V5"], ["III", "aVF", "V3", "V6"], ["II"]]


def test_columns_show_2_5_s_one_after_another_from_the_start():
    # A different level each half second in every lead: which seconds stand where can be read off.
    level = np.repeat(np.arange(60), 50) / 200
    figure = plot_ecg(made_up_record(rate=100, signal=np.tile(level, (12, 1))), start_s=5.0)
    found = sorted((points[0, 0], tuple(np.round(points[:, 1], 6))) for points in traces(figure))
    assert {"5 s", "7.5 s", "10 s", "12.5 s"} <= set(texts(figure))
    first = [ys for x, ys in found if abs(x - found[0][0]) < 1e-6 and len(ys) < 300]
    last = [ys for x, ys in found if abs(x - found[-1][0]) < 1e-6]
    # Half a second up by 5 uV is 0.05 mm; 7.5 s later 0.75 mm. Up is less on the sheet.
    assert len(first) == len(last) == 3
    for early, late in zip(sorted(first), sorted(last), strict=True):
        assert early[0] - late[0] == pytest.approx(15 * 0.05, abs=1e-6)


def test_a_short_recording_shows_2_5_s_of_every_lead_and_where_it_ends():
    figure = plot_ecg(made_up_record(6.0))
    assert {"0 s", "2.5 s", "3.5 s", "end of the recording"} <= set(texts(figure))
    assert texts(figure).count("3.5 s") == 2
    lengths = sorted(round(np.ptp(points[:, 0]), 1) for points in traces(figure))
    assert len(lengths) == 13
    assert lengths[:12] == pytest.approx([62.5] * 12, abs=0.11)
    assert lengths[12] == pytest.approx(150, abs=0.11)


def test_a_recording_shorter_than_a_column_ends_in_it():
    figure = plot_ecg(made_up_record(1.2))
    assert max(np.ptp(points[:, 0]) for points in traces(figure)) < 30


def test_times_of_a_recording_whose_start_was_cut_are_the_files():
    record = made_up_record(seconds=20, start_s=0.4)
    assert {"0.4 s", "2.9 s", "5.4 s", "7.9 s"} <= set(texts(plot_ecg(record)))
    later = plot_ecg(record, start_s=5.4)
    assert any("5.4 s to 15.4 s" in text for text in texts(later))
    same = plot_ecg(made_up_record(seconds=20), start_s=5.0)
    np.testing.assert_array_equal(traces(later)[-1], traces(same)[-1])
    with pytest.raises(ValueError, match=r"within the recording's 20.4 s, found: 20.4"):
        plot_ecg(record, start_s=20.4)


@pytest.mark.parametrize("start_s", [10.0, -1.0, float("nan")])
def test_a_page_that_would_begin_outside_of_the_recording_is_refused(start_s):
    with pytest.raises(ValueError, match=r"start_s must lie within the recording's 10 s"):
        plot_ecg(made_up_record(), start_s=start_s)


def test_a_lead_that_is_missing_constant_or_empty_is_named_and_not_drawn():
    record = made_up_record(leads=LEADS[:-1])
    signal = record.signal
    signal[4], signal[7] = 0.0, np.nan
    figure = plot_ecg(made_up_record(leads=LEADS[:-1], signal=signal))
    assert {"V6 not recorded", "aVL has no signal here (constant)", "V2 has no samples here"} <= set(texts(figure))
    assert len(traces(figure)) == 9 + 1


def test_a_stretch_that_stands_still_is_no_line():
    signal = made_up_record().signal
    signal[1, 2500:4000] = 0.25
    figure = plot_ecg(made_up_record(signal=signal))
    strip = max(traces(figure), key=lambda points: np.ptp(points[:, 0]))
    assert np.isnan(strip[2510:3990, 1]).all()
    dotted = [line for line in figure.axes[0].lines if line.get_linestyle() != "-"]
    assert any(np.isfinite(line.get_ydata()).sum() >= 1490 for line in dotted)


def test_a_gap_of_missing_samples_stays_a_gap():
    signal = made_up_record().signal
    signal[1, 1000:1500] = np.nan
    strip = max(traces(plot_ecg(made_up_record(signal=signal))), key=lambda points: np.ptp(points[:, 0]))
    assert np.isnan(strip[1000:1500, 1]).all()
    assert np.isfinite(strip[999, 1])


def test_an_offset_between_electrodes_does_not_carry_a_trace_off_the_paper():
    record = made_up_record()
    shifted = made_up_record(signal=record.signal + 40.0)
    for found, expected in zip(traces(plot_ecg(shifted)), traces(plot_ecg(record)), strict=True):
        assert found == pytest.approx(expected, abs=1e-6)


def test_what_leaves_the_room_of_its_row_is_cut_off_and_reported():
    signal = made_up_record().signal
    signal[6, 200] = 30.0  # at 0.4 s, where lead V1 is not shown
    assert not any("cut off" in text for text in texts(plot_ecg(made_up_record(signal=signal))))
    signal[6, 2700] = 30.0
    figure = plot_ecg(made_up_record(signal=signal))
    assert "cut off at the small triangles: V1" in texts(figure)
    grid = figure.axes[0].patches[0]
    for points in traces(figure):
        assert points[:, 1].min() >= grid.get_y()
        assert points[:, 1].max() <= grid.get_y() + grid.get_height()


# ----------------------------------------------------------------------------------------------------------------------
# What is written
# ----------------------------------------------------------------------------------------------------------------------


def test_no_patient_or_date_is_printed_and_the_page_is_not_for_clinical_use(config):
    from datetime import datetime

    record = made_up_record(
        patient_id="P-1234", report="Jane Doe", time=datetime(2019, 3, 4), age=93, sex="F", recording_id="E7"
    )
    for figure in (plot_ecg(record), plot_prediction(record, {"rhythm": 0.5, "beats": 0.1}, [], config)):
        everything = " ".join(texts(figure))
        assert not re.search("1234|Jane|Doe|2019|93", everything)
        assert "90 years or older" in everything
        assert "NOT FOR CLINICAL USE" in everything
        assert "25 mm/s · 10 mm/mV" in everything
        assert "filter 0.05" not in everything


def test_facts_and_titles_are_text_and_never_markup(tmp_path):
    figure = plot_ecg(made_up_record(), title=r"$\frac{1}{0}$ <b>x</b>", facts=["filter 0.05-150 Hz", r"$x$"])
    save_page(figure, tmp_path / "page.png")
    assert r"$\frac{1}{0}$ <b>x</b>" in texts(figure)
    assert not any(text.get_parse_math() for text in figure.axes[0].texts)
    assert any("filter 0.05-150 Hz" in text and "$x$" in text for text in texts(figure))


def test_a_long_title_ends_before_the_scale():
    figure = plot_ecg(made_up_record(recording_id="recording_" * 30))
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].texts]
    title = next(text for text in figure.axes[0].texts if text.get_text().startswith("recording_"))
    assert title.get_text().endswith("…")
    others = [box for box, text in zip(boxes, figure.axes[0].texts, strict=True) if text is not title]
    assert not any(title.get_window_extent(renderer).overlaps(box) for box in others)


# ----------------------------------------------------------------------------------------------------------------------
# Scores
# ----------------------------------------------------------------------------------------------------------------------


def test_scores_are_called_scores_until_they_are_calibrated(config):
    scores = {"rhythm": 0.5, "beats": 0.1}
    assert "Scores" in texts(plot_prediction(made_up_record(), scores, ["rhythm"], config))
    config.label_calibration = {"rhythm": {"slope": 1.0, "intercept": 0.0}}
    half = texts(plot_prediction(made_up_record(), scores, ["rhythm"], config))
    assert "Scores" in half
    assert any("a probability only where marked p" in text for text in half)
    assert half.count(" p") == 1
    config.label_calibration |= {"beats": {"slope": 1.0, "intercept": 0.0}}
    assert "Probabilities" in texts(plot_prediction(made_up_record(), scores, ["rhythm"], config))
    config.problem_type = "regression"
    values = texts(plot_prediction(made_up_record(), {"rhythm": 71.25, "beats": -3.0}, None, config))
    assert {"Predicted values", "71.25", "-3"} <= set(values)


def test_bars_and_thresholds_are_in_proportion_and_positive_labels_stand_out(config):
    axes = plot_prediction(made_up_record(), {"rhythm": 0.5, "beats": 0.1}, ["rhythm"], config).axes[0]
    track, filled, *_ = [patch for patch in axes.patches if patch.get_height() == pytest.approx(2.0)]
    assert filled.get_width() == pytest.approx(0.5 * track.get_width())
    tick = next(
        line for line in axes.lines if len(line.get_xdata()) == 2 and np.ptp(line.get_ydata()) == pytest.approx(3.0)
    )
    assert tick.get_xdata()[0] == pytest.approx(track.get_x() + 0.25 * track.get_width())
    weights = {text.get_text(): text.get_weight() for text in axes.texts}
    assert weights["rhythm"] == "bold"
    assert weights["beats*"] == "normal"
    assert "* beats: counts only the early ones" in weights


def test_without_thresholds_nothing_is_positive_and_that_is_reported(config):
    config.label_thresholds = None
    figure = plot_prediction(made_up_record(), {"rhythm": 0.99, "beats": 0.1}, None, config)
    assert any("the model has no thresholds" in text for text in texts(figure))


def test_where_most_leads_are_empty_the_page_draws_no_thresholds_and_no_probabilities(config):
    warnings = ["only 5 of 12 leads carry a signal: calibration and thresholds are not valid for this recording"]
    figure = plot_prediction(made_up_record(), {"rhythm": 0.9, "beats": 0.1}, None, config, warnings=warnings)
    assert "calibration and thresholds are not valid for this recording" in texts(figure)
    assert not any("probabilit" in text or text == " p" for text in texts(figure))
    assert not [line for line in figure.axes[0].lines if np.ptp(line.get_ydata()) == pytest.approx(3.0)]
    assert config.label_thresholds, "the model's own config is not changed"


def test_warnings_of_the_recording_are_printed_before_the_notes(config):
    scores, warnings = {"rhythm": 0.5, "beats": 0.1}, ["lead V2 is constant (dead): set to 0", "seconds\nwere dropped"]
    shown = texts(plot_prediction(made_up_record(), scores, [], config, warnings=warnings))
    first = shown.index("2 warnings: lead V2 is constant (dead): set to 0; seconds were dropped")
    assert shown[first + 1].startswith("* beats: ")
    shown = texts(plot_prediction(made_up_record(), scores, [], config, warnings=warnings * 50))
    first = next(number for number, text in enumerate(shown) if text.startswith("100 warnings: "))
    assert shown[first + 2].endswith(" …")
    assert shown[first + 3].startswith("* beats: ")


def test_labels_that_differ_in_their_beginning_or_end_alone_are_distinguished():
    from ecgfm_hf.interpretation.paper import fit_label, text_width

    names = [
        f"{begin}complete block of a bundle branch that is named at great length, number {end}"
        for begin in ("", "in")
        for end in (1, 2)
    ]
    shown = [fit_label(name, 6.8, 5.4, 40.0) for name in names]
    assert len(set(shown)) == 4
    for text, size in shown:
        assert text_width(text, size) <= 40.0
        assert size == 5.4
    assert fit_label("rhythm", 6.8, 5.4, 40.0) == ("rhythm", 6.8)
    text, size = fit_label("complete right bundle branch block", 6.8, 5.4, 36.0)
    assert text == "complete right bundle branch block"
    assert 5.4 < size < 6.8
    assert text_width(text, size) <= 36.0


@pytest.mark.parametrize("paper", ["a4", "letter"])
@pytest.mark.parametrize("count", [1, 17, 26, 71])
def test_no_two_texts_of_a_full_page_overlap(paper, count):
    names = [f"label {i} of a length that some labels really have" for i in range(count)]
    config = ECGFMConfig(
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        label_notes={name: "what must be known about this label, at some length, " * 4 for name in names[:9]},
        label_calibration={name: {"slope": 1.0, "intercept": 0.0} for name in names[::2]},
    )
    record = made_up_record(age=50, sex="M", recording_id="recording_" * 20)
    scores = {name: i / count for i, name in enumerate(names)}
    values = np.full(record.samples.shape, np.nan)
    saliency = saliency_of(record, values, "L" * 200)
    warnings = ["lead V2 is constant (dead): set to 0"] * 30
    figure = plot_prediction(
        record, scores, names[:1], config, warnings=warnings, saliency=saliency, facts=["model m" * 50], paper=paper
    )
    renderer, sheet = figure.canvas.get_renderer(), figure.bbox
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in figure.axes[0].texts if text.get_text()]
    for number, (one, box) in enumerate(boxes):
        assert sheet.x0 <= box.x0 < box.x1 <= sheet.x1, one
        assert sheet.y0 <= box.y0 < box.y1 <= sheet.y1, one
        for other, its_box in boxes[number + 1 :]:
            # By more than a hair: the extents of italics and descenders reach a little into the next line.
            wide = min(box.x1, its_box.x1) - max(box.x0, its_box.x0)
            high = min(box.y1, its_box.y1) - max(box.y0, its_box.y0)
            assert wide <= 1 or high <= 2.5, (one, other)
    shown = sum(any(text.startswith(f"label {i} of") for text, _ in boxes) for i in range(count))
    if shown < count:
        assert any(f"{shown} of {count} labels shown" in text for text, _ in boxes)
    assert any(text.startswith("label 0 of") for text, _ in boxes)  # positive, so shown though its score is lowest


# ----------------------------------------------------------------------------------------------------------------------
# Saliency
# ----------------------------------------------------------------------------------------------------------------------


def test_saliency_colours_the_trace_where_it_is():
    record = made_up_record()
    values = np.zeros(record.samples.shape)
    values[1, 1000:1200], values[1, 3000:3200], values[1, 4000:] = 1.0, -1.0, np.nan
    figure = plot_ecg(record, saliency=saliency_of(record, values))
    strip = max(
        (c for c in figure.axes[0].collections[2:] if isinstance(c, LineCollection)), key=lambda c: len(c.get_paths())
    )
    red, _, blue, _ = np.array(strip.get_colors()).T
    begin = strip.get_paths()[0].vertices[0, 0]
    seconds = np.array([path.vertices[0, 0] - begin for path in strip.get_paths()]) / 25
    assert (red - blue)[(seconds > 2.05) & (seconds < 2.35)].min() > 0.5
    assert (blue - red)[(seconds > 6.05) & (seconds < 6.35)].min() > 0.5
    assert np.abs(red - blue)[(seconds > 3) & (seconds < 5.9)].max() < 0.05
    assert red[seconds > 8.1].min() > red[(seconds > 3) & (seconds < 5.9)].max()  # grey, not ink
    assert {"for A (integrated gradients)", "grey: not covered    against"} <= set(texts(figure))


def test_saliency_of_another_recording_is_refused():
    with pytest.raises(ValueError, match=r"saliency must have the recording's shape \(12, 5000\)"):
        plot_ecg(made_up_record(), saliency=saliency_of(made_up_record(5.0)))


# ----------------------------------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------------------------------


def test_a_pdf_has_the_papers_size_vectors_and_nothing_about_who_or_when(tmp_path):
    save_page(plot_ecg(made_up_record()), tmp_path / "page.pdf")
    content = (tmp_path / "page.pdf").read_bytes()
    box = re.search(rb"/MediaBox \[ ?0 0 ([\d.]+) ([\d.]+) ?\]", content)
    assert [float(side) / 72 * 25.4 for side in box.groups()] == pytest.approx([297, 210], abs=0.02)
    assert b"/CreationDate" not in content
    assert b"/Subtype /Image" not in content
    streams = [
        zlib.decompress(part)
        for part in re.findall(rb"/FlateDecode.*?stream\r?\n(.*?)\r?\nendstream", content, re.DOTALL)
    ]
    assert max(stream.count(b" l\n") for stream in streams) > 2000


def test_the_same_page_is_the_same_file(tmp_path):
    for name in ("one", "two"):
        for suffix in ("pdf", "png"):
            save_page(plot_ecg(made_up_record()), tmp_path / f"{name}.{suffix}")
    assert (tmp_path / "one.pdf").read_bytes() == (tmp_path / "two.pdf").read_bytes()
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.pdf", "one.png", "two.pdf", "two.png"]


def test_other_formats_papers_and_gains_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"\.png or \.pdf"):
        save_page(plot_ecg(made_up_record()), tmp_path / "page.svg")
    with pytest.raises(ValueError, match="paper must be one of 'a4', 'letter'"):
        plot_ecg(made_up_record(), paper="a3")
    with pytest.raises(ValueError, match="mm_per_mv must be one of 5, 10, 20"):
        plot_ecg(made_up_record(), mm_per_mv=7)


def test_a_recordings_page_is_written_where_it_was_asked_for(tmp_path, config):
    taken: set[str] = set()
    paths = [plot_path(tmp_path / "pages", name, "pdf", taken) for name in ("a/E7", "b/e7", "..", "x y:z\n")]
    assert [path.name for path in paths] == ["E7.pdf", "e7_2.pdf", "recording.pdf", "x_y_z_.pdf"]
    plot_recording(made_up_record(), {"rhythm": 0.5, "beats": 0.1}, None, config, None, paths[0], paper="letter")
    assert paths[0].read_bytes().startswith(b"%PDF")


def test_what_to_install_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"ecgfm-hf\[plots\]"):
        plot_ecg(made_up_record())


def test_rates_of_other_recorders_keep_the_scale():
    for rate in (100, 257, 1000):
        strip = max(traces(plot_ecg(made_up_record(rate=rate))), key=lambda points: np.ptp(points[:, 0]))
        assert np.ptp(strip[:, 0]) == pytest.approx(250 * (1 - 1 / (10 * rate)), abs=0.11)


def test_attention_has_no_against():
    record = made_up_record()
    figure = plot_ecg(record, saliency=dataclasses.replace(saliency_of(record, label=None), method="attention"))
    assert {"least", "most attention (of no label)"} <= set(texts(figure))
