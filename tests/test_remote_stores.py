"""Stores at addresses of fsspec: the same rows, the same training, and damage that is noticed."""

import multiprocessing
import os
import re
import shutil
import tempfile
import threading
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest
from datasets.distributed import split_dataset_by_node
from finetune_cases import TINY_MODEL, make_store
from fsspec.implementations.local import LocalFileSystem
from killed_runs import damage_file
from tiny_pretraining import MODEL

from ecgfm_hf.cli.main import main
from ecgfm_hf.data import DataError, load_prepared, store_assembly
from ecgfm_hf.data.opening import data_digest, split_names
from ecgfm_hf.data.remote_stores import _fetched, _local_folder
from ecgfm_hf.training import Finetuner, FinetuneSettings, Pretrainer, PretrainSettings, SettingsError
from ecgfm_hf.utils.errors import OutputExistsError
from ecgfm_hf.utils.files import check_output, private_folder
from ecgfm_hf.utils.integrity import write_checksums
from ecgfm_hf.utils.text import without_secrets

FILES_OF_TRAIN = ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with two files of the training split."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_assembly, "_ROWS_A_FILE", 8)
        return make_store(tmp_path_factory.mktemp("made") / "store", patients=12)


@pytest.fixture(autouse=True)
def _nothing_fetched():
    yield
    _local_folder.cache_clear()
    _fetched.cache_clear()


@pytest.fixture
def memory(store):
    """The store in fsspec's memory."""
    system = fsspec.filesystem("memory")
    system.put(f"{store}/", "/bucket/store/", recursive=True)
    yield "memory://bucket/store"
    system.rm("/bucket", recursive=True)


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder, also a part of a file, and counts the files that it sends in whole."""

    def do_GET(self):
        end = self.headers.get("Range")
        if end is None:
            self.server.whole[self.path.rsplit("/", 1)[-1]] += 1
            super().do_GET()
            return
        with open(self.translate_path(self.path), "rb") as file:
            first, last = end.removeprefix("bytes=").split("-")
            content = file.read()[int(first) : int(last) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@contextmanager
def served(store):
    """The store's address at a web server, and a function that returns how often each Parquet file was fetched."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=store)) as server:
        server.whole = Counter()
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def fetched():
            return {name: count for name, count in server.whole.items() if name.endswith(".parquet")}

        yield f"http://127.0.0.1:{server.server_port}", fetched
        server.shutdown()


@pytest.mark.parametrize("streaming", [False, True])
def test_a_store_at_an_address_has_the_rows_of_the_folder(streaming, store, memory):
    expected = load_prepared(store, streaming=streaming)
    found = load_prepared(memory, streaming=streaming)
    assert found.keys() == expected.keys()
    for name in expected:
        assert list(found[name]) == list(expected[name])
    assert split_names(memory) == split_names(store)
    assert data_digest([memory], ["train"]) == data_digest([store], ["train"])
    several = load_prepared([memory, f"file://{store}"], "test")
    assert len(several) == 2 * len(expected["test"]) if not streaming else True


def test_a_stream_fetches_a_file_when_its_first_row_is_read(store):
    with served(store) as (address, fetched):
        stream = load_prepared(address, "train", streaming=True)
        assert not fetched()
        rows = iter(stream.reshard())  # a group of rows at a time
        next(rows)
        assert fetched() == {FILES_OF_TRAIN[0]: 1}
        assert 1 + len(list(rows)) == len(load_prepared(store, "train"))
        assert fetched() == dict.fromkeys(FILES_OF_TRAIN, 1)


def read(address, rank, together, found):
    """One process of a launcher: the ids that it reads as a stream, and in any order."""
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_PORT": "29512"}
    private_folder.cache_clear()
    stream = split_dataset_by_node(load_prepared(address, "train", streaming=True), rank, 2)
    streamed = [row["recording_id"] for row in stream]
    _fetched.cache_clear()
    together.wait()
    found.put((rank, streamed, load_prepared(address, "train")["recording_id"][:]))
    together.wait()  # as in training: the first process removes what all read


def test_processes_of_one_launcher_fetch_each_file_once(store, tmp_path, monkeypatch):
    ids = load_prepared(store, "train")["recording_id"][:]
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    context = multiprocessing.get_context("fork")
    together, queue = context.Barrier(2, timeout=60), context.Queue()
    with served(store) as (address, fetched):
        processes = [context.Process(target=read, args=(address, rank, together, queue)) for rank in range(2)]
        for process in processes:
            process.start()
        found = sorted(queue.get(timeout=60) for _ in processes)
        for process in processes:
            process.join(60)
        assert fetched() == dict.fromkeys(FILES_OF_TRAIN, 2)  # once by a stream, once for any order
    assert all(streamed for _, streamed, _ in found)
    assert sorted(found[0][1] + found[1][1]) == sorted(ids)
    assert [copied for _, _, copied in found] == [ids, ids]


def test_training_on_an_address_is_training_on_the_folder(store, tmp_path):
    results = {}
    for name, data in (("folder", str(store)), ("address", f"file://{store}")):
        pretraining = PretrainSettings(
            data=data,
            output_dir=str(tmp_path / f"pretrained-{name}"),
            model=MODEL,
            per_device_train_batch_size=4,
            max_steps=2,
            use_cpu=True,
        )
        finetuning = FinetuneSettings(
            data=data,
            output_dir=str(tmp_path / f"finetuned-{name}"),
            model=TINY_MODEL,
            max_steps=2,
            use_cpu=True,
        )
        Pretrainer(pretraining).run()
        Finetuner(finetuning).run()
        results[name] = [
            (tmp_path / f"{kind}-{name}" / "model.safetensors").read_bytes() for kind in ("pretrained", "finetuned")
        ]
    assert results["address"] == results["folder"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["flipped", "cut short", "gone"])
def test_damage_at_an_address_is_an_error_that_names_it(kind, streaming, store, tmp_path):
    shutil.copytree(store, tmp_path / "store")
    damage_file(tmp_path / "store" / "data" / FILES_OF_TRAIN[1], kind)
    problem = f"damaged: (the footer of )?data/{FILES_OF_TRAIN[1]} has changed|missing"
    with pytest.raises(DataError, match=f"file://{tmp_path}/store is .*({problem})"):
        list(load_prepared(f"file://{tmp_path}/store", "train", streaming=streaming))


def test_an_address_that_refuses_is_an_error_that_names_it(store, monkeypatch):
    with served(store) as (address, _):
        monkeypatch.setattr(Handler, "do_GET", lambda self: self.send_error(403))
        with pytest.raises(DataError, match=f"{address} cannot be read .*403.*check the address and its access"):
            load_prepared(address)


def test_a_password_in_an_address_is_in_no_message_and_no_file(store, tmp_path, caplog):
    class Vault(LocalFileSystem):
        protocol = "vault"

        @classmethod
        def _strip_protocol(cls, path):
            return re.sub(r"^vault://[^/]*", "", str(path)).split("?")[0]

    fsspec.register_implementation("vault", Vault, clobber=True)
    for address in (
        "vault://me:hunter2@host/nowhere?token=hunter2",
        "pigeon://me:hunter2@host/store",
        "ftp://me:hunter2@127.0.0.1:1/store",
    ):
        with pytest.raises(DataError) as error:
            load_prepared(address)
        assert "hunter2" not in str(error.value)
        assert "://***@" in str(error.value)
        assert error.value.__cause__ is None  # of a traceback that is logged
    data = f"vault://me:hunter2@host{store}"
    settings = FinetuneSettings(
        data=data, output_dir=str(tmp_path / "run"), model=TINY_MODEL, max_steps=1, use_cpu=True
    )
    Finetuner(settings).run()
    with caplog.at_level("WARNING"):
        Finetuner(settings).run()  # of the same data
    assert "does not record" in caplog.text
    report = [str(tmp_path / "run"), f"{data}?token=hunter2", "--output", str(tmp_path / "report")]
    assert main(["evaluate", *report, "--split", "train", "--allow-seen", "--resamples", "100"]) == 0
    for path in (*(tmp_path / "run").rglob("*"), *(tmp_path / "report").iterdir()):
        assert path.is_dir() or b"hunter2" not in path.read_bytes()
    with pytest.raises(DataError, match=r"vault://\*\*\*@host.* has no split 'elsewhere'"):
        load_prepared(data, "elsewhere")
    with pytest.raises(SettingsError, match=r"vault://\*\*\*@host.* has no split elsewhere"):
        Finetuner(replace(settings, output_dir=str(tmp_path / "other"), train_split="elsewhere")).run()


def test_a_command_prints_no_password_of_an_address(capsys):
    for address in ("ftp://me:hunter2@host/store", "ftp:/me:hunter2@host/store?token=hunter2"):
        assert main(["inspect", address]) != 0
        shown = "".join(capsys.readouterr())
        assert ":/***@host/store" in shown.replace("://", ":/")
        assert "hunter2" not in shown


def test_a_run_is_not_written_into_the_store_that_it_reads(store):
    before = sorted(store.rglob("*"))
    with pytest.raises(OutputExistsError, match="is a part of an input"):
        check_output(next((store / "data").iterdir()), [f"file://{store}"])
    with pytest.raises(OutputExistsError, match="is an input"):
        Finetuner(FinetuneSettings(data=f"file://{store}", output_dir=str(store), model=TINY_MODEL))
    assert sorted(store.rglob("*")) == before


def test_a_file_system_without_negative_positions_is_read(store):
    class Positive(LocalFileSystem):  # as FTP
        protocol = "positive"

        @classmethod
        def _strip_protocol(cls, path):
            return str(path).removeprefix("positive://")

        def cat_file(self, path, start=None, end=None, **kwargs):
            if start < 0:
                raise FileNotFoundError(path)
            return super().cat_file(path, start, end, **kwargs)

    fsspec.register_implementation("positive", Positive, clobber=True)
    assert len(load_prepared(f"positive://{store}", "test")) == len(load_prepared(store, "test"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ftp://me:pass@host/a/b: no", "ftp://***@host/a/b: no"),
        ("https://token@host/x?key=1&b=2", "https://***@host/x?***"),
        ("zip://store::https://me:pass@h/x.zip", "zip://store::https://***@h/x.zip"),
        ("s3://a,ftp://me:pass@h/b", "s3://a,ftp://***@h/b"),
        ("(see https://h:80/p?x=1). Is it s3://b/c?", "(see https://h:80/p?***). Is it s3://b/c?"),
        ("ftp:/me:pass@host/store", "ftp:/***@host/store"),
        ("server:/snap@x/y", "server:/snap@x/y"),
        ("abfs://train@acct.dfs.core.windows.net/s", "abfs://train@acct.dfs.core.windows.net/s"),
        ("github://org:repo@main/x", "github://org:repo@main/x"),
        ("file:///a@b/c 12:30 C:/x@y/z a@b", "file:///a@b/c 12:30 C:/x@y/z a@b"),
    ],
)
def test_secrets_of_addresses_are_replaced_and_nothing_else(text, shown):
    assert without_secrets(text) == shown
    assert without_secrets(shown) == shown


def test_secrets_of_an_address_are_replaced_in_a_message_of_a_library():
    message = without_secrets("no url: /x?token=abcd (user me, hunter2)", "https://me:hunter2@h/x?token=abcd")
    assert message == "no url: /x?*** (user me, ***)"


def test_what_is_no_store_at_an_address_is_an_error(tmp_path):
    with pytest.raises(DataError, match="memory://nowhere is no store, or not a whole one"):
        load_prepared("memory://nowhere")
    with pytest.raises(DataError, match="carrier-pigeon://store cannot be read"):
        load_prepared("carrier-pigeon://store")
    folder = tmp_path / "other"
    folder.mkdir()
    (tmp_path / "precious").write_text("x")
    write_checksums(folder, ["../precious"])
    with pytest.raises(DataError, match=r"names \.\./precious, which is no file of a store"):
        load_prepared(f"file://{folder}")
    (folder / "model.safetensors").write_text("x")
    write_checksums(folder, ["model.safetensors"])
    with pytest.raises(DataError, match=r"other is no store: checksums\.json names no Parquet files"):
        load_prepared(f"file://{folder}")
    (folder / "checksums.json").write_text("{}")
    with pytest.raises(DataError, match=r"other is damaged: checksums\.json"):
        load_prepared(f"file://{folder}")
