"""An adapter merged into the weights of its base computes what the two compute beside each other."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from bandsearch.adapters.merge import add_adapter
from bandsearch.models.config import auto_class
from bandsearch.models.loading import load_model
from bandsearch.models.tokenizer import load_tokenizer
from bandsearch.run import exporting

# What the adapters of `export` were asked.
IDS = torch.tensor([[5, 60, 7, 300, 9, 11, 12]])


def test_a_merged_model_computes_what_base_and_adapter_do(
    export: Callable[..., Any], family: str, tmp_path: Path
) -> None:
    exported = export(family)
    assert not torch.allclose(exported.trained, exported.base, atol=1e-2)
    (exported.path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    processor = Path(exported.source.location, "preprocessor_config.json")
    processor.write_text('{"size": 32}')
    exporting._write_merged(exported.source, "float32", exported.path, tmp_path / "merged")
    whole = auto_class(AutoConfig.from_pretrained(tmp_path / "merged"))
    model, tokenizer = (each.from_pretrained(tmp_path / "merged") for each in (whole, AutoTokenizer))
    assert torch.allclose(model(IDS).logits, exported.trained, atol=1e-4)
    assert (tmp_path / "merged" / processor.name).read_text() == processor.read_text()
    processor.unlink()
    text = "The answer is 42."
    assert tokenizer(text)["input_ids"] == load_tokenizer(exported.source)(text)["input_ids"]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Yes"}], tokenize=False) == "Yes!"


def test_an_update_is_rounded_once(export: Callable[..., Any]) -> None:
    exported = export("llama", rank=3)
    exact, model = load_model(exported.source, "fp32"), load_model(exported.source, "bf16")
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    add_adapter(exact.bfloat16().float(), exported.path)
    add_adapter(model, exported.path)
    for name, weight in exact.named_parameters():
        assert torch.equal(model.get_parameter(name), weight.bfloat16())
    changed = [name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])]
    assert changed
    assert all(".layers.1." in name or ".layers.2." in name for name in changed)
