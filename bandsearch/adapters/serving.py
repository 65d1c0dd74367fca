"""An adapter through the real vLLM engine, against Transformers and PEFT. Needs an environment with vLLM."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from pydantic import Field
from torch import Tensor, nn

from bandsearch.adapters.export import CONFIG_FILE
from bandsearch.adapters.limits import max_lora_rank
from bandsearch.adapters.verify import Severity, verify_adapter
from bandsearch.values.errors import AdapterError, DependencyError
from bandsearch.values.layout import Layout, Serving
from bandsearch.values.source import Source
from bandsearch.values.value import Value

_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


class ServingReport(Value):
    """Served against reference, in nats of log-probability, over every token of the prompts and the answers.

    `difference` is the largest |served - reference| with the adapter; `effect` the largest |adapter - base| within
    vLLM and `expected_effect` the same within PEFT. `greedy_equal` of `greedy_total` generated tokens are the
    reference's own choice after the same text.
    """

    versions: dict[str, str]
    family: str
    rank: int
    prompts: int
    tokens: int = Field(description="tokens whose log-probability was compared")
    difference: float
    base_difference: float = Field(description="the same without the adapter: how far the two engines differ anyway")
    effect: float
    expected_effect: float
    greedy_equal: int
    greedy_total: int
    tolerance: float
    seconds: float

    @property
    def problem(self) -> str | None:
        """What is wrong with the served adapter in one sentence, None if nothing is."""
        if not self.expected_effect > 10 * self.tolerance:
            return (
                f"The adapter changes log-probabilities by only {self.expected_effect:.2g}, too little to tell "
                "whether it is served."
            )
        if not self.effect > self.tolerance:
            return f"vLLM serves the base: with and without the adapter differ by only {self.effect:.2g}."
        if not self.difference <= self.tolerance:
            return (
                f"The served adapter differs from the trained one by {self.difference:.2g} "
                f"(the base by {self.base_difference:.2g}, allowed {self.tolerance:g})."
            )
        return None


def compare_with_vllm(
    adapter: Path,
    model: nn.Module,
    layout: Layout,
    source: Source,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int = 12,
    dtype: str = "float32",
    tolerance: float = 1e-3,
) -> ServingReport:
    """Generate greedily from token-id `prompts` with and without the adapter, and score every token in both worlds.

    `model` is the base as loaded by `load_model` in the same `dtype`. The base and the adapter are served in separate
    batches: some CPU engines give base rows of a mixed batch the adapter. Raises DependencyError without vLLM, and
    AdapterError for an adapter that fails the structural pre-flight or that the engine refuses.
    """
    errors = [finding for finding in verify_adapter(adapter, layout) if finding.severity is Severity.ERROR]
    if errors:
        raise AdapterError(errors[0].message, errors[0].remedy)
    if layout.serving is Serving.NONE:
        raise AdapterError(f"vLLM serves no LoRA adapters on {layout.family} models.", "Use Transformers and PEFT.")
    began = time.monotonic()
    rank = _rank_of(adapter)
    longest = max(len(prompt) for prompt in prompts) + new_tokens
    engine = _Vllm(source, layout, rank, dtype, longest)
    served_base = engine.generate(prompts, new_tokens, adapter=None)
    served = engine.generate(prompts, new_tokens, adapter=adapter)
    served_base_there = [engine.score(answer.ids) for answer in served]

    base_there = [_log_probabilities(model, answer.ids)[0] for answer in served]
    base_own = [_log_probabilities(model, answer.ids)[0] for answer in served_base]
    peft_model = PeftModel.from_pretrained(model, str(adapter)).eval()
    reference = [_log_probabilities(peft_model, answer.ids) for answer in served]
    peft_model.unload()

    equal = total = 0
    for prompt, answer, (_, choices) in zip(prompts, served, reference, strict=True):
        generated = torch.tensor(answer.ids[len(prompt) :])
        equal += int((generated == choices[len(prompt) - 1 :]).sum())
        total += len(generated)
    return ServingReport(
        versions=_versions(),
        family=layout.family,
        rank=rank,
        prompts=len(prompts),
        tokens=sum(len(answer.scores) for answer in served),
        difference=_largest((a.scores, scores) for a, (scores, _) in zip(served, reference, strict=True)),
        base_difference=_largest((a.scores, scores) for a, scores in zip(served_base, base_own, strict=True)),
        effect=_largest((a.scores, scores) for a, scores in zip(served, served_base_there, strict=True)),
        expected_effect=_largest((s, scores) for (s, _), scores in zip(reference, base_there, strict=True)),
        greedy_equal=equal,
        greedy_total=total,
        tolerance=tolerance,
        seconds=time.monotonic() - began,
    )


class _Answer(Value):
    """A prompt with its answer: token ids, and the log-probability of each but the first."""

    ids: tuple[int, ...]
    scores: tuple[float, ...]


class _Vllm:
    """vLLM's offline engine over one base model."""

    def __init__(self, source: Source, layout: Layout, rank: int, dtype: str, length: int) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        try:
            import vllm
            from vllm.lora.request import LoRARequest
        except ImportError as error:
            raise DependencyError(
                f"vLLM cannot be imported in this environment ({error}).",
                "`make test-vllm` makes an environment that has it.",
            ) from error
        self._sampling = vllm.SamplingParams
        self._request = LoRARequest
        try:
            self._llm = vllm.LLM(
                model=source.location,
                revision=source.revision,
                trust_remote_code=source.trust_remote_code,
                dtype=dtype,
                # Families without a LoRA implementation of their own run on vLLM's Transformers backend.
                model_impl="transformers" if layout.serving is Serving.TRANSFORMERS else "auto",
                enable_lora=True,
                max_loras=1,
                max_lora_rank=max_lora_rank(rank),
                max_model_len=length + 1,
                max_num_seqs=8,
                enforce_eager=True,
                enable_prefix_caching=False,
                seed=0,
            )
        except (ValueError, RuntimeError, NotImplementedError) as error:
            raise AdapterError(f"vLLM does not start with {source}: {_last_line(error)}") from error

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int, adapter: Path | None) -> list[_Answer]:
        request = None
        if adapter is not None:
            request = self._request("bandsearch", 1, str(adapter.absolute()))
            try:
                self._llm.llm_engine.add_lora(request)
            except (ValueError, RuntimeError) as error:
                raise AdapterError(f"vLLM refuses the adapter {adapter}: {_last_line(error)}") from error
        sampling = self._sampling(
            temperature=0.0, max_tokens=new_tokens, logprobs=1, prompt_logprobs=1, ignore_eos=True, detokenize=False
        )
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts], sampling, lora_request=request, use_tqdm=False
        )
        return [_answer(output) for output in outputs]

    def score(self, ids: Sequence[int]) -> tuple[float, ...]:
        """The base's log-probability of every token of a text but the first."""
        (answer,) = self.generate([ids], 1, adapter=None)
        return answer.scores[: len(ids) - 1]


def _answer(output: Any) -> _Answer:
    prompt, answer = list(output.prompt_token_ids), output.outputs[0]
    scores = [place[token].logprob for token, place in zip(prompt[1:], output.prompt_logprobs[1:], strict=True)]
    scores += [place[token].logprob for token, place in zip(answer.token_ids, answer.logprobs, strict=True)]
    return _Answer(ids=(*prompt, *answer.token_ids), scores=tuple(scores))


def _log_probabilities(model: nn.Module, ids: Sequence[int]) -> tuple[tuple[float, ...], Tensor]:
    """Of every token but the first, and the most likely token in its place; one text at a time, so unpadded."""
    device = next(model.parameters()).device
    with torch.no_grad():
        logits = model(torch.tensor([list(ids)], device=device)).logits[0, :-1].float().cpu()
    scores = logits.log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return tuple(scores.tolist()), logits.argmax(-1)


def _largest(pairs: Iterable[tuple[Sequence[float], Sequence[float]]]) -> float:
    return max(abs(a - b) for left, right in pairs for a, b in zip(left, right, strict=True))


def _rank_of(adapter: Path) -> int:
    return int(json.loads((adapter / CONFIG_FILE).read_text(encoding="utf-8"))["r"])


def _versions() -> dict[str, str]:
    import vllm

    found = {name: metadata.version(name) for name in ("torch", "transformers", "peft")}
    return {"vllm": str(vllm.__version__), **found, "python": platform.python_version()}


def _last_line(error: BaseException) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
