"""Paths, names of user and host, and secrets are found in text; ordinary text is left in peace."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ecgfm_hf
from ecgfm_hf.data.leakage import write_training_ids
from ecgfm_hf.hub import Machine, find_private_details, this_machine
from ecgfm_hf.hub.private_details import find_training_ids

MACHINE = Machine(users=("jdoe", "max", "root"), hosts=("node-17.clinic.example", "node-17"), home="/home/jdoe")


def kinds(text, **settings):
    return {trace.kind for trace in find_private_details(text, MACHINE, **settings)}


@pytest.mark.parametrize(
    "text",
    [
        "trained on /data/mimic/records.csv",
        "file: '/mnt/x/y'",
        "see (/scratch/runs/1).",
        "file:///etc/x",
        "model:/srv/models/a",
        r"C:\Users\someone\model",
        r"d:\ecg\data\a.dat",
        "E:/ecg/a.dat",
        r"\\server\share\ecg",
        "../other/run",
        "~/studies/run",
        r"escaped\n/home/somebody/run",
        "%2Fhome%2Fsomebody%2Frun",
        "&#47;data&#47;mimic&#47;x",
        json.dumps({"a": [{"b": "C:\\ecg\\data"}]}),
        '{"a": "\\u002fdata\\u002fmimic"}',
        json.dumps({"/data/mimic": 1}),
    ],
)
def test_a_path_is_found(text):
    assert "a path of a machine" in kinds(text)


def test_a_finding_shows_where_it_is():
    (trace,) = find_private_details("one\ntwo /data/mimic/a three", MACHINE)
    assert str(trace) == "line 2: a path of a machine, '/data/mimic/a'"
    (trace,) = find_private_details('{"a": {"b": ["x", "\\u002fdata\\u002fmimic"]}}', MACHINE)
    assert trace.where == "key a.b[1]"


@pytest.mark.parametrize(
    "text",
    [
        "and/or, 25 mm/mV, I/II/III, a / b / c, 1/2/3, <td></td>, 12/24",
        "https://huggingface.co/me/model/blob/main/README.md and http://x.org/home/page",
        "datasets/cohort/train.csv, ./figures/roc.png, git@github.com:me/model",
        "~/.cache/huggingface, ~5 s, a ~ b",
        "aggregated by max or mean; the root of the tree",
        "version 10.2.1, 127.0.0.1, transformers 5.23.0",
        r"$\alpha / \beta$, a:b, C: yes",
        '{"a": "x\\ny", "b": "tab\\tend"}',
        "hf_hub_download, hf_xet, sk-learn, the token is masked, pad_token=0, password: required",
        "basic electrocardiography, https://doi.org/10.1093/jamiaopen/ooaf122, ftp://example.org:21/x",
        "SHA-256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855, 12:30, I:II, AF: 0.91",
    ],
)
def test_ordinary_text_is_left_in_peace(text):
    assert find_private_details(text, MACHINE) == []


def test_names_are_found_as_words_and_ordinary_words_only_where_they_name_somebody():
    assert kinds("by jdoe") == {"the user's name"}
    assert kinds("run_jdoe_2") == {"the user's name"}
    assert kinds("jdoesmith, Jdoe") == set()
    assert kinds("on NODE-17, at noon") == {"the host's name"}
    assert kinds("node-178") == set()
    assert "the user's name" in kinds("max@lab")
    assert "a path of a machine" in kinds("/home/max/x")


def test_the_users_folder_is_found_where_it_does_not_look_like_a_path():
    (trace,) = find_private_details("in /jdoehome, by rsync", Machine(home="/jdoehome"))
    assert str(trace) == "line 1: the user's folder, '/jdoehome'"


def test_a_path_is_reported_once_with_all_names_in_it():
    (trace,) = find_private_details("see /home/jdoe/node-17/run.", MACHINE)
    assert (trace.kind, trace.text) == ("a path of a machine", "/home/jdoe/node-17/run")
    # Where the path is harmless, its names need not be.
    assert kinds("see /home/jdoe/run", allow=["/home/jdoe/run"]) == {"the user's folder", "the user's name"}


def test_a_secret_is_found_and_not_repeated():
    (trace,) = find_private_details("token hf_" + "abcDEF123" * 4, MACHINE)
    assert (trace.kind, trace.text) == ("a secret", "hf_ab...")
    assert kinds("-----BEGIN RSA PRIVATE KEY-----") == {"a secret"}
    found = find_private_details("/data/hf_" + "abcDEF123" * 4 + "/model", MACHINE)
    assert [trace.kind for trace in found] == ["a path of a machine", "a secret"]
    assert not any("abcDEF" in str(trace) for trace in found)


STAND_IN = "a1B2" * 10  # part of no real secret


@pytest.mark.parametrize(
    "text",
    [
        "hf_" + STAND_IN[:34],
        "AKIA" + "IOSFODNN7EXAMPLE",
        "ghp_" + STAND_IN[:36],
        "github_pat_" + STAND_IN,
        "glpat-" + STAND_IN[:20],
        "sk-" + "proj-" + STAND_IN,
        "sk-" + "ant-api03-" + STAND_IN,
        "xoxb-" + "1234567890-abcdefghijkl",
        "https://hooks.slack.com/services/" + STAND_IN,
        "AIza" + STAND_IN[:35],
        "pypi-" + STAND_IN * 2,
        "npm_" + STAND_IN[:36],
        "AccountKey=" + STAND_IN + "==",
        "https://x.blob.example/a?sv=1&sig=" + STAND_IN,
        "wandb 0123456789abcdef0123456789abcdef01234567",
        "WANDB_API_KEY=0123456789abcdef0123456789abcdef01234567",
        '"token": "0123456789abcdef0123456789abcdef"',
        "Authorization: Basic amRvZTpodW50ZXIy",
        "authorization: Bearer " + STAND_IN,
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
        "https://jdoe:hunter2@pacs.example.org/x",
        "postgresql://reader:pw@db.example.org/ecg",
        "db_password = 'hunter2-hunter2'",
    ],
)
def test_secrets_of_many_issuers_are_found_and_shown_by_their_beginning(text):
    for reading in (f"see {text} there", json.dumps({"note": [text]})):
        found = [trace for trace in find_private_details(reading, Machine()) if trace.kind == "a secret"]
        assert found
        assert all(len(trace.text) < 12 for trace in found)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("s3://hospital-bucket/ecg", "an address of a storage"),
        ("gs://hospital/ecg", "an address of a storage"),
        ("abfss://x@y.dfs.core.windows.net/z", "an address of a storage"),
        ("https://hospital.s3.eu-central-1.amazonaws.com/ecg", "an address of a storage"),
        ("https://storage.googleapis.com/hospital/ecg", "an address of a storage"),
        ("smb://pacs/share", "an address of a storage"),
        ("10.1.2.3", "an address in a private network"),
        ("fd12:3456:789a::1", "an address in a private network"),
        ("pacs01.hospital.local", "a host in a private network"),
        ("j.doe@hospital.example", "a mail address"),
    ],
)
def test_addresses_of_storage_network_and_people_are_found(text, kind):
    assert kind in kinds(f"see {text}.")
    assert kinds(f"see {text}.", allow=[trace.text for trace in find_private_details(f"see {text}.", MACHINE)]) == set()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    write_training_ids(folder, (["MRN-00-1234", "p10/s40689238"], ["10000032", "7"]), (["JS00001"], ["AbCdEf"]))
    return folder


@pytest.mark.parametrize(
    "text",
    [
        "such as 10000032",
        "10000032_lead2.png",
        "x-10000032",
        "[x](img/10000032/a.png)",
        "such as " + "".join(f"&#{ord(character)};" for character in "10000032"),
        "js00001, JS00001.hea",
        "mrn-00-1234",
        "p10/s40689238.dat",
        "ABCDEF",
        "10000032.0",
        json.dumps({"a": "\u0031\u0030000032"}),
        json.dumps({"js00001": 1}),
        "%4AS00001",
    ],
)
def test_ids_of_training_patients_are_found_as_whole_words_in_any_case(text, trained):
    assert find_training_ids(f"first\n{text}" if text[0] != "{" else text, trained)


@pytest.mark.parametrize("text", ["7", "110000032", "JS000011", "AUROC 0.10000032", "s40689238", "40689238", "00-1234"])
def test_parts_of_ids_and_fractions_are_no_ids(text, trained):
    assert find_training_ids(text, trained) == []


def test_an_id_is_reported_by_its_line_or_key(trained, tmp_path):
    assert find_training_ids("a\nb JS00001\nc js00001 AbCdEf", trained) == ["line 2", "line 3"]
    assert find_training_ids('{\n"a": "JS00001"}', trained) == ["line 2"], "not by its key too"
    assert find_training_ids('{"a": {"b": ["\\u004aS00001"]}}', trained) == ["key a.b[0]"]
    assert find_training_ids("JS00001", tmp_path) == [], "without a list nothing can be found"


def test_what_is_allowed_is_left_out_and_nothing_else():
    assert kinds("/opt/models/a and by jdoe", allow=["/opt/models/a"]) == {"the user's name"}
    assert kinds("/opt/models/b", allow=["/opt/models/a"])


def test_what_goes_with_every_model_has_no_traces():
    package = Path(ecgfm_hf.__file__).parent
    for path in package.glob("*_ecgfm.py"):
        assert find_private_details(path.read_text(encoding="utf-8"), MACHINE) == [], path.name


def test_this_machine_is_known():
    machine = this_machine()
    assert all(len(name) >= 3 for name in (*machine.users, *machine.hosts))
    assert machine.home == "" or Path(machine.home).is_absolute()


_NAME = st.text("abcdefghijklmnopqrstuvwxyzABCXYZ0123456789_-.", min_size=1, max_size=12).filter(
    lambda name: name.strip(".") and any(c.isalpha() for c in name)
)
_BEFORE = st.sampled_from(["", "see ", '"', "'", "(", "path=", "x:", "a\n", "| ", "[", "{", "> "])
_AFTER = st.sampled_from(["", " ", '"', "'", ")", "\n", ",", " |", "]", "}"])


@settings(max_examples=200, deadline=None)
@given(parts=st.lists(_NAME, min_size=2, max_size=5), before=_BEFORE, after=_AFTER, windows=st.booleans())
def test_any_absolute_path_is_found_in_text_and_in_json(parts, before, after, windows):
    path = "D:\\" + "\\".join(parts) if windows else "/" + "/".join(parts)
    text = f"{before}{path}{after}"
    assert "a path of a machine" in kinds(text)
    assert "a path of a machine" in kinds(json.dumps({"key": [text]}))
    assert "a path of a machine" in kinds(json.dumps({text: 1}))


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=200))
def test_any_text_is_looked_through_without_an_error(text):
    find_private_details(text, MACHINE)
    find_private_details(json.dumps({"a": text}), MACHINE)
