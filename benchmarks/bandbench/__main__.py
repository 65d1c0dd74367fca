"""`python -m benchmarks.bandbench`: build the tables, or replay searches on them and say how the goals stand."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from pathlib import Path

from bandsearch.demo.tasks import TASKS
from bandsearch.values.errors import BandsearchError
from benchmarks.bandbench.build import build
from benchmarks.bandbench.design import Design
from benchmarks.bandbench.measured import load_measured, measure
from benchmarks.bandbench.page import page
from benchmarks.bandbench.probing import take_probes
from benchmarks.bandbench.replay import replay
from benchmarks.bandbench.summary import summarize
from benchmarks.bandbench.table import load_table

FOLDER = Path(__file__).parents[2] / "results" / "bandbench"
REPLAYS, NULL_REPLAYS = 50, 200
SUMMARY_MINUTES = 4.5


def main() -> int:
    arguments = _arguments()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return _build(arguments) if arguments.command == "build" else _summary(arguments)
    except BandsearchError as error:
        print(error, file=sys.stderr)
        return 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bandbench", description=__doc__)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--tasks", type=_words, default=tuple(TASKS), help="separated by commas; default: all")
    shared.add_argument("--out", type=Path, default=FOLDER, help="folder of the tables")
    commands = parser.add_subparsers(dest="command", required=True)
    design = Design()
    building = commands.add_parser("build", parents=[shared], help="train what the tables lack")
    building.add_argument("--ranks", type=_numbers, default=design.ranks)
    building.add_argument("--targets", type=_words, default=design.targets, help="attention, mlp, all")
    building.add_argument("--seeds", type=int, default=design.seeds)
    building.add_argument("--minutes", type=float, default=math.inf, help="stop after so many; what is there stays")
    reading = commands.add_parser("summary", parents=[shared], help="replay searches; the last line is one JSON object")
    reading.add_argument("--replays", type=int, default=REPLAYS, help="of every arm on every task")
    reading.add_argument("--null-replays", type=int, default=NULL_REPLAYS, help="for false wins, on the control task")
    reading.add_argument("--minutes", type=float, default=SUMMARY_MINUTES, help="begin no replay after so many")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.tasks) - set(TASKS)):
        parser.error(f"there is no demo task {unknown[0]!r}; choose from {', '.join(TASKS)}")
    return arguments


def _build(arguments: argparse.Namespace) -> int:
    design = Design(ranks=arguments.ranks, targets=arguments.targets, seeds=arguments.seeds)
    complete = build(arguments.out, arguments.tasks, design, arguments.minutes)
    if complete:
        for task in arguments.tasks:
            measure(arguments.out, task, design.habit)
            take_probes(arguments.out, task)
    print("The tables are complete." if complete else "The time is over; the same command goes on.")
    return 0


def _summary(arguments: argparse.Namespace) -> int:
    began = time.perf_counter()
    loaded = {task: load_table(arguments.out, task) for task in arguments.tasks}
    tables = {task: table for task, table in loaded.items() if table is not None}
    if not tables:
        print(f"There is no table in {arguments.out}; `make bandbench` builds them.", file=sys.stderr)
        return 2
    played = replay(
        arguments.out,
        list(tables),
        arguments.replays,
        null_tasks=[task for task, table in tables.items() if table.header.control],
        null_replays=arguments.null_replays,
        minutes=arguments.minutes,
    )
    summary = summarize(tables, played)
    known = {task: found for task in tables if (found := load_measured(arguments.out, task)) is not None}
    document = page(summary, tables, time.perf_counter() - began, known)
    (arguments.out / "summary.md").write_text(document)
    print(document)
    print(summary.line())
    return 0


def _words(written: str) -> tuple[str, ...]:
    return tuple(written.replace(",", " ").split())


def _numbers(written: str) -> tuple[int, ...]:
    return tuple(map(int, _words(written)))


if __name__ == "__main__":
    sys.exit(main())
