"""The configurations for GPUs and clusters are well formed. That they train anywhere no test here can show."""

import re
import shlex
import subprocess

import pytest
from doc_blocks import ROOT, blocks_of, check_arguments, command_lines, our_arguments, yaml_of

CLUSTER = ROOT / "docs" / "cluster"
CONFIGS = sorted(CLUSTER.glob("*_node*.yaml"))
SBATCH = CLUSTER / "pretrain.sbatch"


def _sbatch_launch() -> str:
    """The launcher's line of the Slurm script, as the first of its two nodes would see it."""
    found = re.search(r"srun [^\n]*bash -c '(.*?)'", SBATCH.read_text(), re.DOTALL)
    slurm = {"SLURM_NNODES": "2", "SLURM_NODEID": "0", "GPUS": "8", "HEAD": "node1", "STORE": "store", "OUT": "run"}
    run = subprocess.run(
        ["bash", "-euc", f"accelerate() {{ printf '%s\\0' accelerate \"$@\"; }}; {found[1]}"],
        env=slurm | {"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    return shlex.join(run.stdout.split("\0")[:-1])


def _launches() -> list[str]:
    lines = [line for block in blocks_of(ROOT / "docs" / "pretraining.md") for line in command_lines(block)]
    return [*(line for line in lines if line.startswith("accelerate launch")), _sbatch_launch()]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_accelerate_takes_a_configuration(path):
    pytest.importorskip("accelerate")
    from accelerate.commands.config.config_args import load_config_from_file

    # It refuses unknown keys.
    config = load_config_from_file(str(path))
    assert config.distributed_type.value == "MULTI_GPU"
    assert config.num_processes == yaml_of(path)["num_processes"]


@pytest.mark.parametrize("line", _launches())
def test_a_launch_names_its_configuration_and_keeps_the_published_batch(line, monkeypatch):
    pytest.importorskip("accelerate")
    from accelerate.commands.launch import launch_command_parser

    from ecgfm_hf.training import read_recipe
    from ecgfm_hf.training.settings import PUBLISHED_EFFECTIVE_BATCH

    options = launch_command_parser().parse_args(shlex.split(line)[2:])
    config = yaml_of(ROOT / options.config_file)
    assert options.training_script == "scripts/pretrain.py"
    assert (ROOT / options.training_script).is_file()

    _, _, recipe, *changes = our_arguments(line)
    settings = read_recipe(recipe, changes)
    assert settings.processes == config["num_processes"]
    assert options.num_processes in (None, config["num_processes"])
    assert options.num_machines in (None, config["num_machines"])
    assert settings.effective_batch(settings.processes) == PUBLISHED_EFFECTIVE_BATCH


def test_the_slurm_script_asks_for_what_it_starts():
    subprocess.run(["bash", "-n", SBATCH], check=True)
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)$", SBATCH.read_text(), re.MULTILINE))
    config = yaml_of(CLUSTER / "several_nodes.yaml")
    assert int(asked["nodes"]) == config["num_machines"]
    assert int(asked["nodes"]) * int(asked["gpus-per-node"]) == config["num_processes"]
    assert asked["ntasks-per-node"] == "1"


def test_commands_on_a_ray_cluster_have_options_that_exist():
    text = (CLUSTER / "predict.sbatch").read_text()
    subprocess.run(["bash", "-n", CLUSTER / "predict.sbatch"], check=True)
    script = re.search(r"bash -c '(.*?)'", text, re.DOTALL)[1]
    subprocess.run(["bash", "-nc", script], check=True)
    (line,) = re.findall(r"ecgfm predict .*", script)
    job = yaml_of(CLUSTER / "rayjob.yaml")["spec"]
    for command in (line, job["entrypoint"]):
        check_arguments(our_arguments(command))
    head, (workers,) = (job["rayClusterSpec"][name] for name in ("headGroupSpec", "workerGroupSpecs"))
    (image,) = {pod["template"]["spec"]["containers"][0]["image"] for pod in (head, workers)}
    assert image


def test_the_table_of_batches_multiplies():
    rows = re.findall(
        r"^\| .*? \| (\d+) \| (\d+) \| (\d+) \| ([\d,]+) \|$", (ROOT / "docs/pretraining.md").read_text(), re.M
    )
    assert len(rows) == 3
    for processes, batch, accumulation, segments in rows:
        assert int(processes) * int(batch) * int(accumulation) == int(segments.replace(",", ""))
