import math
from pathlib import Path

import pytest

from assay.records import Finding
from assay.report.run import RunDirectory, Sample, write_json

FINDINGS = [
    Finding(
        probe="accuracy on held-out pairs", value=0.714, n=412, interval=(0.668, 0.756), limit=">= 0.6", passed=True,
        message="The reward orders 71% of unseen pairs as the annotators did.",
    ),
    Finding(
        probe="length, within prompt", value=0.43, n=412, interval=(0.36, 0.49), limit="<= 0.3", passed=False,
        message="Longer responses score higher: a policy could gain reward by writing more.",
        examples=(
            {"prompt": "Name a city.", "text": "Paris.", "reward": -0.8123},
            {"prompt": "Name a city.", "text": "Paris, of course, as so often.", "reward": 1.9},
        ),
    ),
    Finding(
        probe="calibration error", value=0.041, n=412, interval=(0.02, 0.07),
        message="Expected calibration error, equal-mass bins.",
    ),
    Finding(probe="repeated phrase", value=-0.31, n=96, interval=(-0.42, -0.2), limit="<= 0", passed=True),
]  # fmt: skip

AUDIT = {
    "verdict": {"passed": False, "reasons": ["length, within prompt: 0.43 is not <= 0.3"]},
    "findings": [finding.to_json() for finding in FINDINGS],
    "counts": {"pairs": 412, "dropped": {"identical": 3, "too_long": 1}},
    "best_of_n": {
        "n": [1, 2, 4, 8, 16, 32, 64],
        "reward": [0.0, 0.5, 0.9, 1.25, 1.55, 1.8, 2.02],
        "reward_low": [-0.1, 0.4, 0.8, 1.12, 1.4, 1.63, 1.83],
        "reward_high": [0.1, 0.6, 1.0, 1.38, 1.7, 1.97, 2.21],
        "oracle": [0.0, 0.2, 0.34, 0.41, 0.42, 0.38, 0.31],
        "oracle_low": [-0.06, 0.13, 0.26, 0.32, 0.31, 0.24, 0.14],
        "oracle_high": [0.06, 0.27, 0.42, 0.5, 0.53, 0.52, 0.48],
    },
    "calibration": {
        "confidence": [0.52, 0.58, 0.66, 0.78, 0.92],
        "accuracy": [0.51, 0.6, 0.63, 0.75, 0.86],
        "low": [0.42, 0.5, 0.54, 0.66, 0.78],
        "high": [0.6, 0.69, 0.71, 0.82, 0.92],
        "count": [83, 82, 83, 82, 82],
    },
}

EVALUATION = {
    "findings": [
        Finding(probe="oracle gain", value=0.26, n=200, interval=(0.17, 0.35), message="Mean paired gain.").to_json(),
        Finding(probe="win rate", value=0.61, n=200, interval=(0.54, 0.67)).to_json(),
        Finding(
            probe="perplexity on plain text", value=1.19, n=64, interval=(1.1, 1.3), limit="<= 1.1", passed=False,
            message="The policy predicts ordinary text worse than its base.",
        ).to_json(),
    ],
    "settings": {"temperature": 1.0, "max_new_tokens": 64, "prompts": 200},
}  # fmt: skip


def fill(run: RunDirectory, num_steps: int = 120, text: str = "The weather was fine.") -> RunDirectory:
    """Every artifact that the report reads; `text` stands wherever a model or user could have written."""
    run.write_config(
        {
            "seed": 17,
            "stage": "policy",
            "model": {"name": "smollm2-135m-instruct", "dtype": "bfloat16", "lora": {"rank": 16, "alpha": 32.0}},
            "algorithm": {"name": "grpo", "clip_low": 0.2, "clip_high": 0.28, "kl_coef": 0.02},
            "data": {"prompts": "prompts.jsonl", "num_prompts": 200, "note": text},
            "optimizer": {"name": "adamw", "learning_rate": 1e-6, "betas": [0.9, 0.99], "weight_decay": 0.0},
        }
    )
    for step in range(num_steps):
        done = step / num_steps
        row = {
            "reward": 2.2 * (1 - math.exp(-3 * done)) + 0.15 * math.sin(step * 1.7),
            "kl": 9 * done**1.5 + 0.2 * math.sin(step) - 0.05,
            "kl_k3": 8 * done**1.5 + 0.1,
            "entropy": 2.1 - 1.2 * done + 0.05 * math.cos(step),
            "length_mean": 24 + 60 * done + 3 * math.sin(step * 0.9),
            "share_cut": 0.05 + 0.3 * done,
            "grad_norm": 1.3 + 0.5 * math.cos(step * 2.1),
        }
        if step % 10 == 0 or step == num_steps - 1:
            row["oracle"] = 0.9 * done * (1.1 - done) * 2 - 0.002 * step
        run.append_metrics(step, row)
    audit = {**AUDIT, "verdict": {"passed": False, "reasons": [text, *AUDIT["verdict"]["reasons"]]}}
    audit["findings"] = [
        *AUDIT["findings"],
        Finding(probe=text, value=math.nan, n=3, message=text, examples=({"text": text, text: "x"},)).to_json(),
    ]
    audit["counts"] = {**AUDIT["counts"], text: 1}
    write_json(run.audit, audit)
    write_json(run.evaluation, {**EVALUATION, "settings": {**EVALUATION["settings"], "note": text}, "warnings": [text]})
    run.write_samples(
        Sample(
            prompt=f"Tell me about day {place}. {text}", base=f"Day {place}: {text}",
            policy=f"What a lovely day {place} was! {text}\n\nAnd so on, and so on.",
            base_reward=-0.4, policy_reward=1.73, base_oracle=0.12, policy_oracle=None if place else 0.66,
        )
        for place in range(3)
    )  # fmt: skip
    run.record("reward", seed=17, data={"file": "pairs.jsonl", "sha256": "ab" * 32, "dropped": {"identical": 3}})
    run.record("policy", seed=17, note=text, started="2025-01-02T03:04:05Z")
    run.reward.mkdir()
    (run.reward / "config.json").write_text("{}\n")
    run.policy.mkdir()
    (run.policy / "model.safetensors").write_bytes(bytes(1_530_000))
    return run


@pytest.fixture
def filled():
    return fill


@pytest.fixture
def full_run(tmp_path: Path) -> RunDirectory:
    return fill(RunDirectory(tmp_path / "run"))
