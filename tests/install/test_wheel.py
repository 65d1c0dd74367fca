"""`pip install .` is enough: the wheel carries search spaces and the embedded model, and works in an empty place."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(out)]
    subprocess.run([*build, str(REPOSITORY)], check=True, capture_output=True)
    return next(out.glob("bandsearch-*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel alone; its dependencies are borrowed from this one."""
    home = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    interpreter = home / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    borrowed = next(home.glob("lib/python*/site-packages")) / "borrowed.pth"
    borrowed.write_text(sysconfig.get_paths()["purelib"] + "\n")
    return interpreter


def run(python: Path, cwd: Path, *arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [str(python), *arguments], check=True, capture_output=True, text=True, cwd=cwd, env=environment
    ).stdout


def test_the_wheel_holds_everything_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "bandsearch/search_spaces/default.yaml" in names
    assert "bandsearch/demo/model/model.safetensors" in names
    assert "bandsearch/demo/lm_eval/demo_two_step.yaml" in names
    assert not [name for name in names if not name.startswith(("bandsearch/", "bandsearch-"))]
    assert wheel.stat().st_size < 16 * 2**20


def test_spaces_model_and_tasks_are_found_outside_the_repository(python: Path, tmp_path: Path) -> None:
    program = (
        "import json, bandsearch\n"
        "from bandsearch.spaces import load_space, space_names\n"
        "from bandsearch.models.aliases import resolve\n"
        "from bandsearch.models.loading import load_model\n"
        "from bandsearch.values.spec import ModelSpec\n"
        "spaces = [load_space(name).name for name in space_names()]\n"
        "model = load_model(resolve(ModelSpec(name='demo')))\n"
        "print(json.dumps([bandsearch.__file__, spaces, model.num_parameters()]))"
    )
    where, spaces, parameters = json.loads(run(python, tmp_path, "-c", program).splitlines()[-1])
    assert Path(where).is_relative_to(python.parents[1])
    assert {"default", "mid_block", "attention_only", "wide", "quick"} <= set(spaces)
    assert parameters > 1e5


def test_the_command_is_installed(python: Path, tmp_path: Path) -> None:
    command = python.with_name("bandsearch")
    assert "run" in run(command, tmp_path, "--help")
