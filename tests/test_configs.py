from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.conftest import TINY, embed

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
OVERLAYS = sorted((Path(__file__).parents[1] / "configs" / "overlays").glob("*.yaml"))
# These need a teacher, larger images, two machines, packages: test_distillation.py, test_progressive.py, test_nodes.py,
# test_tracking.py.
RUN_ELSEWHERE = ("distill", "progressive", "multinode", "wandb", "mlflow")
FAST = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1"]
FAST += [
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--data.num_workers=0",
    "--data.batch_size=4",
]


@pytest.fixture
def stand_in(tmp_path, colours):
    """A local dataset with the splits that the configs name, as parquet files with embedded images."""
    folder = tmp_path / "dataset"
    for split in ("train", "validation", "test"):
        part = colours / ("train" if split == "train" else "test")
        embed(part, folder / f"{split}-0.parquet", ["blue", "green", "red"])
    return folder


# 16-mixed is for a GPU; on the CPU Lightning says so and takes bf16-mixed.
@pytest.mark.filterwarnings("ignore:You passed `Trainer.accelerator='cpu', precision='16-mixed':UserWarning")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_config_runs_a_step_on_a_stand_in(vitcls, config, stand_in, tiny_vit, colours, tmp_path):
    said = yaml.safe_load(config.read_text())
    words = ["fit", "--config", config, "--trainer.default_root_dir", tmp_path / "runs", *FAST]
    if "checkpoint" in said["model"]:
        words += ["--model.checkpoint", tiny_vit]
    if said["data"].get("dataset") not in (None, "digits"):
        words += ["--data.dataset", stand_in]
    if "dataset" not in said["data"]:
        words += ["--data.train_dir", colours / "train", "--data.test_dir", colours / "test"]
    status, out, err = vitcls(*words)
    assert status == 0, err
    run = tmp_path / "runs" / said["run_name"]
    assert out.splitlines()[-1] == f"run folder: {run}"
    assert (run / "model" / "config.json").is_file()
    words = ["test", "--ckpt_path", run, "--trainer.limit_test_batches=1", "--trainer.accelerator=cpu"]
    assert vitcls(*words, "--trainer.enable_progress_bar=false")[0] == 0


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_a_header_says_command_hardware_and_result(config):
    header = [line for line in config.read_text().splitlines() if line.startswith("#")]
    text = "\n".join(header)
    assert f"python -m vitcls fit --config configs/{config.name}" in text
    assert "Hardware:" in text
    assert "Result:" in text


@pytest.mark.parametrize("overlay", [p for p in OVERLAYS if p.stem not in RUN_ELSEWHERE], ids=lambda path: path.stem)
def test_every_overlay_goes_over_another_config(vitcls, overlay, tiny_vit, colours, tmp_path):
    text = overlay.read_text()
    assert f"--config configs/imagefolder.yaml --config configs/overlays/{overlay.name}" in text
    words = ["fit", "--config", CONFIGS[0].parent / "imagefolder.yaml", "--config", overlay, *FAST]
    words += ["--trainer.default_root_dir", tmp_path / "runs", "--model.checkpoint", tiny_vit]
    status, out, err = vitcls(*words, "--data.train_dir", colours / "train")
    assert status == 0, err
    assert out.splitlines()[-1] == f"run folder: {tmp_path / 'runs' / 'imagefolder'}"


def test_food101_is_the_published_recipe_on_all_classes():
    said = yaml.safe_load((CONFIGS[0].parent / "food101.yaml").read_text())
    assert said["model"]["checkpoint"] == "google/vit-base-patch16-224-in21k"
    adapter = said["model"]["adapter"]
    assert (adapter["r"], adapter["alpha"], adapter["dropout"]) == (16, 16, 0.1)
    assert adapter["targets"] == ["query", "value"]
    assert (said["model"]["lr"], said["data"]["batch_size"]) == (5e-3, 128)
    assert (said["trainer"]["accumulate_grad_batches"], said["trainer"]["precision"]) == (4, "16-mixed")


def test_the_networks_of_scratch_configs_load(vitcls, stand_in, tmp_path):
    """A network of another family is a model_type away."""
    swin = {"model_type": "swin", "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1]}
    swin |= {"num_heads": [2, 2], "window_size": 2}
    resnet = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}
    for name, architecture in {"vit": {"model_type": "vit", **TINY}, "swin": swin, "resnet": resnet}.items():
        file = tmp_path / f"{name}.yaml"
        image = {"size": 32, "resize_to": 32, "resize": "squash", "interpolation": "bilinear"}
        image |= {"mean": [0.5] * 3, "std": [0.5] * 3}
        file.write_text(yaml.safe_dump({"run_name": name, "model": {"architecture": architecture, "image": image}}))
        words = ["fit", "--config", file, "--data.dataset", stand_in, "--trainer.default_root_dir", tmp_path / "runs"]
        status, _, err = vitcls(*words, *FAST)
        assert status == 0, err


def test_an_image_can_be_grayscale_in_any_of_them(vitcls, fit_words, tmp_path, colours):
    gray = tmp_path / "gray"
    for file in sorted(colours.rglob("*.jpg")):
        (gray / file.relative_to(colours)).parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).convert("L").save(gray / file.relative_to(colours))
    assert vitcls(*fit_words, "--data.dataset", gray, "--trainer.max_epochs=1")[0] == 0
