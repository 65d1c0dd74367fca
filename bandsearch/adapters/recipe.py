"""The recipe of a final training, for trainers other than this one."""

from __future__ import annotations

from collections.abc import Mapping

from bandsearch.values.candidate import Candidate, Init, Method
from bandsearch.values.fidelity import CLIP, Fidelity
from bandsearch.values.layout import Layout


def recipe(candidate: Candidate, layout: Layout, fidelity: Fidelity) -> str:
    """What trains `candidate` with PEFT and transformers' Trainer, or what is built on them, as Python.

    Modules are named by their paths: by their names alone PEFT would also adapt those of a vision tower, and of a
    pattern it forgets the layers where a model has experts.
    """
    names = dict.fromkeys(linear.name for linear in layout.targets(candidate.targets))
    adapter = {
        "task_type": '"CAUSAL_LM"',
        "r": candidate.rank,
        "lora_alpha": f"{candidate.alpha:g}",
        "target_modules": (
            f'[\n        f"{layout.layers_path}.{{layer}}.{{name}}"\n'
            f"        for layer in {list(candidate.layers)}\n"
            f"        for name in {list(names)}\n    ]"
        ),
    }
    if candidate.method is Method.RSLORA:
        adapter["use_rslora"] = True
    if candidate.init is not Init.KAIMING:
        adapter["init_lora_weights"] = f'"{candidate.init}"'
    training = {
        "learning_rate": f"{candidate.learning_rate:.6g}",
        "max_steps": fidelity.steps,
        "per_device_train_batch_size": fidelity.batch_size,
        "lr_scheduler_type": f'"{fidelity.schedule}"',
        "warmup_steps": fidelity.warmup_steps,
        "max_grad_norm": CLIP,
        "seed": fidelity.seed,
    }
    return (
        "from peft import LoraConfig\nfrom transformers import TrainingArguments\n\n"
        f"adapter = {_call('LoraConfig', adapter)}\ntraining = {_call('TrainingArguments', training)}"
    )


def _call(name: str, arguments: Mapping[str, object]) -> str:
    lines = "".join(f"    {key}={value},\n" for key, value in arguments.items())
    return f"{name}(\n{lines})"
