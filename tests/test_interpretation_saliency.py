"""Saliency: the published attention map, and attributions in the recording's own leads and samples."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from goldens import golden, scaled_difference
from hypothesis import given, settings
from hypothesis import strategies as st

from ecgfm_hf import ECGFMFeatureExtractor, ECGFMForMultiLabelClassification
from ecgfm_hf.fairseq import build_model, config_from_checkpoint, load_fairseq_checkpoint
from ecgfm_hf.interpretation import (
    Attribution,
    attention_saliency,
    attribute,
    delete_times,
    most_salient_times,
    shifted_times,
)
from ecgfm_hf.pipeline_ecgfm import ECGClassificationPipeline
from ecgfm_hf.records import ECGRecord

LEADS = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")


def made_up_record(seconds=10.0, rate=500, leads=LEADS, seed=0, signal=None):
    if signal is None:
        rng = np.random.default_rng(seed)
        signal = rng.standard_normal((len(leads), round(seconds * rate))).cumsum(axis=1) * 0.01
    count = len(leads)
    return ECGRecord(
        recording_id="made up",
        path="made up",
        samples=signal,
        gain=np.ones(count),
        baseline=np.zeros(count),
        units=("mV",) * count,
        sampling_rate=rate,
        lead_names=leads,
    )


@pytest.fixture(scope="module")
def model(tiny_config):
    torch.manual_seed(0)
    return ECGFMForMultiLabelClassification(tiny_config(label_aggregation={"B": "max"})).eval()


@pytest.fixture(scope="module")
def script():
    """`scripts/saliency_sanity.py`, as a module."""
    path = Path(__file__).parent.parent / "scripts" / "saliency_sanity.py"
    spec = importlib.util.spec_from_file_location("saliency_sanity", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["saliency_sanity"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["saliency_sanity"]


# ----------------------------------------------------------------------------------------------------------------------
# The attention map
# ----------------------------------------------------------------------------------------------------------------------


def test_attention_map_equals_the_published(checkpoint_path):
    checkpoint = load_fairseq_checkpoint(checkpoint_path("finetune"))
    model = build_model(checkpoint, config_from_checkpoint(checkpoint))
    source = golden("tiny/a_finetune_eval")["source"]
    found = attention_saliency(model, source, stretch=False)
    assert scaled_difference(torch.from_numpy(found), golden("tiny/a2_notebook_emb_saliency")["attn_max"]) < 1e-5


def test_attention_map_is_stretched_from_the_first_sample_to_the_last_and_spans_0_to_1(model):
    segment = torch.randn(12, 2500)
    frames, samples = attention_saliency(model, segment, stretch=False), attention_saliency(model, segment)
    assert frames.shape == (156,)
    assert samples.shape == (2500,)
    assert samples.min() == 0.0
    assert samples.max() == 1.0
    # Through each frame's own place, up to one shift and one scale.
    at_frames = np.interp(np.linspace(0, 2499, 156), np.arange(2500), samples)
    assert np.corrcoef(at_frames, frames)[0, 1] > 0.999
    assert attention_saliency(model, segment[None])[0] == pytest.approx(samples)


def test_attention_map_refuses_a_whole_recording(model):
    with pytest.raises(ValueError, match=r"\(batch, leads, samples\)"):
        attention_saliency(model, torch.randn(2500))


def test_saliency_leaves_the_model_as_it_was(model):
    model.train()
    model.ecgfm.feature_extractor.eval()  # frozen
    attribute(model, made_up_record(5.0), "A", steps=1)
    attribute(model, made_up_record(5.0), method="attention")
    assert model.training
    assert not model.ecgfm.feature_extractor.training
    assert all(parameter.grad is None for parameter in model.parameters())
    model.eval()


# ----------------------------------------------------------------------------------------------------------------------
# Attributions
# ----------------------------------------------------------------------------------------------------------------------


def logit(model, record, number, **policies):
    prepared = ECGFMFeatureExtractor().prepare_recording(record.signal, record.sampling_rate, record.lead_names, "mV")
    with torch.no_grad():
        return model(torch.from_numpy(prepared.segments)).logits[:, number].numpy()


@pytest.mark.parametrize("rate", [250, 500, 997])
def test_attributions_add_up_to_the_logits_difference_from_the_baseline(model, rate):
    record = made_up_record(10.5, rate)
    found = attribute(model, record, "A")
    with torch.no_grad():
        start = model(torch.zeros(1, 12, 2500)).logits[0, 0].item()
    assert found.segments == (0, 1)
    assert found.logits == pytest.approx(logit(model, record, 0), abs=1e-5)
    differences = found.logits - start
    assert found.deltas == pytest.approx(0, abs=0.05 * max(0.1, np.abs(differences).max()))
    assert found.elsewhere == pytest.approx(0, abs=1e-9)
    assert np.nansum(found.values) == pytest.approx((differences + found.deltas).sum(), abs=1e-9)


def test_the_gradients_scale_in_training_does_not_show(model):
    # The encoder hands a tenth of the gradient on, or all of it; an attribution is about the function itself.
    record = made_up_record(5.0)
    usual = attribute(model, record, "A").values
    other = ECGFMForMultiLabelClassification(model.config).eval()
    other.load_state_dict(model.state_dict())
    assert model.config.feature_grad_multiplier == 0.1
    other.config.feature_grad_multiplier = 1.0
    try:
        assert attribute(other, record, "A").values == pytest.approx(usual, abs=1e-4 * np.abs(usual).max())
    finally:
        other.config.feature_grad_multiplier = 0.1


def test_a_max_label_is_attributed_in_the_segment_that_decides(model):
    record = made_up_record(15.0)
    winner = int(logit(model, record, 1).argmax())
    found = attribute(model, record, "B")
    assert found.segments == (winner,)
    known = np.isfinite(found.values).all(axis=0)
    assert np.flatnonzero(known).tolist() == list(range(winner * 2500, (winner + 1) * 2500))
    assert attribute(model, record, "B", segments="all").segments == (0, 1, 2)


def test_what_the_model_did_not_see_is_nan_and_what_it_saw_as_dead_is_0(model):
    signal = np.random.default_rng(0).standard_normal((13, 6 * 400)).cumsum(axis=1)
    signal[3] = 0.7
    found = attribute(model, made_up_record(rate=400, leads=(*LEADS, "V7"), signal=signal), "A")
    assert found.values.shape == (13, 2400)
    assert np.isnan(found.values[12]).all()  # not a lead of the model
    assert (found.values[3, :1990] == 0).all()  # dead
    assert np.isfinite(found.values[:12, :1995]).all()
    assert np.isnan(found.values[:, 2005:]).all()  # the sixth second is dropped


def test_attributions_follow_the_leads_regardless_of_their_order(model):
    record = made_up_record(5.0)
    order = np.random.default_rng(1).permutation(12)
    mixed = made_up_record(leads=tuple(LEADS[i] for i in order), signal=record.signal[order])
    expected = attribute(model, record, "A").values[order]
    assert attribute(model, mixed, "A").values == pytest.approx(expected, abs=1e-5 * np.abs(expected).max())


def test_bridged_samples_and_derived_leads_have_no_place_and_are_counted(model):
    record = made_up_record(5.0)
    signal = record.signal[[0, 1, *range(6, 12)]]
    signal[4, 100:200] = np.nan
    part = made_up_record(leads=("I", "II", *LEADS[6:]), signal=signal)
    found = attribute(model, part, "A", missing_leads="derive", nan_samples="interpolate")
    assert np.isnan(found.values[4, 100:200]).all()
    total = found.logits - found.baseline_logits + found.deltas
    assert np.nansum(found.values) + found.elsewhere.sum() == pytest.approx(total.sum(), abs=1e-9)
    assert abs(found.elsewhere[0]) > 1e-4


def test_a_pipeline_brings_its_extractor_and_its_policies(model):
    record = made_up_record(3.0)
    pipeline = ECGClassificationPipeline(
        model=model, feature_extractor=ECGFMFeatureExtractor(), task="ecg-classification", short_recordings="pad"
    )
    found = attribute(pipeline, record, "A")
    assert found.values.shape == (12, 1500)
    assert np.isfinite(found.values).all()
    with pytest.raises(ValueError, match="pad"):
        attribute(model, record, "A")


def test_an_attention_map_lies_over_all_leads_of_the_recording(model):
    record = made_up_record(6.0, rate=250)
    found = attribute(model, record, method="attention")
    assert found.label is None
    assert not found.signed
    segment = ECGFMFeatureExtractor().prepare_recording(record.signal, 250, LEADS, "mV").segments[0]
    # 1500 samples became 3000, from the first to the last; the model saw 2500 of them.
    expected = np.interp(np.arange(1245), np.linspace(0, 1499, 3000)[:2500], attention_saliency(model, segment))
    assert found.values[0, :1245] == pytest.approx(expected, abs=1e-6)
    assert (found.values[:, :1245] == found.values[0, :1245]).all()
    assert np.isnan(found.values[:, 1255:]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label": "D"}, "no label 'D', found: A, B, C"),
        ({"label": None}, "no label None"),
        ({"label": "A", "method": "gradients"}, "method must be one of 'integrated_gradients', 'attention'"),
        ({"label": "A", "segments": "max"}, "segments must be one of 'deciding', 'all'"),
    ],
)
def test_what_cannot_be_attributed_is_named(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        attribute(model, made_up_record(5.0), **arguments)


def test_an_encoder_has_no_labels_to_attribute(model):
    with pytest.raises(ValueError, match="ECGFMModel"):
        attribute(model.ecgfm, made_up_record(5.0), "A")


def test_what_to_install_is_reported(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(ImportError, match=r"ecgfm-hf\[saliency\]"):
        attribute(model, made_up_record(5.0), "A")


# ----------------------------------------------------------------------------------------------------------------------
# Deleting
# ----------------------------------------------------------------------------------------------------------------------


def attribution_of(values, rate=500.0):
    nothing = np.zeros(1)
    return Attribution(
        values=np.asarray(values, dtype=np.float64),
        lead_names=LEADS[: len(values)],
        sampling_rate=rate,
        label="A",
        method="integrated_gradients",
        segments=(0,),
        logits=nothing,
        baseline_logits=nothing,
        deltas=nothing,
        elsewhere=nothing,
    )


def test_smoothing_averages_over_what_is_known():
    values = np.full((2, 100), np.nan)
    values[0, 10:60] = 1.0
    values[0, 30] = 6.0
    smooth = attribution_of(values, rate=100.0).smoothed(0.05)
    assert np.isnan(smooth[0, :10]).all()
    assert smooth[0, 10] == 1.0
    assert smooth[0, 28:33].tolist() == [2.0] * 5
    assert smooth[0, 27] == smooth[0, 33] == 1.0
    assert np.isnan(smooth[1]).all()


@given(seconds=st.floats(0.5, 5), share=st.floats(0.05, 0.5), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_the_most_salient_share_is_chosen_and_its_control_is_as_large(seconds, share, seed):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((2, round(seconds * 500)))
    values[:, -40:] = np.nan
    times = most_salient_times(attribution_of(values), share)
    seen = np.isfinite(values).any(axis=0)
    assert not times[~seen].any()
    assert abs(times.sum() - share * seen.sum()) <= 20 + 1
    sums = np.nansum(values, axis=0)
    if times.sum() < seen.sum():
        assert sums[times].mean() >= sums[seen & ~times].mean()
    control = shifted_times(times, seen, rng)
    assert control.sum() == times.sum()
    assert not control[~seen].any()


def test_deleting_bridges_and_changes_nothing_else():
    signal = np.array([[0.0, 1, 9, 9, 4, 5], [0, 0, 7, 7, 0, 0]])
    times = np.array([False, False, True, True, False, False])
    assert delete_times(signal, times).tolist() == [[0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 0, 0]]
    assert signal[0, 2] == 9
    with pytest.raises(ValueError, match="covers the whole recording"):
        delete_times(signal, np.ones(6, dtype=bool))


@pytest.mark.slow
def test_a_trained_models_map_points_at_premature_ventricular_beats(script, monkeypatch):
    """The small version of `scripts/saliency_sanity.py`: 60 easy patients, 4 recordings."""
    monkeypatch.setattr(script, "SHIFTS", 8)
    shares = ("atrial_ectopy", "pacemaker", "fibrillation_permanent", "fibrillation_paroxysmal", "left_bundle_delay")
    shares += ("right_bundle_delay", "contact_share", "st_share", "t_inversion_share")
    easy = script.CohortSettings(ventricular_ectopy=0.7, **dict.fromkeys(shares, 0.0))
    model = script.train(60, 9, labels=[script.LABEL], width=32, settings=easy)
    falls, correlations, near = [], [], []
    stranger = script.randomised(model)
    for number, recording in enumerate(script.unseen_recordings(4, easy)):
        fall, attribution = script.drops(model, recording, seed=number)
        falls.append([fall["integrated gradients"], fall["random"]])
        near.append(script.share_near_beats(attribution, recording))
        other = attribute(stranger, script.as_record(recording), script.LABEL, segments="all", steps=3)
        correlations.append(script.rank_correlations(attribution, other)[0])
    salient, random = np.mean(falls, axis=0)
    assert salient[0] > random[0] + 0.1  # of the score
    assert salient[1] > random[1] + 1.0  # of the logit
    attributed, of_time = np.mean(near, axis=0)
    assert attributed > 1.3 * of_time
    assert np.mean(np.abs(correlations)) < 0.4
