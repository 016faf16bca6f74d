"""
Augmentations: what they compute is the original's, where they act and what they draw is ours.

`golden/tiny_h_augmentations.npz` is cut from golden `h_augmentations` (seeds 0 and 1): every 50th sample of the noisy
outputs, which leads lead masking kept, and where a baseline shift begins and ends. Its input is a segment of
`segments_a` and `segments_b` (CODE-15%, CC BY 4.0).
"""

import copy
import pickle

import numpy as np
import pytest
import torch
from goldens import FIXTURES, segments

from ecgfm_hf import ECGFMFeatureExtractor
from ecgfm_hf.data import as_model_inputs, load_arrays, load_prepared
from ecgfm_hf.feature_extraction_ecgfm import STANDARD_LEADS
from ecgfm_hf.training import (
    BaselineShift,
    BaselineWander,
    EMGNoise,
    PowerlineNoise,
    RandomLeadMasking,
    build_augmentations,
)
from ecgfm_hf.training.augmentations import AUGMENTATIONS, recompute_limb_leads

RATE = 500
KINDS = {
    "powerline_noise": PowerlineNoise,
    "emg_noise": EMGNoise,
    "baseline_shift": BaselineShift,
    "baseline_wander": BaselineWander,
}
VARIANTS = {
    "": {},
    "_nodep": {"dependency": False},
    "_p05": {"apply_probability": 0.5},
}


@pytest.fixture(scope="module")
def goldens():
    return dict(np.load(FIXTURES / "tiny_h_augmentations.npz"))


@pytest.fixture
def source():
    return segments()["1594286_0"].copy()


# ----------------------------------------------------------------------------------------------------------------------
# Equal to the original
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", ["powerline_noise", "emg_noise", "baseline_wander"])
def test_noise_equals_the_original_drawn_from_its_generator(goldens, source, name, variant, seed):
    noise = KINDS[name](max_amplitude=0.1, **VARIANTS[variant])
    found = noise(source, RATE, STANDARD_LEADS, np.random.RandomState(seed))
    assert found.dtype == np.float32
    expected = goldens[f"{name}{variant}_seed{seed}"]
    np.testing.assert_allclose(found[:, goldens["columns"]], expected, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("variant", ["", "_nodep", "_p05", "_2seg"])
def test_baseline_shift_is_the_originals_with_a_product_in_place_of_a_difference(goldens, source, variant, seed):
    settings = {"dependency": False, "num_segment": 2} if variant == "_2seg" else VARIANTS[variant]
    shift = BaselineShift(max_amplitude=0.1, **{**settings, "dependency": False})
    found = shift(source, RATE, STANDARD_LEADS, np.random.RandomState(seed)) - source
    # What the original adds in place of +a or -a is +1 - a or -1 - a.
    amplitude = np.abs(found).max()
    assert amplitude < 0.1
    shifted = np.abs(found) > amplitude / 2
    original = source + np.where(shifted, np.sign(found) - amplitude, 0.0)
    if settings.get("dependency", True):
        original = recompute_limb_leads(original, STANDARD_LEADS) if shifted.any() else original
    name = f"baseline_shift{variant}_seed{seed}"
    np.testing.assert_allclose(original[:, goldens["columns"]], goldens[name], atol=1e-5)
    if f"{name}.span" in goldens:
        begin, end = goldens[f"{name}.span"]
        assert shifted[:, begin:end].all()
        assert shifted.sum() == 12 * (end - begin)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("case", "settings"),
    [("p05", {}), ("p08", {"p": 0.8}), ("half_apply", {"apply_probability": 0.5})],
)
def test_lead_masking_equals_the_original_drawn_from_its_generator(goldens, source, case, settings, seed):
    found = RandomLeadMasking(**settings)(source.copy(), np.random.RandomState(seed))
    np.testing.assert_array_equal(found, source * goldens[f"rlm_{case}_seed{seed}"][:, None])


@pytest.mark.parametrize(("p", "all_masked"), [(0.5, 0.00025), (0.8, 0.0681)])
def test_lead_masking_has_the_originals_statistics(p, all_masked):
    # The golden's statistics of 20,000 draws; our generator.
    _, transform = build_augmentations({"random_lead_masking": {"p": p}}, seed=3)
    draws, kept = 20_000, []
    for number in range(draws):
        values = transform(np.ones((12, 1), dtype=np.float32), {"recording_id": f"r{number}", "segment": 0})
        kept.append(values[:, 0])
    kept = np.array(kept)
    np.testing.assert_allclose(kept.mean(axis=0), 1 - p, atol=5 * np.sqrt(p * (1 - p) / draws))
    assert kept.sum(axis=1).mean() == pytest.approx(12 * (1 - p), abs=0.07)
    assert (kept.sum(axis=1) == 0).mean() == pytest.approx(all_masked, abs=5 * np.sqrt(p**12 / draws))
    # Independent of one another.
    assert np.abs(np.corrcoef(kept.T) - np.eye(12)).max() < 0.035


# ----------------------------------------------------------------------------------------------------------------------
# Right where the original is not
# ----------------------------------------------------------------------------------------------------------------------


def millivolts(num_samples=5000):
    signal = np.random.default_rng(0).normal(0, 0.2, (12, num_samples)).astype(np.float32)
    return recompute_limb_leads(signal, STANDARD_LEADS)


@pytest.mark.parametrize("name", KINDS)
def test_limb_leads_stay_what_i_and_ii_make_of_them_in_any_lead_order(name):
    order = [7, 3, 0, 2, 11, 1, 4, 5, 6, 8, 9, 10]
    names, signal = [STANDARD_LEADS[index] for index in order], millivolts()[order]
    before = signal.copy()
    noisy = KINDS[name]()(signal, RATE, names, np.random.default_rng(1))
    np.testing.assert_array_equal(signal, before)
    lead = dict(zip(names, noisy, strict=True))
    assert np.abs(lead["I"] - before[2]).max() > 1e-3
    np.testing.assert_allclose(lead["III"], lead["II"] - lead["I"], atol=1e-6)
    np.testing.assert_allclose(lead["aVR"], -(lead["I"] + lead["II"]) / 2, atol=1e-6)
    np.testing.assert_allclose(lead["aVL"], lead["I"] - lead["II"] / 2, atol=1e-6)
    np.testing.assert_allclose(lead["aVF"], lead["II"] - lead["I"] / 2, atol=1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_constant_leads_stay_constant(name):
    signal = millivolts()
    signal[[4, 9]] = 0.0
    noisy = KINDS[name]()(signal, RATE, STANDARD_LEADS, np.random.default_rng(1))
    assert (noisy[[4, 9]] == 0).all()
    assert (noisy != signal).any(axis=1).sum() >= 9


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("lead", [0, 1])
@pytest.mark.parametrize("fault", ["constant", "nan"])
def test_a_faulty_lead_i_or_ii_reaches_no_other_lead(name, lead, fault):
    signal = millivolts()
    signal[lead] = 0.0 if fault == "constant" else np.nan
    noisy = KINDS[name](max_amplitude=0.01)(signal, RATE, STANDARD_LEADS, np.random.default_rng(1))
    others = [index for index in range(12) if index != lead]
    # Noise of their own, and nothing that lead I or II would make of them.
    change = np.abs(noisy - signal)[others].max(axis=1)
    assert ((change > 0) & (change < 0.15)).all()


def test_amplitudes_and_frequencies_are_as_set_at_any_rate():
    rate, signal = 250.0, np.tile(np.linspace(0, 1e-9, 2500), (12, 1))
    noise = PowerlineNoise(min_amplitude=0.3, max_amplitude=0.3, frequencies=[60], dependency=False)
    added = noise(signal, rate, STANDARD_LEADS, np.random.default_rng(0))[0]
    assert np.abs(np.fft.rfft(added)).argmax() == 600  # 60 Hz x 10 s
    assert np.abs(added).max() == pytest.approx(0.3, rel=0.01)
    shift = BaselineShift(min_amplitude=0.2, max_amplitude=0.2, dependency=False)
    added = shift(signal, rate, STANDARD_LEADS, np.random.default_rng(0))
    np.testing.assert_allclose(np.unique(added.round(6)), [-0.2, 0, 0.2])
    wander = BaselineWander(min_amplitude=0.1, max_amplitude=0.1, dependency=False)
    added = wander(signal, rate, STANDARD_LEADS, np.random.default_rng(0))
    assert np.abs(np.fft.rfft(added[0] - added[0].mean())).argmax() <= 3  # Below 0.3 Hz.


def test_shifts_longer_than_the_recording_are_cut_to_it():
    shift = BaselineShift(shift_ratio=1.0, min_amplitude=0.1)
    for seed in range(50):
        assert shift(millivolts(500), RATE, STANDARD_LEADS, np.random.default_rng(seed)).shape == (12, 500)


# ----------------------------------------------------------------------------------------------------------------------
# What is drawn
# ----------------------------------------------------------------------------------------------------------------------

EVERYTHING = {name: {} for name in AUGMENTATIONS}


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    recordings = [
        {
            "recording_id": f"r{number}",
            "patient_id": f"p{number}",
            "signal": millivolts(RATE * 20) * (number + 1),
            "sampling_rate": RATE,
            "lead_names": STANDARD_LEADS,
            "units": "mV",
        }
        for number in range(6)
    ]
    load_arrays(recordings, tmp_path / "store", progress=False)
    return tmp_path / "store"


def augmented(store, settings=None, seed=7, pairs=True, streaming=False):
    signal_transform, transform = build_augmentations(EVERYTHING if settings is None else settings, seed)
    inputs = as_model_inputs(
        load_prepared(store, "all", streaming=streaming),
        ECGFMFeatureExtractor(),
        pairs=pairs,
        signal_transform=signal_transform,
        transform=transform,
    )
    return inputs, transform or signal_transform


def values_of(items):
    return {(item["recording_id"], item["segment"]): np.array(item["input_values"]) for item in items}


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for key in expected:
        np.testing.assert_array_equal(found[key], expected[key])


def test_draws_depend_on_seed_epoch_and_item_only(store):
    inputs, transform = augmented(store)
    first = values_of(inputs[number] for number in range(len(inputs)))
    assert len(first) == 12
    again, other = augmented(store)
    order = np.random.default_rng(0).permutation(len(again))
    assert_equal(values_of(again.__getitems__(order)), first)
    assert_equal(values_of(augmented(store, streaming=True)[0]), first)
    transform.set_epoch(5)
    later = values_of(inputs[number] for number in range(len(inputs)))
    other.set_epoch(5)
    assert_equal(values_of(again[number] for number in reversed(range(len(again)))), later)
    elsewhere = values_of(augmented(store, seed=8)[0][number] for number in range(12))
    for key, values in first.items():
        assert not np.array_equal(values, later[key])
        assert not np.array_equal(values, elsewhere[key])


def test_segments_of_a_pair_are_masked_each_for_itself_and_as_alone(store):
    settings = {"random_lead_masking": {}}
    pairs, singles = (augmented(store, settings, pairs=pairs)[0] for pairs in (True, False))
    single = values_of(singles[number] for number in range(len(singles)))
    together = values_of(pairs[number] for number in range(len(pairs)))
    masks = []
    for (recording, segment), values in together.items():
        for index in (0, 1):
            np.testing.assert_array_equal(values[index], single[recording, segment + index])
            masks.append(tuple((values[index] == 0).all(axis=-1)))
    assert len(set(masks)) > 20


@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_new_epoch_reaches_persistent_workers(store, context):
    inputs, transform = augmented(store)
    loader = torch.utils.data.DataLoader(
        inputs, batch_size=3, num_workers=2, persistent_workers=True, collate_fn=list, multiprocessing_context=context
    )
    for epoch in (0, 1, 4):
        transform.set_epoch(epoch)
        found = values_of(item for batch in loader for item in batch)
        assert_equal(found, values_of(inputs[number] for number in range(len(inputs))))


def test_revealing_one_of_the_two_reveals_both():
    signal_transform, transform = build_augmentations(EVERYTHING, seed=0)
    item = {"recording_id": "a", "segment": 0}
    before = transform(np.ones((12, 3)), item)
    signal_transform.set_epoch(1)
    assert not np.array_equal(transform(np.ones((12, 3)), item), before)
    signal_transform.set_epoch(0)
    np.testing.assert_array_equal(transform(np.ones((12, 3)), item), before)


def test_copies_draw_the_same():
    _, transform = build_augmentations({"random_lead_masking": {}}, seed=2)
    transform.set_epoch(3)
    item = {"recording_id": "a", "segment": 0}
    expected = transform(np.ones((2, 12, 5)), item)
    for other in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        np.testing.assert_array_equal(other(np.ones((2, 12, 5)), item), expected)


def test_read_only_items_are_copied():
    _, transform = build_augmentations({"random_lead_masking": {}}, seed=2)
    values = np.ones((2, 12, 5))
    values.flags.writeable = False
    found = transform(values, {"recording_id": "a", "segment": 0})
    assert (found == 0).any()
    assert (values == 1).all()


# ----------------------------------------------------------------------------------------------------------------------
# Settings
# ----------------------------------------------------------------------------------------------------------------------


def test_only_what_is_asked_for_is_built():
    assert build_augmentations({}, seed=0) == (None, None)
    signal_transform, transform = build_augmentations({"random_lead_masking": None}, seed=0)
    assert signal_transform is None
    assert transform.steps == {"random_lead_masking": RandomLeadMasking(p=0.5)}
    signal_transform, transform = build_augmentations({"powerline_noise": {"frequencies": [50]}, "emg_noise": {}}, 0)
    assert transform is None
    assert list(signal_transform.steps) == ["emg_noise", "powerline_noise"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rlm": {}}, "unknown augmentation 'rlm'.*random_lead_masking"),
        ({"emg_noise": {"amplitude": 1}}, "emg_noise has no setting 'amplitude'.*max_amplitude"),
        ({"emg_noise": 0.5}, "emg_noise takes settings by name"),
        ({"random_lead_masking": {"p": 1.5}}, "random_lead_masking: p must be between 0 and 1, found: 1.5"),
        ({"random_lead_masking": {"p": "half"}}, "random_lead_masking: "),
        ({"emg_noise": {"min_amplitude": 0.2}}, "0.2 and 0.1"),
        ({"baseline_shift": {"shift_ratio": 0}}, "shift_ratio"),
        ({"baseline_shift": {"num_segment": 0}}, "num_segment"),
        ({"baseline_wander": {"min_freq": 1}}, "min_freq <= max_freq"),
        ({"baseline_wander": {"k": 1.5}}, "k must be a whole number"),
        ({"powerline_noise": {"frequencies": []}}, "frequencies"),
    ],
)
def test_what_is_unknown_or_impossible_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build_augmentations(settings, seed=0)
