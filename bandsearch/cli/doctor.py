"""The doctor: is this machine ready, and what to do where it is not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from bandsearch.cli.options import Json
from bandsearch.cli.output import json_only
from bandsearch.engine.machine import usable_cores, usable_memory

PACKAGES = (
    *("torch", "transformers", "peft", "optuna", "ray", "datasets", "lm_eval"),
    *("accelerate", "safetensors", "scipy", "numpy", "pydantic", "typer", "rich"),
)
# What else can be installed, and for what it is needed.
OPTIONAL = {
    "bitsandbytes": "for bases in 4 bits: pip install 'bandsearch[qlora]'",
    "liger-kernel": "for fused kernels on a GPU: pip install 'bandsearch[liger]'",
    "vllm": "for verify --runtime vllm and to serve",
}
GB = 1e9
NOT_READY = 1
MACHINE = Path("/")
HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Check:
    name: str
    level: Level
    finding: str
    remedy: str = ""


def doctor(json: Json = False) -> None:
    """Look at this machine: packages, GPUs, memory, disk, caches. Exit code 1 if something would stop a run.

    \b
    Examples:
      bandsearch doctor
      bandsearch doctor --json
    """
    checks = []
    if json:
        with json_only() as write:
            for check in examine():
                checks.append(check)
                write(asdict(check))
    else:
        console = Console()
        colours = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}
        for check in examine():
            checks.append(check)
            remedy = f" [dim]{escape(check.remedy)}[/dim]" if check.remedy else ""
            mark = f"[{colours[check.level]}]{check.level:<4}[/]"
            console.print(f"{mark}  {check.name:<13} {escape(check.finding)}{remedy}", highlight=False, soft_wrap=True)
    if any(check.level is Level.FAIL for check in checks):
        raise typer.Exit(NOT_READY)


def examine() -> Iterator[Check]:
    """Every check, in the order a person would want to read them."""
    yield Check("python", Level.OK, platform.python_version())
    for package in PACKAGES:
        yield _package(package, Level.FAIL, "not installed", "Install bandsearch again: pip install .")
    yield _gpus()
    yield _cores()
    yield _memory()
    yield _disk("disk here", Path.cwd(), 1.0, "Free some space, or put runs elsewhere with --out.")
    yield _shared_memory()
    yield _writable()
    yield from _hub()
    for package, purpose in OPTIONAL.items():
        yield _package(package, Level.OK, f"not installed; needed only {purpose}")


def _package(name: str, level: Level, missing: str, remedy: str = "") -> Check:
    try:
        return Check(name, Level.OK, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, level, missing, remedy)


def _gpus() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check("gpus", Level.FAIL, "unknown without torch", "Install bandsearch again: pip install .")
    import torch

    if not torch.cuda.is_available():
        build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for no CUDA"
        return _without_gpus(f"for ROCm {torch.version.hip}" if torch.version.hip else build)
    found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    built = torch.cuda.get_arch_list()
    for gpu in found if torch.version.cuda else ():
        if built and not any(runs_on(each, gpu.major, gpu.minor) for each in built):
            return Check(
                "gpus",
                Level.FAIL,
                f"torch is not built for {gpu.name} (sm_{gpu.major}{gpu.minor}), only for {', '.join(built)}",
                "Install a torch build that names it: pytorch.org/get-started; for old GPUs an older torch. Without it "
                "set CUDA_VISIBLE_DEVICES to the others, or to nothing.",
            )
    return Check("gpus", Level.OK, ", ".join(f"{gpu.name}, {gpu.total_memory / GB:.0f} GB" for gpu in found))


def runs_on(built: str, major: int, minor: int) -> bool:
    """Whether a GPU of this compute capability runs what torch was built for as `built`, such as sm_90 or compute_120.

    Machine code (sm) runs on its own major version from its minor version on; PTX (compute) is compiled by the driver
    for whatever is newer. What ends with an "a" runs nowhere else, and with an "f" within its family.
    """
    parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", built)
    if parts is None:
        return False
    kind, own_major, own_minor, only = parts[1], int(parts[2]), int(parts[3]), parts[4]
    if only == "a":
        return (own_major, own_minor) == (major, minor)
    if kind == "compute" and not only:
        return (own_major, own_minor) <= (major, minor)
    return own_major == major and own_minor <= minor


def _without_gpus(build: str) -> Check:
    """Where torch, of this build, sees none: is there one all the same? Runs would take the cores without a word."""
    cores = "runs use the cores (give budgets as 2cpu-h or 45min)"
    hidden = [name for name in HIDING if os.environ.get(name, "0") in ("", "-1")]
    if hidden:
        return Check("gpus", Level.OK, f"hidden by {hidden[0]}; {cores}")
    nodes = [node for node in (MACHINE / "dev/nvidia0", MACHINE / "dev/kfd") if node.exists()]
    driver = _driver()
    if nodes:
        finding = f"torch cannot use the GPU at {nodes[0]}: it is built {build}{driver}; {cores}"
        remedy = (
            "Install the torch build that fits: pytorch.org/get-started; of CUDA, nvidia-smi names the newest that "
        )
        return Check("gpus", Level.FAIL, finding, f"{remedy}the driver runs.")
    if driver or shutil.which("nvidia-smi"):
        finding = f"none visible, but there is a driver (torch is built {build}{driver}); {cores}"
        return Check("gpus", Level.WARN, finding, "In a container, start it with --gpus all.")
    return Check("gpus", Level.OK, f"none visible; {cores}")


def _driver() -> str:
    """Nvidia's, in words that follow others; nothing where there is none."""
    try:
        text = (MACHINE / "proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    version = re.search(r"\d+\.\d+(\.\d+)?", text)
    return f", the driver is {version.group()}" if version else ", the driver is Nvidia's"


def _cores() -> Check:
    return Check("cores", Level.OK, f"{usable_cores()} usable of {os.cpu_count()}")


def _memory() -> Check:
    page = os.sysconf("SC_PAGE_SIZE")
    total, there = usable_memory() / GB, page * os.sysconf("SC_PHYS_PAGES") / GB
    free = f", {page * os.sysconf('SC_AVPHYS_PAGES') / GB:.1f} GB of it unused" if sys.platform == "linux" else ""
    finding = f"{total:.1f} GB{free}" if total == there else f"{total:.1f} GB for this container, of {there:.1f} GB"
    if total < 3:
        return Check("memory", Level.WARN, finding, "The demo needs about 3 GB; larger models need more.")
    return Check("memory", Level.OK, finding)


def _disk(name: str, path: Path, least: float, remedy: str) -> Check:
    free = shutil.disk_usage(path).free / GB
    finding = f"{free:.1f} GB free"
    return Check(name, Level.WARN, finding, remedy) if free < least else Check(name, Level.OK, finding)


def _shared_memory() -> Check:
    path = Path("/dev/shm")
    if not path.is_dir():
        return Check("/dev/shm", Level.WARN, "not there", "Ray falls back to files in /tmp, which is slower.")
    return _disk("/dev/shm", path, 0.2, "In a container, start it with --shm-size=1g.")


def _writable() -> Check:
    try:
        with tempfile.NamedTemporaryFile(dir=Path.cwd(), prefix=".bandsearch-"):
            return Check("this folder", Level.OK, "can be written")
    except OSError as error:
        return Check("this folder", Level.WARN, f"cannot be written: {error.strerror}", "Give runs a place with --out.")


def _hub() -> Iterator[Check]:
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    cached = len(list(cache.glob("models--*")))
    yield Check("hub cache", Level.OK, f"{cache}, {cached} model(s)")
    offline = [
        name for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(name, "0") not in ("0", "")
    ]
    if offline:
        yield Check(
            "hub access", Level.WARN, f"off ({', '.join(offline)})", "Only cached and local models and data are found."
        )
    else:
        yield Check("hub access", Level.OK, "on")
