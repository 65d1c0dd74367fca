"""The start-up self-check: each lever against a plain PEFT pass on the model at hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from bandsearch.adapters.lora import attach, detach, factors_of, initial_tensors, load_tensors
from bandsearch.engine.batches import collate
from bandsearch.engine.kernels import onednn_is_faster
from bandsearch.engine.liger import liger_is_usable
from bandsearch.engine.memory import lacks_memory, too_much, within_memory
from bandsearch.engine.passes import Part, Passes
from bandsearch.engine.prefix import PrefixCache
from bandsearch.values.band import Band
from bandsearch.values.candidate import Candidate
from bandsearch.values.errors import ModelError
from bandsearch.values.layout import Layout
from bandsearch.values.levers import Levers

# In which the levers are tried one after the other where all at once do not reproduce the plain pass.
ORDER = (
    "fast_linear",
    "supervised_head",
    "supervised_last_layer",
    "unmasked_attention",
    "prefix_cache",
    "packing",
    "liger",
    "compile",
)
# No part of a single engine's pass: the order of examples, and what is checked when engines meet.
ELSEWHERE = ("length_grouping", "data_parallel")
# Differences of losses and gradients that rounding explains: those of a plain pass in bfloat16 from itself in float32
# are 0.08 to 0.17 on the embedded model.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.1}
# On fewer tokens there is more rounding in a gradient. In fp32 it is at most a thirtieth of what is tolerated, on 16 as
# on 64 of them, and more only make every start longer.
LEAST_SUPERVISED = {torch.float32: 16, torch.bfloat16: 64, torch.float16: 64}
MOST_ROWS = 16
# What torch.compile needs on a CPU and on a GPU.
NEEDED = (
    "It needs a C++ compiler and Python's headers: install g++ and python3-dev.",
    "It needs a C compiler, Python's headers and the triton that came with torch: install gcc and python3-dev.",
)
# With padding. PEFT keeps an input of every linear in fp32, which of a 7B model takes 5 MB a token.
MOST_TOKENS = 2048


def faithful_levers(
    model: PreTrainedModel, layout: Layout, passes: Passes, wanted: Levers
) -> tuple[Levers, tuple[str, ...]]:
    """`wanted` without what does not reproduce plain Transformers + PEFT on `model`, and a sentence on each such lever.
    Sets `passes` to it, and says there whether layers that run a second time, for lack of memory, reproduce it too.

    Candidates of different start, rank and targets, up to the last layer alone, with B away from zero, on a few short
    training examples, fewer where memory does not do: losses and gradients of all factors, with all levers at once, and
    where that fails with one after the other. Raises ModelError where even the engine's own adapter layer, with every
    lever off, does not reproduce them, and OutOfMemoryError where one example does not fit.
    """
    possible = {
        "fast_linear": wanted.fast_linear and onednn_is_faster(model, layout),
        "liger": wanted.liger and liger_is_usable(model),
    }
    wanted = wanted.model_copy(update=possible)
    said = _uncompiled(layout, passes, wanted) if wanted.compile else ()
    wanted = wanted.model_copy(update={"compile": wanted.compile and not said})
    rows = _rows(passes, LEAST_SUPERVISED[model.dtype])
    while (found := within_memory(partial(_checked, model, layout, passes, wanted, rows))) is None:
        torch.cuda.empty_cache()
        if len(rows) == 1:
            raise too_much()
        rows = rows[: len(rows) // 2]
    levers, notes, passes.recomputes = found
    passes.use(levers)
    return levers, (*said, *notes)


def _uncompiled(layout: Layout, passes: Passes, wanted: Levers) -> tuple[str, ...]:
    """Compile what Liger's kernels leave; a sentence where that fails or finds nothing."""
    try:
        passes.use(Levers.none().model_copy(update={"liger": wanted.liger, "compile": True}))
        found = passes.compiled
    except torch.OutOfMemoryError:
        return ("compile has no memory for the passes that it is tried on and is off",)
    except Exception as error:
        if wanted.liger:
            # It may be Liger that fails, which is tried by itself later.
            return _uncompiled(layout, passes, wanted.model_copy(update={"liger": False}))
        # A compiler that is not there, or lacks something, fails in ways of its own.
        cause = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        return (f"compile fails ({cause}) and is off. {NEEDED[passes.device.type == 'cuda']}",)
    finally:
        passes.use(Levers.none())
    return () if found else (f"compile finds nothing to fuse in this {layout.family} model and is off",)


def _checked(
    model: PreTrainedModel, layout: Layout, passes: Passes, wanted: Levers, rows: tuple[int, ...]
) -> tuple[Levers, tuple[str, ...], bool]:
    # A try before this one may have ended with levers on.
    passes.use(Levers.none())
    candidates = _candidates(layout)
    tensors = [_away_from_zero(initial_tensors(each, layout, 0)) for each in candidates]
    reference = [
        _plain(model, layout, passes, each, factors, rows) for each, factors in zip(candidates, tensors, strict=True)
    ]
    # NaN is not even like itself, and the engine would be blamed for what the weights are.
    if not all(torch.isfinite(loss) for loss, *_ in reference):
        dtype = str(model.dtype).removeprefix("torch.")
        raise ModelError(
            f"The loss of this {layout.family} model on its first training examples is NaN or infinite.",
            f"Its weights hold NaN, or {dtype} does not hold its states: download it again, or try --dtype fp32.",
        )

    def fault(levers: Levers, *, recompute: bool = False) -> str | None:
        """What is wrong with them; None where they reproduce the reference."""
        scratch = None
        if levers.prefix_cache:
            scratch = PrefixCache(passes.dataset, layout.hidden_size, model.dtype, None, "check")
        try:
            with passes.trying(scratch):
                passes.use(levers)
                found = _ours(passes, candidates, tensors, rows, together=levers.packing != 1, recompute=recompute)
        except Exception as error:
            if lacks_memory(error):
                raise
            # A model that does not take what a lever does to it fails in ways of its own, and so do kernels' compilers.
            # Named, because it may as well be a mistake of ours.
            return f"fails ({type(error).__name__}: {next(iter(str(error).splitlines()), '')})"
        tolerance = TOLERANCE[model.dtype]
        same = all(close(ours, plain, tolerance) for ours, plain in zip(found, reference, strict=True))
        return None if same else "does not compute what Transformers and PEFT compute"

    def settled(levers: Levers, notes: Sequence[str]) -> tuple[Levers, tuple[str, ...], bool]:
        found = fault(levers, recompute=True)
        if found is not None:
            without = "a sequence that is too long for memory by itself ends its candidate"
            notes = (*notes, f"recomputing layers {found} on this {layout.family} model and is off: {without}")
        return levers, tuple(notes), found is None

    if fault(wanted) is None:
        return settled(wanted, ())
    kept, notes = Levers.none().model_copy(update={name: getattr(wanted, name) for name in ELSEWHERE}), []
    if (found := fault(kept)) is not None:
        raise ModelError(
            f"On this {layout.family} model the engine {found}.",
            "Its layers are called in an unusual way; use another model of the table (`bandsearch models`).",
        )
    for lever in ORDER:
        more = kept.model_copy(update={lever: getattr(wanted, lever)})
        if more == kept or (found := fault(more)) is None:
            kept = more
        else:
            notes.append(f"{lever} {found} on this {layout.family} model and is off")
    return settled(kept, notes)


def _rows(passes: Passes, least: int) -> tuple[int, ...]:
    """The shortest training examples, as many as have `least` supervised tokens and are no burden on memory, and one
    that pads them."""
    train = passes.dataset.train
    lengths = train.lengths.tolist()
    order = sorted(range(len(train)), key=lambda index: lengths[index])
    longer = next((index for index in order if lengths[index] > lengths[order[0]]), order[-1])
    supervised = itertools.accumulate(train.learned[order].tolist())
    enough = next((place for place, count in enumerate(supervised, 1) if count >= least), len(order))
    light = sum(place * lengths[index] <= MOST_TOKENS for place, index in enumerate(order, 1))
    return tuple(dict.fromkeys([*order[: max(1, min(enough, light, MOST_ROWS))], longer]))


def _candidates(layout: Layout) -> list[Candidate]:
    """The last layer alone is as far as a prefix can reach, and so the most that may have been left out below it."""
    layers = layout.layer_count
    bands = (
        (Band(start=layers // 2, stop=layers), 4, "all"),
        (Band(start=layers // 4, stop=max(layers // 4 + 1, layers - 1)), 2, "attention"),
        (Band(start=layers - 1, stop=layers), 1, "all"),
    )
    return [
        Candidate(bands=(band,), rank=rank, alpha=2 * rank, targets=(targets,), learning_rate=1e-3)
        for band, rank, targets in bands
        if layout.adapts(band.layers, (targets,))
    ]


def _away_from_zero(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: tensor if "lora_A" in name else torch.randn(tensor.shape, generator=generator) * 0.02
        for name, tensor in tensors.items()
    }


def _plain(
    model: PreTrainedModel,
    layout: Layout,
    passes: Passes,
    candidate: Candidate,
    tensors: dict[str, Tensor],
    rows: Sequence[int],
) -> list[Tensor]:
    """Loss and gradients, in the order of `tensors`."""
    batch = collate([passes.dataset.train[index] for index in rows], passes.pad_token_id).to(passes.device)
    peft: Any = attach(model, candidate, layout, 0)
    try:
        load_tensors(peft, tensors)
        peft.eval()
        logits = peft(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), batch.labels.flatten(), ignore_index=-100)
        factors = factors_of(peft)
        gradients = torch.autograd.grad(loss, [factors[name] for name in tensors])
        return [loss.detach(), *gradients]
    finally:
        detach(peft)


def _ours(
    passes: Passes,
    candidates: Sequence[Candidate],
    tensors: Sequence[dict[str, Tensor]],
    rows: tuple[int, ...],
    *,
    together: bool,
    recompute: bool,
) -> list[list[Tensor]]:
    leaves = [
        {name: tensor.to(passes.device).requires_grad_() for name, tensor in factors.items()} for factors in tensors
    ]
    parts = [
        Part(indices=rows, factors=factors, scale=candidate.scale, start=candidate.bands[0].start)
        for candidate, factors in zip(candidates, leaves, strict=True)
    ]
    packs = [parts] if together else [[part] for part in parts]
    each = [losses for pack in packs for losses in passes.token_losses("train", pack, recompute=recompute)]
    means = [losses.mean() for losses in each]
    # Once for all, as in training: what a kernel has kept may not be there a second time.
    gradients = iter(
        torch.autograd.grad(torch.stack(means).sum(), [tensor for own in leaves for tensor in own.values()])
    )
    return [[loss.detach(), *itertools.islice(gradients, len(own))] for loss, own in zip(means, leaves, strict=True)]


def close(ours: Sequence[Tensor], plain: Sequence[Tensor], tolerance: float) -> bool:
    """Whether two losses and gradients, each a loss and then a gradient per factor, are the same but for rounding: the
    gradients as one vector, since a factor that matters little is all rounding."""
    (our_loss, *our_gradients), (plain_loss, *plain_gradients) = ours, plain
    if not abs(float(our_loss - plain_loss)) <= tolerance * max(1.0, abs(float(plain_loss))):
        return False
    mine, theirs = (torch.cat([each.float().flatten() for each in some]) for some in (our_gradients, plain_gradients))
    return float((mine - theirs).norm()) <= tolerance * float(theirs.norm())
