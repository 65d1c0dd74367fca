"""A session: one candidate under training, with everything needed to go on with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bandsearch.adapters.lora import initial_tensors
from bandsearch.engine.failures import DivergedError
from bandsearch.engine.memory import too_much
from bandsearch.engine.replicas import Item, Replicas
from bandsearch.values.candidate import Candidate
from bandsearch.values.fidelity import CLIP, Fidelity
from bandsearch.values.layout import Layout


@dataclass
class Session:
    """`factors`: A and B of every adapted module by saved name, fp32 on the engine's device, with their own AdamW.
    `replicas`: with whom it is trained, if not by one engine alone."""

    name: str
    candidate: Candidate
    fidelity: Fidelity
    factors: dict[str, nn.Parameter]
    optimizer: torch.optim.AdamW
    step: int = 0
    seconds: float = 0.0
    train_losses: list[float] = field(default_factory=list)
    replicas: Replicas | None = None

    @classmethod
    def begin(
        cls, name: str, candidate: Candidate, fidelity: Fidelity, layout: Layout, device: torch.device
    ) -> Session:
        return cls.of(name, candidate, fidelity, initial_tensors(candidate, layout, fidelity.seed), device)

    @classmethod
    def of(
        cls, name: str, candidate: Candidate, fidelity: Fidelity, tensors: Mapping[str, Tensor], device: torch.device
    ) -> Session:
        factors = {key: nn.Parameter(tensor.to(device).clone()) for key, tensor in tensors.items()}
        optimizer = torch.optim.AdamW(list(factors.values()), weight_decay=0.0, fused=True)
        return cls(name, candidate, fidelity, factors, optimizer)

    @property
    def start(self) -> int:
        """The first adapted layer."""
        return self.candidate.bands[0].start

    def tensors(self) -> dict[str, Tensor]:
        """Copies of the factors on the CPU."""
        return {name: factor.detach().to("cpu", copy=True) for name, factor in self.factors.items()}

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """What of `items` this engine does; all of them where it trains alone."""
        return items if self.replicas is None else self.replicas.share(items)

    def totals(self, *numbers: float) -> Sequence[float]:
        """Sums over all that train it."""
        return numbers if self.replicas is None else self.replicas.totals(*numbers)

    def agree(self, flag: bool) -> bool:
        """Whether it is true for any of those that train it."""
        return flag if self.replicas is None else self.replicas.any(flag)

    def gather(self, loss: Tensor | None) -> Tensor:
        """(2,): the loss of a step, and how many had no memory for it, which a `loss` of None says.

        Where replicas train it, the sum of everyone's, and in their places that of everyone's gradients. Everyone gets
        the same bits, so that factors stay the same. A loss that is not finite makes all of them not finite."""
        factors = list(self.factors.values())
        nothing = torch.zeros((), device=factors[0].device)
        told = torch.stack([nothing, nothing + 1] if loss is None else [loss, nothing])
        if self.replicas is None:
            return told
        known = [torch.zeros_like(each) if each.grad is None else each.grad for each in factors]
        flat = torch.cat([*(gradient.flatten() for gradient in known), told])
        self.replicas.total(flat)
        *gradients, told = flat.split([*(gradient.numel() for gradient in known), 2])
        for factor, gradient in zip(factors, gradients, strict=True):
            factor.grad = gradient.view_as(factor)
        return told

    def clip(self) -> Tensor:
        """Clip the gradients at hand; their norm before."""
        factors = list(self.factors.values())
        # Of no gradients torch gives the norm on the CPU.
        return nn.utils.clip_grad_norm_(factors, CLIP).to(factors[0].device)

    def update(self, loss: float, lacking: float, norm: float) -> None:
        """One optimiser step from the clipped gradients at hand, whose norm was `norm`, where what `gather` found is
        `loss` and `lacking`. Raises DivergedError or OutOfMemoryError, leaving the factors, where it cannot."""
        if lacking:
            raise too_much()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise DivergedError(f"Training of {self.candidate} diverged at step {self.step}.", "Lower the rate.")
        for group in self.optimizer.param_groups:
            group["lr"] = self.candidate.learning_rate * self.fidelity.learning_rate_factor(self.step)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.train_losses.append(loss)
        self.step += 1

    def make_moments(self) -> bool:
        """Give AdamW its moments, which it would make for itself in the first step, where no lack of memory could be
        mended any more. Always true."""
        made = {
            factor: {
                "step": torch.zeros((), device=factor.device),
                "exp_avg": torch.zeros_like(factor),
                "exp_avg_sq": torch.zeros_like(factor),
            }
            for factor in self.factors.values()
            if factor not in self.optimizer.state
        }
        self.optimizer.state.update(made)
        return True

    def moments(self) -> dict[str, Tensor]:
        """AdamW's moments on the CPU by "factor/moment"; empty before the first step."""
        return {
            f"{name}/{key}": tensor.detach().cpu().clone()
            for name, factor in self.factors.items()
            for key, tensor in self.optimizer.state.get(factor, {}).items()
            if key != "step"
        }

    def load_moments(self, moments: Mapping[str, Tensor]) -> None:
        """Take over what `moments` gave at `step`."""
        for name, factor in self.factors.items():
            if f"{name}/exp_avg" in moments:
                self.optimizer.state[factor] = {
                    "step": torch.tensor(float(self.step), device=factor.device),
                    "exp_avg": moments[f"{name}/exp_avg"].to(factor.device).clone(),
                    "exp_avg_sq": moments[f"{name}/exp_avg_sq"].to(factor.device).clone(),
                }
