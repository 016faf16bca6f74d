"""Files made for tests in the formats that do not say everything themselves: fairseq-signals .mat, CODE-15, CSV."""

import numpy as np
import pytest
import scipy.io
from device_files import LEADS


def feats(count=300, seed=0):
    return np.random.default_rng(seed).normal(size=(12, count))


def write_mat(path, **variables):
    compress = variables.pop("do_compression", False)
    scipy.io.savemat(path, {"feats": feats(), "curr_sample_rate": 500, "idx": 7, **variables}, do_compression=compress)
    return path


def write_code_15(path, lengths=(4096, 2934, 1), dtype="f4", dummy=True, **settings):
    h5py = pytest.importorskip("h5py")
    tracings = np.zeros((len(lengths) + dummy, 4096, 12), dtype)
    for row, length in enumerate(lengths):
        start = (4096 - length) // 2
        tracings[row, start : start + length] = np.random.default_rng(row).normal(size=(length, 12))
        tracings[row, start + 1 : start + length // 2] = 0  # zeros in the middle stay
        tracings[row, start : start + 1, :11] = 0  # one lead is enough for a sample to be there
    with h5py.File(path, "w") as file:
        file["exam_id"] = np.array([100 + i for i in range(len(lengths))] + [0] * dummy)
        file.create_dataset("tracings", data=tracings, **settings)
    return path, tracings


def write_csv(path, x, names=LEADS, separator=",", form="{!r}"):
    lines = [separator.join(names), *(separator.join(form.format(float(v)) for v in row) for row in x.T)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return path
