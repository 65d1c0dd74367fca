"""What `export` does: a run's adapter at another place, or merged into a model that needs no adapter."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from transformers import GenerationConfig
from transformers.utils import cached_file

from bandsearch.adapters.card import model_card
from bandsearch.adapters.export import CARD_FILE
from bandsearch.adapters.limits import CHAT_TEMPLATE_FILE, chat_template_of, not_served, serve_command, serve_merged
from bandsearch.adapters.merge import add_adapter
from bandsearch.adapters.verify import require_sound
from bandsearch.models.aliases import resolve
from bandsearch.models.failures import quiet
from bandsearch.models.loading import load_model, stored_dtype, summarize
from bandsearch.models.tokenizer import load_tokenizer
from bandsearch.rundir import RunDirectory, disk_errors, require_disk
from bandsearch.values.environment import Environment
from bandsearch.values.errors import AdapterError, RunDirectoryError
from bandsearch.values.evaluation import Evaluation, Winner
from bandsearch.values.source import Source

# Of models that see or hear too.
PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
NONE_IS_FINE = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}


REMEDY = "Free some space, or choose a directory on another disk."


@dataclass(frozen=True)
class Exported:
    """`serving`: the command that serves it, or a sentence where vLLM serves no such adapters."""

    directory: Path
    serving: str


def export_run(directory: Path, destination: Path, *, merged: bool = False) -> Exported:
    """Copy a run's adapter to `destination`, which must not exist, after the structural pre-flight; or, `merged`, write
    the base with the adapter added to its weights. The model card there is written for that place.

    Raises AdapterError, FullDiskError, and ModelError where the base is not there.
    """
    home = RunDirectory.open(directory)
    winner = home.read(home.winner, Winner)
    if winner is None or not home.adapter.exists():
        raise RunDirectoryError(
            f"The run in {directory} has no adapter yet.", f"Go on with `bandsearch resume {directory}`."
        )
    if destination.exists():
        raise AdapterError(f"{destination} exists.", "Choose a new directory.")
    source = resolve(home.read_spec().model)
    summary = summarize(source)
    require_sound(home.adapter, summary.layout)
    dtype = stored_dtype(source)
    # Before anything is copied: what a copy of several files ends with does not say that the disk is full.
    copied = sum(file.stat().st_size for file in home.adapter.rglob("*"))
    require_disk(destination, summary.bytes_by_dtype[dtype] if merged else copied, REMEDY)
    with disk_errors(destination, REMEDY):
        fresh = destination.with_name(f".{destination.name}.partial")
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            if merged:
                _write_merged(source, dtype, home.adapter, fresh)
            else:
                shutil.copytree(home.adapter, fresh)
            card = _card(home, winner, destination, merged)
            if card:
                (fresh / CARD_FILE).write_text(card, encoding="utf-8")
            fresh.rename(destination)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    if merged:
        return Exported(destination, serve_merged(source, destination))
    command = serve_command(source, destination, winner.candidate.rank, chat_template=chat_template_of(destination))
    return Exported(destination, not_served(summary.layout, directory) or command)


def _write_merged(source: Source, dtype: str, adapter: Path, folder: Path) -> None:
    """The base in the dtype that it is stored in, whatever it was trained in, with its tokenizer and chat template."""
    model, tokenizer = load_model(source, dtype), load_tokenizer(source)
    add_adapter(model, adapter)
    template = chat_template_of(adapter)
    if template is not None:
        tokenizer.chat_template = template.read_text(encoding="utf-8")
    with suppress(OSError):
        # As the base has it: one that was changed since is held to more when it is saved.
        model.generation_config = GenerationConfig.from_pretrained(source.location, revision=source.revision)
    with quiet():
        model.save_pretrained(folder)
    for name in PROCESSOR_FILES:
        # Copied as they are: to load them takes what reads images.
        if found := cached_file(source.location, name, revision=source.revision, **NONE_IS_FINE):
            shutil.copy(found, folder)
    tokenizer.save_pretrained(folder)


def _card(home: RunDirectory, winner: Winner, destination: Path, merged: bool) -> str:
    """Nothing for a run whose environment does not say yet what its adapter comes from."""
    environment = home.read(home.environment, Environment)
    if environment is None or environment.lineage is None:
        return ""
    evaluation = home.read(home.evaluation, Evaluation)
    written = destination / CHAT_TEMPLATE_FILE if chat_template_of(home.adapter) else None
    return model_card(winner, environment.lineage, destination, evaluation, written, merged=merged)
