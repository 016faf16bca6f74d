"""Preprocessing: what the original computes, what every policy does, what is refused, what is warned of."""

import contextlib
import json
import os
import typing
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers import AutoFeatureExtractor

from ecgfm_hf import ECGFMForMultiLabelClassification, ECGFMForPreTraining, ECGFMModel
from ecgfm_hf.configuration_ecgfm import ECGFMConfig
from ecgfm_hf.feature_extraction_ecgfm import (
    OTHER_LEADS,
    STANDARD_LEADS,
    ECGFMFeatureExtractor,
    canonical_lead_name,
    clipped_leads,
    millivolts_per_unit,
    resample,
    resampled_length,
    standardise,
)

FIXTURES = Path(__file__).parent / "fixtures"
SHARED = Path(os.environ.get("ECGFM_SHARED", Path(__file__).parents[2] / "shared"))
needs_shared = pytest.mark.skipif(
    not (SHARED / "golden" / "preproc").is_dir(), reason=f"the reference data is not at {SHARED} (set ECGFM_SHARED)"
)
LEADS = list(STANDARD_LEADS)
CONTRADICTION = "the order of leads, units or gains may be wrong"


def make_ecg(seconds: float = 10, rate: float = 500, seed: int = 0) -> np.ndarray:
    """(12, samples) float64 in mV: spikes and waves of random height, limb leads that agree."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * rate)) / rate
    beat = (time + 0.3) % 0.83
    shapes = np.array(
        [np.exp(-(((beat - at) / width) ** 2)) for at, width in ((0.2, 0.03), (0.4, 0.012), (0.65, 0.06))]
    )
    ecg = rng.normal(0, 0.5, (12, 3)) @ shapes + 0.02 * rng.standard_normal((12, len(time)))
    one, two = ecg[0] + shapes[1], ecg[1] + shapes[1] + 0.3 * shapes[2]
    ecg[:6] = one, two, two - one, -(one + two) / 2, one - two / 2, two - one / 2
    return ecg


@pytest.fixture(scope="module")
def extract():
    return ECGFMFeatureExtractor()


def run(extract, recordings, sampling_rate=500, lead_names=LEADS, **kwargs):
    """With all that is known of the recordings, and warnings once for each of them."""
    settings = {"sampling_rate": sampling_rate, "lead_names": lead_names, "return_recording_info": True, **kwargs}
    output = extract(recordings, **settings)
    firsts = np.unique(output["recording_index"], return_index=True)[1]
    assert len(output["warnings"]) == len(output["input_values"])
    output["warnings"] = [output["warnings"][first] for first in firsts]
    return output


def stitched(output) -> np.ndarray:
    """(leads, samples) of a single recording's segments."""
    return np.concatenate(list(output.input_values), axis=1)


class TestAgreementWithTheOriginal:
    def test_a_real_recording(self, extract):
        data = np.load(FIXTURES / "preprocessing_recording.npz")
        output = run(extract, data["recording"], 400)
        expected = data["standardised_every_8th"][:, : 2500 // 8 + 1]
        np.testing.assert_allclose(stitched(output)[:, ::8], expected, atol=1e-6, rtol=0)

    def test_integer_samples(self, extract):
        data = np.load(FIXTURES / "preprocessing_int16.npz")
        expected = data["standardised_every_16th"]
        np.testing.assert_allclose(
            stitched(run(extract, data["recording"], 400))[:, ::16], expected[:, : 5000 // 16 + 1], atol=1e-6, rtol=0
        )
        signal = resample(data["recording"].astype(np.float64), 400, 500)
        means = signal.mean(axis=1)
        mean, std = standardise(signal)
        np.testing.assert_array_equal(mean, means)
        np.testing.assert_allclose(signal[:, ::16], expected, atol=1e-12, rtol=0)
        np.testing.assert_allclose(std, data["std"], rtol=1e-13)

    @pytest.mark.parametrize(("length", "rate"), [(2934, 400), (1285, 257), (9999, 1000)])
    def test_resampling(self, length, rate):
        data = np.load(FIXTURES / "preprocessing_resampling.npz")
        result = resample(data[f"in_{length}_{rate}"], rate, 500)
        np.testing.assert_allclose(result, data[f"out_{length}_{rate}"], atol=1e-11, rtol=0)

    @needs_shared
    def test_every_recorded_case(self):
        path = SHARED / "golden" / "preproc" / "i_preprocess_chain"
        cases = json.loads(path.with_suffix(".json").read_text())["cases"]
        arrays = np.load(path.with_suffix(".npz"))
        extract = ECGFMFeatureExtractor(nan_samples="zero", short_recordings="pad")
        compared = 0
        for name, case in cases.items():
            if case.get("strategy") != "zero":
                continue  # 'nan' and 'constant' are other things to do with dead leads, which nobody wants
            recording, expected = arrays[f"{name}_in"], arrays[f"{name}_pre_f64"]
            if name.startswith("const_0p1_lead_f64"):
                recording = recording.astype(np.float64)
                recording[4] = 0.1  # was stored as float32
            output = run(extract, recording, case["rate"])
            result = stitched(output)[:, : expected.shape[1]]
            kept = ~np.isnan(expected).any(axis=1)
            difference = np.abs(result - expected[:, : result.shape[1]])[kept].max()
            assert difference < 1e-6, (name, difference)
            assert not result[~kept].any(), name  # the original leaves NaN, we have 0
            compared += 1
        assert compared >= 15

    @needs_shared
    def test_published_code_15_segments(self, extract):
        loadmat = pytest.importorskip("scipy.io").loadmat
        for path in sorted((SHARED / "data" / "code_15" / "org").glob("*.mat")):
            output = run(extract, loadmat(path)["feats"], 400)
            for i, segment in enumerate(output.input_values):
                expected = loadmat(path.parents[1] / "segmented" / f"{path.stem}_{i}.mat")["feats"]
                np.testing.assert_allclose(segment, expected, atol=1e-6, rtol=0)
            assert not (path.parents[1] / "segmented" / f"{path.stem}_{i + 1}.mat").exists()


class TestSegments:
    def test_output_of_one_recording(self, extract):
        output = run(extract, make_ecg(12.3))
        assert output.input_values.shape == (2, 12, 2500)
        assert output.input_values.dtype == np.float32
        assert output.recording_index.tolist() == [0, 0]
        assert output.segment_start.tolist() == [0, 2500]
        assert output.recording_index.dtype == output.segment_start.dtype == np.int64
        assert "attention_mask" not in output
        assert output.warnings == [["the last 2.3 s are dropped: shorter than a segment"]]

    def test_standardised_over_the_whole_recording_not_the_segment(self, extract):
        ecg = make_ecg()
        ecg[:, 2500:] += 1.0
        result = run(extract, ecg).input_values
        assert (result[0].mean(axis=1) < -0.1).all()
        whole = result.transpose(1, 0, 2).reshape(12, -1)
        np.testing.assert_allclose(whole.mean(axis=1), 0, atol=1e-6)
        np.testing.assert_allclose(whole.std(axis=1), 1, atol=1e-6)

    def test_recordings_of_any_length_rate_order_and_unit_in_one_batch(self, extract):
        recordings = [make_ecg(5), make_ecg(16, 250)[::-1], make_ecg(10, 400) * 1000]
        names = [LEADS, LEADS[::-1], LEADS]
        output = run(extract, recordings, [500, 250, 400], names, units=["mV", "mV", "uV"])
        assert output.recording_index.tolist() == [0, 1, 1, 1, 2, 2]
        assert output.segment_start.tolist() == [0, 0, 2500, 5000, 0, 2500]
        for i, (rate, one) in enumerate(zip([500, 250, 400], recordings, strict=True)):
            single = run(extract, one, rate, names[i]).input_values
            np.testing.assert_array_equal(output.input_values[output.recording_index == i], single)

    @pytest.mark.parametrize("as_type", [np.stack, list, tuple, lambda x: torch.from_numpy(np.stack(x))])
    def test_collections(self, extract, as_type):
        recordings = [make_ecg(seed=0), make_ecg(seed=1)]
        expected = np.concatenate([run(extract, one).input_values for one in recordings])
        np.testing.assert_array_equal(run(extract, as_type(recordings)).input_values, expected)

    def test_nested_lists_are_arrays(self, extract):
        ecg = make_ecg(5).round(3)
        expected = run(extract, ecg).input_values
        np.testing.assert_array_equal(run(extract, ecg.tolist()).input_values, expected)
        np.testing.assert_array_equal(run(extract, [ecg.tolist()]).input_values, expected)

    @pytest.mark.parametrize("dtype", ["int16", "int32", ">i2", "uint16", "float32", "float64", ">f4", "int64"])
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_dtypes_and_memory_orders(self, extract, dtype, order):
        counts = (1000 * make_ecg()).round() + 30_000 * dtype.startswith("u")
        recording = np.array(counts, dtype=dtype, order=order)
        before = recording.copy()
        np.testing.assert_allclose(run(extract, recording).input_values, run(extract, counts).input_values, atol=1e-6)
        np.testing.assert_array_equal(recording, before)

    def test_pytorch_tensors(self, extract):
        output = run(extract, make_ecg(4), return_tensors="pt", short_recordings="pad")
        for key in ("input_values", "attention_mask", "recording_index", "segment_start"):
            assert isinstance(output[key], torch.Tensor), key
        assert output.warnings == [["only 4 s long: padded to 5 s"]]
        assert output.to("cpu").warnings == output.warnings

    def test_one_prepared_recording_is_the_batch_of_one(self, extract):
        prepared = extract.prepare_recording(make_ecg(12), 500, LEADS, "mV")
        output = run(extract, make_ecg(12))
        np.testing.assert_array_equal(prepared.segments, output.input_values)
        assert prepared.warnings == output.warnings[0]
        with pytest.raises(ValueError, match=r"^patient 7: .*transposed"):
            extract.prepare_recording(make_ecg().T, 500, LEADS, name="patient 7")


class TestLeads:
    @pytest.mark.parametrize("units", ["mV", "uV", ["uV"] * 6 + ["mV"] * 6, None])
    def test_mean_and_std_undo_standardisation_in_millivolts(self, extract, units):
        millivolts = make_ecg(10)
        scale = np.array(
            [
                1000.0 if unit == "uV" else 1.0
                for unit in ([units] * 12 if isinstance(units, str) else units or [""] * 12)
            ]
        )
        prepared = extract.prepare_recording(millivolts * scale[:, None] + 0, 500, LEADS, units)
        undone = prepared.segments * prepared.std[:, None] + prepared.mean[:, None]
        np.testing.assert_allclose(np.concatenate(undone, axis=1), millivolts, atol=1e-6)
        millivolts[7] = 0.25  # a constant lead keeps its level, too
        dead = extract.prepare_recording(millivolts * scale[:, None], 500, LEADS, units)
        undone = dead.segments * dead.std[:, None] + dead.mean[:, None]
        np.testing.assert_allclose(np.concatenate(undone, axis=1), millivolts, atol=1e-6)

    def test_order_is_by_name_regardless_of_the_case(self, extract):
        order = np.random.default_rng(1).permutation(12)
        names = [(" " + LEADS[i]).lower() if i % 2 else LEADS[i].upper() for i in order]
        ecg = make_ecg()
        np.testing.assert_array_equal(
            run(extract, ecg[order], lead_names=names).input_values, run(extract, ecg).input_values
        )

    def test_model_with_fewer_leads_takes_its_own(self, extract):
        few = ECGFMFeatureExtractor(lead_names=["v5", "ii"])
        ecg = make_ecg()
        expected = run(extract, ecg).input_values[:, [10, 1]]
        output = run(few, ecg)
        np.testing.assert_array_equal(output.input_values, expected)
        assert output.warnings == [[]]

    def test_other_leads_are_ignored_with_a_warning(self, extract):
        ecg = np.concatenate([make_ecg(), make_ecg()[:2] + np.nan])
        output = run(extract, ecg, lead_names=[*LEADS, "v7", "VX"], units=["mV"] * 12 + ["furlong"] * 2)
        assert output.warnings == [["ignored lead V7: not a standard lead", "ignored lead VX: not a standard lead"]]

    def test_missing_lead_becomes_zero_if_allowed(self, extract):
        present = [0, 1, 2, 3, 5, *range(6, 12)]
        output = run(extract, make_ecg()[present], lead_names=[LEADS[i] for i in present], missing_leads="zero")
        assert not output.input_values[:, 4].any()
        np.testing.assert_array_equal(
            output.input_values[:, present], run(extract, make_ecg()).input_values[:, present]
        )
        assert output.warnings == [["missing lead aVL: set to 0"]]

    @pytest.mark.parametrize("present", [("I", "II"), ("I", "III"), ("III", "II")])
    def test_limb_leads_are_derived_from_two(self, extract, present):
        ecg, chest = make_ecg(), LEADS[6:]
        names = [*chest, *present]
        output = run(extract, ecg[[LEADS.index(n) for n in names]], lead_names=names, missing_leads="derive")
        np.testing.assert_allclose(output.input_values, run(extract, ecg).input_values, atol=1e-6)
        assert output.warnings == [[f"missing lead {n}: derived" for n in LEADS[:6] if n not in present]]

    def test_derivation_scales_leads_of_different_units(self, extract):
        names = ["I", "II", *LEADS[6:]]
        ecg = make_ecg()
        recording = ecg[[LEADS.index(n) for n in names]]
        recording[0] *= 1000
        output = run(extract, recording, lead_names=names, units=["uV"] + ["mV"] * 7, missing_leads="derive")
        np.testing.assert_allclose(output.input_values, run(extract, ecg).input_values, atol=1e-6)

    def test_derivation_may_use_leads_the_model_does_not_take(self, extract):
        output = run(
            ECGFMFeatureExtractor(lead_names=["III"]), make_ecg()[:2], lead_names=["I", "II"], missing_leads="derive"
        )
        np.testing.assert_allclose(output.input_values[:, 0], run(extract, make_ecg()).input_values[:, 2], atol=1e-6)

    def test_derived_lead_of_rounding_noise_is_constant(self):
        one = make_ecg()[:1]
        output = run(
            ECGFMFeatureExtractor(lead_names=["I", "III"]),
            np.concatenate([one, one + 0.1]),
            500,
            ["I", "II"],
            missing_leads="derive",
        )
        assert not output.input_values[:, 1].any()
        assert "lead III is constant (dead): set to 0" in output.warnings[0]

    def test_what_cannot_be_derived_is_an_error(self, extract):
        with pytest.raises(ValueError, match="recording 0: missing lead V3, found "):
            run(extract, np.delete(make_ecg(), 8, 0), lead_names=np.delete(LEADS, 8).tolist(), missing_leads="derive")
        with pytest.raises(ValueError, match="missing lead I, III, aVR, aVL, aVF, V1"):
            run(extract, make_ecg()[1:2], lead_names=["II"], missing_leads="derive")
        ecg = np.delete(make_ecg(), 2, 0)
        ecg[0] = 0.3
        with pytest.raises(ValueError, match="missing lead III cannot be derived: lead I carries no signal"):
            run(extract, ecg, lead_names=np.delete(LEADS, 2).tolist(), missing_leads="derive")


class TestBadSamples:
    def test_nan_is_an_error_by_default(self, extract):
        ecg = make_ecg()
        ecg[7, 100:103] = np.nan
        with pytest.raises(ValueError, match="recording 1: lead V2 has 3 NaN in 5000 samples"):
            run(extract, [make_ecg(), ecg])

    def test_nan_lead_becomes_zero_if_allowed(self, extract):
        ecg = make_ecg()
        ecg[7, 100:103] = np.nan
        ecg[8] = np.nan
        output = run(extract, ecg, nan_samples="zero", constant_leads="error")
        assert not output.input_values[:, 7:9].any()
        np.testing.assert_array_equal(output.input_values[:, :7], run(extract, make_ecg()).input_values[:, :7])
        assert [w.split(":")[1] for w in output.warnings[0]] == [" the lead is set to 0"] * 2

    @pytest.mark.parametrize("gap", [slice(100, 130), slice(0, 5), slice(4990, 5000)])
    def test_gaps_are_bridged_if_allowed(self, extract, gap):
        ecg = make_ecg()
        ecg[7, gap] = np.nan
        filled = ecg.copy()
        known = np.flatnonzero(~np.isnan(ecg[7]))
        filled[7] = np.interp(np.arange(5000), known, ecg[7, known])
        output = run(extract, ecg, nan_samples="interpolate")
        np.testing.assert_array_equal(output.input_values, run(extract, filled).input_values)
        assert output.warnings == [[f"lead V2 has {5000 - len(known)} NaN in 5000 samples: bridged linearly"]]

    def test_a_lead_of_nan_cannot_be_bridged(self, extract):
        ecg = make_ecg()
        ecg[7] = np.nan
        with pytest.raises(ValueError, match=r"lead V2 has 5000 NaN.*nothing to interpolate"):
            run(extract, ecg, nan_samples="interpolate")

    @pytest.mark.parametrize("policy", ["error", "zero", "interpolate"])
    @pytest.mark.parametrize("value", [np.inf, -np.inf])
    def test_infinity_is_always_an_error(self, extract, policy, value):
        ecg = make_ecg()
        ecg[3, 17], ecg[3, 18] = value, np.nan
        with pytest.raises(ValueError, match="recording 0: lead aVR has infinite samples"):
            run(extract, ecg, nan_samples=policy)

    @pytest.mark.parametrize("value", [0.0, 0.1, -7.3, 1e9])
    @pytest.mark.parametrize("rate", [500, 400])
    def test_constant_lead_becomes_zero(self, extract, value, rate):
        ecg = make_ecg(rate=rate)
        ecg[4] = value
        output = run(extract, ecg, rate)
        assert not output.input_values[:, 4].any()
        assert output.warnings == [["lead aVL is constant (dead): set to 0"]]
        with pytest.raises(ValueError, match="lead aVL is constant"):
            run(extract, ecg, rate, constant_leads="error")

    def test_a_spike_that_resampling_skips_leaves_a_constant_lead(self, extract):
        ecg = make_ecg(rate=1000)
        ecg[9] = 0.1
        ecg[9, 1] = 5.0
        output = run(extract, ecg, 1000)
        assert np.isfinite(output.input_values).all()
        assert np.abs(output.input_values[:, 9]).max() in (0, pytest.approx(np.sqrt(5000), rel=1e-3))

    def test_a_recording_without_any_signal_is_an_error(self, extract):
        with pytest.raises(ValueError, match="recording 0: no lead carries a signal"):
            run(extract, np.zeros((12, 5000), dtype=np.int16))
        assert extract.refusal(5000, 500, LEADS, constant=[True] * 12) == "no lead carries a signal"
        ecg = make_ecg()
        ecg[:7] = 0
        assert any(note.startswith("only 5 of 12 leads carry a signal") for note in run(extract, ecg).warnings[0])

    def test_arguments_for_padding_and_truncation_are_refused_with_the_reason(self, extract):
        with pytest.raises(TypeError, match=r"unknown argument padding, truncation; .*segments of equal length"):
            run(extract, make_ecg(10), padding=True, truncation=True)

    def test_short_recording_is_padded_if_allowed(self, extract):
        with pytest.raises(ValueError, match="recording 0: 1600 samples at 400 Hz are shorter than 5 s"):
            run(extract, make_ecg(4, 400), 400)
        output = run(extract, [make_ecg(4, 400), make_ecg(11)], [400, 500], short_recordings="pad")
        assert output.attention_mask.shape == (3, 2500)
        assert output.attention_mask.dtype == np.int64
        assert output.attention_mask.sum(axis=1).tolist() == [2000, 2500, 2500]
        assert output.attention_mask[0, :2000].all()
        assert not output.input_values[0, :, 2000:].any()
        np.testing.assert_allclose(output.input_values[0, :, :2000].std(axis=1), 1, atol=1e-5)


def _changed(ecg, **changes):
    for name, value in changes.items():
        ecg[LEADS.index(name)] = value(ecg[LEADS.index(name)])
    return ecg


class TestBadInput:
    @pytest.mark.parametrize("rate", [0, -500, np.nan, np.inf, 0.5, 1e9, None, True, "500", 500j, [[500]]])
    def test_sampling_rate(self, extract, rate):
        with pytest.raises(
            ValueError, match=r"recording 0: sampling_rate .* must be a number from 25 to 50000, found: "
        ):
            run(extract, make_ecg(), rate)

    def test_sampling_rate_and_lead_names_are_mandatory(self, extract):
        with pytest.raises(TypeError, match="sampling_rate"):
            extract(make_ecg(), lead_names=LEADS)
        with pytest.raises(TypeError, match="lead_names"):
            extract(make_ecg(), sampling_rate=500)

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (None, "lead_names must be a list of lead names, found: None"),
            ("I,II", "lead_names must be a list of lead names, found: 'I,II'"),
            ([], r"lead_names must be a list of lead names, found: \[\]"),
            (LEADS[:11], r".* found: \(12, 5000\) and 11 names"),
            ([*LEADS[:11], "V5"], "duplicate lead V5 .rows 10 and 11"),
            ([*LEADS[:11], "v 5"], "duplicate lead V5"),
            ([*LEADS[:11], "ch12"], "missing lead V6, found .*rename_leads='ch12=V6'"),
            ([*LEADS[:11], 12], "unknown lead name 12"),
            ([*LEADS[:11], "V7"], "missing lead V6, found I, "),
            (OTHER_LEADS[:12], "missing lead I, II, III"),
        ],
    )
    def test_lead_names(self, extract, names, message):
        with pytest.raises(ValueError, match=f"recording 0: {message}"):
            run(extract, make_ecg(), lead_names=names)

    def test_nothing_is_left_of_a_recording_of_other_leads(self, extract):
        with pytest.raises(ValueError, match="nothing is left"):
            run(extract, make_ecg(), lead_names=list(OTHER_LEADS[:12]), missing_leads="zero")

    @pytest.mark.parametrize(
        ("recording", "message"),
        [
            (make_ecg().T, r"\(5000, 12\) and 12 names: it looks transposed"),
            (make_ecg()[0], r"must have shape \(leads, samples\), .* found: \(5000,\)"),
            (make_ecg()[:, :0], r"at least one sample, found: \(12, 0\)"),
            (make_ecg() > 0, "must hold integers or floats, found: dtype bool"),
            (make_ecg() * 1j, "found: dtype complex128"),
            (make_ecg()[:, :50].astype(str), "found: dtype <U"),
            (make_ecg()[:, :50].astype(object), "found: dtype object"),
            (None, "found: dtype object"),
            ([make_ecg()[0], make_ecg()[1, :99]], "inhomogeneous"),
        ],
    )
    def test_recording(self, extract, recording, message):
        with pytest.raises(ValueError, match=f"recording 0: .*{message}"):
            run(extract, recording)

    @pytest.mark.parametrize("nothing", [[], np.zeros((0, 12, 5000))])
    def test_no_recordings(self, extract, nothing):
        with pytest.raises(ValueError, match="there are no recordings"):
            run(extract, nothing)

    def test_which_recording_it_was(self, extract):
        good = make_ecg()
        for i, bad in enumerate([good.T, _changed(make_ecg(), V1=lambda v: v * np.nan), good[:, :300]]):
            with pytest.raises(ValueError, match=f"^recording {i}: "):
                run(extract, [good] * i + [bad, good])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"sampling_rate": [500]}, "sampling_rate: 1 of them for 2 recordings"),
            ({"lead_names": [LEADS] * 3}, "lead_names: 3 of them for 2 recordings"),
            ({"units": [["mV"] * 12] * 3}, "units: 3 of them for 2 recordings"),
            ({"units": ["mV"] * 5}, "recording 0: 5 units for 12 leads"),
            ({"units": "MV"}, "recording 0: lead I: unknown unit 'MV'"),
            ({"units": ["mV"] * 11 + ["adu"]}, "recording 0: lead V6: unknown unit 'adu'"),
            ({"units": ["mV", ["mV"] * 11 + [None]]}, "recording 1: lead V6: unknown unit None"),
            ({"missing_leads": "ignore"}, "missing_leads must be one of 'error', 'zero', 'derive', found: 'ignore'"),
        ],
    )
    def test_other_arguments(self, extract, arguments, message):
        with pytest.raises(ValueError, match=message):
            run(extract, [make_ecg(), make_ecg()], **arguments)

    def test_units_that_may_be_of_leads_or_of_recordings(self):
        few = ECGFMFeatureExtractor(lead_names=["I", "II"])
        recordings = [make_ecg()[:2], make_ecg()[:2]]
        with pytest.raises(ValueError, match="one per lead or one per recording"):
            run(few, recordings, lead_names=["I", "II"], units=["mV", "uV"])
        run(few, recordings, lead_names=["I", "II"], units=["mV", "mV"])
        run(few, recordings, lead_names=["I", "II"], units=[["mV", "uV"], None])

    def test_unknown_argument(self, extract):
        with pytest.raises(TypeError, match="missing_lead"):
            run(extract, make_ecg(), missing_lead="zero")


class TestWarnings:
    def test_none_for_a_sound_recording(self, extract):
        assert run(extract, make_ecg(), units="mV").warnings == [[]]
        assert run(extract, np.round(make_ecg() * 1000).astype(np.int16), units="uV").warnings == [[]]

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda ecg: ecg[[1, 0, *range(2, 12)]],
            lambda ecg: ecg[[0, 1, 2, 3, 5, 4, *range(6, 12)]],
            lambda ecg: _changed(ecg, aVF=lambda v: -v),
            lambda ecg: _changed(ecg, III=lambda v: v * 1.5),
            lambda ecg: _changed(ecg, II=lambda v: v / 1000),
        ],
    )
    def test_wrong_order_gain_or_unit_of_limb_leads(self, extract, spoil):
        assert any(CONTRADICTION in warning for warning in run(extract, spoil(make_ecg())).warnings[0])

    def test_units_make_leads_agree(self, extract):
        ecg = _changed(make_ecg(), II=lambda v: v * 1000)
        assert CONTRADICTION in str(run(extract, ecg).warnings)
        assert run(extract, ecg, units=["mV", "uV"] + ["mV"] * 10).warnings == [[]]

    def test_offsets_dead_and_missing_leads_do_not_contradict(self, extract):
        ecg = make_ecg() + np.arange(12)[:, None]
        ecg[3] = 0
        output = run(extract, np.delete(ecg, 2, 0), lead_names=np.delete(LEADS, 2).tolist(), missing_leads="zero")
        assert CONTRADICTION not in str(output.warnings)

    def test_a_filters_first_samples_do_not_contradict(self, extract):
        ecg = make_ecg()
        ecg[2, :4] += 5
        assert run(extract, ecg).warnings == [[]]

    @pytest.mark.parametrize(("gain", "units"), [(1000, "mV"), (0.001, "mV"), (1, "uV"), (1, "V")])
    def test_amplitudes_that_no_ecg_has(self, extract, gain, units):
        assert "units or gains may be wrong" in str(run(extract, make_ecg() * gain, units=units).warnings)

    @pytest.mark.parametrize(("range_mv", "unlikely"), [(0.0099, True), (0.0101, False), (49.9, False), (50.1, True)])
    def test_amplitudes_from_10_microvolts_to_50_millivolts_are_an_ecg_s(self, extract, range_mv, unlikely):
        ecg = make_ecg() * 1.0
        ecg *= range_mv / (ecg.max(axis=1) - ecg.min(axis=1)).max()
        assert ("units or gains may be wrong" in str(run(extract, ecg, units="mV").warnings)) == unlikely

    @pytest.mark.parametrize(("samples", "contradicts"), [(9, False), (10, True)])
    def test_leads_contradict_from_20_ms_on(self, extract, samples, contradicts):
        ecg = make_ecg()
        ecg[2, 100 : 100 + samples] += 5
        assert (CONTRADICTION in str(run(extract, ecg).warnings)) == contradicts

    def test_amplitudes_without_units_say_nothing(self, extract):
        assert run(extract, make_ecg() * 1e6).warnings == [[]]

    @pytest.mark.parametrize("share", [0.5, 0.7])
    def test_clipped_peaks(self, extract, share):
        recording = np.load(FIXTURES / "preprocessing_recording.npz")["recording"]
        assert "clipped" not in str(run(extract, recording, 400).warnings)
        usual_peak = np.sort(recording[1])[-20]  # the lead starts with a disturbance
        recording[1] = recording[1].clip(max=share * usual_peak)
        assert "lead II looks clipped: it rests at its maximum" in str(run(extract, recording, 400).warnings)

    def test_saturation(self, extract):
        ecg = _changed(make_ecg(), V3=lambda v: (v + np.sin(np.arange(5000) / 400)).clip(min=-0.8))
        assert "lead V3 looks clipped: it rests at its minimum" in str(run(extract, ecg).warnings)

    def test_quantised_baseline_and_held_ends_are_not_clipping(self):
        lead = np.round(make_ecg()[1] * 100) / 100
        lead[-60:] = lead.max()
        inverted_on_flat_baseline = np.minimum(0.1 - np.abs(lead), 0)
        signal = np.stack([lead, inverted_on_flat_baseline])
        assert clipped_leads(signal, signal.min(axis=1), signal.max(axis=1), 500) == []

    @needs_shared
    def test_real_recordings_warn_of_dead_leads_and_nothing_else(self, extract):
        loadmat = pytest.importorskip("scipy.io").loadmat
        files = sorted((SHARED / "data" / "physionet2021" / "training").glob("*/g1/*.mat"))
        warned = {path.stem: run(extract, loadmat(path)["val"], units="uV").warnings[0] for path in files}
        dead = [f"lead {name} is constant (dead): set to 0" for name in ("V2", "V4", "V6")]
        assert len(warned) == 40
        assert {name: found for name, found in warned.items() if found} == {"JS20004": dead, "JS20008": dead}


class TestRefusals:
    def test_what_is_stated_of_a_recording_is_refused_as_its_samples_are(self, extract):
        assert extract.refusal(5000, 500, LEADS) is None
        assert extract.refusal(2499, 500, LEADS) == "shorter than 5 s"
        assert extract.refusal(5000, 500, LEADS, nan_samples=[0] * 12) is None
        assert extract.refusal(5000, 500, LEADS, nan_samples=[0] * 11 + [1]) == "a lead has NaN"
        assert "sampling_rate" in extract.refusal(5000, 2, LEADS)

    def test_a_lead_of_nan_only_cannot_be_interpolated(self):
        extract = ECGFMFeatureExtractor(nan_samples="interpolate", constant_leads="error")
        assert extract.refusal(5000, 500, LEADS, nan_samples=[4999] + [0] * 11) is None
        assert extract.refusal(5000, 500, LEADS, nan_samples=[5000] + [0] * 11) == "a lead has NaN"
        assert extract.refusal(5000, 500, LEADS, constant=[False] * 11 + [True]) == "a lead is constant"


class TestNamesAndUnits:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            *(("avr", "aVR"), (" AVF ", "aVF"), ("v1", "V1"), ("ii", "II"), ("Lead III", "III"), ("V 6", "V6")),
            *(("MDC_ECG_LEAD_aVL", "aVL"), ("v4r", "V4R"), ("mlii", "MLII"), ("vx", "VX")),
            *(("Lead-II", "II"), ("ECG - V1", "V1"), ("LEAD-aVR", "aVR"), ("ECG: aVR", "aVR")),
            *((name, "-aVR") for name in ("-aVR", "Lead -aVR", "ECG -AVR", "ECG_-aVR", "MDC_ECG_LEAD_-aVR")),
        ],
    )
    def test_lead_names(self, name, expected):
        assert canonical_lead_name(name) == expected

    @pytest.mark.parametrize(
        "name", ["", "V", "Lead -II", "ECG_-V1", "V0", "V10", "IV", "ch1", "1", "ECG", "lead", None, 1, ["I"]]
    )
    def test_unknown_lead_names(self, name):
        with pytest.raises(ValueError, match="unknown lead name"):
            canonical_lead_name(name)

    @pytest.mark.parametrize("unit", ["mV", "mv", " mV ", "millivolt", "Millivolts"])
    def test_millivolts(self, unit):
        assert millivolts_per_unit(unit) == 1.0

    @pytest.mark.parametrize("unit", ["uV", "uv", "UV", "\u00b5V", "\u03bcV", "microvolt", "microvolts"])
    def test_microvolts(self, unit):
        assert millivolts_per_unit(unit) == 1e-3

    def test_volts_and_nanovolts(self):
        assert millivolts_per_unit("V") == 1e3
        assert millivolts_per_unit("nV") == 1e-6

    @pytest.mark.parametrize("unit", ["", "MV", "m", "mVs", "kV", "adu", "mmHg", "bpm", None, 1, ["mV"]])
    def test_unknown_units(self, unit):
        with pytest.raises(ValueError, match="unknown unit"):
            millivolts_per_unit(unit)


class TestSettings:
    SETTINGS: typing.ClassVar = {
        "sampling_rate": 250,
        "lead_names": ["V1", "II"],
        "segment_seconds": 2.5,
        "missing_leads": "zero",
        "nan_samples": "interpolate",
        "constant_leads": "error",
        "short_recordings": "pad",
    }

    @pytest.mark.parametrize("loader", [ECGFMFeatureExtractor, AutoFeatureExtractor])
    def test_saved_settings_come_back(self, tmp_path, loader):
        AutoFeatureExtractor.register(ECGFMConfig, ECGFMFeatureExtractor, exist_ok=True)
        ECGFMFeatureExtractor(**self.SETTINGS).save_pretrained(tmp_path)
        loaded = loader.from_pretrained(tmp_path)
        assert isinstance(loaded, ECGFMFeatureExtractor)
        assert {key: getattr(loaded, key) for key in self.SETTINGS} == self.SETTINGS
        assert loaded.segment_samples == 625

    def test_settings_can_be_given_when_loading_even_if_the_file_lacks_them(self, tmp_path):
        (tmp_path / "preprocessor_config.json").write_text('{"feature_extractor_type": "ECGFMFeatureExtractor"}')
        assert ECGFMFeatureExtractor.from_pretrained(tmp_path, nan_samples="zero").nan_samples == "zero"
        assert ECGFMFeatureExtractor.from_pretrained(tmp_path).to_dict() == ECGFMFeatureExtractor().to_dict()

    def test_keys_of_transformers_are_no_settings(self, tmp_path):
        hf_keys = {"auto_map": {"AutoFeatureExtractor": "a--b.C"}, "processor_class": "P", "_commit_hash": None}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({**ECGFMFeatureExtractor().to_dict(), **hf_keys}))
        assert ECGFMFeatureExtractor.from_pretrained(tmp_path).auto_map == hf_keys["auto_map"]

    def test_a_misspelt_setting_does_not_pass(self, tmp_path):
        with pytest.raises(TypeError, match=r"unknown setting 'missing_lead'.*did you mean 'missing_leads'"):
            ECGFMFeatureExtractor(missing_lead="zero")
        with pytest.raises(TypeError, match="unknown setting 'highpass'"):
            ECGFMFeatureExtractor(highpass=True)
        ECGFMFeatureExtractor().save_pretrained(tmp_path)
        with pytest.raises(TypeError, match="unknown setting 'nan_sample'"):
            ECGFMFeatureExtractor.from_pretrained(tmp_path, nan_sample="zero")

    @pytest.mark.parametrize(
        "bad",
        [{"sampling_rate": x} for x in (0, -1, "500", None, True, np.nan)]
        + [{"lead_names": x} for x in ([], "I", None, ["I", "i"], ["V7"], ["nonsense"], [*LEADS, "I"])]
        + [{"segment_seconds": x} for x in (0, -5, np.inf, np.nan, "5", True, 0.0005, 1 / 3)]
        + [
            {key: x}
            for key in ("missing_leads", "nan_samples", "constant_leads", "short_recordings")
            for x in ("", None)
        ],
    )
    def test_bad_settings(self, bad):
        with pytest.raises(ValueError, match=next(iter(bad)) + "|lead name"):
            ECGFMFeatureExtractor(**bad)

    def test_a_longer_segment(self):
        output = run(ECGFMFeatureExtractor(segment_seconds=10), make_ecg())
        assert output.input_values.shape == (1, 12, 5000)


SMALL = ECGFMFeatureExtractor(lead_names=["I", "II", "V1"], segment_seconds=0.1)
samples = st.floats(-1e99, 1e99, width=64) | st.floats(-5, 5) | st.sampled_from([0.0, 0.1, 5e-324, 1e-200, -0.1])
recordings = hnp.arrays(np.float64, st.tuples(st.just(3), st.integers(1, 160)), elements=samples)
rates = st.sampled_from([25, 100, 128, 257, 360, 400, 499, 500, 501, 1000, 257.1]) | st.floats(25, 5000)


@settings(max_examples=60, deadline=None)
@given(recordings, rates, st.sampled_from(["zero", "interpolate"]), st.data())
def test_nothing_but_finite_numbers_ever_comes_out(recording, rate, policy, data):
    for row in range(3 if policy == "zero" else 0):
        recording[row, data.draw(st.lists(st.integers(0, recording.shape[1] - 1), max_size=3))] = np.nan
    if resampled_length(recording.shape[1], rate, 500) == 0:
        return
    try:
        prepared = SMALL.prepare_recording(
            recording, rate, ["I", "II", "V1"], nan_samples=policy, short_recordings="pad"
        )
    except ValueError as error:
        if "no lead carries a signal" not in str(error):
            raise
        return
    assert np.isfinite(prepared.segments).all()
    assert np.abs(prepared.segments).max() <= 1.001 * np.sqrt(resampled_length(recording.shape[1], rate, 500))


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(12)), st.integers(0, 9))
def test_the_order_of_leads_makes_no_difference(order, seed):
    ecg, extract = make_ecg(6, seed=seed), ECGFMFeatureExtractor()
    output = run(extract, ecg[list(order)], lead_names=[LEADS[i] for i in order])
    np.testing.assert_array_equal(output.input_values, run(extract, ecg).input_values)
    assert output.warnings == run(extract, ecg).warnings


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["V", "mV", "uV", "nV"]), min_size=12, max_size=12), st.sampled_from([500, 400]))
def test_the_unit_makes_no_difference(units, rate):
    ecg, extract = make_ecg(6, rate), ECGFMFeatureExtractor()
    scaled = ecg / np.array([[millivolts_per_unit(unit)] for unit in units])
    output = run(extract, scaled, rate, units=units)
    np.testing.assert_allclose(output.input_values, run(extract, ecg, rate).input_values, atol=2e-6, rtol=0)
    assert output.warnings == run(extract, ecg, rate, units="mV").warnings
    mixed = run(extract, scaled.astype(np.float32), rate, units=units).input_values
    np.testing.assert_allclose(mixed, output.input_values, atol=1e-5, rtol=0)


@settings(max_examples=60, deadline=None)
@given(st.integers(2500, 20_000), st.integers(25, 1000))
def test_the_number_of_segments_is_that_of_whole_ones(length, rate):
    extract = ECGFMFeatureExtractor(lead_names=["I"], short_recordings="pad")
    output = run(extract, np.random.default_rng(0).standard_normal((1, length)), rate, ["I"])
    whole = (length * 500 // rate) // 2500
    assert len(output.input_values) == max(whole, 1)
    assert output.attention_mask.all() == (whole > 0)
    assert output.segment_start.tolist() == [2500 * i for i in range(max(whole, 1))]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 10**7), st.integers(250, 500_000), st.integers(1, 50_000))
def test_the_resampled_length_is_exact(length, tenths, new):
    assert resampled_length(length, tenths / 10, new) == (length * new * 10) // tenths
    assert resampled_length(length, Fraction(tenths, 10), new) == (length * new * 10) // tenths


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(25, 1000), st.integers(25, 1000))
def test_resampling_keeps_ends_range_and_straight_lines(length, old, new):
    if resampled_length(length, old, new) == 0:
        return
    signal = np.stack([np.arange(length) * 1.0, np.full(length, 0.1), np.random.default_rng(0).standard_normal(length)])
    result = resample(signal, old, new)
    assert result.shape == (3, length * new // old)
    np.testing.assert_allclose(result[0], np.linspace(0, length - 1, result.shape[1]), atol=1e-9)
    assert (result[1] == 0.1).all()
    assert result[2, 0] == signal[2, 0]
    if result.shape[1] > 1:
        assert result[2, -1] == pytest.approx(signal[2, -1])
    assert result[2].min() >= signal[2].min() - 1e-12
    assert result[2].max() <= signal[2].max() + 1e-12


class TestWhatTheModelTakes:
    @pytest.mark.parametrize("kind", [ECGFMModel, ECGFMForMultiLabelClassification, ECGFMForPreTraining])
    def test_every_model_takes_what_the_extractor_gives(self, extract, tiny_config, kind):
        model = kind(tiny_config()).eval()
        call = {"sampling_rate": 500, "lead_names": LEADS, "return_tensors": "pt"}
        whole = extract(make_ecg(), **call)
        padded = extract([make_ecg(), make_ecg(3)], short_recordings="pad", **call)
        assert set(whole) == {"input_values"}
        assert set(padded) == {"input_values", "attention_mask"}
        with torch.no_grad():
            assert (len(model(**whole)[0]), len(model(**padded)[0])) == (2, 3)

    def test_batches_of_map_with_and_without_padding_have_the_same_columns(self, extract):
        rows = Dataset.from_list([{"signal": make_ecg(seconds).tolist()} for seconds in (5, 4)])
        call = {"sampling_rate": 500, "lead_names": LEADS, "short_recordings": "pad"}
        mapped = rows.map(lambda batch: extract(batch["signal"], **call), batched=True, batch_size=1)
        assert [sum(mask) for mask in mapped["attention_mask"]] == [2500, 2000]

    def test_batched_map_keeps_every_column_as_long(self, extract):
        rows = Dataset.from_list([{"signal": make_ecg(seconds).tolist()} for seconds in (5, 12, 20)])

        def prepare(batch, **settings):
            signals = [np.array(signal) for signal in batch["signal"]]
            return extract(signals, sampling_rate=500, lead_names=LEADS, **settings)

        info = {"return_recording_info": True}
        plain = rows.map(prepare, batched=True, remove_columns=["signal"])
        known = rows.map(prepare, batched=True, remove_columns=["signal"], fn_kwargs=info)
        assert len(plain) == len(known) == 1 + 2 + 4
        assert known["recording_index"][:] == [0, 1, 1, 2, 2, 2, 2]
        assert known["warnings"][:][1:3] == [["the last 2 s are dropped: shorter than a segment"]] * 2

    def test_warnings_that_are_not_returned_are_logged_once(self, extract, monkeypatch):
        messages = []
        monkeypatch.setattr("ecgfm_hf.feature_extraction_ecgfm.logger.warning_once", messages.append)
        extract(make_ecg(10), sampling_rate=500, lead_names=LEADS)
        assert not messages
        extract(make_ecg(12), sampling_rate=500, lead_names=LEADS)
        assert "return_recording_info=True" in messages[0]

    def test_a_tensor_with_a_gradient_is_taken(self, extract):
        signal = torch.tensor(make_ecg(), requires_grad=True)
        expected = run(extract, make_ecg()).input_values
        np.testing.assert_array_equal(run(extract, signal).input_values, expected)
        np.testing.assert_array_equal(run(extract, [signal]).input_values, expected)


def test_numpy_s_buffers_are_the_caller_s_again_after_a_call():
    extractor = ECGFMFeatureExtractor()
    before = np.setbufsize(4096)
    try:
        for leads in (LEADS, LEADS[:1]):
            with contextlib.suppress(ValueError):
                extractor(np.random.default_rng(0).normal(size=(12, 5000)), sampling_rate=500, lead_names=leads)
            assert np.getbufsize() == 4096
    finally:
        np.setbufsize(before)
