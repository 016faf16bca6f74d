"""
Whether everything works on a GPU: one command, under 8 minutes.

    python scripts/gpu_check.py [--device cuda] [--json] [--only NAME ...]

Without a GPU, it runs on the CPU what can run there, and prints "not run" for the rest. Exit status 0: nothing failed.
It checks against the outputs of the original code in `tests/fixtures/golden`, and otherwise against this machine's CPU.
Tolerances of float32 are the tests' own; TF32 is off. Those of bfloat16 and float16 are shares of the largest value.

Speed is another matter: `python scripts/benchmark.py model pretrain finetune --device cuda`.
"""

import argparse
import contextlib
import importlib.util
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import numpy as np
import torch
import transformers
from pydicom.data import get_testdata_file

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY / "tests"))

from finetune_cases import TINY_MODEL, make_store  # noqa: E402
from goldens import golden, scaled_difference  # noqa: E402
from tiny_pretraining import MODEL  # noqa: E402

from ecgfm_hf import (  # noqa: E402
    ECGFMConfig,
    ECGFMFeatureExtractor,
    ECGFMForMultiLabelClassification,
    ECGFMForPreTraining,
    load_pipeline,
    read_ecg,
    save_model_folder,
)
from ecgfm_hf.fairseq import (  # noqa: E402
    build_model,
    config_from_checkpoint,
    convert_state_dict,
    load_fairseq_checkpoint,
    revert_state_dict,
)
from ecgfm_hf.feature_extraction_ecgfm import STANDARD_LEADS  # noqa: E402
from ecgfm_hf.interpretation import attribute  # noqa: E402
from ecgfm_hf.training import Finetuner, FinetuneSettings, Pretrainer, PretrainSettings  # noqa: E402
from ecgfm_hf.training.objective import draw_mask  # noqa: E402

FLOAT32, GRADIENT, HALF = 1e-5, 1e-4, 0.03
NO_DROPOUT = dict.fromkeys(
    (
        *("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout"),
        *("feat_quantizer_dropout", "final_dropout"),
    ),
    0.0,
)
SIXTEEN_BITS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class NotRun(Exception):
    """What a check needs and this machine does not have."""


CHECKS: dict[str, Callable[[torch.device], list[tuple[str, float, float]]]] = {}


def check(function: Callable[[torch.device], list[tuple[str, float, float]]]) -> Callable:
    """Registers a check, which returns what was measured: name, figure, and the largest figure that passes."""
    CHECKS[function.__name__] = function
    return function


def original(name: str, device: torch.device, **settings: object) -> torch.nn.Module:
    """A checkpoint of the fixtures as a model on the device."""
    source = load_fairseq_checkpoint(REPOSITORY / f"tests/fixtures/checkpoints/{name}.pt")
    converted = config_from_checkpoint(source)
    for key, value in settings.items():
        setattr(converted.config, key, value)
    return build_model(source, converted).to(device)


def case_on(name: str, device: torch.device) -> dict[str, torch.Tensor]:
    """A golden case on the device."""
    return {key: value.to(device) for key, value in golden(name).items()}


def need_gpu(device: torch.device) -> None:
    """Ends a check that says nothing on a CPU."""
    if device.type == "cpu":
        raise NotRun("needs a GPU")


# ----------------------------------------------------------------------------------------------------------------------
# The model
# ----------------------------------------------------------------------------------------------------------------------


@check
@torch.no_grad()
def forward(device: torch.device) -> list[tuple[str, float, float]]:
    """Frames, embeddings and logits, padded or not, of both attention implementations and of 16 bits."""
    figures = []
    plain, padded = case_on("tiny/a_finetune_eval", device), case_on("tiny/b_finetune_padded", device)
    for attention in ("eager", "sdpa"):
        model = original("finetune", device)
        model.set_attn_implementation(attention)
        output = model(plain["source"], output_pooler_output=True, output_hidden_states=True)
        figures += [
            (f"{attention} logits", scaled_difference(output.logits, plain["out"]), FLOAT32),
            (f"{attention} embedding", scaled_difference(output.pooler_output, plain["pooled"]), FLOAT32),
            (f"{attention} frames", scaled_difference(output.hidden_states[-1], plain["encoder_out"]), FLOAT32),
        ]
        logits = model(padded["source"], attention_mask=padded["attention_mask"]).logits
        figures.append((f"{attention} padded logits", scaled_difference(logits, padded["out"]), FLOAT32))
    for name, dtype in SIXTEEN_BITS.items():
        model = original("finetune", device).to(dtype)
        figures.append((f"{name} logits", scaled_difference(model(plain["source"]).logits, plain["out"]), HALF))
    return figures


@check
@torch.no_grad()
def flash_attention(device: torch.device) -> list[tuple[str, float, float]]:
    """flash-attn's kernel, with and without padding."""
    need_gpu(device)
    if importlib.util.find_spec("flash_attn") is None:
        raise NotRun("flash-attn is not installed")
    model = original("finetune", device).to(torch.bfloat16)
    model.set_attn_implementation("flash_attention_2")
    figures = []
    for name in ("tiny/a_finetune_eval", "tiny/b_finetune_padded"):
        case = case_on(name, device)
        mask = case["attention_mask"]
        logits = model(case["source"], attention_mask=None if mask.all() else mask).logits
        figures.append((name, scaled_difference(logits, case["out"]), HALF))
    return figures


def gradient_difference(model: torch.nn.Module, case: dict[str, torch.Tensor]) -> float:
    """The length of the difference of all gradients from the original's, as a share of theirs."""
    recorded = {key.removeprefix("grad."): value for key, value in case.items() if key.startswith("grad.")}
    absent = revert_state_dict({name: torch.full_like(t, torch.nan) for name, t in model.state_dict().items()})
    expected = {k: v for k, v in convert_state_dict({**absent, **recorded}).items() if not v.isnan().any()}
    found = {name: weight.grad * case["sample_size"] for name, weight in model.named_parameters() if name in expected}
    difference = torch.stack([(found[name] - wanted).norm() for name, wanted in expected.items()]).norm()
    return float(difference / torch.stack([wanted.norm() for wanted in expected.values()]).norm())


@check
def pretraining_loss_and_gradients(device: torch.device) -> list[tuple[str, float, float]]:
    """The objective of the original with its masks, negatives and noise; float32 and bfloat16 autocast."""
    case = case_on("tiny/f_pretrain_train_grads", device)
    figures = []
    for name, tolerance, gradient in (("float32", 1e-4, GRADIENT), ("bfloat16", HALF, 0.2)):
        model = original("pretrain", device, **NO_DROPOUT).train()
        model.set_gumbel_temperature(model.gumbel_temperature_at(6))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=name == "bfloat16"):
            loss = model(
                case["source"],
                mask_time_indices=case["mask_indices"],
                sampled_negative_indices=case["neg_idxs"],
                patient_ids=case["patient_id"],
                segment_ids=case["segment"],
                gumbel_noise=case["gumbel_noise"].view(*case["neg_idxs"].shape[:2], 2, -1),
            ).loss
        loss.backward()
        wanted = float(case["loss"]) / float(case["sample_size"])
        figures.append((f"{name} loss", abs(loss.item() - wanted) / wanted, tolerance))
        figures.append((f"{name} gradients", gradient_difference(model, case), gradient))
    return figures


@check
def fine_tuning_loss_and_gradients(device: torch.device) -> list[tuple[str, float, float]]:
    """A step of the original; the same with gradient checkpointing; float16 with a gradient scaler."""
    case = case_on("tiny/k_finetune_train_step", device)
    settings = NO_DROPOUT | {"pos_weight": case["pos_weight"].tolist()}
    wanted, figures = float(case["loss"]) / float(case["sample_size"]), []
    for name in ("float32", "checkpointing", "float16"):
        if name == "float16" and device.type == "cpu":
            continue
        model = original("finetune", device, **settings).train()
        if name == "checkpointing":
            model.gradient_checkpointing_enable()
        scaler = torch.amp.GradScaler(device.type, enabled=name == "float16")
        with torch.autocast(device.type, dtype=torch.float16, enabled=name == "float16"):
            loss = model(case["source"], attention_mask=case["attention_mask"], labels=case["label"]).loss
        scaler.scale(loss).backward()
        scaler.unscale_(torch.optim.SGD(model.parameters(), 0.1))
        is_half = name == "float16"
        figures.append((f"{name} loss", abs(loss.item() - wanted) / wanted, HALF if is_half else 1e-4))
        figures.append((f"{name} gradients", gradient_difference(model, case), 0.1 if is_half else GRADIENT))
    return figures


@check
@torch.no_grad()
def compiled(device: torch.device) -> list[tuple[str, float, float]]:
    """`torch.compile` of the whole classifier."""
    need_gpu(device)
    case = case_on("tiny/a_finetune_eval", device)
    model = torch.compile(original("finetune", device))
    return [("logits", scaled_difference(model(case["source"]).logits, case["out"]), 10 * FLOAT32)]


@check
def waits(device: torch.device) -> list[tuple[str, float, float]]:
    """How often a pretraining step, and a classifier's, wait for the GPU before the loss is read."""
    if device.type != "cuda":
        raise NotRun("needs CUDA, which counts them")
    config = ECGFMConfig(**MODEL, num_labels=3)
    segments = torch.randn(4, 12, 2500, device=device)
    pretraining, classifier = ECGFMForPreTraining(config), ECGFMForMultiLabelClassification(config)
    inputs = {
        "mask_time_indices": draw_mask(config, 4, 2500, 0),
        "patient_ids": torch.tensor([0, 0, 1, 1]),
        "segment_ids": torch.tensor([0, 1, 0, 1]),
    }
    figures = []
    steps = (
        ("pretraining", pretraining, inputs),
        ("classifier", classifier, {"labels": torch.ones(4, 3, device=device)}),
    )
    for name, model, given in steps:
        model.to(device).train()
        model(segments, **given).loss.backward()
        torch.cuda.synchronize()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                model(segments, **given).loss.backward()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        figures.append((name, float(sum("synchroniz" in str(warning.message) for warning in caught)), 0.0))
    return figures


# ----------------------------------------------------------------------------------------------------------------------
# Runs
# ----------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def fresh_accelerate() -> Iterator[None]:
    """Lets a run choose its device: accelerate keeps its state for the process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def weight_difference(found: Path, expected: Path) -> float:
    """The largest difference of two folders' weights."""
    from safetensors.torch import load_file

    ours, theirs = (load_file(folder / "model.safetensors") for folder in (found, expected))
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


@check
def pretraining_resumes(device: torch.device) -> list[tuple[str, float, float]]:
    """A run that is stopped after an epoch and resumed has the weights of one that was not stopped, bit for bit."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        store = make_store(folder / "store", patients=12)

        def run(name: str, epochs: int) -> None:
            # Both end after the same number of updates, so that nothing depends on the run's length.
            settings = PretrainSettings(
                data=str(store),
                output_dir=str(folder / name),
                architecture="base",
                model=MODEL,
                per_device_train_batch_size=4,
                num_train_epochs=epochs,
                learning_rate=1e-3,
                use_cpu=device.type == "cpu",
                save_strategy="epoch",
            )
            with fresh_accelerate():
                Pretrainer(settings).run()

        run("whole", 2)
        run("parts", 1)
        run("parts", 2)
        return [("weights", weight_difference(folder / "parts", folder / "whole"), 0.0)]


@check
def fine_tuning_and_prediction(device: torch.device) -> list[tuple[str, float, float]]:
    """A classifier is trained, and the commands' scores on the device are those on the CPU."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        config = ECGFMConfig(**TINY_MODEL)
        save_model_folder(ECGFMForPreTraining(config), ECGFMFeatureExtractor(), folder / "encoder")
        settings = FinetuneSettings(
            data=str(make_store(folder / "store", patients=20)),
            init_from=str(folder / "encoder"),
            output_dir=str(folder / "classifier"),
            per_device_train_batch_size=8,
            num_train_epochs=2,
            learning_rate=1e-3,
            use_cpu=device.type == "cpu",
        )
        with fresh_accelerate():
            Finetuner(settings).run()
        recording = {
            "signal": np.random.default_rng(0).standard_normal((12, 1000)),
            "sampling_rate": 100,
            "lead_names": list(STANDARD_LEADS),
            "units": "mV",
        }
        there, here = (
            load_pipeline(folder / "classifier", device=where)(dict(recording))["scores"] for where in (device, "cpu")
        )
        return [("scores", max(abs(there[label] - here[label]) for label in here), 1e-5)]


@check
def explanations(device: torch.device) -> list[tuple[str, float, float]]:
    """Attention saliency and integrated gradients equal the CPU's."""
    config = ECGFMConfig(**TINY_MODEL, num_labels=3)
    torch.manual_seed(0)
    classifier = ECGFMForMultiLabelClassification(config).eval()
    record = read_ecg(get_testdata_file("waveform_ecg.dcm", download=False))
    figures = []
    for method in ("attention", "integrated_gradients"):
        if method == "integrated_gradients" and importlib.util.find_spec("captum") is None:
            continue
        there, here = (
            attribute(classifier.to(where), record, classifier.config.id2label[0], method).values
            for where in (device, "cpu")
        )
        figures.append((method, float(np.nanmax(np.abs(there - here)) / np.nanmax(np.abs(here))), 1e-3))
    return figures


def run_check(name: str, device: torch.device) -> dict:
    """The outcome of a check: `passed`, `FAILED` or `not run`."""
    start = time.perf_counter()
    try:
        figures = CHECKS[name](device)
        passed = all(figure <= most for _, figure, most in figures)
        outcome = {
            "outcome": "passed" if passed else "FAILED",
            "figures": {label: {"found": figure, "at_most": most} for label, figure, most in figures},
        }
    except NotRun as reason:
        outcome = {"outcome": "not run", "reason": str(reason)}
    except Exception as error:  # a check that breaks must not hide those after it
        outcome = {"outcome": "FAILED", "reason": f"{type(error).__name__}: {error}"}
    return {"name": name, **outcome, "seconds": round(time.perf_counter() - start, 1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--device", help="default: the first GPU, else cpu")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS), metavar="NAME")
    parser.add_argument("--json", action="store_true", help="an object a line")
    options = parser.parse_args()
    found = torch.accelerator.current_accelerator(check_available=True)
    device = torch.device(options.device) if options.device else found or torch.device("cpu")
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    if not options.json:
        kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        print(f"{kind}, torch {torch.__version__}\n")
    failed = False
    for name in options.only:
        result = run_check(name, device)
        failed |= result["outcome"] == "FAILED"
        if options.json:
            print(json.dumps(result), flush=True)
            continue
        reason = f": {result['reason']}" if "reason" in result else ""
        print(f"{result['outcome']:8} {name} ({result['seconds']} s){reason}", flush=True)
        for label, figure in result.get("figures", {}).items():
            mark = "" if figure["found"] <= figure["at_most"] else "   <-- too large"
            print(f"           {label}: {figure['found']:.2g} (at most {figure['at_most']:g}){mark}", flush=True)
    return int(failed)


if __name__ == "__main__":
    datasets.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    sys.exit(main())
