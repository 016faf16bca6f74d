"""
How often does a study call an arm better where labels are chance?

    python scripts/study_permuted.py [--studies 100] [--json FILE]

Each study is a real one with the arms `features` and `linear`: synthetic recordings, a tiny encoder of random weights,
and labels that are permuted between patients, so that no arm can be better. At most 5% of studies may call an arm
better. Prints the number, and with `--json` writes it.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from ecgfm_hf import ECGFMConfig, ECGFMFeatureExtractor, ECGFMForPreTraining, save_model_folder
from ecgfm_hf.data import load_arrays
from ecgfm_hf.study import FoldScores, StudyTable, compare, fit_and_score, make_folds
from ecgfm_hf.study.arms import LogisticArm
from ecgfm_hf.study.data import StudyInputs, open_data
from ecgfm_hf.synthetic import SyntheticCohort

_TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": [16] * 4,
}
_TINY |= {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "codevector_dim": 16}
_TINY |= {"proj_codevector_dim": 16, "num_codevectors_per_group": 8}


def main() -> int:
    """Runs the studies and prints what was found."""
    parser = argparse.ArgumentParser(description="How often does a study call an arm better where labels are chance?")
    parser.add_argument("--studies", metavar="N", type=int, default=100)
    parser.add_argument("--patients", metavar="N", type=int, default=110)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), options.studies, options.patients)
    print(f"{found['wrong']} of {found['studies']} studies call an arm better, though labels are chance")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def run(folder: Path, studies: int, patients: int, resamples: int = 400) -> dict[str, int]:
    """
    Compute features and embeddings of one cohort once, and run studies of permuted labels on them.

    Returns:
        The number of `studies`, and of those that call an arm better (`wrong`).
    """
    torch.manual_seed(0)
    model = ECGFMForPreTraining(ECGFMConfig(**_TINY))
    save_model_folder(model, ECGFMFeatureExtractor(), folder / "encoder")
    recordings, rows = [], []
    for recording in SyntheticCohort(patients, seed=5):
        about = {"recording_id": recording.recording_id, "patient_id": recording.patient_id, "units": "mV"}
        about |= {"sampling_rate": recording.sampling_rate, "lead_names": recording.lead_names}
        recordings.append({"signal": recording.signal.astype(np.float32), **about})
        rows.append(int(recording.truth.rate is not None and recording.truth.rate > 75))
    load_arrays(recordings, folder / "store", {"fast": rows}, progress=False)
    extractor = ECGFMFeatureExtractor()
    data = open_data(folder / "store", folder, extractor)
    inputs = StudyInputs(data, folder / "encoder", extractor, folder / "inputs", device=torch.device("cpu"))
    for name in ("features", "embeddings"):
        inputs.compute(name)
    wrong = 0
    for seed in range(studies):
        table = permuted(data.table, seed)
        found = []
        for fold in make_folds(table, folds=3, seed=seed):
            for arm, name in (("features", "features"), ("linear", "embeddings")):
                scores = fit_and_score(LogisticArm(), table, inputs.load(name), fold, seed)
                found.append(FoldScores(arm, 1.0, fold, scores))
        differences = compare(table, found, resamples=resamples, seed=seed).differences
        wrong += any(difference.better is not None for difference in differences)
    return {"studies": studies, "wrong": wrong}


def permuted(table: StudyTable, seed: int) -> StudyTable:
    """Give each patient the labels of another: the first recording of one to all of the other's."""
    numbers = table.groups.numbers
    first = np.array([np.flatnonzero(numbers == patient)[0] for patient in range(table.groups.count)])
    shuffled = np.random.default_rng(seed).permutation(first)
    return StudyTable(table.ids, table.patients, table.targets[shuffled][numbers], table.label_names)


if __name__ == "__main__":
    sys.exit(main())
