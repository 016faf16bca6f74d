"""Embeddings in one Python call, and a map of them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_cases import LABELS, as_pipeline_input, recordings, write_model, write_store
from pydicom.data import get_testdata_file

from ecgfm_hf import ECGFMFeatureExtractor, ECGFMForPreTraining, ECGFMModel, read_ecg, save_model_folder
from ecgfm_hf.cli.main import main as ecgfm
from ecgfm_hf.inference import embed, principal_components

DICOM = get_testdata_file("waveform_ecg.dcm", download=False)
EQUAL = 1e-5


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, tiny_config):
    return write_model(tmp_path_factory.mktemp("model"), tiny_config())


def by_hand(model_dir, recording):
    """Embeddings (segments, hidden_size)."""
    inputs = ECGFMFeatureExtractor()(
        recording["signal"], sampling_rate=recording["sampling_rate"], lead_names=recording["lead_names"]
    )
    with torch.no_grad():
        return ECGFMModel.from_pretrained(model_dir)(torch.from_numpy(inputs["input_values"])).pooler_output.numpy()


def test_a_recording_has_the_mean_of_its_segments_embeddings(model_dir):
    one = as_pipeline_input(recordings((23,))[0])
    expected = by_hand(model_dir, one)
    assert expected.shape == (4, 32)
    found = embed(model_dir, one)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.mean(axis=0), atol=EQUAL)
    np.testing.assert_allclose(embed(model_dir, one, per_segment=True), expected, atol=EQUAL)
    np.testing.assert_allclose(embed(model_dir, one, layer=2), found, atol=EQUAL)
    assert np.abs(embed(model_dir, one, layer=1) - found).max() > 1e-3


def test_paths_arrays_records_and_lists_are_one_recording_each(model_dir):
    record = read_ecg(DICOM)
    as_array = {name: getattr(record, name) for name in ("signal", "sampling_rate", "lead_names")}
    single = embed(model_dir, DICOM)
    together = embed(model_dir, [DICOM, as_array, record, as_pipeline_input(recordings((5,))[0])], batch_size=3)
    assert together.shape == (4, 32)
    for one in (*together[:3], embed(model_dir, as_array), embed(model_dir, record)):
        np.testing.assert_allclose(one, single, atol=EQUAL)
    per_segment = embed(model_dir, [DICOM, as_pipeline_input(recordings((5,))[0])], per_segment=True, num_workers=1)
    assert [len(one) for one in per_segment] == [2, 1]
    assert embed(model_dir, []).shape == (0, 32)


def test_a_loaded_model_and_a_pretraining_folder_serve_as_well(model_dir, tiny_config, tmp_path):
    one = as_pipeline_input(recordings((5,))[0])
    model = ECGFMModel.from_pretrained(model_dir)
    np.testing.assert_allclose(embed(model, one), embed(model_dir, one), atol=EQUAL)
    pretrained = ECGFMForPreTraining(tiny_config(mask_time_prob=0.65))
    save_model_folder(pretrained, ECGFMFeatureExtractor(), tmp_path / "pretrained")
    np.testing.assert_allclose(embed(tmp_path / "pretrained", one), embed(pretrained, one), atol=EQUAL)


def test_policies_reach_the_feature_extractor(model_dir):
    short = as_pipeline_input(recordings((3,))[0])
    with pytest.raises(ValueError, match=r"recording 1: .*short_recordings='pad' would allow it"):
        embed(model_dir, [as_pipeline_input(recordings((5,))[0]), short])
    assert embed(model_dir, short, short_recordings="pad").shape == (32,)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("nowhere.hea", "nowhere.hea"),
        ({"signal": np.zeros((12, 5000))}, r"missing: \['lead_names', 'sampling_rate'\]"),
        ({"signal": 0, "sampling_rate": 1, "lead_names": [], "unit": "mV"}, r"unknown: \['unit'\]"),
        ([3], "recording 0: .*found: int"),
        (np.zeros((1, 12, 5000)), "recording 0: .*dictionary with 'signal'.*found: ndarray"),
        (".", "is a folder, expected a file; pass its files; .*`ecgfm embed`"),
    ],
)
def test_what_is_no_recording_is_an_error_that_names_it(model_dir, wrong, message):
    with pytest.raises(ValueError, match=message):
        embed(model_dir, wrong)


def test_what_is_no_trained_model_is_an_error(tiny_config, tmp_path):
    from safetensors.torch import load_file, save_file

    write_model(tmp_path, tiny_config())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["ecgfm.encoder.layer_norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"missing tensors: encoder.layer_norm.weight"):
        embed(tmp_path, DICOM)
    with pytest.raises(OSError, match="no folder"):
        embed("./nowhere", DICOM)


# ----------------------------------------------------------------------------------------------------------------------
# Map
# ----------------------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(2, 8), st.integers(0, 100))
def test_principal_components_are_those_of_scikit_learn(count, size, seed):
    from sklearn.decomposition import PCA

    embeddings = np.random.default_rng(seed).standard_normal((count, size)) * np.arange(1, size + 1)
    found, shares = principal_components(embeddings.astype(np.float32))
    fitted = PCA(2).fit(embeddings.astype(np.float32).astype(np.float64))
    np.testing.assert_allclose(shares, fitted.explained_variance_ratio_, atol=1e-5)
    expected = fitted.transform(embeddings)
    for one, other, share in zip(found.T, expected.T, shares, strict=True):
        if share > 1e-3:
            assert min(np.abs(one - other).max(), np.abs(one + other).max()) < 1e-3 * np.abs(other).max() + 1e-5


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    """Two clouds, of 30 and 10 recordings."""
    path = tmp_path_factory.mktemp("embeddings") / "embeddings.parquet"
    rng = np.random.default_rng(0)
    values = rng.standard_normal((40, 8)).astype(np.float32)
    values[30:, 0] += 20
    column = pa.FixedSizeListArray.from_arrays(values.ravel(), 8)
    pq.write_table(pa.table({"recording_id": [f"r{n}" for n in range(40)], "embedding": column}), path)
    return path


@pytest.fixture
def scatters(monkeypatch):
    """What is drawn: coordinates and options of each call."""
    from matplotlib.axes import Axes

    calls = []

    def noting(self, x, y, original=Axes.scatter, **options):
        calls.append((np.asarray(x), np.asarray(y), options))
        return original(self, x, y, **options)

    monkeypatch.setattr(Axes, "scatter", noting)
    return calls


def test_map_shows_each_recording_in_its_labels_colour(embeddings, scatters, tmp_path, capsys):
    labels = tmp_path / "labels.csv"
    lines = [f"r{n},{int(n >= 30) if n != 5 else ''},{40 + n}" for n in range(40)]
    labels.write_text("\n".join(["recording_id,AF,age", *lines]) + "\n")
    given = ["embed-map", str(embeddings), "--labels", str(labels)]
    assert ecgfm([*given, "--label", "AF", "--output", str(tmp_path / "map.png")]) == 0
    assert "40 embeddings, 39 with a value of AF" in capsys.readouterr().out
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    drawn = {options["color"]: x for x, _, options in scatters}
    unknown, negative, positive = drawn["#BBBBBB"], drawn["#0072B2"], drawn["#D55E00"]
    assert (len(unknown), len(negative), len(positive)) == (1, 29, 10)
    assert negative.max() < positive.min() - 10 or positive.max() < negative.min() - 10
    scatters.clear()
    assert ecgfm([*given, "--label", "age", "--output", str(tmp_path / "map.pdf")]) == 0
    assert sorted(scatters[-1][2]["c"]) == list(range(40, 80))
    assert ecgfm([*given, "--output", str(tmp_path / "map.png")]) == 2
    assert "--label must name one of the columns" in capsys.readouterr().err


def test_map_takes_the_table_that_the_embeddings_were_made_by(tmp_path, scatters):
    """Own names of columns, and recordings with only files as ids: they are as `ecgfm embed` gave them."""
    ids = [f"ward/{number:03d}" for number in range(12)]
    vectors = np.random.default_rng(0).standard_normal((12, 4)).tolist()
    table = {"recording_id": ids, "embedding": pa.array(vectors, pa.list_(pa.float32(), 4))}
    pq.write_table(pa.table(table), tmp_path / "made.parquet")
    labels = tmp_path / "labels.csv"
    labels.write_text("MRN,file,AF\n" + "".join(f"1,{name}.hea,{number % 2}\n" for number, name in enumerate(ids)))
    given = ["embed-map", str(tmp_path / "made.parquet"), "--labels", str(labels), "--label", "AF"]
    assert ecgfm([*given, "--columns", "patient_id=MRN,path=file", "--output", str(tmp_path / "map.png")]) == 0
    assert sorted(len(x) for x, _, _ in scatters) == [6, 6]


def test_map_takes_labels_of_a_store_and_draws_without_labels(embeddings, scatters, tmp_path):
    store = write_store(tmp_path / "store", recordings(), LABELS)
    given = ["embed-map", str(embeddings), "--output", str(tmp_path / "map.svg")]
    assert ecgfm([*given, "--labels", str(store), "--label", "A"]) == 0
    assert [len(x) for x, _, _ in scatters] == [4, 4, 32], "0, 1 and unknown"
    assert ecgfm(given) == 0
    assert len(scatters[-1][0]) == 40


def test_ids_that_look_like_numbers_are_texts_and_dollar_signs_no_formulas(scatters, tmp_path, capsys):
    column = pa.FixedSizeListArray.from_arrays(np.arange(8, dtype=np.float32), 2)
    pq.write_table(pa.table({"recording_id": ["007", "7", "08", "9"], "embedding": column}), tmp_path / "few.parquet")
    (tmp_path / "labels.csv").write_text("recording_id,a$_{$b\n007,$x_{$\n7,y\n08,\n")
    given = ["embed-map", str(tmp_path / "few.parquet"), "--labels", str(tmp_path / "labels.csv")]
    assert ecgfm([*given, "--output", str(tmp_path / "map.png")]) == 0
    assert "2 with a value of a$_{$b" in capsys.readouterr().out
    assert sorted(len(x) for x, _, _ in scatters) == [1, 1, 2]


@pytest.mark.parametrize(
    ("lines", "message"),
    [("other,1", "has none of the recordings"), ("r1,1\nr1,0", "recording r1 has two values of AF, 1 and 0")],
)
def test_labels_that_cannot_be_distinguished_or_do_not_match_are_an_error(embeddings, tmp_path, capsys, lines, message):
    (tmp_path / "labels.csv").write_text(f"recording_id,AF\n{lines}\n")
    given = ["embed-map", str(embeddings), "--labels", str(tmp_path / "labels.csv")]
    assert ecgfm([*given, "--output", str(tmp_path / "map.png")]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--output": "map"}, "must end in .png, .pdf, .svg"),
        ({"--labels": "nothing.csv"}, "nothing.csv"),
        ({"--labels": "other.csv"}, "no column recording_id or path (found: name, AF); --columns names"),
        ({"--output": "map.docx"}, "map.docx"),
        ({"embeddings": "other.csv"}, "not a Parquet file"),
    ],
)
def test_map_says_what_it_cannot_do(embeddings, tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.csv").write_text("name,AF\nr1,1\n")
    options = {"--output": "map.png", **change}
    first = options.pop("embeddings", str(embeddings))
    assert ecgfm(["embed-map", first, *(word for option in options.items() for word in option)]) == 2
    assert message in capsys.readouterr().err
