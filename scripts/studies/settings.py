"""What the study of label efficiency does: every number of it, in two sizes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

PRETRAINED, SCRATCH = "pretrained", "scratch"
PROBE, RANDOM_PROBE, FEATURES = "probe of pretrained", "probe of random", "hand-made features"
FINETUNED_ARMS, FITTED_ARMS = (PRETRAINED, SCRATCH), (PROBE, RANDOM_PROBE, FEATURES)
ARMS = (*FINETUNED_ARMS, *FITTED_ARMS)
# Only for `lora_study.py`, in comparison with `PRETRAINED`.
LORA = "LoRA"
# As docs/own-data.md has them, within 2% of the tiny model: most of that is for the convolutions. Scales
# are `lora_alpha` / sqrt(rank): 1, 2 and 4, so that few ranks learn as fast as many.
ADAPTERS = {
    "r": 1,
    "lora_alpha": 4,
    "use_rslora": True,
    "target_modules": ["conv", "projection", "q_proj", "v_proj"],
    # In groups, which cannot be merged.
    "exclude_modules": ["pos_conv_embed.conv"],
    "rank_pattern": {"conv": 16, "projection": 4},
}
# What the table shows the difference of, first minus second.
COMPARISONS = ((PRETRAINED, SCRATCH), (PROBE, RANDOM_PROBE), (PRETRAINED, PROBE), (PRETRAINED, FEATURES))


@dataclass(frozen=True)
class Study:
    """
    Args:
        patients, cohort_seed (`int`): Of the synthetic cohort; 1.9 recordings a patient.
        fractions (`dict[str, float]`): Of the patients. `pretrain`: recordings without labels; `labelled`: draws to
            train on; `tune`: another draw, and `valid`: judges, to choose learning rates and numbers of steps;
            `test`: judges at the end, used by nothing else.
        pretrain (list of `str`): Changes to the recipe `pretrain_tiny`.
        draws (`dict[int, int]`): How many draws of each number of labelled recordings.
        learning_rates (tuple of `float`), first_steps (`int`): Tried first, with as many steps.
        steps (`dict[int, tuple]`): Tried next at the best of them, by number of labelled recordings.
        tuned_as (`dict[int, int]`): Numbers of labels that take over another's learning rate.
        batch_size (`int`): Segments a step, in all arms.
        model (`dict[str, float]`): Of both arms that are trained: all of their weights, also the convolutions;
            dropouts where they cost no time.
        least_patients (`int`): With each label, and without it, in every draw.
        resamples (`int`): Of the test patients.
        seed (`int`): Of draws, weights, orders and resamples.
    """

    patients: int = 5450
    cohort_seed: int = 20
    fractions: dict[str, float] = field(
        default_factory=lambda: {"pretrain": 0.36, "labelled": 0.32, "tune": 0.12, "valid": 0.06, "test": 0.14}
    )
    pretrain: tuple[str, ...] = ("num_train_epochs=20", "model.gumbel_temperature_decay=0.998987", "bf16=true")
    draws: dict[int, int] = field(default_factory=lambda: {50: 5, 100: 5, 300: 5, 1000: 1})
    learning_rates: tuple[float, ...] = (2e-4, 6e-4, 2e-3)
    first_steps: int = 600
    steps: dict[int, tuple[int, ...]] = field(
        default_factory=lambda: {50: (1200,), 100: (1200,), 300: (1200,), 1000: (2400,)}
    )
    tuned_as: dict[int, int] = field(default_factory=lambda: {1000: 300})
    batch_size: int = 16
    model: dict[str, float] = field(
        default_factory=lambda: {
            "feature_grad_multiplier": 1.0,
            "hidden_dropout": 0.0,
            "attention_dropout": 0.0,
            "activation_dropout": 0.0,
            "feat_proj_dropout": 0.1,
            "final_dropout": 0.1,
        }
    )
    least_patients: int = 2
    resamples: int = 1000
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Names and values, as JSON keeps them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Study":
        """Of what [`to_dict`] gave, also after JSON, which knows no numbers as keys and no tuples."""
        keyed = {name: {int(key): values[name][key] for key in values[name]} for name in ("draws", "steps", "tuned_as")}
        listed = {name: tuple(values[name]) for name in ("pretrain", "learning_rates")}
        keyed["steps"] = {labels: tuple(steps) for labels, steps in keyed["steps"].items()}
        return cls(**{**values, **keyed, **listed})


def small_study() -> Study:
    """The same in a minute, to see that it runs: its figures mean nothing."""
    return Study(
        patients=220,
        pretrain=("per_device_train_batch_size=16", "max_steps=8", "bf16=true"),
        fractions={"pretrain": 0.3, "labelled": 0.35, "tune": 0.17, "valid": 0.08, "test": 0.10},
        draws={40: 2, 60: 2},
        learning_rates=(3e-4, 1e-3),
        first_steps=4,
        steps={40: (8,), 60: (8,)},
        tuned_as={60: 40},
        least_patients=1,
        resamples=100,
    )


@dataclass(frozen=True)
class Cell:
    """
    One training run and its judgement.

    Args:
        arm (`str`): Of `FINETUNED_ARMS`, or `LORA`.
        labels (`int`): Recordings to train on.
        split (`str`): Where these are from, `tune` or `labelled`.
        draw (`int`): Which of that split's draws.
        judge (`str`): `valid` or `test`.
        learning_rate (`float`), steps (`int`)
        adapters (`str`): Of `LORA`: what [`adapters_text`] makes of peft's settings.
    """

    arm: str
    labels: int
    split: str
    draw: int
    judge: str
    learning_rate: float
    steps: int
    adapters: str = ""

    @property
    def name(self) -> str:
        """A file's name, different for each cell."""
        name = f"{self.judge}-{self.arm}-{self.labels}-{self.draw}-{self.learning_rate:g}-{self.steps}"
        return f"{name}-{hashlib.sha256(self.adapters.encode()).hexdigest()[:8]}" if self.adapters else name


def adapters_text(lora: Mapping[str, Any]) -> str:
    """The settings of adapters as a cell holds them: one text, however they are ordered."""
    return json.dumps(lora, sort_keys=True)


__all__ = [
    "ADAPTERS",
    "ARMS",
    "COMPARISONS",
    "FINETUNED_ARMS",
    "FITTED_ARMS",
    "LORA",
    "Cell",
    "Study",
    "adapters_text",
    "small_study",
]
