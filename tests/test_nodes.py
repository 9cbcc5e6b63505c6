"""Trainings over two machines, which are namespaces of this one where it lets us make them."""

import csv
import json
import shutil
import signal
from pathlib import Path

import pytest
import torch
import yaml

from tests.hosts import train, train_elastic, two_hosts

OVERLAY = Path(__file__).parents[1] / "configs" / "overlays" / "multinode.yaml"
SAVE = {"class_path": "vitcls.callbacks.RunCheckpoint", "init_args": {"every_n_steps": 1}}


@pytest.fixture(scope="module")
def hosts():
    with two_hosts() as hosts:
        yield hosts


def with_callbacks(file: Path, *callbacks: dict) -> list[object]:
    file.write_text(yaml.safe_dump({"trainer": {"callbacks": list(callbacks)}}))
    return ["--config", file]


def kill(rank: int, step: int) -> dict:
    return {"class_path": "tests.killing.KillOnce", "init_args": {"rank": rank, "step": step}}


OF_ONE_PROCESS = ("train/data_wait", "train/loss_step")  # seconds; the loss of the first process's share of a batch


def curve(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return sorted(({k: v for k, v in row.items() if k not in OF_ONE_PROCESS} for row in rows), key=str)


def assert_same_training(one: Path, other: Path) -> None:
    """To float's tolerance: a sum over two processes has another order."""
    rows = [curve(run) for run in (one, other)]
    assert len(rows[0]) == len(rows[1]) > 4
    for a, b in zip(*rows, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    weights = [torch.load(run / "last.ckpt", weights_only=True)["state_dict"] for run in (one, other)]
    # The gradient of a key's bias is 0 but for rounding, as softmax sees no shift, and Adam divides by its size.
    for name, weight in ((name, weight) for name, weight in weights[0].items() if "k_proj.bias" not in name):
        torch.testing.assert_close(weight, weights[1][name], atol=1e-5, rtol=0)


def only_sentence(out: str) -> str:
    told = [line for line in out.splitlines() if line.startswith("vitcls: ")]
    assert len(told) == 1, out
    assert "Traceback" not in out
    return told[0]


@pytest.fixture
def one_process(vitcls, fit_words, tmp_path) -> Path:
    """A run of three epochs with 16 images in a step."""
    status, _, err = vitcls(*fit_words, "--trainer.max_epochs=3", "--trainer.log_every_n_steps=1", "--run_name=one")
    assert status == 0, err
    return tmp_path / "runs" / "one"


def halved(fit_words: list[str]) -> list[object]:
    return [*fit_words, "--data.batch_size=8", "--trainer.max_epochs=3", "--trainer.log_every_n_steps=1"]


def test_two_nodes_train_as_one_process_does_and_only_the_first_writes(one_process, fit_words, tmp_path, hosts):
    words = [*halved(fit_words), "--config", OVERLAY, "--run_name=two"]
    record = {"class_path": "tests.killing.KeepWrites", "init_args": {"folder": str(tmp_path)}}
    words += with_callbacks(tmp_path / "record.yaml", record)
    second = [*words, f"--trainer.default_root_dir={tmp_path / 'runs-b'}"]
    statuses, outs = train(hosts, [words, second], tmp_path / "log")
    assert statuses == [0, 0], outs
    assert_same_training(one_process, tmp_path / "runs" / "two")
    assert not (tmp_path / "runs-b").exists()
    written = [json.loads((tmp_path / f"writes.{rank}.json").read_text()) for rank in (0, 1)]
    assert any("last.ckpt" in file for file in written[0])
    assert written[1] == []
    assert [line for line in outs[1].splitlines() if "[c10d]" not in line] == []


def test_a_killed_process_ends_the_other_with_a_sentence(fit_words, tmp_path, hosts):
    words = [*halved(fit_words), *with_callbacks(tmp_path / "kill.yaml", kill(rank=1, step=2))]
    statuses, outs = train(hosts, [words, words], tmp_path / "log")
    assert statuses == [1, -signal.SIGKILL], outs
    assert "another one of the training was killed, failed or cannot be reached (" in only_sentence(outs[0])


def test_torchrun_restarts_what_was_killed_from_its_last_checkpoint(one_process, fit_words, tmp_path, hosts):
    words = [*halved(fit_words), "--run_name=two", "--resume=true"]
    words += with_callbacks(tmp_path / "kill.yaml", SAVE, kill(rank=1, step=6))
    statuses, outs = train_elastic(hosts, words, tmp_path / "log", restarts=1)
    assert statuses == [0, 0], outs
    assert "was killed, failed" in outs[0]
    assert [path.name for path in sorted((tmp_path / "runs").iterdir())] == ["one", "two"]
    assert_same_training(one_process, tmp_path / "runs" / "two")


def test_each_node_fetches_the_data_and_builds_the_cache_once(fit_words, tmp_path, hosts):
    """With two processes on each, and disks of their own."""
    record = {"class_path": "tests.killing.KeepWrites", "init_args": {"folder": str(tmp_path)}}
    words = [*fit_words, "--data.cache=raw", "--trainer.max_epochs=1", "--trainer.limit_train_batches=1"]
    words += with_callbacks(tmp_path / "record.yaml", record)
    caches = [tmp_path / "hf-a", tmp_path / "hf-b"]
    statuses, outs = train(hosts, [words, words], tmp_path / "log", local=2, caches=caches)
    assert statuses == [0] * 4, outs
    written = [json.loads((tmp_path / f"writes.{rank}.json").read_text()) for rank in range(4)]
    for node in (0, 1):
        of_node = written[2 * node : 2 * node + 2]
        assert sum(file.endswith(".arrow") for file in of_node[0]) > 0
        assert not any(file.endswith(".arrow") for file in of_node[1])
        built = [file for files in of_node for file in files if Path(file).name == "images.bin"]
        assert len(built) == 2


def test_a_node_without_the_data_or_with_other_data_is_named(fit_words, tmp_path, colours, hosts):
    lost = [*fit_words, f"--data.dataset={tmp_path / 'nowhere'}"]
    statuses, outs = train(hosts, [fit_words, lost], tmp_path / "log")
    assert statuses == [2, 2], outs
    told = only_sentence(outs[0])
    assert told.startswith(f"vitcls: On {hosts[1].name}, though not everywhere: ")
    assert "nowhere" in told
    shutil.copytree(colours, tmp_path / "colours")
    (tmp_path / "colours" / "train" / "red" / "000.jpg").unlink()
    other = [*fit_words, f"--data.dataset={tmp_path / 'colours'}"]
    statuses, outs = train(hosts, [fit_words, other], tmp_path / "log")
    assert statuses == [2, 2], outs
    assert "The data is not the same in all processes" in only_sentence(outs[0])


def test_a_resume_needs_the_checkpoint_on_all_nodes(one_process, fit_words, tmp_path, hosts):
    words = [*fit_words, "--run_name=one", "--resume=true", "--trainer.max_epochs=4"]
    second = [*words, f"--trainer.default_root_dir={tmp_path / 'runs-b'}"]
    statuses, outs = train(hosts, [words, second], tmp_path / "log")
    assert statuses == [2, 2], outs
    told = only_sentence(outs[0])
    assert not (tmp_path / "runs-b").exists()
    assert f"last.ckpt of step 12 on {hosts[0].name} (process 0), none on {hosts[1].name} (process 1)" in told


def torchrun(monkeypatch, **variables: object) -> None:
    """The variables of one of two processes, one on each of two nodes."""
    said = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 1, "GROUP_WORLD_SIZE": 2}
    for name, value in {"TORCHELASTIC_RUN_ID": "test", **said, **variables}.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(
    ("variables", "words", "sentence"),
    [
        ({}, ["--trainer.num_nodes=3"], "--trainer.num_nodes is 3, but torchrun started 2 processes on 2 node(s)"),
        ({}, ["--trainer.devices=2"], "You set `devices=2` and `num_nodes=2`"),
        ({"WORLD_SIZE": 3}, [], "give each node the same --nproc_per_node"),
        ({"TORCHELASTIC_MAX_RESTARTS": 1}, [], "add --resume true"),
    ],
)
def test_what_contradicts_torchrun_is_refused(refuses, fit_words, monkeypatch, tmp_path, variables, words, sentence):
    torchrun(monkeypatch, **variables)
    assert sentence in refuses(*fit_words, *words)
    assert not list(tmp_path.glob("runs/*"))


def test_tasks_of_slurm_that_would_train_alone_are_refused(refuses, fit_words, monkeypatch):
    for name, value in {
        "NTASKS": 2,
        "NTASKS_PER_NODE": 2,
        "NNODES": 1,
        "STEP_ID": 0,
        "PROCID": 0,
        "LOCALID": 0,
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    assert "`--ntasks-per-node=2` does not match" in refuses(*fit_words, "--trainer.devices=1")


def test_the_first_process_of_a_node_tells_what_it_alone_knows(vitcls, fit_words, monkeypatch):
    torchrun(monkeypatch, RANK=1)
    status, _, err = vitcls(*fit_words, "--config=nowhere.yaml")
    assert status == 2
    assert "there is no file" in only_sentence(err)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert "vitcls:" not in vitcls(*fit_words, "--config=nowhere.yaml")[2]


def test_predictions_need_a_folder_that_all_nodes_see(one_process, colours, tmp_path, hosts):
    words = ["predict", "--ckpt_path", one_process, f"--data.predict={colours / 'test'}", "--data.num_workers=0"]
    words += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
    outputs = [tmp_path / node / "out.csv" for node in "ab"]
    for output in outputs:
        output.parent.mkdir()
    statuses, outs = train(hosts, [[*words, f"--output={output}"] for output in outputs], tmp_path / "log")
    assert statuses == [2, 2], outs
    assert "must be on a disk that all machines see" in only_sentence(outs[0])
    assert not list(tmp_path.glob("[ab]/.out*"))
    statuses, outs = train(hosts, [[*words, f"--output={outputs[0]}"]] * 2, tmp_path / "log")
    assert statuses == [0, 0], outs
    assert len(outputs[0].read_text().splitlines()) == 1 + 21
