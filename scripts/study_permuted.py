"""
How often does a study call an arm better where labels are chance?

    python scripts/study_permuted.py [--studies 100] [--folds 5] [--json FILE]

Each study is a real one: synthetic recordings, measured features, embeddings, logistic regressions whose penalty is
chosen inside the training fold, the study's folds and its comparison. Its arms are `features`, `linear`, and `other`, a
linear probe of a second encoder. The encoders are tiny and random, and labels are permuted between patients, so no arm
can be better. At most 5% of studies may call one better: of all three arms together, and of the first two. Prints both
numbers. With `--json`, every study is written as soon as it is done, and the same command resumes.
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
from ecgfm_hf.utils.files import write_json

ARMS = ("features", "linear", "other")
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
    parser.add_argument("--folds", metavar="N", type=int, default=5, help="of each study (default: 5, as the study's)")
    parser.add_argument("--patients", metavar="N", type=int, default=110)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write every study here, and resume from it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(Path(folder), options.studies, options.patients, options.folds, file=options.json)
    for arms, name in ((2, "features and linear"), (3, "three arms together")):
        wrong = sum(study[f"wrong_{arms}"] for study in found)
        print(f"{name}: {wrong} of {len(found)} studies call an arm better, though labels are chance")
    return 0


def run(
    folder: Path, studies: int, patients: int, folds: int = 5, resamples: int = 1000, file: Path | None = None
) -> list[dict[str, int]]:
    """
    Compute features and embeddings of one cohort once, and run studies of permuted labels on them.

    Returns:
        Of each study its `seed`, and whether it calls an arm better: of two arms (`wrong_2`), of three (`wrong_3`).
    """
    found = json.loads(file.read_text(encoding="utf-8")) if file is not None and file.is_file() else []
    table, inputs = _cohort(folder, patients)
    for seed in range(len(found), studies):
        own, scores = permuted(table, seed), []
        for fold in make_folds(own, folds=folds, seed=seed):
            for arm in ARMS:
                scores.append(FoldScores(arm, 1.0, fold, fit_and_score(LogisticArm(), own, inputs[arm], fold, seed)))
        study = {"seed": seed}
        for arms in (2, 3):
            some = [one for one in scores if one.arm in ARMS[:arms]]
            differences = compare(own, some, resamples=resamples, seed=seed).differences
            study[f"wrong_{arms}"] = int(any(difference.better is not None for difference in differences))
        found.append(study)
        if file is not None:
            write_json(file, found)
    return found


def _cohort(folder: Path, patients: int) -> tuple[StudyTable, dict[str, np.ndarray]]:
    """Return a table with one label, and what each arm learns from."""
    recordings, rows = [], []
    for recording in SyntheticCohort(patients, seed=5):
        about = {"recording_id": recording.recording_id, "patient_id": recording.patient_id, "units": "mV"}
        about |= {"sampling_rate": recording.sampling_rate, "lead_names": recording.lead_names}
        recordings.append({"signal": recording.signal.astype(np.float32), **about})
        rows.append(int(recording.truth.rate is not None and recording.truth.rate > 75))
    load_arrays(recordings, folder / "store", {"fast": rows}, progress=False)
    extractor = ECGFMFeatureExtractor()
    data = open_data(folder / "store", folder, extractor)
    inputs: dict[str, np.ndarray] = {}
    for seed, (arm, name) in enumerate((("linear", "embeddings"), ("other", "embeddings"), ("features", "features"))):
        torch.manual_seed(seed)
        save_model_folder(ECGFMForPreTraining(ECGFMConfig(**_TINY)), extractor, folder / arm)
        of_arm = StudyInputs(data, folder / arm, extractor, folder / f"{arm}-inputs", device=torch.device("cpu"))
        of_arm.compute(name)
        inputs[arm] = np.asarray(of_arm.load(name))
    return data.table, inputs


def permuted(table: StudyTable, seed: int) -> StudyTable:
    """Give each patient the labels of another: the first recording of one to all of the other's."""
    numbers = table.groups.numbers
    first = np.array([np.flatnonzero(numbers == patient)[0] for patient in range(table.groups.count)])
    shuffled = np.random.default_rng(seed).permutation(first)
    return StudyTable(table.ids, table.patients, table.targets[shuffled][numbers], table.label_names)


if __name__ == "__main__":
    sys.exit(main())
