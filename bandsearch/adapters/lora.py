"""From a candidate to PEFT modules on a model, and back to plain tensors."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator, Mapping

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from bandsearch.values.candidate import Candidate, Init, Method
from bandsearch.values.errors import AdapterError
from bandsearch.values.layout import Layout, Linear

# PEFT wraps the model twice, and vLLM knows adapters by this prefix.
PREFIX = "base_model.model."

_ADAPTER = "default"
_INIT_LABELS: dict[Init, bool | str] = {
    Init.KAIMING: True,
    Init.GAUSSIAN: "gaussian",
    Init.ORTHOGONAL: "orthogonal",
}


def modules_of(candidate: Candidate, layout: Layout) -> dict[str, Linear]:
    """Full module path -> the linear module, for every place the candidate adapts, layer by layer: in each what it has
    of the targets.

    Raises AdapterError for a band that ends outside the model, for a target it does not have, and where none of the
    layers has any of them.
    """
    last = candidate.bands[-1]
    if last.stop > layout.layer_count:
        raise AdapterError(
            f"Band {last} ends outside the model, which has {layout.layer_count} layers.",
            f"Choose bands inside 0-{layout.layer_count - 1}.",
        )
    linears = layout.targets(candidate.targets)
    found = {
        f"{layout.layers_path}.{layer}.{linear.name}": linear
        for layer in candidate.layers
        for linear in linears
        if linear.is_in(layer)
    }
    if not found:
        having = sorted({layer for linear in linears for layer in linear.layers})
        raise AdapterError(
            f"Band {'+'.join(map(str, candidate.bands))} has no {' or '.join(candidate.targets)} in its layers; "
            f"of this {layout.family} model layers {', '.join(map(str, having))} have.",
            "Choose a band with one of those, or other targets.",
        )
    return found


def module_paths(candidate: Candidate, layout: Layout) -> tuple[str, ...]:
    """The full paths of the adapted modules, layer by layer. Raises AdapterError, see `modules_of`."""
    return tuple(modules_of(candidate, layout))


def trainable_parameters(candidate: Candidate, layout: Layout) -> int:
    """rank x (inputs + outputs), summed over the adapted modules."""
    width = sum(linear.in_features + linear.out_features for linear in modules_of(candidate, layout).values())
    return candidate.rank * width


def tensor_names(path: str) -> tuple[str, str]:
    """The names of A (rank, inputs) and B (outputs, rank) of the module at `path` in a saved adapter."""
    return f"{PREFIX}{path}.lora_A.weight", f"{PREFIX}{path}.lora_B.weight"


def initial_tensors(candidate: Candidate, layout: Layout, seed: int) -> dict[str, Tensor]:
    """The factors every training of `candidate` starts from, by saved name; fp32 on the CPU. B @ A is zero.

    Each module's numbers depend only on the seed, its path, its size and the rank, so two bands that share a layer
    start equally there. A is kaiming-uniform (U(-1/sqrt(in), 1/sqrt(in)), arXiv 2106.09685) or normal with standard
    deviation 1/rank, with B = 0; "orthogonal" draws both factors over complementary halves of a random rotation, as
    PEFT does, and needs an even rank. No global random state is read or changed.
    """
    if candidate.init is Init.ORTHOGONAL and candidate.rank % 2:
        raise AdapterError(
            f"Orthogonal initialisation needs an even rank, not {candidate.rank}.", "Choose another rank or init."
        )
    tensors = {}
    for path, linear in modules_of(candidate, layout).items():
        digest = hashlib.sha256(f"{seed}\0{path}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        name_a, name_b = tensor_names(path)
        tensors[name_a], tensors[name_b] = _initial_factors(candidate, linear, generator)
    return tensors


def _initial_factors(candidate: Candidate, linear: Linear, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    rank, inputs, outputs = candidate.rank, linear.in_features, linear.out_features
    if candidate.init is Init.ORTHOGONAL:
        rotation, _ = torch.linalg.qr(torch.randn(rank, rank, generator=generator))
        a = rotation[0::2].T @ torch.randn(rank // 2, inputs, generator=generator) / 10
        b = torch.randn(outputs, rank // 2, generator=generator) @ rotation[1::2] / 10
        return a, b
    if candidate.init is Init.GAUSSIAN:
        a = torch.randn(rank, inputs, generator=generator) / rank
    else:
        bound = 1 / math.sqrt(inputs)
        a = torch.empty(rank, inputs).uniform_(-bound, bound, generator=generator)
    return a, torch.zeros(outputs, rank)


def attach(model: PreTrainedModel, candidate: Candidate, layout: Layout, seed: int) -> PeftModel:
    """Put fresh LoRA modules into `model` (in place) and return PEFT's view of it.

    Only the LoRA factors are trainable; they are fp32 whatever the base's dtype. Equal seeds give equal factors, and
    the global random state stays as it was. Raises AdapterError for bands and targets the model does not have, and
    where PEFT did not make exactly the modules, ranks and scales that were asked for. Whatever is raised, the model is
    what it was.
    """
    tensors = initial_tensors(candidate, layout, seed)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=candidate.rank,
        lora_alpha=candidate.alpha,
        lora_dropout=0.0,
        bias="none",
        use_rslora=candidate.method is Method.RSLORA,
        init_lora_weights=_INIT_LABELS[candidate.init],
        target_modules=list(module_paths(candidate, layout)),
        fan_in_fan_out=layout.transposed,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT reads an attribute that newer transformers have renamed.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        try:
            peft_model = get_peft_model(model, config, adapter_name=_ADAPTER)
            _check_realised(peft_model, candidate, layout)
            load_tensors(peft_model, tensors)
        except BaseException:
            _strip(model)
            raise
    return peft_model


def _strip(model: PreTrainedModel) -> None:
    """Take out what PEFT has put in before it failed, such as for lack of memory: it leaves it there."""
    made = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    for name, module in made:
        model.set_submodule(name, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def detach(peft_model: PeftModel) -> PreTrainedModel:
    """Take the LoRA modules out again and return the base, bit for bit what it was before `attach`."""
    return peft_model.unload()


def tensors_of(peft_model: PeftModel) -> dict[str, Tensor]:
    """The factors by the names PEFT saves them under; copies on the CPU in fp32."""
    # "auto" would ask the hub whether the vocabulary has grown.
    state = get_peft_model_state_dict(peft_model, adapter_name=_ADAPTER, save_embedding_layers=False)
    return {name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in state.items()}


def load_tensors(peft_model: PeftModel, tensors: Mapping[str, Tensor]) -> None:
    """Copy saved factors into the attached modules, in place, so that an optimiser keeps its parameters.

    Raises AdapterError unless `tensors` holds exactly the attached factors in their shapes.
    """
    parameters = factors_of(peft_model)
    if parameters.keys() != tensors.keys():
        odd = sorted(parameters.keys() ^ tensors.keys())
        raise AdapterError(f"{len(odd)} adapter tensors do not match the attached modules, for example {odd[0]}.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != tensors[name].shape:
                raise AdapterError(f"Tensor {name} has shape {list(tensors[name].shape)}, not {list(parameter.shape)}.")
            parameter.copy_(tensors[name])


def factors_of(peft_model: PeftModel) -> dict[str, nn.Parameter]:
    """The attached factors themselves, by saved name."""
    factors = {}
    for path, layer in _lora_layers(peft_model):
        name_a, name_b = tensor_names(path)
        factors[name_a], factors[name_b] = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
    return factors


def _lora_layers(peft_model: PeftModel) -> Iterator[tuple[str, LoraLayer]]:
    for name, module in peft_model.named_modules():
        if isinstance(module, LoraLayer):
            yield name.removeprefix(PREFIX), module


def _check_realised(peft_model: PeftModel, candidate: Candidate, layout: Layout) -> None:
    wanted = modules_of(candidate, layout)
    made = dict(_lora_layers(peft_model))
    if made.keys() != wanted.keys():
        odd = sorted(made.keys() ^ wanted.keys())
        raise AdapterError(f"PEFT adapted {len(made)} modules instead of {len(wanted)}; they differ in {odd[0]}.")
    for path, layer in made.items():
        scale = layer.scaling[_ADAPTER]
        shapes = (tuple(layer.lora_A[_ADAPTER].weight.shape), tuple(layer.lora_B[_ADAPTER].weight.shape))
        linear = wanted[path]
        if shapes != ((candidate.rank, linear.in_features), (linear.out_features, candidate.rank)):
            raise AdapterError(f"PEFT gave {path} factors of shape {shapes} for rank {candidate.rank}.")
        if not math.isclose(scale, candidate.scale, rel_tol=1e-9):
            raise AdapterError(f"PEFT scales {path} by {scale}, not by {candidate.scale}.")
    trainable = {name for name, parameter in peft_model.named_parameters() if parameter.requires_grad}
    if len(trainable) != 2 * len(wanted):
        raise AdapterError(f"{len(trainable)} tensors are trainable instead of {2 * len(wanted)}.")
