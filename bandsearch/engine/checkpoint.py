"""Sessions on disk: one safetensors file with everything needed to go on bit for bit, written all or nothing."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from bandsearch.engine.session import Session
from bandsearch.rundir import replacing
from bandsearch.values.candidate import Candidate
from bandsearch.values.errors import RunDirectoryError
from bandsearch.values.fidelity import Fidelity


def write_session(session: Session, path: Path) -> None:
    """Write the file `path`; where that fails or is broken off, what was there before is still there."""
    tensors = {f"adapter/{name}": tensor for name, tensor in session.tensors().items()}
    tensors |= {f"moments/{name}": tensor.contiguous() for name, tensor in session.moments().items()}
    facts = {
        "candidate": session.candidate.model_dump(mode="json"),
        "fidelity": session.fidelity.model_dump(mode="json"),
        "step": session.step,
        "seconds": session.seconds,
        "train_losses": session.train_losses,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        # What safetensors writes itself tells of a full disk without its errno.
        file.write(save(tensors, metadata={"session": json.dumps(facts)}))


def read_session(name: str, path: Path, device: torch.device) -> Session:
    """Raises RunDirectoryError for a file that is not there, or is not whole."""
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["session"])
            stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        raise RunDirectoryError(
            f"The checkpoint {path} cannot be read ({error}).",
            f"Delete the folder {path.parent}; when the run goes on, what it holds is trained again.",
        ) from error

    def under(prefix: str) -> dict[str, torch.Tensor]:
        return {key.removeprefix(prefix): tensor for key, tensor in stored.items() if key.startswith(prefix)}

    session = Session.of(
        name,
        Candidate.model_validate(facts["candidate"]),
        Fidelity.model_validate(facts["fidelity"]),
        under("adapter/"),
        device,
    )
    session.step, session.seconds, session.train_losses = facts["step"], facts["seconds"], facts["train_losses"]
    session.load_moments(under("moments/"))
    return session
