"""`python -m benchmarks`: run a study, write JSON and a table, print one line of JSON last."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.benchmark import run
from benchmarks.scale import FULL, GPU, GPU_QUICK, QUICK

OUT = Path(__file__).parents[1] / "results" / "benchmarks"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small, honest version, about ten minutes")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: sizes of Qwen2.5-7B, bf16")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the JSON and the table")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    full, quick = (GPU, GPU_QUICK) if arguments.device == "cuda" else (FULL, QUICK)
    study = quick if arguments.quick else full
    print(run(study, arguments.device, arguments.out))


if __name__ == "__main__":
    main()
