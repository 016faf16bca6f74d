"""Files that a run writes and reads again: any change to them is noticed."""

import json
import os

import pytest

from ecgfm_hf.utils.integrity import read_with_digest, write_with_digest

CONTENT = {"settings": {"root": None, "rate": 1e-05, "labels": ["é", "b"]}, "begun": True, "name": os.fsdecode(b"\xff")}


def test_every_flipped_bit_of_a_runs_account_is_noticed_or_has_no_effect(tmp_path):
    path = tmp_path / "account.json"
    write_with_digest(path, CONTENT)
    assert read_with_digest(path) == CONTENT
    whole, unnoticed = path.read_bytes(), []
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert read_with_digest(path) == CONTENT
            unnoticed.append(bytes(damaged))
        except ValueError:
            pass
    # Such as 1e-05 as 1E-05, and no more.
    assert len(unnoticed) < 10
    assert all(json.loads(text) == json.loads(whole) for text in unnoticed)


def test_an_account_without_a_digest_is_not_believed(tmp_path):
    path = tmp_path / "account.json"
    for text in (json.dumps(CONTENT), "[]", "null", ""):
        path.write_text(text)
        with pytest.raises(ValueError, match=r".+"):
            read_with_digest(path)
