"""Loading tiny models and tokenizers of every family, and all that can be wrong with them."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto import tokenization_auto

from bandsearch.models import config, loading
from bandsearch.models.aliases import resolve
from bandsearch.models.loading import fingerprint, load_model, resolve_dtype, summarize
from bandsearch.models.tokenizer import load_tokenizer
from bandsearch.values.errors import ModelError, UsageError
from bandsearch.values.source import Source
from bandsearch.values.spec import ModelSpec

FULL = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "auto": torch.float32}


def source_of(directory: Path) -> Source:
    return resolve(ModelSpec(name=str(directory)))


def test_a_model_loads_frozen_and_its_summary_counts_it(tiny_model, family: str):
    source = source_of(tiny_model(family))
    model = load_model(source)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    summary = summarize(source)
    assert summary.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert summary.bytes_by_dtype["bfloat16"] == summary.weight_bytes("bf16", "cpu") == 2 * summary.parameters
    assert summary.weight_bytes("auto", "cpu") == 4 * summary.parameters
    # Embeddings and norms stay as they are.
    assert summary.parameters / 2 < summary.weight_bytes("nf4", "cpu") < 2 * summary.parameters
    assert (summary.layout.layer_count, summary.layout.hidden_size, summary.vocabulary) == (4, 32, 384)
    assert summary.architecture == type(model).__name__
    assert "attention" in summary.layout.target_names


@pytest.mark.parametrize("family", ["qwen3_5", "gemma4"])
def test_a_model_that_sees_reads_text_as_its_text_part_does(tiny_model, family: str):
    whole = load_model(source_of(tiny_model(family)))
    config = whole.config.get_text_config()
    part = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    inner = {name.replace("language_model.", ""): tensor for name, tensor in whole.state_dict().items()}
    assert not part.load_state_dict(inner, strict=False).missing_keys
    ids = torch.tensor([[5, 60, 7, 300, 9, 11]])
    assert torch.allclose(whole(ids).logits, part(ids).logits, atol=1e-6)


def test_a_tokenizer_loads_with_padding(tiny_model, family: str):
    tokenizer = load_tokenizer(source_of(tiny_model(family)))
    text = "The answer is 42, wörld\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.pad_token_id is not None


def test_both_kinds_of_tokenizers_are_there(tiny_model):
    assert load_tokenizer(source_of(tiny_model("qwen2"))).chat_template
    assert not load_tokenizer(source_of(tiny_model("gpt2"))).chat_template


class MistralCommonBackend:
    """As the class of this name in transformers: much of what tokenizers have raises."""

    @classmethod
    def from_pretrained(cls, *_: object, **__: object) -> MistralCommonBackend:
        return cls()

    @property
    def added_tokens_decoder(self) -> None:
        raise NotImplementedError

    def __call__(self, *_: object, **__: object) -> None:
        raise NotImplementedError


def test_mistral_common_does_not_take_the_tokenizers_place(tiny_model, tmp_path: Path, monkeypatch):
    directory = shutil.copytree(tiny_model("mistral"), tmp_path / "model")
    (directory / "tekken.json").write_text("{}")
    monkeypatch.setitem(tokenization_auto.TOKENIZER_MAPPING_NAMES, "mistral", "MistralCommonBackend")
    monkeypatch.setattr(tokenization_auto, "tokenizer_class_from_name", lambda name: MistralCommonBackend)
    monkeypatch.setattr(tokenization_auto, "_use_mistral_format", lambda *_, **__: True)
    assert type(AutoTokenizer.from_pretrained(directory)) is MistralCommonBackend
    tokenizer = load_tokenizer(source_of(directory))
    assert "<|im_end|>" in {token.content for token in tokenizer.added_tokens_decoder.values()}
    assert tokenizer.chat_template
    assert tokenizer.decode(tokenizer("The answer", add_special_tokens=False)["input_ids"]) == "The answer"


@pytest.mark.parametrize("name", FULL)
def test_dtypes(tiny_model, name: str):
    assert load_model(source_of(tiny_model("llama")), name).dtype == FULL[name]
    assert resolve_dtype(name, "cpu") == FULL[name]


@pytest.mark.parametrize(("capability", "dtype"), [(7, torch.float32), (8, torch.bfloat16)])
def test_a_gpu_that_only_emulates_bf16_computes_in_fp32(monkeypatch, capability: int, dtype: torch.dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(major=capability))
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda _: True)
    assert resolve_dtype("auto", "cuda") == dtype


def test_an_unknown_dtype_names_the_choices(tiny_model):
    with pytest.raises(UsageError, match=r"'fp8'.*bf16"):
        load_model(source_of(tiny_model("llama")), "fp8")


@pytest.fixture
def broken(tiny_model, tmp_path: Path) -> Path:
    """A copy of a good model, to be broken."""
    return shutil.copytree(tiny_model("qwen2"), tmp_path / "model")


def test_padding_is_given_where_there_is_none(broken: Path):
    path = broken / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["pad_token"] = None
    path.write_text(json.dumps(config))
    tokenizer = load_tokenizer(source_of(broken))
    assert tokenizer.pad_token == tokenizer.eos_token == "</s>"


def change_config(**changes: object) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | changes))

    return change


def change_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})

    return apply


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda directory: (directory / name).write_bytes(content)


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: (d / "model.safetensors").unlink(), "has no weights, or one of their files is missing"),
        (write("model.safetensors", b""), "is damaged"),
        (write("model.safetensors", b"\x00" * 300), "is damaged"),
        (change_weights(lambda tensors: tensors.pop(NORM)), f"lack 1 tensor.*{NORM}"),
        (change_weights(lambda tensors: tensors.update({NORM: torch.ones(3)})), r"is \[3\], not \[32\]"),
        (change_config(hidden_size=48), r"do not fit its config\.json"),
        (write("config.json", b"{"), "not a valid JSON"),
        (write("config.json", b"{}"), "cannot be loaded"),
        (change_config(model_type="qwen99"), "qwen99"),
        (change_config(model_type="t5"), "encoder-decoder"),
        (change_config(model_type="bert"), "'bert' model.*not a causal language model"),
        (change_config(model_type="vit"), "'vit' model"),
        (change_config(quantization_config={"quant_method": "mxfp4"}), r"quantised .*\(mxfp4\).*BF16; --dtype nf4"),
        (change_config(model_type="llava"), r"takes images too .*'llava'.*one of gemma3, gemma4"),
        (
            change_config(model_type="own", auto_map={"AutoConfig": "x.C", "AutoModelForCausalLM": "x.M"}),
            "--trust-remote-code",
        ),
    ],
)
def test_broken_models_are_explained(broken: Path, spoil: Callable[[Path], object], words: str, capfd):
    spoil(broken)
    with pytest.raises(ModelError, match=words) as caught:
        load_model(source_of(broken))
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: [(d / name).unlink() for name in ("tokenizer.json", "tokenizer_config.json")], "to nothing"),
        (write("tokenizer.json", b"{}"), "cannot be loaded"),
        (write("tokenizer.json", b"{"), "cannot be loaded"),
        (change_config(vocab_size=100), "knows only 100 tokens"),
    ],
)
def test_broken_tokenizers_are_explained(broken: Path, spoil: Callable[[Path], object], words: str):
    spoil(broken)
    with pytest.raises(ModelError, match=words) as caught:
        load_tokenizer(source_of(broken))
    assert caught.value.remedy


def test_without_network_the_remedy_is_named():
    source = resolve(ModelSpec(name="org/never-downloaded"))
    for read in (load_model, load_tokenizer, summarize, fingerprint):
        with pytest.raises(ModelError, match=r"hub cannot be reached\. Check the network"):
            read(source)


def hub_error(kind: type[Exception]) -> Exception:
    response = SimpleNamespace(headers={}, request=None, status_code=403)
    error = OSError("wrapped by transformers")
    error.__cause__ = kind("refused", response=response)
    return error


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (hub_error(GatedRepoError), "gated.*hf auth login"),
        (hub_error(RepositoryNotFoundError), "no model org/name"),
        (hub_error(RevisionNotFoundError), "no revision 'v9'"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
        (MemoryError(), "not enough memory.*--dtype nf4"),
        (torch.OutOfMemoryError("CUDA out of memory"), "not enough memory"),
    ],
)
def test_failures_of_the_hub_and_the_machine_are_explained(monkeypatch, failure: Exception, words: str):
    def fail(*args: object, **options: object) -> None:
        raise failure

    monkeypatch.setattr(config.AutoConfig, "from_pretrained", fail)
    with pytest.raises(ModelError, match=words):
        load_model(Source(location="org/name", revision="v9", is_local=False, slug="name"))


def test_a_bug_is_not_explained_away(monkeypatch):
    def fail(*args: object, **options: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(config.AutoConfig, "from_pretrained", fail)
    with pytest.raises(ZeroDivisionError):
        load_model(Source(location="org/name", is_local=False, slug="name"))


def test_fingerprints_name_the_weights(broken: Path, tiny_model):
    original = fingerprint(source_of(tiny_model("qwen2")))
    assert fingerprint(source_of(broken)) == original
    assert len(original) == 16
    change_weights(lambda tensors: tensors[NORM].add_(1e-3))(broken)
    assert fingerprint(source_of(broken)) != original
    assert fingerprint(source_of(tiny_model("qwen3"))) != original


def test_fingerprints_of_large_files_see_retrained_weights(broken: Path, monkeypatch):
    monkeypatch.setattr(loading, "_WHOLE", 1000)
    before = fingerprint(source_of(broken))
    assert fingerprint(source_of(broken)) == before
    change_weights(lambda tensors: [tensor.mul_(1.001) for tensor in tensors.values()])(broken)
    assert fingerprint(source_of(broken)) != before


@pytest.mark.parametrize("stored", ["model.safetensors", "pytorch_model.bin"])
def test_a_hub_models_weights_are_fetched_in_one_layout(
    stored: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / stored).touch()
    asked: list[str] = []

    def snapshot(location: str, *, allow_patterns: list[str], **_: object) -> str:
        asked.append(allow_patterns[0])
        return str(tmp_path)

    monkeypatch.setattr(loading, "snapshot_download", snapshot)
    loading.fetch_weights(Source(location="maker/model", revision="main", is_local=False, slug="model"))
    assert asked == ["*.safetensors", "*.bin"][: 1 if stored.endswith("safetensors") else 2]


def test_of_a_directory_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(loading, "snapshot_download")
    loading.fetch_weights(Source(location=str(tmp_path), is_local=True, slug="model"))


def test_weights_that_cannot_be_fetched_are_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(*_: object, **__: object) -> str:
        raise RepositoryNotFoundError("404", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]

    monkeypatch.setattr(loading, "snapshot_download", snapshot)
    with pytest.raises(ModelError):
        loading.fetch_weights(Source(location="maker/model", is_local=False, slug="model"))
