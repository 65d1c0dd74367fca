"""The naive arm, as most people do it: `python -m benchmarks.naive JOB ANSWER` is a process that trains one trial.

Hugging Face Trainer and PEFT, dynamic padding, no gradient checkpointing, the whole network in every step. The rows
of every step are the prescribed ones, which spares it the padding that a shuffled order costs.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from bandsearch.adapters.lora import attach, tensors_of
from bandsearch.models.families import layout_of
from benchmarks.job import Answer, Example, Job, Trained, answer, peak_memory, read_examples


class _Recorder(Trainer):
    """Keeps every pass's share of the loss as it was; the log rounds it."""

    def training_step(self, *args: Any, **keywords: Any) -> torch.Tensor:
        loss = super().training_step(*args, **keywords)
        self.pass_losses.append(loss.detach())
        return loss


class _AtRungs(TrainerCallback):
    def __init__(self, rungs: tuple[int, ...]) -> None:
        self._rungs = rungs
        self.losses: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_evaluate = state.global_step in self._rungs

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        self.losses.append(metrics["eval_loss"])


def _columns(example: Example) -> dict[str, list[int]]:
    labels = [token if wanted else -100 for token, wanted in zip(*example, strict=True)]
    return {"input_ids": example.input_ids, "attention_mask": [1] * len(labels), "labels": labels}


def train(job: Job) -> Answer:
    torch.set_num_threads(job.threads)
    warnings.filterwarnings("ignore")
    # As in our arm: where it is preferred, it makes a plan for every new shape, which no plain arm is to pay for.
    torch.backends.cuda.enable_cudnn_sdp(False)
    (candidate,) = job.candidates
    fidelity = job.fidelity
    examples = read_examples(job.examples)
    model = AutoModelForCausalLM.from_pretrained(
        job.model, dtype=getattr(torch, job.dtype), device_map=None if job.device == "cpu" else {"": job.device}
    )
    started = time.perf_counter()
    peft = attach(model, candidate, layout_of(model), fidelity.seed)
    if job.dtype == "float64":
        # PEFT's factors are fp32 whatever the base is.
        peft.double()
    factors = [parameter for parameter in peft.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(factors, lr=candidate.learning_rate, weight_decay=0.0, fused=True)
    callback = _AtRungs(job.rungs)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _Recorder(
            model=peft,
            args=TrainingArguments(
                output_dir=folder,
                max_steps=fidelity.steps,
                per_device_train_batch_size=job.pass_rows,
                gradient_accumulation_steps=fidelity.batch_size // job.pass_rows,
                per_device_eval_batch_size=max(8, job.pass_rows),
                max_grad_norm=1.0,
                train_sampling_strategy="sequential",
                gradient_checkpointing=False,
                bf16=job.device != "cpu",
                use_cpu=job.device == "cpu",
                prediction_loss_only=True,
                save_strategy="no",
                logging_strategy="no",
                report_to=[],
                disable_tqdm=True,
            ),
            data_collator=DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(job.model), padding=True),
            train_dataset=[_columns(examples.train[index]) for rows in job.order for index in rows],
            eval_dataset=[_columns(example) for example in examples.validation[: fidelity.validation_examples]],
            optimizers=(
                optimizer,
                torch.optim.lr_scheduler.LambdaLR(optimizer, fidelity.learning_rate_factor),
            ),
            callbacks=[callback],
        )
        trainer.pass_losses = []
        trainer.train()
    change = max(float(tensor.abs().max()) for name, tensor in tensors_of(peft).items() if "lora_B" in name)
    trained = Trained(
        candidate=candidate,
        seconds=time.perf_counter() - started,
        train_losses=tuple(torch.stack(trainer.pass_losses).view(fidelity.steps, -1).sum(1).tolist()),
        validation_losses=tuple(callback.losses),
        change=change,
    )
    return Answer(trials=(trained,), peak_memory_bytes=peak_memory(job.device))


if __name__ == "__main__":
    answer(train)
