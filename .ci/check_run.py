"""Look at what a run left and recompute its claims from the files. Exit 1 with the first thing that is wrong."""

import json
import sys
from pathlib import Path

from safetensors.numpy import load_file

EXPECTED = (
    "spec.yaml environment.json plan.json profile.json trials.jsonl study.db ledger.jsonl "
    "winner.json adapter evaluation.json report.html report.md events.jsonl"
).split()


def check(run: Path) -> list[str]:
    missing = [name for name in EXPECTED if not (run / name).exists()]
    if missing:
        return [f"missing: {', '.join(missing)}"]
    wrong = []
    winner = json.loads((run / "winner.json").read_text())
    evaluation = json.loads((run / "evaluation.json").read_text())
    trials = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]
    ledger = [json.loads(line) for line in (run / "ledger.jsonl").read_text().splitlines()]
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")

    layers = {layer for band in winner["candidate"]["bands"] for layer in range(band["start"], band["stop"])}
    adapted = {int(part) for name in tensors for part in name.split(".") if part.isdigit()}
    if adapted != layers:
        wrong.append(f"the adapter sits on layers {sorted(adapted)}, the winner on {sorted(layers)}")
    if not any(abs(tensor).max() > 0 for name, tensor in tensors.items() if "lora_B" in name):
        wrong.append("the adapter was not trained: every B is zero")
    mean = {}
    for arm in evaluation["arms"]:
        tokens = sum(example["supervised_tokens"] for example in arm["examples"])
        mean[arm["arm"]] = sum(each["loss"] * each["supervised_tokens"] for each in arm["examples"]) / tokens
    if not mean["winner"] < mean["base"]:
        wrong.append(f"the winner's test loss {mean['winner']:.4f} is not below the base's {mean['base']:.4f}")
    for comparison in evaluation["comparisons"]:
        if comparison["metric"] == "loss":
            difference = mean[comparison["arm"]] - mean[comparison["reference"]]
            if abs(difference - comparison["difference"]["mean"]) > 1e-6:
                wrong.append(f"{comparison['arm']} - {comparison['reference']}: {difference} recomputed")
    kept = {arm["arm"]: arm["retention"] for arm in evaluation["arms"] if arm["retention"]}
    if kept and any(kept["base"]["divergences"]):
        wrong.append("the base diverges from itself")
    for metric, field in (("retention_loss", "losses"), ("divergence", "divergences")):
        for comparison in (each for each in evaluation["comparisons"] if each["metric"] == metric):
            pairs = list(zip(kept[comparison["arm"]][field], kept[comparison["reference"]][field], strict=False))
            difference = sum(ours - theirs for ours, theirs in pairs) / len(pairs)
            if abs(difference - comparison["difference"]["mean"]) > 1e-6:
                wrong.append(f"{metric} of {comparison['arm']} - {comparison['reference']}: {difference} recomputed")
    if not any(trial["stage"] == "search" for trial in trials):
        wrong.append("nothing was searched")
    if len({(t["number"], t["stage"], t["seed"]) for t in trials}) != len(trials):
        wrong.append("a trial is recorded twice")
    limit = json.loads((run / "plan.json").read_text())["wall_seconds"]
    if limit is not None and ledger[-1]["spent"] / ledger[-1]["devices"] > limit * 1.02:
        wrong.append(f"spent {ledger[-1]['spent']} device-seconds of {limit} wall seconds")
    if "http" in (run / "report.html").read_text().replace("http://localhost", "").replace("http://www.w3.org", ""):
        wrong.append("the report reaches for the network")
    return wrong


if __name__ == "__main__":
    mistakes = check(Path(sys.argv[1]))
    for mistake in mistakes:
        print(f"wrong: {mistake}")
    print(f"{1 - bool(mistakes)} passed, {int(bool(mistakes))} failed")
    sys.exit(bool(mistakes))
