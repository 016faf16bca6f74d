"""Number types, int8, compiled layers, ONNX: near float32, chosen by what the device can do, printed and recorded."""

import importlib.util
import json
import os

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from inference_cases import as_pipeline_input, open_store, recordings, write_model, write_store
from wfdb_files import random_samples, write_record

from ecgfm_hf import ECGFMConfig, ECGFMFeatureExtractor, load_pipeline
from ecgfm_hf.cli.main import main as ecgfm
from ecgfm_hf.data import as_model_inputs
from ecgfm_hf.inference import embed, onnx_export, run_recordings
from ecgfm_hf.inference.model_runner import ModelRunner
from ecgfm_hf.inference.read_ahead import ReadRecording
from ecgfm_hf.pipeline_ecgfm import recording_scores
from ecgfm_hf.utils import precision as fast_paths

NEAR = 0.02  # of a sigmoid: what 8 bits of a mantissa leave of a small model


def lacks(*names):
    return any(importlib.util.find_spec(name) is None for name in names)


needs_torchao = pytest.mark.skipif(lacks("torchao"), reason="needs torchao")
needs_onnx = pytest.mark.skipif(lacks("onnx", "onnxruntime", "onnxscript"), reason="needs the extra [onnx]")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory, tiny_config):
    # Attention pooling computes more than the mean, which every path returns as the embedding anyway.
    config = tiny_config(label_thresholds={"A": 0.5}, pooling="attention")
    return write_model(tmp_path_factory.mktemp("model"), config)


@pytest.fixture
def model(model_dir):
    return load_pipeline(model_dir).model


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("made") / "store", recordings((10, 5, 10)))


@pytest.fixture(scope="module")
def inputs(store):
    return as_model_inputs(open_store(store), ECGFMFeatureExtractor())


@pytest.fixture
def processor(monkeypatch):
    """Says which instructions the processor has."""

    def has(*names):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True), raising=False)

    return has


def scores_of(outputs):
    return torch.sigmoid(torch.from_numpy(np.concatenate([output.logits for output in outputs])))


# ----------------------------------------------------------------------------------------------------------------------
# What auto chooses
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("instructions", ["avx512_bf16", "amx_bf16", "bf16"])
def test_auto_is_bfloat16_where_the_processor_multiplies_it(processor, instructions):
    processor("avx2", instructions)
    assert fast_paths.resolve_precision("auto") == "bfloat16"


def test_auto_is_float32_elsewhere(processor, monkeypatch):
    processor("avx2", "avx512_f", "avx512_vnni")
    assert fast_paths.resolve_precision("auto") == "float32"
    assert fast_paths.weights_dtype("int8") == torch.float32
    assert fast_paths.resolve_precision("auto", "meta") == "float32", "a device of which nothing is known"
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert fast_paths.resolve_precision("auto") == "float32", "torch that does not tell"


@pytest.mark.parametrize("supported", [True, False])
def test_auto_asks_a_gpu_for_its_own_instructions(monkeypatch, supported):
    def is_supported(including_emulation=True):
        return supported or including_emulation

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    assert fast_paths.resolve_precision("auto", "cuda:0") == ("bfloat16" if supported else "float32")


def test_what_there_is_not_is_an_error_that_says_what_there_is(monkeypatch, model_dir, tmp_path, capsys):
    with pytest.raises(ValueError, match="auto, float32, bfloat16, int8, found: 'float8'"):
        fast_paths.resolve_precision("float8")
    with pytest.raises(ValueError, match="not both"):
        load_pipeline(model_dir, precision="bfloat16", dtype="float32")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="for a CPU, found the device cuda"):
        fast_paths.resolve_precision("int8", "cuda")
    with pytest.raises(ImportError, match=r"ecgfm-hf\[int8\]"):
        fast_paths.resolve_precision("int8")
    assert ecgfm(["predict", "x.hea", "--model", str(model_dir), "--precision", "int8"]) == 2
    assert "ecgfm-hf[int8]" in capsys.readouterr().err
    assert ecgfm(["export-onnx", str(model_dir), str(tmp_path / "onnx")]) == 2
    assert "ecgfm-hf[onnx]" in capsys.readouterr().err


def test_auto_uses_and_reports_what_it_resolved_to(processor, model_dir, store, tmp_path, capsys):
    command = ["predict", str(store), "--model", str(model_dir), "--precision", "auto"]
    found = {}
    for instructions, precision in (("avx2", "float32"), ("avx512_bf16", "bfloat16")):
        processor(instructions)
        assert ecgfm([*command, "--format", "json"]) == 0
        answers = json.loads(capsys.readouterr().out)
        assert {answer["precision"] for answer in answers} == {precision}
        found[precision] = [list(answer["scores"].values()) for answer in answers]
        assert ecgfm([*command, "--output", str(tmp_path / f"{precision}.parquet")]) == 0
        metadata = json.loads(pq.read_schema(tmp_path / f"{precision}.parquet").metadata[b"ecgfm_inference"])
        assert metadata["plan"]["settings"]["precision"] == precision
        assert ecgfm(command) == 0
        assert ("computed in bfloat16" in capsys.readouterr().out) == (precision == "bfloat16")
    difference = np.abs(np.subtract(found["float32"], found["bfloat16"])).max()
    assert 0 < difference < NEAR
    # Rows of another precision do not go into a file.
    assert ecgfm([*command, "--output", str(tmp_path / "float32.parquet")]) == 2
    assert "precision (float32, now bfloat16)" in capsys.readouterr().err


def test_the_pipeline_gives_the_commands_scores_in_the_same_precision(processor, model_dir, store, capsys):
    processor("bf16")
    command = ["predict", str(store), "--model", str(model_dir), "--format", "json", "--precision", "auto"]
    assert ecgfm(command) == 0
    answers = json.loads(capsys.readouterr().out)
    pipe = load_pipeline(model_dir, precision="auto")
    assert pipe.model.dtype == torch.bfloat16
    for answer, given in zip(answers, recordings((10, 5, 10)), strict=True):
        # What a segment runs together with may round differently in so small a model.
        assert answer["scores"] == pytest.approx(pipe(as_pipeline_input(given))["scores"], abs=1e-3)


def test_command_pipeline_and_embeddings_are_exact_by_default(processor, model_dir, tmp_path, capsys):
    processor("bf16")  # "auto" would choose bfloat16
    header, _ = write_record(tmp_path, random_samples(samples=5000))
    assert ecgfm(["predict", str(header), "--model", str(model_dir), "--format", "json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    pipe = load_pipeline(model_dir)
    assert answer["precision"] == "float32"
    assert pipe.model.dtype == torch.float32
    assert answer["scores"] == pipe(header)["scores"], "one file has the same scores, to the last bit"
    out = tmp_path / "embeddings.parquet"
    assert ecgfm(["embed", str(header), "--model", str(model_dir), "--output", str(out)]) == 0
    np.testing.assert_array_equal(pq.read_table(out)["embedding"][0].as_py(), embed(model_dir, header))


# ----------------------------------------------------------------------------------------------------------------------
# What the paths compute
# ----------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_segments_bfloat16_positions_do_not_depend_on_what_it_runs_with(tiny_config):
    from ecgfm_hf.modeling_ecgfm import ECGFMPositionalConvEmbedding

    # Wide enough for the products' kernels to differ.
    config = tiny_config(hidden_size=192, num_conv_pos_embedding_groups=4, num_conv_pos_embeddings=32)
    embedding = ECGFMPositionalConvEmbedding(config).bfloat16().eval()
    frames = torch.randn(6, 40, 192, dtype=torch.bfloat16)
    spectra, factor = torch.fft.rfft(frames.float(), dim=1), torch.randn(192, 192, dtype=torch.complex64)
    if not (
        torch.equal(torch.fft.rfft(frames[:1].float(), dim=1), spectra[:1])
        and torch.equal(torch.matmul(spectra[:2].transpose(0, 1), factor), (spectra.transpose(0, 1) @ factor)[:, :2])
    ):
        pytest.skip("this processor's transforms or products round by how many there are (seen with AMX)")
    together = embedding(frames)
    single = torch.cat([embedding(frame[None]) for frame in frames])
    assert torch.equal(single, together)


@needs_torchao
def test_int8_is_near_float32_and_leaves_the_model_as_it_was(model, inputs):
    exact = list(run_recordings(model, inputs))
    quantised = list(run_recordings(model, inputs, precision="int8"))
    assert 0 < (scores_of(exact) - scores_of(quantised)).abs().max() < NEAR
    assert model.dtype == torch.float32
    assert not fast_paths.is_int8(model)
    again = list(run_recordings(model, inputs))
    assert torch.equal(scores_of(exact), scores_of(again))


@needs_torchao
def test_int8_quantises_the_layers_linear_maps_and_no_more(model):
    quantised = fast_paths.with_precision(model, "int8")
    kept = {name for name, weight in quantised.named_parameters() if type(weight.data) is torch.Tensor}
    changed = {name for name, _ in quantised.named_parameters()} - kept
    linear = ("q_proj", "k_proj", "v_proj", "out_proj", "intermediate_dense", "output_dense")
    expected = {name for name, _ in model.named_parameters() if name.endswith(tuple(f"{n}.weight" for n in linear))}
    assert changed == expected
    assert fast_paths.with_precision(quantised, "int8") is quantised
    with pytest.raises(ValueError, match="load it again"):
        fast_paths.with_precision(quantised, "float32")


@needs_torchao
@torch.no_grad()
def test_int8_scores_of_a_segment_depend_little_on_what_it_runs_with(processor, model):
    processor()  # all else in float32, so that only the quantised products could matter
    quantised = fast_paths.with_precision(model, "int8")
    segments = torch.randn(5, 12, 1000)
    # One that would move a scale that all share.
    segments[0] *= 50
    together = torch.sigmoid(quantised(segments).logits)
    single = torch.cat([torch.sigmoid(quantised(segment[None]).logits) for segment in segments])
    assert (together - single).abs().max() < 1e-3


@needs_torchao
def test_int8_reaches_command_pipeline_and_embeddings(model_dir, store, tmp_path, capsys):
    command = ["predict", str(store), "--model", str(model_dir), "--format", "json", "--precision", "int8"]
    assert ecgfm(command) == 0
    answers = json.loads(capsys.readouterr().out)
    pipe, exact = load_pipeline(model_dir, precision="int8"), load_pipeline(model_dir)
    assert fast_paths.is_int8(pipe.model)
    for answer, given in zip(answers, recordings((10, 5, 10)), strict=True):
        assert answer["precision"] == "int8"
        assert answer["scores"] == pytest.approx(pipe(as_pipeline_input(given))["scores"], abs=1e-3)
        assert answer["scores"] == pytest.approx(exact(as_pipeline_input(given))["scores"], abs=NEAR)
    out = tmp_path / "embeddings.parquet"
    assert ecgfm(["embed", str(store), "--model", str(model_dir), "--output", str(out), "--precision", "int8"]) == 0
    given = [as_pipeline_input(one) for one in recordings((10, 5, 10))]
    expected = embed(model_dir, given)
    found = np.array(pq.read_table(out)["embedding"].to_pylist())
    assert 0 < np.abs(found - expected).max() < 0.1


def test_compiled_layers_answer_as_the_others_and_the_last_batch_is_filled_up(model):
    rng = np.random.default_rng(0)
    read = [ReadRecording(n, f"r{n}", None, rng.standard_normal((1, 12, 400)).astype(np.float32)) for n in range(5)]
    expected = np.concatenate([logits for _, logits, _ in ModelRunner(model, batch_size=2).run(read)])
    runner = ModelRunner(model, batch_size=2, compile=True)
    sizes = []
    runner._model.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    found = np.concatenate([logits for _, logits, _ in runner.run(read)])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert sizes == [2, 2, 2]
    assert all(layer._compiled_call_impl is None for layer in model.ecgfm.encoder.layers), "the model is left single"
    shared = zip(runner._model.parameters(), model.parameters(), strict=True)
    assert all(one is other for one, other in shared), "no second copy of the weights"


def test_compiling_without_a_compiler_is_an_error_at_once(model_dir, store, monkeypatch, capsys):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(fast_paths.shutil, "which", lambda name: None)
    assert ecgfm(["predict", str(store), "--model", str(model_dir), "--compile"]) == 2
    assert "C++ compiler" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------------------
# ONNX
# ----------------------------------------------------------------------------------------------------------------------


@needs_onnx
def test_the_onnx_folder_scores_recordings_without_torch(model_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "")  # to be restored
    del os.environ["ORT_DISABLE_TELEMETRY"]
    out = tmp_path / "onnx"
    assert ecgfm(["export-onnx", str(model_dir), str(out)]) == 0
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    import onnxruntime

    printed = capsys.readouterr()
    assert "difference, logits" in printed.out
    assert printed.err == ""
    session = onnxruntime.InferenceSession(out / "model.onnx")
    extractor, config = ECGFMFeatureExtractor.from_pretrained(out), ECGFMConfig.from_pretrained(out)
    pipe = load_pipeline(model_dir)
    for given in recordings((10, 5, 23)):
        own = as_pipeline_input(given)
        segments = extractor(own.pop("signal"), **own, return_tensors="np")
        (logits,) = session.run(["logits"], {"input_values": segments["input_values"]})
        expected = pipe(as_pipeline_input(given))["scores"]
        assert recording_scores(logits, config) == pytest.approx(expected, abs=1e-5)
    assert config.label_thresholds == {"A": 0.5}
    before = (out / "model.onnx").read_bytes()
    assert ecgfm(["export-onnx", str(model_dir), str(out)]) == 2
    assert "is not empty, and this command did not write it" in capsys.readouterr().err
    assert (out / "model.onnx").read_bytes() == before


@needs_onnx
def test_a_file_that_computes_something_else_is_not_kept(model_dir, tmp_path, monkeypatch, capsys):
    def write(model, segments, folder):
        (folder / "model.onnx").touch()

    def compare(model, file, inputs):
        return {"logits": 1e-6, "pooler_output": float("nan")}, 0.0

    monkeypatch.setattr(onnx_export, "_export", write)
    monkeypatch.setattr(onnx_export, "_compare", compare)
    assert ecgfm(["export-onnx", str(model_dir), str(tmp_path / "onnx")]) == 1
    assert "pooler_output of the exported file differs" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
