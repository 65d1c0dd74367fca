"""The model: a directory with random weights and a tokenizer of whole words, from sizes alone."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.data import word
from benchmarks.scale import Shape

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


def build_model(shape: Shape, directory: Path, *, dtype: str, device: str) -> None:
    """Write config, weights and tokenizer; equal shapes get equal weights on a kind of device.

    Weights are normal with standard deviation 1/sqrt(width), so that no layer is close to doing nothing.
    """
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    words = [*SPECIAL, *(word(index) for index in range(shape.vocabulary - len(SPECIAL)))]
    backend = Tokenizer(models.WordLevel({text: index for index, text in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(directory)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=4096,
        initializer_range=shape.width**-0.5,
        tie_word_embeddings=False,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    config.dtype = getattr(torch, dtype)
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(config.dtype)
        try:
            model = LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(before)
    model.save_pretrained(directory)
    del model
    if device != "cpu":
        torch.cuda.empty_cache()
