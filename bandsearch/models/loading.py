"""Loading models; describing one from its configuration alone; naming its exact weights."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bandsearch.models.config import auto_class, context_length, load_config
from bandsearch.models.failures import explained, quiet
from bandsearch.models.families import layout_of
from bandsearch.values.errors import ModelError, UsageError
from bandsearch.values.layout import Layout
from bandsearch.values.source import Source
from bandsearch.values.value import Value

NF4 = "nf4"
DTYPES: dict[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "float32": torch.float32,
}

_SAFE_WEIGHTS, _PICKLED_WEIGHTS = ["*.safetensors", "*.json"], ["*.bin", "*.json"]
_WEIGHTS = ("*.safetensors", "*.bin", "*.safetensors.index.json")
# Files up to this size are read whole; of larger ones, evenly spaced blocks. Training changes nearly every
# weight, so a retrained model differs in some block.
_WHOLE = 64 * 2**20
_BLOCKS = 512
_BLOCK = 4096


class ModelSummary(Value):
    """A model as its configuration describes it; no weights are read. `bytes_by_dtype` counts the weights alone."""

    source: Source
    layout: Layout
    architecture: str
    vocabulary: int
    context_length: int | None
    parameters: int
    bytes_by_dtype: dict[str, int]

    def weight_bytes(self, dtype: str, device: str) -> int:
        """What the weights take on `device` in what a person names `dtype`. Raises UsageError for what is none."""
        name = NF4 if dtype == NF4 else str(resolve_dtype(dtype, device)).removeprefix("torch.")
        return self.bytes_by_dtype[name]


def resolve_dtype(name: str, device: str) -> torch.dtype:
    """ "auto" is bf16 on a GPU that computes in it and fp32 elsewhere; otherwise the dtype of that name.

    That is never fp16: its range is too small for the activations of some models, Gemma's among them, and for small
    gradients, which nothing scales up.
    """
    if name == "auto":
        if torch.device(device).type != "cuda":
            return torch.float32
        # Older ones emulate bf16, many times slower.
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if name not in DTYPES:
        raise UsageError(f"Unknown dtype {name!r}.", f"Choose auto, {', '.join(DTYPES)} or {NF4}.")
    return DTYPES[name]


def dense_weight(module: nn.Module) -> Tensor:
    """The weight of a linear module as numbers, also where it is kept in 4 bits."""
    weight: Tensor = module.get_parameter("weight")
    state = getattr(weight, "quant_state", None)
    if state is None:
        return weight
    from bitsandbytes.functional import dequantize_4bit

    dense: Tensor = dequantize_4bit(weight.data, state)
    return dense


def _four_bits(device: str) -> BitsAndBytesConfig:
    """NF4 with double quantisation, as in QLoRA (arXiv 2305.14314); products are computed in the device's own type."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UsageError("A base in 4 bits needs bitsandbytes.", "Install it: pip install 'bandsearch[qlora]'.")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=resolve_dtype("auto", device),
    )


def stored_dtype(source: Source) -> str:
    """The dtype that a model's weights are stored in, as its configuration says; float32 where it says nothing."""
    config = load_config(source)
    name = str(config.dtype or config.get_text_config().dtype).removeprefix("torch.")
    return name if name in ("bfloat16", "float16") else "float32"


def load_model(source: Source, dtype: str = "auto", device: str = "cpu") -> PreTrainedModel:
    """The frozen base model in evaluation mode on `device`, its weights in `dtype`. Raises ModelError.

    The attention backend is transformers' choice: sdpa wherever the family computes correctly with it.
    """
    if device != "cpu":
        # cuDNN's attention makes a plan for every new number of rows and tokens, and here nearly every batch has one.
        torch.backends.cuda.enable_cudnn_sdp(False)
    config = load_config(source)
    with explained(source, "weights"), quiet(bars=not source.is_local):
        model, report = auto_class(config).from_pretrained(
            source.location,
            config=config,
            revision=source.revision,
            trust_remote_code=source.trust_remote_code,
            dtype=resolve_dtype("auto" if dtype == NF4 else dtype, device),
            quantization_config=_four_bits(device) if dtype == NF4 else None,
            # Straight to the accelerator: the host's memory may be smaller than the model.
            device_map=None if device == "cpu" else {"": device},
            # Both kinds of wrong weights are refused below; transformers fills them with random numbers.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        name, stored, expected = mismatched[0]
        raise ModelError(
            f"The weights of {source} do not fit its config.json: {name} is {list(stored)}, not {list(expected)}.",
            "Download the model again; one of the two belongs to another model.",
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"The weights of {source} lack {len(missing)} tensor(s), for example {missing[0]}.",
            "Download the model again; a file is missing or belongs to another model.",
        )
    model.requires_grad_(False)
    model.eval()
    if model.generation_config is not None and model.generation_config.pad_token_id is None:
        eos = model.generation_config.eos_token_id
        model.generation_config.pad_token_id = eos[0] if isinstance(eos, list) else eos
    return model


def fetch_weights(source: Source) -> None:
    """Bring a hub model's weights to this machine: no device need be held while they come. Raises ModelError."""
    if source.is_local:
        return
    with explained(source, "weights"):
        for patterns in _SAFE_WEIGHTS, _PICKLED_WEIGHTS:
            # The same weights in another layout lie beside them in some.
            folder = snapshot_download(
                source.location, revision=source.revision, allow_patterns=patterns, ignore_patterns=["consolidated*"]
            )
            if any(Path(folder).glob(patterns[0])):
                return


def summarize(source: Source) -> ModelSummary:
    """Layout, size and names from the configuration alone: the model is built without memory for its weights."""
    config = load_config(source)
    with explained(source, "configuration"), quiet(), torch.device("meta"):
        model = auto_class(config).from_config(config, trust_remote_code=source.trust_remote_code)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    head = model.get_output_embeddings()
    linears = (module for module in model.modules() if isinstance(module, nn.Linear | Conv1D) and module is not head)
    linear = sum(module.weight.numel() for module in linears)
    return ModelSummary(
        source=source,
        layout=layout_of(model),
        architecture=type(model).__name__,
        vocabulary=config.get_text_config().vocab_size,
        context_length=context_length(config),
        parameters=parameters,
        bytes_by_dtype={
            "float32": 4 * parameters,
            "bfloat16": 2 * parameters,
            "float16": 2 * parameters,
            # Linear modules but for the output layer; their scales are a thirtieth more.
            NF4: 2 * (parameters - linear) + linear // 2,
        },
    )


def fingerprint(source: Source) -> str:
    """Sixteen hex digits: equal for equal configuration and weights, wherever they lie. Raises ModelError.

    A hub model is named by its id and commit, a directory by the content of its config.json and weight files.
    """
    digest = hashlib.sha256()
    if source.is_local:
        directory = Path(source.location)
        for path in [directory / "config.json", *sorted(p for glob in _WEIGHTS for p in directory.glob(glob))]:
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
            _feed(digest, path)
    else:
        commit = load_config(source)._commit_hash
        digest.update(f"{source.location}\0{commit or source.revision}".encode())
    return digest.hexdigest()[:16]


def _feed(digest: hashlib._Hash, path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE:
            while block := file.read(2**20):
                digest.update(block)
            return
        for index in range(_BLOCKS):
            file.seek(index * (size - _BLOCK) // (_BLOCKS - 1))
            digest.update(file.read(_BLOCK))
