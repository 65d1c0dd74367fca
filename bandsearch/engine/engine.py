"""The engine: one warm base model and the one loop that trains adapters on it."""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bandsearch.adapters.lora import attach, detach, load_tensors, tensors_of
from bandsearch.data.dataset import Dataset, Encoded, prepare
from bandsearch.engine.batches import Batch, collate, examples_at
from bandsearch.engine.session import DivergedError, OutOfMemoryError, Session
from bandsearch.engine.setup import EngineSetup
from bandsearch.models.families import layout_of
from bandsearch.models.loading import load_model, load_tokenizer
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate
from bandsearch.values.fidelity import Fidelity
from bandsearch.values.layout import Layout
from bandsearch.values.plan import Costs
from bandsearch.values.trial import Point

CLIP = 1.0
# Examples read between two looks at the clock, and rows of one forward pass among them.
EVALUATION_ROWS, EVALUATION_PART = 64, 32
LONGEST_ANSWER = 256


class ExampleLoss(NamedTuple):
    """`loss`: mean nats per supervised token of one example."""

    loss: float
    supervised_tokens: int


class Engine:
    """Trains one candidate at a time on a frozen base; any number can be admitted and advanced in turn.

    Deterministic on the CPU: a candidate's losses depend on the candidate, its fidelity and the data, not on what
    the engine did before.
    """

    def __init__(self, model: nn.Module, layout: Layout, tokenizer: Any, dataset: Dataset, threads: int = 1) -> None:
        torch.set_num_threads(threads)
        self.model, self.layout, self.tokenizer, self.dataset = model, layout, tokenizer, dataset
        self.threads = threads
        self.device = next(model.parameters()).device
        self._sessions: dict[str, Session] = {}
        self._names = map(str, itertools.count())
        self._live: Session | None = None
        self._peft: PeftModel | None = None
        self._optimizer: torch.optim.AdamW | None = None
        self._rows: int | None = None
        self._keep: Tensor | None = None
        self._hook = model.get_output_embeddings().register_forward_pre_hook(self._only_kept)

    @classmethod
    def load(cls, setup: EngineSetup) -> Engine:
        torch.set_num_threads(setup.threads)
        tokenizer = load_tokenizer(setup.source)
        model = load_model(setup.source, setup.dtype, setup.device)
        dataset = prepare(setup.data, tokenizer, setup.seed)
        return cls(model, layout_of(model), tokenizer, dataset, setup.threads)

    def close(self) -> None:
        """Give the model back bare, so that another engine can be built on it."""
        if self._live is not None:
            self._take_off(keep=True)
        self._hook.remove()

    def admit(self, candidate: Candidate, fidelity: Fidelity) -> str:
        name = next(self._names)
        self._sessions[name] = Session(name, candidate, fidelity)
        return name

    def evict(self, session: str) -> None:
        state = self._sessions.pop(session, None)
        if state is not None and state is self._live:
            self._take_off(keep=False)

    def advance(self, session: str, steps: int, deadline: float | None = None) -> Point:
        """Train up to `steps` steps in all, or until `deadline` seconds from now, then validate."""
        state = self._sessions[session]
        started = time.monotonic()
        model = self._put_on(state)
        optimizer = self._optimizer
        assert optimizer is not None
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        fidelity, data = state.fidelity, self.dataset.train
        while state.step < min(steps, fidelity.steps):
            if deadline is not None and time.monotonic() - started > deadline and state.step > 0:
                break
            rate = state.candidate.learning_rate * fidelity.learning_rate_factor(state.step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            picked = examples_at(state.step, len(data), fidelity.batch_size, fidelity.seed)
            loss = self._backward(model, [data[index] for index in picked])
            norm = float(nn.utils.clip_grad_norm_(parameters, CLIP))
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self.evict(session)
                raise DivergedError(f"Training of {state.candidate} diverged at step {state.step}.", "Lower the rate.")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            state.train_losses.append(loss)
            state.step += 1
        validation = self.losses("validation", session, fidelity.validation_examples)
        total = sum(loss * tokens for loss, tokens in validation) / sum(tokens for _, tokens in validation)
        state.seconds += time.monotonic() - started
        if not math.isfinite(total):
            self.evict(session)
            raise DivergedError(f"Validation loss of {state.candidate} is not finite.", "Lower the rate.")
        return Point(steps=state.step, loss=total, seconds=state.seconds)

    def adapter(self, session: str) -> dict[str, Tensor]:
        state = self._sessions[session]
        if state is self._live:
            assert self._peft is not None
            return tensors_of(self._peft)
        if state.tensors is None:
            self._put_on(state)
            return self.adapter(session)
        return dict(state.tensors)

    def train_losses(self, session: str) -> list[float]:
        return list(self._sessions[session].train_losses)

    @contextmanager
    def attached(self, session: str | None) -> Iterator[Any]:
        """The model with the session's adapter on it, or the bare base."""
        if session is None:
            if self._live is not None:
                self._take_off(keep=True)
            yield self.model
        else:
            yield self._put_on(self._sessions[session])

    def losses(
        self, split: str, session: str | None, limit: int | None = None, deadline: float | None = None
    ) -> list[ExampleLoss]:
        """The loss of the first `limit` examples of a split, in its order.

        Fewer, but at least one batch of 64, where `deadline` (seconds from now) comes first.
        """
        started = time.monotonic()
        examples: Sequence[Encoded] = getattr(self.dataset, split)[:limit]
        losses: list[ExampleLoss] = []
        with self.attached(session) as model, torch.no_grad():
            for begin in range(0, len(examples), EVALUATION_ROWS):
                if begin and deadline is not None and time.monotonic() - started > deadline:
                    break
                losses += self._example_losses(model, examples[begin : begin + EVALUATION_ROWS])
        return losses

    def _example_losses(self, model: Any, examples: Sequence[Encoded]) -> list[ExampleLoss]:
        order = sorted(range(len(examples)), key=lambda index: len(examples[index].input_ids))
        found: dict[int, ExampleLoss] = {}
        for begin in range(0, len(order), EVALUATION_PART):
            rows = order[begin : begin + EVALUATION_PART]
            batch = collate([examples[index] for index in rows], self.tokenizer.pad_token_id)
            supervised = batch.labels >= 0
            token_losses = self._token_losses(model, batch).double().cpu()
            owner = supervised.nonzero()[:, 0]
            sums = torch.zeros(len(rows), dtype=torch.float64).index_add_(0, owner, token_losses)
            for index, total, count in zip(rows, sums.tolist(), supervised.sum(1).tolist(), strict=True):
                found[index] = ExampleLoss(total / count, count)
        return [found[index] for index in range(len(examples))]

    def generate(
        self,
        split: str,
        session: str | None,
        limit: int,
        max_new_tokens: int | None = None,
        deadline: float | None = None,
    ) -> list[str]:
        """Greedy continuations of the first `limit` prompts; fewer where `deadline` (seconds from now) came first.

        Empty for plain text, which has no prompts.

        `max_new_tokens` is by default what the longest reference answer among them takes, and a quarter more.
        """
        started = time.monotonic()
        examples: Sequence[Encoded] = getattr(self.dataset, split)[:limit]
        if not all(example.prompt_ids for example in examples):
            return []
        if max_new_tokens is None:
            answers = [len(self.tokenizer(example.answer)["input_ids"]) for example in examples]
            max_new_tokens = min(LONGEST_ANSWER, max(answers, default=0) * 5 // 4 + 4)
        texts: list[str] = []
        with self.attached(session) as model, torch.no_grad():
            for begin in range(0, len(examples), EVALUATION_ROWS):
                if deadline is not None and time.monotonic() - started > deadline:
                    break
                prompts = [example.prompt_ids for example in examples[begin : begin + EVALUATION_ROWS]]
                width = max(map(len, prompts))
                ids = torch.full((len(prompts), width), self.tokenizer.pad_token_id)
                mask = torch.zeros_like(ids)
                for row, prompt in enumerate(prompts):
                    ids[row, width - len(prompt) :] = torch.tensor(prompt)
                    mask[row, width - len(prompt) :] = 1
                output = model.generate(
                    input_ids=ids.to(self.device),
                    attention_mask=mask.to(self.device),
                    max_new_tokens=max_new_tokens,
                    do_sample=False,
                    pad_token_id=self.tokenizer.pad_token_id,
                    eos_token_id=list(self.dataset.stop_ids) or None,
                )
                texts += self.tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
        return texts

    def checkpoint(self, session: str, path: Path) -> None:
        """Write everything needed to go on bit for bit to one safetensors file, which replaces the one before whole."""
        state = self._sessions[session]
        self._put_on(state)
        tensors = {f"adapter/{name}": tensor for name, tensor in self.adapter(session).items()}
        tensors |= {f"moments/{name}": tensor.contiguous() for name, tensor in self._moments().items()}
        facts = {
            "candidate": state.candidate.model_dump(mode="json"),
            "fidelity": state.fidelity.model_dump(mode="json"),
            "step": state.step,
            "seconds": state.seconds,
            "train_losses": state.train_losses,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            # What safetensors writes itself tells of a full disk without its errno.
            Path(fresh).write_bytes(save(tensors, metadata={"session": json.dumps(facts)}))
            os.replace(fresh, path)
        except BaseException:
            Path(fresh).unlink(missing_ok=True)
            raise

    def restore(self, path: Path) -> str:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["session"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        name = self.admit(Candidate.model_validate(facts["candidate"]), Fidelity.model_validate(facts["fidelity"]))
        state = self._sessions[name]
        state.step, state.seconds, state.train_losses = facts["step"], facts["seconds"], facts["train_losses"]
        state.tensors = {key.removeprefix("adapter/"): t for key, t in tensors.items() if key.startswith("adapter/")}
        state.moments = {key.removeprefix("moments/"): t for key, t in tensors.items() if key.startswith("moments/")}
        return name

    def measure(self, batch_size: int, validation_examples: int) -> Costs:
        """Time a few real full-depth steps, a validation and a few generations; leaves no trace."""
        candidate = Candidate(
            bands=(Band.full(self.layout.layer_count),), rank=16, alpha=16, targets=("all",), learning_rate=1e-5
        )
        session = self.admit(candidate, Fidelity(steps=1000, batch_size=batch_size, seed=0, validation_examples=1))
        self.advance(session, 1)
        times = []
        for step in range(2, 7):
            started = time.monotonic()
            self.advance(session, step)
            times.append(time.monotonic() - started)
        started = time.monotonic()
        count = min(validation_examples, len(self.dataset.validation), 64)
        self.losses("validation", session, count)
        per_example = (time.monotonic() - started) / count
        started = time.monotonic()
        generated = min(len(self.dataset.test), 16)
        self.generate("test", session, generated)
        per_generation = (time.monotonic() - started) / generated
        self.evict(session)
        return Costs(
            seconds_per_step=statistics.median(times),
            seconds_per_validation=per_example * min(validation_examples, len(self.dataset.validation)),
            seconds_per_test_loss=per_example,
            seconds_per_generation=per_generation,
            load_seconds=0.0,
            peak_memory_bytes=_peak_memory(self.device),
        )

    def _backward(self, model: nn.Module, examples: list[Encoded]) -> float:
        """Gradients of the mean loss per supervised token; out of memory halves the rows at a time."""
        tokens = sum(sum(example.supervised[1:]) for example in examples)
        rows = self._rows or len(examples)
        ordered = sorted(examples, key=lambda example: len(example.input_ids))
        while True:
            try:
                total = 0.0
                for begin in range(0, len(ordered), rows):
                    batch = collate(ordered[begin : begin + rows], self.tokenizer.pad_token_id)
                    loss = self._token_losses(model, batch).sum() / tokens
                    loss.backward()
                    total += float(loss.detach())
                return total
            except torch.OutOfMemoryError:
                for parameter in model.parameters():
                    parameter.grad = None
                if rows == 1:
                    raise OutOfMemoryError("One example does not fit into memory.", "Lower --max-length.") from None
                rows = self._rows = max(1, rows // 2)
                torch.cuda.empty_cache()

    def _token_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Negative log-likelihood of every supervised token, row by row, fp32, shape (supervised tokens,)."""
        labels = batch.labels.to(self.device)
        self._keep = labels >= 0
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
                logits = model(
                    input_ids=batch.input_ids.to(self.device),
                    attention_mask=batch.attention_mask.to(self.device),
                    use_cache=False,
                ).logits
        finally:
            keep, self._keep = self._keep, None
        return nn.functional.cross_entropy(logits[0].float(), labels[keep], reduction="none")

    def _only_kept(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        # The head is the only part whose cost grows with the vocabulary, and most positions are not supervised.
        return None if self._keep is None else (inputs[0][self._keep].unsqueeze(0), *inputs[1:])

    def _put_on(self, state: Session) -> PeftModel:
        if self._live is state:
            assert self._peft is not None
            return self._peft
        if self._live is not None:
            self._take_off(keep=True)
        peft = attach(self.model, state.candidate, self.layout, state.fidelity.seed)
        if state.tensors is not None:
            load_tensors(peft, state.tensors)
        peft.eval()
        factors = [p for p in peft.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(factors, weight_decay=0.0, fused=True)
        for parameter, name in zip(factors, self._factor_names(peft), strict=True):
            if f"{name}/exp_avg" in state.moments:
                self._optimizer.state[parameter] = {
                    "step": torch.tensor(float(state.step), device=parameter.device),
                    "exp_avg": state.moments[f"{name}/exp_avg"].to(parameter.device).clone(),
                    "exp_avg_sq": state.moments[f"{name}/exp_avg_sq"].to(parameter.device).clone(),
                }
        self._live, self._peft = state, peft
        return peft

    def _take_off(self, *, keep: bool) -> None:
        assert self._peft is not None
        assert self._live is not None
        if keep:
            self._live.tensors = tensors_of(self._peft)
            self._live.moments = self._moments()
        detach(self._peft)
        self._live = self._peft = self._optimizer = None

    def _moments(self) -> dict[str, Tensor]:
        assert self._peft is not None
        assert self._optimizer is not None
        moments = {}
        factors = [p for p in self._peft.parameters() if p.requires_grad]
        for parameter, name in zip(factors, self._factor_names(self._peft), strict=True):
            for key, tensor in self._optimizer.state.get(parameter, {}).items():
                if key != "step":
                    moments[f"{name}/{key}"] = tensor.detach().cpu().clone()
        return moments

    @staticmethod
    def _factor_names(peft: PeftModel) -> list[str]:
        return [name for name, parameter in peft.named_parameters() if parameter.requires_grad]


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
