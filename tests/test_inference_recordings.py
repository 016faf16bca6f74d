"""A model over a store's recordings: the pipeline's answers, whatever the batch and the number of workers."""

import weakref

import numpy as np
import pytest
import torch
from goldens import golden, scaled_difference
from inference_cases import LABELS, as_pipeline_input, open_store, recordings, write_model, write_store

from ecgfm_hf import ECGFMFeatureExtractor, ECGFMForMultiLabelClassification, ECGFMModel, load_pipeline
from ecgfm_hf.data import as_model_inputs
from ecgfm_hf.inference import predict_recordings, run_recordings
from ecgfm_hf.inference.model_runner import ModelRunner
from ecgfm_hf.inference.read_ahead import ReadRecording
from ecgfm_hf.pipeline_ecgfm import recording_scores

EQUAL = 1e-5


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, tiny_config):
    return write_model(tmp_path_factory.mktemp("model"), tiny_config())


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        yield open_store(write_store(tmp_path_factory.mktemp("made") / "store", recordings(), LABELS))


@pytest.fixture
def model(model_dir):
    return ECGFMForMultiLabelClassification.from_pretrained(model_dir)


@pytest.fixture
def inputs(dataset):
    return as_model_inputs(dataset, ECGFMFeatureExtractor(short_recordings="pad"))


def test_scores_equal_the_pipelines_also_of_short_recordings(model_dir, model, inputs):
    pipe = load_pipeline(model_dir, short_recordings="pad")
    found = list(run_recordings(model, inputs, batch_size=7))
    assert [output.row for output in found] == list(range(10))
    assert [output.recording_id for output in found] == [f"r{n}" for n in range(10)]
    assert found[1].patient_id is None
    assert found[2].patient_id == "p2"
    for output, recording in zip(found, recordings(), strict=True):
        answer = pipe(as_pipeline_input(recording))
        assert len(output.logits) == answer["segments"]
        scores = recording_scores(output.logits, model.config)
        assert scores == pytest.approx(answer["scores"], abs=EQUAL)
        assert output.embeddings is None


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 0), (3, 2), (64, 1)])
def test_neither_batch_nor_workers_change_an_answer(model, inputs, batch_size, num_workers):
    expected = list(run_recordings(model, inputs, embeddings=True))
    found = list(run_recordings(model, inputs, batch_size=batch_size, num_workers=num_workers, embeddings=True))
    assert [output.row for output in found] == [output.row for output in expected]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.logits, other.logits, atol=EQUAL)
        np.testing.assert_allclose(one.embeddings, other.embeddings, atol=EQUAL)


def test_refused_recordings_have_no_answer(model, dataset):
    inputs = as_model_inputs(dataset, ECGFMFeatureExtractor())
    assert [output.row for output in run_recordings(model, inputs)] == [0, 1, 2, 4, 5, 7, 8, 9]


def test_predictions_exclude_recordings_of_which_most_leads_are_empty(model, tmp_path):
    made = recordings((5, 5, 5))
    made[1]["signal"][5:] = 0
    made[2]["signal"][6:] = 0
    store = open_store(write_store(tmp_path / "store", made, {"A": [0, 1, 1]}))
    assert predict_recordings(model, ECGFMFeatureExtractor(), store).recording_ids == ["r0", "r2"]


def test_encoder_gives_the_classifiers_embeddings_and_no_logits(model_dir, model, inputs):
    encoder = ECGFMModel.from_pretrained(model_dir)
    for one, other in zip(
        run_recordings(encoder, inputs, embeddings=True), run_recordings(model, inputs, embeddings=True), strict=True
    ):
        assert one.logits is None
        assert one.embeddings.dtype == np.float32
        np.testing.assert_allclose(one.embeddings, other.embeddings, atol=EQUAL)


@pytest.mark.parametrize(("layer", "state"), [(0, 0), (1, 1), (-2, 1), (-3, 0), (2, 2), (-1, 2)])
def test_a_layers_embedding_is_the_mean_over_frames_of_that_hidden_state(model, inputs, layer, state):
    output = next(iter(run_recordings(model, inputs, embeddings=True, layer=layer)))
    segments = torch.from_numpy(np.stack([inputs[0]["input_values"], inputs[1]["input_values"]]))
    with torch.no_grad():
        expected = model.eval()(segments, output_hidden_states=True).hidden_states[state].mean(dim=1)
    np.testing.assert_allclose(output.embeddings, expected, atol=EQUAL)


@pytest.mark.parametrize("case", ["tiny/a_finetune_eval", "tiny/a2_notebook_emb_saliency"])
def test_embeddings_equal_the_originals(checkpoint_path, case):
    from ecgfm_hf.fairseq import build_model, config_from_checkpoint, load_fairseq_checkpoint

    source = load_fairseq_checkpoint(checkpoint_path("finetune"))
    model = build_model(source, config_from_checkpoint(source))
    segments = golden("tiny/a_finetune_eval")["source"].numpy()
    expected = golden(case)["pooled" if "pooled" in golden(case) else "embs"]
    read = [ReadRecording(0, "one", None, segments[:1]), ReadRecording(1, "rest", None, segments[1:])]
    (_, _, one), (_, _, rest) = ModelRunner(model, batch_size=2, embeddings=True).run(read)
    assert scaled_difference(torch.from_numpy(np.concatenate([one, rest])), expected) < EQUAL


def test_model_and_random_numbers_are_left_as_they_were(model, inputs):
    model.train()
    model.ecgfm.feature_extractor.eval()
    state = torch.get_rng_state()
    for _ in run_recordings(model, inputs, batch_size=2):
        assert model.training
        assert not model.ecgfm.feature_extractor.training
        assert torch.is_grad_enabled()
    assert model.dtype == torch.float32
    assert torch.equal(torch.get_rng_state(), state)


def test_what_has_been_answered_is_let_go(model):
    alive = []

    def reading():
        segments = np.random.default_rng(0).standard_normal((2, 12, 500)).astype(np.float32)
        for number in range(120):
            own = (segments.copy(), (), None) if number % 7 else (None, (), "why")
            read = ReadRecording(number, f"r{number}", None, *own)
            alive.append(weakref.ref(read))
            yield read
            del read

    most = 0
    for answer in ModelRunner(model, batch_size=8).run(reading()):
        del answer
        most = max(most, sum(one() is not None for one in alive))
    assert len(alive) == 120
    assert most <= 8, "of a batch's 4 recordings, some that are waiting"


def test_bfloat16_is_near_and_leaves_the_model_in_float32(model, inputs):
    exact, near = (list(run_recordings(model, inputs, precision=name)) for name in ("float32", "bfloat16"))
    assert model.dtype == torch.float32
    difference = max(np.abs(a.logits - b.logits).max() for a, b in zip(exact, near, strict=True))
    assert 0 < difference < 0.05
    assert near[0].logits.dtype == np.float32


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"precision": "float8"}, "float8"),
        ({"embeddings": True, "layer": 3}, "from -3 to 2, found: 3"),
        ({"batch_size": 0}, "found: 0"),
    ],
)
def test_wrong_settings_are_errors_at_once(model, inputs, wrong, message):
    with pytest.raises(ValueError, match=message):
        run_recordings(model, inputs, **wrong)


def test_recording_shorter_than_the_model_takes_is_named(model, tmp_path):
    given = recordings((10, 1))
    given[1]["signal"] = given[1]["signal"][:, :3]
    extractor = ECGFMFeatureExtractor(short_recordings="pad")
    inputs = as_model_inputs(open_store(write_store(tmp_path / "store", given)), extractor)
    with pytest.raises(ValueError, match=r"r1: 6 samples .* at least"):
        list(run_recordings(model, inputs))


# ----------------------------------------------------------------------------------------------------------------------
# Predictions
# ----------------------------------------------------------------------------------------------------------------------


def test_predictions_hold_scores_beside_labels_and_facts(model_dir, model, dataset):
    model.config.label_calibration = {"A": {"slope": 2.0, "intercept": -1.0}}
    model.config.label_aggregation = {"C": "max"}
    extractor = ECGFMFeatureExtractor()
    found = predict_recordings(model, extractor, dataset)
    answered = [0, 1, 2, 4, 5, 7, 8, 9]
    assert found.recording_ids == [f"r{n}" for n in answered]
    assert found.patient_ids[:2] == ["p0", None]
    assert found.label_names == ("A", "B", "C")
    assert found.calibrated == (True, False, False)
    assert found.problem_type == "multi_label_classification"
    labels = {name: [np.nan if values[n] is None else values[n] for n in answered] for name, values in LABELS.items()}
    np.testing.assert_array_equal(found.labels[:, 0], labels["A"])
    assert np.isnan(found.labels[:, 1]).all()
    np.testing.assert_array_equal(found.labels[:, 2], labels["C"])
    np.testing.assert_array_equal(found.facts["age"], [40, 41, np.nan, 44, 45, 47, 48, 49])
    assert found.facts["sex"].tolist() == ["F"] * 8
    outputs = list(run_recordings(model, as_model_inputs(dataset, extractor)))
    for row, output in zip(found.scores, outputs, strict=True):
        assert row.tolist() == pytest.approx(list(recording_scores(output.logits, model.config).values()), abs=EQUAL)


def test_predictions_can_leave_out_calibration_and_labels(model, dataset):
    plain = predict_recordings(model, ECGFMFeatureExtractor(), dataset)
    model.config.label_calibration = {"A": {"slope": 2.0, "intercept": -1.0}}
    found = predict_recordings(model, ECGFMFeatureExtractor(), dataset, labels=["C", "A"], calibrated=False)
    assert found.label_names == ("C", "A")
    assert found.calibrated == (False, False)
    np.testing.assert_allclose(found.scores, plain.scores[:, [2, 0]], atol=EQUAL)
    assert model.config.label_calibration is not None
    with pytest.raises(ValueError, match="no label X"):
        predict_recordings(model, ECGFMFeatureExtractor(), dataset, labels=["X"])
