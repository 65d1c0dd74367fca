"""How the documents of lm-eval's tasks are asked: by the chat template that wrote the data, or as tasks have them."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from bandsearch.data.dataset import Dataset
from bandsearch.data.day import on_the_day
from bandsearch.data.template import CHAT_TEMPLATE
from bandsearch.values.errors import UsageError
from bandsearch.values.spec import RunSpec
from bandsearch.values.value import Value


class Asking(Value):
    """`template`, in jinja, writes every document as a conversation; None: it is asked as the task has it. `stops` are
    the tokens that end an answer in it. `shots` solved documents stand in front; None: as many as the task says."""

    template: str | None = None
    stops: tuple[int, ...] = ()
    shots: int | None = None
    described: str = "without a chat template"

    def __str__(self) -> str:
        shots = "" if self.shots is None else f", {self.shots}-shot"
        return f"{self.described}{shots}"


def asking(spec: RunSpec, tokenizer: PreTrainedTokenizerBase, dataset: Dataset) -> Asking:
    """As `spec.task_chat` says; by default through the chat template that wrote the data set, if one did.

    Raises UsageError where a chat template is wanted and there is none.
    """
    given = spec.data.template
    by_chat = dataset.template == CHAT_TEMPLATE or (given is not None and dataset.chat_template == given.text)
    if not (by_chat if spec.task_chat is None else spec.task_chat):
        return Asking(shots=spec.num_fewshot)
    # Of prompts that are written in the model's turns already, the model's own template wrote them.
    template = dataset.chat_template or (tokenizer.get_chat_template() if tokenizer.chat_template else "")
    if not template:
        raise UsageError(
            f"Tasks cannot be asked through a chat template: neither the model nor {dataset.name} has one.",
            "Give one with --template, or leave out --task-chat.",
        )
    described = f"through {dataset.template if dataset.chat_template else CHAT_TEMPLATE}"
    return Asking(template=on_the_day(template), stops=dataset.stop_ids, shots=spec.num_fewshot, described=described)
