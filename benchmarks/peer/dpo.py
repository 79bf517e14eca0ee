"""DPO with TRL's DPOTrainer; one JSON line on stdout (benchmarks/README.md)."""

import argparse
import math
import time
from typing import Any

from measure import answer, answering
from training import (
    Data,
    add_positions,
    begin,
    head_sees,
    load_model,
    load_tokenizer,
    parser,
    record,
    timed,
    train,
    trainer_arguments,
)

# The first step starts at the reference, so its loss is ln 2. Log-probabilities computed ahead come from other
# micro-batches, whose padding changes bf16 rounding; summed over a response and times beta it is the second digit.
LN2_TOLERANCE = {"step": 1e-3, "ahead": 0.05}


def train_policy(args: argparse.Namespace) -> dict[str, Any]:
    """The record of the run."""
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    head_sees(args.positions)

    class Trainer(timed(DPOTrainer)):
        reference_seconds = 0.0

        def _precompute_ref_logps(self, *rest: Any, **named: Any) -> Any:
            started = time.perf_counter()
            dataset = super()._precompute_ref_logps(*rest, **named)
            self.reference_seconds = time.perf_counter() - started
            return dataset

    tokenizer = load_tokenizer(args)
    data = Data(args, tokenizer)
    trainer = Trainer(
        model=load_model(args, AutoModelForCausalLM),
        args=DPOConfig(
            **trainer_arguments(args, data),
            beta=args.beta,
            precompute_ref_log_probs=args.reference == "ahead",
            precompute_ref_batch_size=args.reference_batch or None,
        ),
        train_dataset=data.dataset,
        processing_class=tokenizer,
    )
    measured = train(trainer, args)
    if abs(measured["losses"][0] - math.log(2)) > LN2_TOLERANCE[args.reference]:
        raise RuntimeError(f"the first DPO loss is {measured['losses'][0]}, not ln 2: policy and reference differ")
    share = measured["clocked_pairs"] / measured["pairs_seen"]
    seconds = measured["seconds"] + trainer.reference_seconds * share
    measured["reference_seconds"] = round(trainer.reference_seconds, 3)
    measured["pairs_per_second_with_reference"] = round(measured["clocked_pairs"] / seconds, 4)
    return record("dpo", trainer, args, data, measured)


if __name__ == "__main__":
    options = parser(__doc__, lr=1e-6)
    options.add_argument("--reference", choices=("step", "ahead"), default="step", help="ahead: precomputed")
    options.add_argument("--reference-batch", type=int, default=0, help="pairs a batch when ahead; 0: --batch")
    options.add_argument("--beta", type=float, default=0.1)
    add_positions(options)
    arguments = options.parse_args()
    begin(arguments)
    with answering() as out:
        answer(out, train_policy(arguments))
