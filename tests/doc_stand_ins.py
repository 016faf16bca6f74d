"""Small things of a reader's own: what the code blocks of the docs find in their folder."""

import shutil
from pathlib import Path

import torch

FIXTURES = Path(__file__).parent / "fixtures" / "checkpoints"


class StandIns:
    """
    Makes stand-ins once, and copies them into the folder of each page.

    Args:
        store: Folder to keep them in.
    """

    def __init__(self, store: Path):
        self._store = store

    def put(self, name: str, folder: Path) -> None:
        """Copies `name` into a folder; makes it first where it is not there."""
        kept = self._store / name
        if not kept.exists():
            _MAKERS[name](kept, self)
        if kept.is_dir():
            shutil.copytree(kept, folder / name, dirs_exist_ok=True)
        else:
            for part in kept.parent.glob(kept.stem + ".*"):
                shutil.copy(part, folder / part.name)

    def path(self, name: str) -> Path:
        """Where a stand-in is kept; made first where it is not there."""
        if not (self._store / name).exists():
            _MAKERS[name](self._store / name, self)
        return self._store / name


def _pretrained(path: Path, _) -> None:
    """`mimic_iv_ecg_physionet_pretrained.pt`: the fixtures' file of the original trainer, two layers of width 32."""
    shutil.copy(FIXTURES / "pretrain.pt", path)


def _finetuned(labels: int):
    def make(path: Path, _) -> None:
        """A fine-tuned file of the original trainer, its head made anew for as many labels as the published one has."""
        file = torch.load(FIXTURES / "finetune.pt", weights_only=False)
        width = file["model"]["proj.weight"].shape[1]
        generator = torch.Generator().manual_seed(0)
        file["model"]["proj.weight"] = 0.3 * torch.randn(labels, width, generator=generator)
        file["model"]["proj.bias"] = torch.zeros(labels)
        file["cfg"]["model"]["num_labels"] = labels
        file["cfg"]["criterion"]["pos_weight"] = [3.0] * labels
        torch.save(file, path)

    return make


def _converted(checkpoint: str, labels: str | None):
    def make(path: Path, stand_ins: StandIns) -> None:
        from conversions import convert_checkpoint

        convert_checkpoint(stand_ins.path(checkpoint), path, labels=labels)

    return make


def _cohort(patients: int, seed: int):
    def make(path: Path, _) -> None:
        from ecgfm_hf.cli.main import main

        assert main(["synthesize", str(path), "--patients", str(patients), "--seed", str(seed)]) == 0

    return make


def _recording(path: Path, stand_ins: StandIns) -> None:
    """`recording.hea`: one of the cohort's, under that name."""
    (header, *_) = sorted(stand_ins.path("cohort").rglob("*.hea"))
    for part in header.parent.glob(header.stem + ".*"):
        shutil.copy(part, path.with_suffix(part.suffix))
    path.write_text(header.read_text().replace(header.stem, path.stem))


def _dicom(path: Path, _) -> None:
    from pydicom.data import get_testdata_file

    shutil.copy(get_testdata_file("waveform_ecg.dcm", download=False), path)


def _folder(path: Path, stand_ins: StandIns) -> None:
    """`recordings`: the cohort's files without its tables."""
    shutil.copytree(stand_ins.path("cohort"), path, ignore=shutil.ignore_patterns("*.csv", "*.json", "*.parquet"))


def _labels(path: Path, stand_ins: StandIns) -> None:
    shutil.copy(stand_ins.path("cohort") / "labels.csv", path)


def _reports(path: Path, _) -> None:
    path.write_text(
        "recording_id,text\n"
        "a,Sinus rhythm. Possible LBBB with PVCs\n"
        "b,Atrial fibrillation with rapid ventricular response\n"
        'c,"Sinus bradycardia, first degree AV block"\n'
        "d,Normal ECG\n"
    )


def _machine_measurements(path: Path, _) -> None:
    path.write_text(
        "subject_id,study_id,report_0,report_1,report_2\n"
        "1,10,Sinus rhythm,Left bundle branch block,\n"
        "2,20,Atrial fibrillation,PVC(s),Abnormal ECG\n"
    )


_MAKERS = {
    "cohort": _cohort(24, 1),
    "ecg-fm": _converted("mimic_iv_ecg_physionet_pretrained.pt", None),
    "ecg-fm-mimic17": _converted("mimic_iv_ecg_finetuned.pt", "mimic17"),
    "labels.csv": _labels,
    "machine_measurements.csv": _machine_measurements,
    "mimic_iv_ecg_finetuned.pt": _finetuned(17),
    "mimic_iv_ecg_physionet_pretrained.pt": _pretrained,
    "other.dcm": _dicom,
    "physionet_finetuned.pt": _finetuned(26),
    "recording.hea": _recording,
    "recordings": _folder,
    "reports.csv": _reports,
}

__all__ = ["StandIns"]
