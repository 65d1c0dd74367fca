"""An adapter through the real vLLM engine, against Transformers and PEFT. Needs an environment with vLLM."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from pydantic import Field
from torch import nn

from bandsearch.adapters.export import CONFIG_FILE
from bandsearch.adapters.limits import max_lora_rank
from bandsearch.adapters.verify import require_sound
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

# vLLM's default limit on the log-probabilities of one place.
_LIKELIEST = 20
_NEW_TOKENS = 12
# What rounding to 16 bits may do to a log-probability; an engine further apart computes something else.
MOST_ROUNDING = 0.5


class ServingReport(Value):
    """Served against reference, in nats of log-probability, over the 20 likeliest tokens at every generated place.

    `difference` is the largest |served - reference| with the adapter and `base_difference` the same without it: how
    far the two engines are apart anyway. `effect` is the largest |adapter - base| within vLLM after the same text (a
    lower bound, as vLLM names the base's 20 likeliest tokens only), `expected_effect` the same within PEFT. The first
    `greedy_equal` of all `greedy_total` tokens are the reference's, summed over the prompts.
    """

    versions: dict[str, str]
    family: str
    rank: int
    prompts: int
    compared: int = Field(description="log-probabilities compared")
    difference: float
    base_difference: float
    effect: float
    expected_effect: float
    greedy_equal: int
    greedy_total: int
    tolerance: float
    seconds: float

    @property
    def allowed(self) -> float:
        """What passes for rounding: in 16 bits two engines are apart without any adapter, if less than this much."""
        return max(self.tolerance, min(3 * self.base_difference, MOST_ROUNDING))

    @property
    def problem(self) -> str | None:
        """What is wrong with the served adapter in one sentence, None if nothing is."""
        if not self.expected_effect > max(10 * self.tolerance, 3 * self.allowed):
            return (
                f"The adapter changes log-probabilities by only {self.expected_effect:.2g}, too little to tell "
                "whether it is served."
            )
        if not self.effect > self.allowed:
            return f"vLLM serves the base: with and without the adapter differ by only {self.effect:.2g}."
        if not self.difference <= self.allowed:
            return (
                f"The served adapter differs from the trained one by {self.difference:.2g} "
                f"(the base by {self.base_difference:.2g}, allowed {self.allowed:.2g})."
            )
        return None


def compare_with_vllm(
    adapter: Path,
    model: nn.Module,
    layout: Layout,
    source: Source,
    prompts: Sequence[Sequence[int]],
    *,
    dtype: str = "float32",
    tolerance: float = 1e-3,
) -> ServingReport:
    """Generate greedily from token-id `prompts` with and without the adapter, and score every token in both worlds.

    `model` is the base as loaded by `load_model` in the same `dtype`. The base and the adapter are served in separate
    batches: some CPU engines give base rows of a mixed batch the adapter. Raises DependencyError without vLLM, and
    AdapterError for an adapter that fails the structural pre-flight or that the engine refuses.
    """
    require_sound(adapter, layout)
    if layout.serving is Serving.NONE:
        raise AdapterError(f"vLLM serves no LoRA adapters on {layout.family} models.", "Use Transformers and PEFT.")
    began = time.monotonic()
    # The reference comes first: vLLM changes transformers' classes when it starts.
    peft_model = PeftModel.from_pretrained(model, str(adapter)).eval()
    trained = [_greedy(peft_model, tuple(prompt), _NEW_TOKENS) for prompt in prompts]
    peft_model.unload()
    base = [_scored(model, text) for text in trained]

    longest = max(len(prompt) for prompt in prompts) + _NEW_TOKENS
    rank = _rank_of(adapter)
    engine = _Vllm(source, rank, dtype, longest)
    served = [
        _agreeing(text, own)
        for text, own in zip(engine.generate(prompts, _NEW_TOKENS, adapter=adapter), trained, strict=True)
    ]
    served_base = [_joined(text, engine.generate(text.prefixes, 1, adapter=None)) for text in trained]
    return ServingReport(
        versions=_versions(),
        family=layout.family,
        rank=rank,
        prompts=len(prompts),
        compared=sum(len(place) for text in served for place in text.places),
        difference=_largest(served, trained),
        base_difference=_largest(served_base, base),
        effect=_largest(served, served_base),
        expected_effect=_largest([_likeliest(text) for text in trained], base),
        greedy_equal=sum(
            mine == own
            for text, reference in zip(served, trained, strict=True)
            for mine, own in zip(text.tokens, reference.tokens, strict=False)
        ),
        greedy_total=sum(len(text.tokens) for text in trained),
        tolerance=tolerance,
        seconds=time.monotonic() - began,
    )


class _Text(Value):
    """A prompt, the tokens after it, and log-probabilities of tokens in each of their places."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    places: tuple[dict[int, float], ...]

    @property
    def prefixes(self) -> list[tuple[int, ...]]:
        return [self.prompt + self.tokens[:length] for length in range(len(self.tokens))]


def _greedy(model: nn.Module, prompt: tuple[int, ...], new_tokens: int) -> _Text:
    """Greedy decoding without a cache and without padding, as plainly as it can be done."""
    text = _Text(prompt=prompt, tokens=(), places=())
    for _ in range(new_tokens):
        scores = _next_scores(model, text.prompt + text.tokens)
        token = max(scores, key=scores.__getitem__)
        text = _Text(prompt=prompt, tokens=(*text.tokens, token), places=(*text.places, scores))
    return text


def _scored(model: nn.Module, text: _Text) -> _Text:
    """The same text with the log-probabilities of another model."""
    return text.model_copy(update={"places": tuple(_next_scores(model, prefix) for prefix in text.prefixes)})


def _next_scores(model: nn.Module, ids: tuple[int, ...]) -> dict[int, float]:
    with torch.no_grad():
        logits = model(torch.tensor([ids], device=next(model.parameters()).device)).logits[0, -1]
    return dict(enumerate(logits.float().log_softmax(-1).tolist()))


def _joined(text: _Text, steps: Sequence[_Text]) -> _Text:
    """The same text with the places of answers of one token each."""
    return text.model_copy(update={"places": tuple(step.places[0] for step in steps)})


def _agreeing(text: _Text, own: _Text) -> _Text:
    """`text` up to the first place where it continues differently: further on, the places follow different words."""
    pairs = enumerate(zip(text.tokens, own.tokens, strict=True))
    end = next((index + 1 for index, (mine, theirs) in pairs if mine != theirs), len(text.tokens))
    return text.model_copy(update={"tokens": text.tokens[:end], "places": text.places[:end]})


def _likeliest(text: _Text) -> _Text:
    places = (sorted(place.items(), key=lambda item: -item[1])[:_LIKELIEST] for place in text.places)
    return text.model_copy(update={"places": tuple(map(dict, places))})


def _largest(left: Sequence[_Text], right: Sequence[_Text]) -> float:
    """The largest difference over the places of `left`."""
    return max(
        _distance(mine, other)
        for one, two in zip(left, right, strict=True)
        for mine, other in zip(one.places, two.places, strict=False)
    )


def _distance(left: Mapping[int, float], right: Mapping[int, float]) -> float:
    """The largest difference over the tokens of `left`. A token that `right` leaves out is at most its least likely."""
    floor = min(right.values())
    known = [abs(score - right[token]) for token, score in left.items() if token in right]
    bounds = [score - floor for token, score in left.items() if token not in right]
    return max(known + bounds)


class _Vllm:
    """vLLM's offline engine over one base model."""

    def __init__(self, source: Source, rank: int, dtype: str, length: int) -> None:
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
                enable_lora=True,
                max_loras=1,
                max_lora_rank=max_lora_rank(rank),
                max_model_len=length + 1,
                max_num_seqs=8,
                enforce_eager=True,
                enable_prefix_caching=False,
                seed=0,
            )
        # Its kernels assert that they can do with the type of numbers.
        except (ValueError, RuntimeError, NotImplementedError, AssertionError) as error:
            raise AdapterError(f"vLLM does not start with {source}: {_last_line(error)}") from error

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int, adapter: Path | None) -> list[_Text]:
        request = None
        if adapter is not None:
            request = self._request("bandsearch", 1, str(adapter.absolute()))
            try:
                self._llm.llm_engine.add_lora(request)
            except (ValueError, RuntimeError) as error:
                raise AdapterError(f"vLLM refuses the adapter {adapter}: {_last_line(error)}") from error
        # Log-probabilities of prompts are left alone: with an adapter, CPU engines fail on them.
        sampling = self._sampling(
            temperature=0.0, max_tokens=new_tokens, logprobs=_LIKELIEST, ignore_eos=True, detokenize=False
        )
        outputs = self._llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts], sampling, lora_request=request, use_tqdm=False
        )
        return [_answer(output) for output in outputs]


def _answer(output: Any) -> _Text:
    answer = output.outputs[0]
    places = tuple({token: entry.logprob for token, entry in place.items()} for place in answer.logprobs)
    return _Text(prompt=tuple(output.prompt_token_ids), tokens=tuple(answer.token_ids), places=places)


def _rank_of(adapter: Path) -> int:
    return int(json.loads((adapter / CONFIG_FILE).read_text(encoding="utf-8"))["r"])


def _versions() -> dict[str, str]:
    import vllm

    found = {name: metadata.version(name) for name in ("torch", "transformers", "peft")}
    return {"vllm": str(vllm.__version__), **found, "python": platform.python_version()}


def _last_line(error: BaseException) -> str:
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
