"""Opening checkpoints: what the original wrote opens, nothing else does, and nothing in a file ever runs."""

import argparse
import builtins
import io
import json
import os
import pickle
import random
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ecgfm_hf.fairseq import CheckpointError, load_fairseq_checkpoint

FIXTURES = Path(__file__).parent / "fixtures" / "checkpoints"
MODEL_CFG = {"_name": "wav2vec2_cmsc", "encoder_layers": 2}


def content(**extra):
    """A minimal checkpoint's content."""
    return {"args": None, "cfg": {"model": dict(MODEL_CFG)}, "model": {"layer_norm.weight": torch.ones(4)}, **extra}


def write(path, content, zipped=True):
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


formats = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


# What opens


@pytest.mark.parametrize(
    ("name", "model", "criterion"),
    [
        ("pretrain", "wav2vec2_cmsc", "wav2vec2_with_cmsc"),
        ("pretrain_old_weight_norm", "wav2vec2_cmsc", "wav2vec2_with_cmsc"),
        ("finetune", "ecg_transformer_classifier", "binary_cross_entropy_with_logits"),
        ("finetune_default_cfg", "ecg_transformer_classifier", "binary_cross_entropy_with_logits"),
    ],
)
def test_checkpoints_of_the_original_open(name, model, criterion):
    checkpoint = load_fairseq_checkpoint(FIXTURES / f"{name}.pt")
    assert checkpoint.settings_name == "cfg.model"
    assert checkpoint.model_cfg["_name"] == model
    assert checkpoint.criterion_cfg["_name"] == criterion
    assert all(tensor.dtype == torch.float32 for tensor in checkpoint.tensors.values())


def test_a_plain_weights_only_load_refuses_the_numpy_arrays_that_this_one_allows():
    with pytest.raises(pickle.UnpicklingError):
        torch.load(FIXTURES / "finetune.pt", weights_only=True)
    load_fairseq_checkpoint(FIXTURES / "finetune.pt")


@formats
def test_tensors_come_back_bit_for_bit(tmp_path, zipped):
    expected = torch.load(FIXTURES / "pretrain.pt", weights_only=True)
    found = load_fairseq_checkpoint(write(tmp_path / "c.pt", expected, zipped))
    assert found.tensors.keys() == expected["model"].keys()
    assert all(torch.equal(tensor, expected["model"][name]) for name, tensor in found.tensors.items())
    assert found.model_cfg["conv_feature_layers"] == "[(16, 2, 2)] * 4"


@formats
def test_settings_of_old_files_are_read_from_the_namespace(tmp_path, zipped):
    args = argparse.Namespace(arch="wav2vec2_cmsc", criterion="wav2vec2_with_cmsc", encoder_layers=2, temp=0.1)
    checkpoint = load_fairseq_checkpoint(write(tmp_path / "c.pt", content(cfg=None, args=args), zipped))
    assert checkpoint.settings_name == "args"
    assert checkpoint.model_cfg["_name"] == "wav2vec2_cmsc"
    assert checkpoint.model_cfg["encoder_layers"] == 2
    assert checkpoint.criterion_cfg["_name"] == "wav2vec2_with_cmsc"
    assert checkpoint.criterion_cfg["temp"] == 0.1


@formats
@pytest.mark.parametrize("dtype", ["float64", "float32", ">f4", "int64", "uint8", "bool"])
def test_numpy_values_in_settings_become_plain_numbers(tmp_path, zipped, dtype):
    array = np.asfortranarray(np.array([[1, 0, 1], [0, 1, 1]]).astype(dtype))
    cfg = {"model": {"array": array, "scalar": np.float64(0.25), "objects": np.array(["x", None], dtype=object)}}
    checkpoint = load_fairseq_checkpoint(write(tmp_path / "c.pt", content(cfg=cfg), zipped))
    assert checkpoint.model_cfg == {"array": array.tolist(), "scalar": 0.25, "objects": None}


def test_only_model_is_required(tmp_path):
    checkpoint = load_fairseq_checkpoint(write(tmp_path / "c.pt", {"model": {"a": torch.ones(2)}}))
    assert checkpoint.settings_name == ""
    assert checkpoint.model_cfg == {}


# What is no checkpoint


def truncated(path):
    whole = (FIXTURES / "pretrain.pt").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def torchscript(path):
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            archive.writestr(f"model/{name}", b"\x80\x02}.")


def other_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def zipped_again(path):
    with zipfile.ZipFile(FIXTURES / "pretrain.pt") as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))


def flipped_bit(path):
    whole = bytearray((FIXTURES / "pretrain.pt").read_bytes())
    whole[len(whole) // 2] ^= 4  # inside some tensor
    path.write_bytes(whole)


def cut_legacy(path):
    write(path, torch.load(FIXTURES / "pretrain.pt", weights_only=True), zipped=False)
    path.write_bytes(path.read_bytes()[:-50_000])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "is a directory"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text("epoch,loss\n1,0.5\n"), "not a PyTorch checkpoint"),
        (lambda path: path.write_text("<!DOCTYPE html><html></html>"), "web page"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer"),
        (lambda path: save_file({"a": torch.ones(2)}, path), "safetensors"),
        (torchscript, "TorchScript"),
        (other_zip, "not one that torch.save wrote"),
        (zipped_again, "compressed again"),
        (truncated, "damaged or cut short"),
        (flipped_bit, "checksum"),
        (cut_legacy, "cannot be read"),
        (lambda path: path.write_bytes(pickle.dumps({"model": 1})), "bare pickle"),
        (lambda path: path.write_bytes(pickle.dumps({"model": 1}, protocol=0)), "not a PyTorch checkpoint"),
        (lambda path: write(path, [1, 2]), "holds a list, expected a dict"),
        (lambda path: write(path, {"cfg": {}}), "no 'model'"),
        (lambda path: write(path, {"a.weight": torch.ones(2)}), "bare state dict"),
        (lambda path: write(path, content(model={})), "expected a state dict"),
        (lambda path: write(path, content(model=[torch.ones(1)])), "expected a state dict"),
        (lambda path: write(path, content(model={"a": 3})), "expected a tensor"),
        (lambda path: write(path, content(model={"a": torch.tensor([1.0, float("nan")])})), "NaN or infinity"),
        (lambda path: write(path, content(model={"a": torch.ones(2, dtype=torch.int64)})), "floating point"),
        (lambda path: write(path, content(model={"a": torch.eye(2).to_sparse()})), "dense"),
        (lambda path: write(path, content(model={"a": torch.ones(1).expand(2**40)})), "stores fewer"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named_with_its_own_reason(tmp_path, make, message):
    path = tmp_path / "file.pt"
    make(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_fairseq_checkpoint(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_reported_as_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt: no such file"):
        load_fairseq_checkpoint(tmp_path / "nothing.pt")


@pytest.mark.filterwarnings("ignore")
def test_damage_anywhere_gives_a_checkpoint_or_an_error_of_ours(tmp_path):
    whole = write(
        tmp_path / "c.pt", content(meters=np.ones(3), args=argparse.Namespace(a=1)), zipped=False
    ).read_bytes()
    rng = random.Random(0)
    opened = 0
    for trial in range(300):
        damaged = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path = tmp_path / f"{trial}.pt"
        path.write_bytes(damaged[: rng.randint(1, len(damaged))] if trial % 3 == 0 else damaged)
        try:
            load_fairseq_checkpoint(path)
            opened += 1
        except CheckpointError:
            pass
        path.unlink()
    assert 0 < opened < 300


def test_settings_that_contain_themselves_are_refused(tmp_path):
    cfg = {"model": {}}
    cfg["model"]["again"] = cfg
    with pytest.raises(CheckpointError, match="nested too deeply"):
        load_fairseq_checkpoint(write(tmp_path / "c.pt", content(cfg=cfg)))


def test_settings_that_multiply_by_sharing_are_refused(tmp_path):
    value = [1]
    for _ in range(18):
        value = [value, value]
    with pytest.raises(CheckpointError, match="too many"):
        load_fairseq_checkpoint(write(tmp_path / "c.pt", content(cfg={"model": {"bomb": value}})))


# Malicious files. Every payload, once run, leaves the file `marker` behind.


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def payloads(marker):
    return {
        "os.system": Call(os.system, f"touch {marker}"),
        "subprocess": Call(subprocess.check_output, ["touch", str(marker)]),
        "open": Call(io.open, str(marker), "w"),
        "exec": Call(builtins.exec, f"open({str(marker)!r}, 'w').close()"),
        "eval": Call(builtins.eval, f"open({str(marker)!r}, 'w').close()"),
        "Path.touch": Call(Path.touch, Path(marker)),
        "getattr": Call(builtins.getattr, Call(builtins.__import__, "os"), "system"),
        "torch.load": Call(torch.load, str(FIXTURES / "pretrain.pt")),
        "torch.save": Call(torch.save, 1, str(marker)),
        "numpy.save": Call(np.save, str(marker), 1),
    }


NAMED = {
    "os.system": "posix.system" if os.name == "posix" else "nt.system",
    "subprocess": "subprocess.check_output",
    "open": "open",
    "exec": "builtins.exec",
    "eval": "builtins.eval",
    "Path.touch": "pathlib",
    "getattr": "builtins.getattr",
    "torch.load": "torch.serialization.load",
    "torch.save": "torch.serialization.save",
    "numpy.save": "numpy",
}


def hide(position, payload):
    if position == "top":
        return payload
    if position == "model":
        return content(model={"layer_norm.weight": payload})
    if position == "cfg":
        return content(cfg={"model": {"data": payload}})
    if position == "extra_state":
        return content(extra_state={"metrics": {"valid": [payload]}})
    if position == "object array":
        array = np.empty(2, dtype=object)
        array[1] = payload
        return content(extra_state={"scores": array})
    if position == "record array":
        array = np.empty(2, dtype=[("a", "f8"), ("b", "O")])
        array["b"][0] = payload
        return content(extra_state={"scores": array})
    if position == "namespace":
        return content(args=argparse.Namespace(arch="wav2vec2_cmsc", data=payload))
    if position == "namespace in an array in a namespace":
        array = np.empty(1, dtype=object)
        array[0] = argparse.Namespace(payload=payload)
        return content(args=argparse.Namespace(nested=[array]))
    raise AssertionError(position)


POSITIONS = ["top", "model", "cfg", "extra_state", "object array", "record array", "namespace"]
POSITIONS.append("namespace in an array in a namespace")


def test_the_payloads_of_these_tests_do_run_where_nothing_stops_them(tmp_path):
    for name in ("os.system", "subprocess", "open", "exec", "eval", "Path.touch", "torch.save"):
        marker = tmp_path / name
        path = write(tmp_path / "c.pt", hide("object array", payloads(marker)[name]))
        torch.load(path, weights_only=False)
        assert marker.exists(), name


@formats
@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("name", list(NAMED))
def test_a_malicious_file_is_refused_and_nothing_in_it_runs(tmp_path, zipped, position, name):
    marker = tmp_path / "marker"
    path = write(tmp_path / "c.pt", hide(position, payloads(marker)[name]), zipped)
    with pytest.raises(CheckpointError, match="nothing in the file was run") as caught:
        load_fairseq_checkpoint(path)
    assert not any(tmp_path.glob("marker*"))
    assert str(path) in str(caught.value)
    assert NAMED[name] in str(caught.value)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@formats
def test_no_pickle_protocol_opens_a_way(tmp_path, zipped, protocol):
    marker = tmp_path / "marker"
    path = tmp_path / "c.pt"
    bad = hide("namespace", payloads(marker)["exec"])
    torch.save(bad, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"builtins\.exec"):
        load_fairseq_checkpoint(path)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_bare_malicious_pickle_does_not_run(tmp_path, protocol):
    marker = tmp_path / "marker"
    path = tmp_path / "c.pt"
    path.write_bytes(pickle.dumps(hide("extra_state", payloads(marker)["os.system"]), protocol=protocol))
    with pytest.raises(CheckpointError):
        load_fairseq_checkpoint(path)
    assert not marker.exists()


def test_what_a_payload_is_called_cannot_drive_the_terminal(tmp_path):
    evil = b"\x80\x02cos\x1b[2J\nsystem\nq\x00."
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        archive.writestr("c/data.pkl", evil)
        archive.writestr("c/version", "3\n")
        archive.writestr("c/byteorder", "little")
    with pytest.raises(CheckpointError) as caught:
        load_fairseq_checkpoint(tmp_path / "c.pt")
    assert "\x1b" not in str(caught.value)


@formats
def test_what_the_process_allows_for_its_own_files_is_not_allowed_here(tmp_path, zipped):
    marker = tmp_path / "marker"
    path = write(tmp_path / "c.pt", hide("extra_state", payloads(marker)["exec"]), zipped)
    with torch.serialization.safe_globals([builtins.exec, np.ndarray]):
        before = set(torch.serialization.get_safe_globals())
        with pytest.raises(CheckpointError, match=r"builtins\.exec"):
            load_fairseq_checkpoint(path)
        assert set(torch.serialization.get_safe_globals()) == before
    assert not marker.exists()


def test_the_allowance_ends_with_the_call():
    before = set(torch.serialization.get_safe_globals())
    load_fairseq_checkpoint(FIXTURES / "finetune.pt")
    assert set(torch.serialization.get_safe_globals()) == before


def test_environment_variables_cannot_lift_the_restriction(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "marker"
    with pytest.raises(CheckpointError):
        load_fairseq_checkpoint(write(tmp_path / "c.pt", hide("namespace", payloads(marker)["exec"])))
    assert not marker.exists()


# What is allowed, abused


class Forged:
    """Pickles as `function(*args)` with any state."""

    def __init__(self, function, args, state):
        self.reduced = function, args, state

    def __reduce__(self):
        return self.reduced


def forged_array(shape, dtype, data):
    rebuild = np.ones(1).__reduce__()[0]
    return Forged(rebuild, (np.ndarray, (0,), b"b"), (1, shape, dtype, False, data))


@formats
@pytest.mark.parametrize(
    "array",
    [
        # Bytes declared to be object pointers: real numpy would follow them.
        forged_array((1,), Forged(np.dtype, ("O8", False, True), (3, "|", None, None, None, -1, -1, 0)), b"\x41" * 8),
        forged_array(
            (1,),
            Forged(np.dtype, ("V8", False, True), (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 0)),
            b"\x41" * 8,
        ),
        forged_array((10**9, 10**9), np.dtype("f8"), b"\x00" * 8),
        forged_array((-1,), np.dtype("f8"), b"\x00" * 8),
        forged_array((1,), np.dtype("f8"), b"\x00" * 7),
        forged_array((1,), "not a dtype", b"\x00" * 8),
        forged_array((1.5,), np.dtype("f8"), [1]),
    ],
    ids=["pointers", "pointers in fields", "huge", "negative", "short", "no dtype", "no bytes"],
)
def test_forged_array_states_are_kept_from_numpy(tmp_path, zipped, array):
    path = write(tmp_path / "c.pt", content(extra_state=[array], cfg={"model": {"bad": array}}), zipped)
    checkpoint = load_fairseq_checkpoint(path)
    assert checkpoint.model_cfg == {"bad": None}


@formats
@pytest.mark.parametrize("state", [[1, 2], (None, {"__class__": argparse.Namespace}), {1: 2}, 7])
def test_forged_namespace_states_set_nothing(tmp_path, zipped, state):
    namespace = Forged(argparse.Namespace, (), state)
    checkpoint = load_fairseq_checkpoint(write(tmp_path / "c.pt", content(args=namespace), zipped))
    assert checkpoint.model_cfg == MODEL_CFG


def test_nothing_but_names_numbers_and_text_is_kept(tmp_path):
    cfg = {
        "model": {"a": 1, "tensor": torch.ones(2), "bytes": b"x", "set": {1}, 5: "number as key", "nested": [(None,)]}
    }
    checkpoint = load_fairseq_checkpoint(write(tmp_path / "c.pt", content(cfg=cfg)))
    assert json.loads(json.dumps(checkpoint.model_cfg)) == {
        "a": 1,
        "tensor": [1.0, 1.0],
        "bytes": None,
        "set": None,
        "nested": [[None]],
    }
