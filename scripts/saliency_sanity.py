"""
Whether saliency points at what a score rests on, where that is known: premature ventricular beats of the synthetic
cohort.

    python scripts/saliency_sanity.py [--patients 1800] [--epochs 8] [--recordings 60] [--model model.pt]

Trains a tiny classifier on synthetic segments (minutes on one core), then takes synthetic recordings of
other patients that have such beats, and

1. deletes the most salient tenth of each (a straight line bridges it, in all leads), and as a control the same pieces
   shifted by a random time, and the tenth of the highest attention: by how much does the score fall?
2. asks how much of the attribution lies within 0.3 s of the premature beats, which the cohort knows;
3. compares maps with those of the same model with random weights: a map that stayed the same would not be about the
   model;
4. checks that attributions add up to the difference between logits.

Intervals are 95 %, by a bootstrap over recordings. No figure here is about patients.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from ecgfm_hf import ECGFMConfig, ECGFMFeatureExtractor, ECGFMForMultiLabelClassification
from ecgfm_hf.interpretation import Attribution, attribute, delete_times, most_salient_times, shifted_times
from ecgfm_hf.pipeline_ecgfm import recording_scores
from ecgfm_hf.records import ECGRecord
from ecgfm_hf.synthetic import LABEL_NAMES, CohortSettings, SyntheticCohort, SyntheticRecording

LABEL = "premature ventricular contractions"
SHIFTS = 20  # random controls a recording
_FIRST_TEST_PATIENT = 1_000_000


def as_record(recording: SyntheticRecording, signal: np.ndarray | None = None) -> ECGRecord:
    """A synthetic recording, or a changed signal (leads, samples) in mV of it, as a file's reader would give it."""
    leads = len(recording.lead_names)
    return ECGRecord(
        recording_id=recording.recording_id,
        path=recording.recording_id,
        samples=recording.signal if signal is None else signal,
        gain=np.ones(leads),
        baseline=np.zeros(leads),
        units=("mV",) * leads,
        sampling_rate=recording.sampling_rate,
        lead_names=recording.lead_names,
    )


def train(
    patients: int,
    epochs: int,
    *,
    labels: Sequence[str] = LABEL_NAMES,
    width: int = 64,
    settings: CohortSettings | None = None,
    seed: int = 0,
    log=lambda text: None,
) -> ECGFMForMultiLabelClassification:
    """A tiny classifier, trained on the segments of a synthetic cohort; in evaluation mode."""
    extractor, inputs, targets = ECGFMFeatureExtractor(), [], []
    for recording in SyntheticCohort(patients, seed=1, settings=settings):
        inputs.append(_segments(extractor, as_record(recording)))
        targets += [[known[label] for label in labels] for known in recording.segment_labels]
    inputs, targets = torch.cat(inputs), torch.tensor(targets, dtype=torch.float32)
    torch.manual_seed(seed)
    config = ECGFMConfig(
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=2 * width,
        conv_dim=[width // 2] * 4,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        mask_time_prob=0.0,
        feature_grad_multiplier=1.0,
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        label_aggregation={LABEL: "max"},
    )
    model = ECGFMForMultiLabelClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    steps = epochs * -(-len(inputs) // 32)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.2)
    for epoch in range(epochs):
        losses = []
        for batch in torch.randperm(len(inputs)).split(32):
            loss = model(inputs[batch], labels=targets[batch]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        log(f"epoch {epoch + 1} of {epochs}: mean loss {np.mean(losses):.4f}")
    return model.eval()


def unseen_recordings(count: int, settings: CohortSettings | None = None) -> Iterator[SyntheticRecording]:
    """Recordings with premature ventricular beats, of patients that nothing was trained on."""
    cohort = SyntheticCohort(100_000, seed=1, first_patient=_FIRST_TEST_PATIENT, settings=settings)
    for recording in cohort:
        if recording.labels[LABEL]:
            yield recording
            count -= 1
        if count == 0:
            return


def answer(model: ECGFMForMultiLabelClassification, record: ECGRecord) -> tuple[float, float]:
    """The recording's score of `LABEL`, and the largest logit of its segments."""
    with torch.no_grad():
        logits = model(_segments(ECGFMFeatureExtractor(), record)).logits.numpy()
    number = model.config.label_names.index(LABEL)
    return recording_scores(logits, model.config)[LABEL], float(logits[:, number].max())


def drops(
    model: ECGFMForMultiLabelClassification, recording: SyntheticRecording, seed: int
) -> tuple[dict[str, np.ndarray], Attribution]:
    """By what is deleted, how much score and logit fall: (2,) each."""
    record, generator = as_record(recording), np.random.default_rng(seed)
    attribution = attribute(model, record, LABEL, segments="all")
    attention = attribute(model, record, method="attention")
    before = np.array(answer(model, record))

    def fall(times: np.ndarray) -> np.ndarray:
        return before - np.array(answer(model, as_record(recording, delete_times(recording.signal, times))))

    salient = most_salient_times(attribution)
    within = np.isfinite(attribution.values).any(axis=0)
    controls = [fall(shifted_times(salient, within, generator)) for _ in range(SHIFTS)]
    return {
        "integrated gradients": fall(salient),
        "attention": fall(most_salient_times(attention)),
        "random": np.mean(controls, axis=0),
    }, attribution


def share_near_beats(attribution: Attribution, recording: SyntheticRecording) -> tuple[float, float]:
    """Of the positive attributions, the share within 0.3 s of a premature ventricular beat; of the time, the same."""
    truth = recording.truth
    beats = [t for t, kind in zip(truth.beat_times, truth.beat_kinds, strict=True) if kind == "ventricular premature"]
    seconds = np.arange(attribution.values.shape[1]) / attribution.sampling_rate
    near = (np.abs(seconds[:, None] - np.array(beats)) < 0.3).any(axis=1)
    positive = np.clip(np.nan_to_num(attribution.smoothed()), 0, None).sum(axis=0)
    return float(positive[near].sum() / positive.sum()), float(near.mean())


def rank_correlations(one: Attribution, other: Attribution) -> tuple[float, float]:
    """Spearman's, between smoothed maps of one recording: of the values, and of their sizes without the sign."""
    from scipy.stats import spearmanr

    first, second = one.smoothed().ravel(), other.smoothed().ravel()
    known = np.isfinite(first) & np.isfinite(second)
    first, second = first[known], second[known]
    return float(spearmanr(first, second).statistic), float(spearmanr(np.abs(first), np.abs(second)).statistic)


def randomised(model: ECGFMForMultiLabelClassification, seed: int = 0) -> ECGFMForMultiLabelClassification:
    """The same architecture with its initial, random weights."""
    torch.manual_seed(seed)
    return ECGFMForMultiLabelClassification(model.config).eval()


def _segments(extractor: ECGFMFeatureExtractor, record: ECGRecord) -> torch.Tensor:
    prepared = extractor.prepare_recording(
        record.signal, record.sampling_rate, record.lead_names, "mV", name=record.path, inspect=False
    )
    return torch.from_numpy(prepared.segments)


def _interval(values: Sequence[float]) -> str:
    values, generator = np.asarray(values), np.random.default_rng(0)
    means = values[generator.integers(0, len(values), (5_000, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.strip(), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=1800, help="to train on (default: 1800)")
    parser.add_argument("--epochs", type=int, default=8, help="default: 8")
    parser.add_argument("--recordings", type=int, default=60, help="to test on (default: 60)")
    parser.add_argument("--model", type=Path, help="folder of the trained model: read if it is there, else written")
    options = parser.parse_args()

    start = time.perf_counter()
    if options.model is not None and options.model.is_dir():
        model = ECGFMForMultiLabelClassification.from_pretrained(options.model).eval()
    else:
        model = train(options.patients, options.epochs, log=lambda text: print(text, flush=True))
        if options.model is not None:
            model.save_pretrained(options.model)
    print(f"model ready after {time.perf_counter() - start:.0f} s")

    falls: dict[str, list[np.ndarray]] = {}
    near, time_near, correlations, errors = [], [], [], []
    stranger = randomised(model)
    for number, recording in enumerate(unseen_recordings(options.recordings)):
        fallen, attribution = drops(model, recording, seed=number)
        for name, values in fallen.items():
            falls.setdefault(name, []).append(values)
        shares = share_near_beats(attribution, recording)
        near.append(shares[0])
        time_near.append(shares[1])
        other = attribute(stranger, as_record(recording), LABEL, segments="all")
        correlations.append(rank_correlations(attribution, other))
        errors += list(np.abs(attribution.deltas) / np.abs(attribution.logits - attribution.baseline_logits))

    print(f"{len(near)} recordings with premature ventricular beats; means and 95 % intervals")
    for index, what in enumerate(("score", "logit")):
        print(f"fall of the {what} when a tenth of the recording is deleted")
        for name, values in falls.items():
            print(f"  {name:<38}{_interval([value[index] for value in values])}")
        for name in ("integrated gradients", "attention"):
            more = [one[index] - other[index] for one, other in zip(falls[name], falls["random"], strict=True)]
            print(f"  {name + ' less random':<38}{_interval(more)}")
    print(f"share of positive attribution near such beats   {_interval(near)}, of time {np.mean(time_near):.3f}")
    signed, sizes = zip(*correlations, strict=True)
    print(f"rank correlation with random weights            {_interval(signed)}, of sizes {_interval(sizes)}")
    print(f"error of the sum, share of logits' difference   median {np.median(errors):.4f}, worst {max(errors):.4f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
