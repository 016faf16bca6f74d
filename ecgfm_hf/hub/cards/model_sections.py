"""The sections of a card that follow from a model's config and feature extractor."""

import math
from collections.abc import Collection, Sequence
from typing import Any

from ...configuration_ecgfm import ECGFMConfig
from ...evaluation.formatting import number
from .markdown import ABSENT, bullets, facts_table, paragraphs, plain, table

PRETRAINING, CLASSIFIER, ENCODER = "ECGFMForPreTraining", "ECGFMForMultiLabelClassification", "ECGFMModel"
_KINDS = {
    PRETRAINING: "encoder with its pretraining modules, without labels",
    CLASSIFIER: "encoder with a linear head",
    ENCODER: "encoder alone, without labels",
}
_PROBLEMS = {
    "multi_label_classification": "multi-label: labels do not exclude one another",
    "single_label_classification": "single-label: classes exclude one another",
    "regression": "regression",
}
_POLICIES = {
    "error": "refused",
    "zero": "that lead is zero",
    "derive": "limb leads are derived from two others, and chest leads are refused",
    "interpolate": "interpolated",
    "pad": "padded",
}
OUT_OF_SCOPE = (
    "Diagnosis, treatment, triage, monitoring, or any other decision about a person.",
    "Recordings unlike those of the training data in patients, devices, electrodes or labelling, unless it was "
    "measured there first.",
    "Fewer leads than the model takes, unless it was trained and measured with them; photographs and scans of paper; "
    "rhythm strips of minutes and hours read as one.",
)


def description(config: ECGFMConfig, architecture: str, parameters: int, *more: tuple[str, str | None]) -> str:
    """What the model is, as a table; `more` are further terms."""
    norm = "pre" if config.do_stable_layer_norm else "post"
    rows = [
        ("Architecture", f"ECG-FM (wav2vec 2.0 for the electrocardiogram): {_KINDS.get(architecture, architecture)}"),
        (
            "Encoder",
            f"{len(config.conv_dim)} convolutions, {config.num_hidden_layers} {norm}-norm transformer "
            f"layer{'s' * (config.num_hidden_layers > 1)} of width {config.hidden_size:,} with "
            f"{config.num_attention_heads} heads",
        ),
        ("Parameters", f"{parameters:,}"),
    ]
    if architecture == CLASSIFIER:
        problem, outputs = config.problem_type or "multi_label_classification", len(config.label_names)
        rows.append(("Task", f"{_PROBLEMS[problem]}; {outputs} output{'s' * (outputs > 1)}"))
    return facts_table([*rows, *more])


def input_section(extractor: Any) -> str:
    """What the feature extractor makes of a recording."""
    leads = " ".join(extractor.lead_names)
    lines = [
        f"Leads, in this order: {leads}. The feature extractor orders them by *name*. Order by name, never by "
        "position: files differ (those of MIMIC-IV-ECG have aVR, aVF, aVL), and a wrong order gives wrong answers "
        "without an error.",
        f"{extractor.sampling_rate:g} Hz; other rates are resampled by linear interpolation.",
        "Each lead is standardised over the whole recording (mean 0, standard deviation 1), so that gain and offset do "
        "not matter.",
        f"The recording is cut into segments of {extractor.segment_seconds:g} s that do not overlap; a shorter rest at "
        "its end is dropped, with a warning.",
        f"A missing lead: {_POLICIES[extractor.missing_leads]}. With missing samples: "
        f"{_POLICIES[extractor.nan_samples]}. With a constant lead: {_POLICIES[extractor.constant_leads]}. Shorter "
        f"than a segment: {_POLICIES[extractor.short_recordings]}. These are settings of the feature extractor.",
    ]
    return bullets(lines)


def outputs_section(
    config: ECGFMConfig,
    architecture: str,
    sampling_rate: float = 500,
    hidden: Collection[str] = (),
    chosen_on: str | None = None,
    is_weighted: bool = False,
) -> str:
    """
    What comes out, and how to read it: of classifiers by label, of encoders the embedding. Of `hidden` labels nothing
    is told that follows from how many recordings have them; `chosen_on` says where thresholds come from, if known, and
    `is_weighted` that training weighted positives, where the config does not tell by how much.
    """
    if architecture != CLASSIFIER:
        frame = 1000 * math.prod(config.conv_stride) / sampling_rate
        return (
            f"A row of {config.hidden_size:,} numbers for each frame of {frame:g} ms, and their mean over a segment as "
            "its embedding (`pooler_output`). An embedding is no finding: it means something only to what is trained "
            "on it."
        )
    problem = config.problem_type or "multi_label_classification"
    if problem == "regression":
        text = (
            "A value for each of these quantities, in the unit that the training targets had; the mean over segments."
        )
        return paragraphs(text, bullets([plain(name) for name in config.label_names]), _notes(config))
    kind = "class" if problem == "single_label_classification" else "label"
    first = (
        f"A number from 0 to 1 for each {kind} and 5 s segment (`logits` before the "
        f"{'softmax' if kind == 'class' else 'sigmoid'}), and one for the recording: the mean, or the largest, of its "
        "segments, as the table says."
    )
    return paragraphs(
        first,
        _label_table(config, hidden),
        _meaning(config, is_weighted),
        _thresholds(config, chosen_on),
        _notes(config),
    )


def _label_table(config: ECGFMConfig, hidden: Collection[str]) -> str:
    aggregation, calibration = config.label_aggregation or {}, config.label_calibration or {}
    thresholds, weights = config.label_thresholds or {}, config.pos_weight or ()
    columns = ["label", "over segments", "threshold", "calibrated"]
    if weights and len(calibration) < len(config.label_names):
        columns.append("ln(pos_weight)")
    rows = []
    for place, name in enumerate(config.label_names):
        row = [
            plain(name),
            aggregation.get(name, "mean"),
            f"{thresholds[name]:.3g}" if name in thresholds else ABSENT,
            "yes" if name in calibration else "no",
        ]
        if len(columns) > len(row):
            row.append(ABSENT if name in calibration or name in hidden else number(math.log(weights[place])))
        rows.append(row)
    return table(columns, rows)


def _meaning(config: ECGFMConfig, is_weighted: bool) -> str:
    calibration = config.label_calibration or {}
    calibrated = (
        "**Calibrated numbers estimate probabilities** where labels are as common as in the recordings that they were "
        "calibrated on, and are off elsewhere. The pipeline calibrates the recording's number; a sigmoid "
        "of the logits is not calibrated."
    )
    which = "These numbers are" if not calibration else "The numbers of labels that are not calibrated are"
    scores = f"**{which} scores, not probabilities.** They rank recordings."
    if config.pos_weight is not None:
        scores += (
            " Training weighted the positives of a label by its `pos_weight` (in `config.json`), which shifts "
            "the logits by about ln(pos_weight): **0.5 is no sensible threshold.** `sigmoid(logit - ln(pos_weight))` "
            "undoes the shift; whether what comes out is a probability has to be measured on recordings of your own."
        )
    elif is_weighted:
        scores += " Training weighted positives, which shifts the logits: **0.5 is no sensible threshold.**"
    else:
        scores += " 0.5 is no threshold by itself."
    return paragraphs(
        calibrated if calibration else None, scores if len(calibration) < len(config.label_names) else None
    )


def _thresholds(config: ECGFMConfig, chosen_on: str | None) -> str:
    thresholds = config.label_thresholds or {}
    if config.problem_type == "single_label_classification":
        return ""
    if not thresholds:
        return (
            "**There are no thresholds:** the model decides nothing. Choose them on recordings of your own, for one "
            "purpose."
        )
    origin = "where they come from is not noted" if chosen_on is None else f"they were chosen on {chosen_on}"
    said = f"Thresholds are on the recording's (calibrated) number; {origin}."
    absent = [plain(name) for name in config.label_names if name not in thresholds]
    return said + (f" Labels without one are not decided: {', '.join(absent)}." if absent else "")


def _notes(config: ECGFMConfig) -> str:
    notes = config.label_notes or {}
    return bullets([f"**{plain(name)}**: {plain(notes[name])}" for name in config.label_names if name in notes])


def how_to_use(architecture: str, model: str, lead_names: Sequence[str]) -> str:
    """Code that loads the model, with this package and without."""
    leads = ", ".join(f'"{name}"' for name in lead_names)
    if architecture == CLASSIFIER:
        own = (
            f'import ecgfm_hf\n\npipe = ecgfm_hf.load_pipeline("{model}")\nanswer = pipe("recording.hea")  # or .dcm, '
            '.edf, ...\nanswer["scores"], answer["warnings"]'
        )
        other = (
            "from transformers import pipeline\n\n"
            f'pipe = pipeline("ecg-classification", model="{model}", trust_remote_code=True)\n'
            f"leads = [{leads}]\n# signal: an array ({len(lead_names)}, samples)\n"
            'answer = pipe({"signal": signal, "sampling_rate": 500, "lead_names": leads, "units": "mV"})'
        )
    else:
        body = (
            f'model = AutoModel.from_pretrained("{model}"{{trust}}).eval()\n'
            f'extractor = AutoFeatureExtractor.from_pretrained("{model}"{{trust}})\n'
        )
        own = (
            "import ecgfm_hf\nimport torch\nfrom transformers import AutoFeatureExtractor, AutoModel\n\n"
            + body.format(trust="")
            + 'record = ecgfm_hf.read_ecg("recording.hea")\n'
            "inputs = extractor(\n    record.signal, sampling_rate=record.sampling_rate, lead_names=record.lead_names, "
            'units="mV", return_tensors="pt"\n)\n'
            "with torch.no_grad():\n"
            '    embeddings = model(inputs["input_values"]).pooler_output  # a row a segment of 5 s'
        )
        other = "from transformers import AutoFeatureExtractor, AutoModel\n\n" + body.format(
            trust=", trust_remote_code=True"
        ).rstrip("\n")
    return paragraphs(
        "With the package `ecgfm-hf`, which also reads files:",
        f"```python\n{own}\n```",
        "Without it, from the code beside the weights (read it before you trust it):",
        f"```python\n{other}\n```",
    )
