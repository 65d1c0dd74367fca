"""What goes wrong when a model is fetched or read, in words, and without the libraries' own noise."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from transformers.utils import logging

from bandsearch.values.errors import ModelError
from bandsearch.values.source import Source


@contextmanager
def quiet(bars: bool = False) -> Iterator[None]:
    """Silence transformers' warnings, and its progress bars unless `bars`; what matters is raised as an error."""
    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not bars:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


@contextmanager
def explained(source: Source, part: str) -> Iterator[None]:
    """Turn the failures of transformers, the hub and the disk into a ModelError. `part` is what was being read."""
    try:
        yield
    except ModelError:
        raise
    except (
        MemoryError,
        OSError,
        ValueError,
        KeyError,
        TypeError,
        RuntimeError,
        ImportError,
        AttributeError,
        SafetensorError,
    ) as error:
        raise _explain(error, source, part) from error


def _explain(error: BaseException, source: Source, part: str) -> ModelError:
    causes = list(_chain(error))

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if any(isinstance(cause, OSError) and cause.errno == errno.ENOSPC for cause in causes):
        return ModelError(
            f"The disk is full; the {part} of {source} could not be stored.",
            "Free space, or point HF_HOME to another disk.",
        )
    if caused_by(GatedRepoError):
        return ModelError(
            f"{source} is a gated model and this account has no access to it.",
            f"Request access at https://huggingface.co/{source.location}, then `hf auth login`.",
        )
    if caused_by(RevisionNotFoundError):
        return ModelError(f"{source.location} has no revision {source.revision!r}.", "Check its branches and tags.")
    if caused_by(RepositoryNotFoundError, HFValidationError):
        return ModelError(
            f"The hub has no model {source.location}, and there is no such directory.",
            "Check the spelling; for a private model, `hf auth login` first.",
        )
    if caused_by(OfflineModeIsEnabled, LocalEntryNotFoundError, ConnectionError):
        return ModelError(
            f"The {part} of {source} is not in the local cache and the hub cannot be reached.",
            "Check the network and HF_HUB_OFFLINE, or give the directory of a downloaded model.",
        )
    message = str(error)
    if "trust_remote_code" in message:
        return ModelError(
            f"{source} needs Python code from its own repository.",
            "Read that code; if you trust it, allow it with --trust-remote-code.",
        )
    if caused_by(MemoryError, torch.OutOfMemoryError):
        return ModelError(
            f"There is not enough memory to load {source}.",
            "Keep it in fewer bits (--dtype nf4, or bf16 instead of fp32), or use a smaller model.",
        )
    if caused_by(SafetensorError):
        return ModelError(
            f"A safetensors file of {source} is damaged ({_first_sentence(message)}).", "Download it again."
        )
    if part == "weights" and (caused_by(EntryNotFoundError, FileNotFoundError) or "no file named" in message):
        return ModelError(
            f"{source} has no weights, or one of their files is missing ({_first_sentence(message)}).",
            "Download the model again, with its model*.safetensors.",
        )
    if caused_by(HfHubHTTPError):
        return ModelError(f"The hub refused {source} ({_first_sentence(message)}).", "Try again later.")
    return ModelError(f"The {part} of {source} cannot be loaded: {_first_sentence(message)}.", _REMEDIES[part])


_REMEDIES = {
    "configuration": "Check its config.json, or update transformers if the model is newer than it.",
    "tokenizer": "Check that tokenizer.json and tokenizer_config.json are in the model directory.",
    "weights": "Check that the weight files belong to this config.json.",
}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_sentence(message: str) -> str:
    """The first sentence, without its full stop."""
    line = next((line.strip() for line in message.splitlines() if line.strip()), "no reason given")
    return line.split(". ")[0].rstrip(".")
