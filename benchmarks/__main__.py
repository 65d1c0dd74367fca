"""`python -m benchmarks`: run a study, write JSON and a table, print one line of JSON last."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks.benchmark import run
from benchmarks.scale import FULL, GPU, QUICK

OUT = Path(__file__).parents[1] / "results" / "benchmarks"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small, honest version, about ten minutes on two cores")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: sizes of Qwen2.5-7B, bf16")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the JSON and the table")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if arguments.device == "cuda":
        if arguments.quick:
            parser.error("--quick is for the CPU")
        study = GPU
    else:
        study = QUICK if arguments.quick else FULL
    print(run(study, arguments.device, arguments.out))


if __name__ == "__main__":
    main()
