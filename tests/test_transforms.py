from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torchvision.transforms import v2

from vitcls.data.collate import collate
from vitcls.data.datamodule import ImageDataModule
from vitcls.data.preprocess import ImageSpec
from vitcls.data.rows import FileImages, ImageRows
from vitcls.data.sampling import Draw
from vitcls.data.transforms import listed_transform, train_transform
from vitcls.errors import UserError
from vitcls.models.classifier import ViTClassifier
from vitcls.types import Sample

HALF = (0.5, 0.5, 0.5)
SPEC = ImageSpec(32, 32, "squash", "bilinear", HALF, HALF)
CROP = {"crop_scale": (0.08, 1.0), "crop_ratio": (3 / 4, 4 / 3), "flip": 0.5}


def noise(height: int = 50, width: int = 70) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8))


@pytest.mark.parametrize("augment", ["none", "light", "standard", "strong"])
@pytest.mark.parametrize("shape", [(50, 70), (1, 1), (3, 200), (32, 32)])
def test_every_preset_gives_what_the_network_takes(augment, shape):
    transform = train_transform(spec=SPEC, augment=augment, **CROP)
    for seed in range(8):
        torch.manual_seed(seed)
        pixels = transform(noise(*shape))
        assert (pixels.shape, pixels.dtype) == ((3, 32, 32), torch.uint8)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(50, 70), (300, 200), (1, 1), (3, 200)])
def test_light_draws_and_gives_what_torchvision_does(interpolation, shape):
    spec = replace(SPEC, interpolation=interpolation)
    ours = train_transform(spec=spec, augment="light", **CROP)
    crop = v2.RandomResizedCrop(32, CROP["crop_scale"], CROP["crop_ratio"], spec.mode, antialias=True)
    theirs = v2.Compose([crop, v2.RandomHorizontalFlip(0.5)])
    decoded = noise(*shape).permute(1, 2, 0).contiguous().permute(2, 0, 1)  # as `decode` leaves it
    for seed in range(20):
        torch.manual_seed(seed)
        pixels, after = ours(decoded), torch.rand(1)
        torch.manual_seed(seed)
        assert torch.equal(pixels, theirs(noise(*shape)))
        assert after == torch.rand(1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("views", [(), (5,)])
def test_a_batch_is_the_same_however_its_images_lie_in_memory(layout, views):
    images = torch.randint(0, 256, (4, *views, 3, 8, 6), dtype=torch.uint8)
    laid = images if layout == torch.contiguous_format else images.movedim(-3, -1).contiguous().movedim(-1, -3)
    batch = collate([Sample(image, 0, 0) for image in laid])["pixel_values"]
    assert torch.equal(batch, images)
    normalised = SPEC.normalise(batch)
    assert torch.equal(normalised, SPEC.normalise(images))
    assert normalised.is_contiguous()


def test_presets_are_stronger_one_by_one():
    """Distance of an augmented image to the same crop without the preset's extra operations."""
    mean = {}
    for augment in ("light", "standard", "strong"):
        transform = train_transform(spec=SPEC, augment=augment, crop_scale=(1, 1), crop_ratio=(1, 1), flip=0)
        torch.manual_seed(0)
        pixels = [transform(noise(32, 32)).float() for _ in range(40)]
        mean[augment] = torch.stack([(p - noise(32, 32)).abs().mean() for p in pixels]).mean()
    assert mean["light"] == 0
    assert min(mean["standard"], mean["strong"]) > 5


def test_no_augmentation_is_the_evaluation():
    assert torch.equal(train_transform(spec=SPEC, augment="none", **CROP)(noise()), SPEC.eval_transform(noise()))


NAMED = [
    {"name": "RandomResizedCrop", "size": 32, "interpolation": "bicubic"},
    {"name": "ColorJitter", "brightness": 0.4},
    {"name": "TrivialAugmentWide"},
    {"name": "AugMix"},
    {"name": "RandomErasing", "p": 1.0},
]


def test_a_list_of_torchvisions_transforms_is_taken_by_name():
    assert listed_transform(NAMED, 32)(noise()).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("entries", "part"),
    [
        ([{"name": "RandomResizeCrop", "size": 32}], "did you mean 'RandomResizedCrop'?"),
        ([{"size": 32}], "its name must be that of a transform"),
        ([{"name": "RandomResizedCrop"}], "it takes size, scale, ratio"),
        ([{"name": "RandomResizedCrop", "size": 32, "interpolation": "best"}], "one of nearest"),
        ([{"name": "ColorJitter", "brightness": -1}], "ColorJitter refuses {'brightness': -1}"),
        ([{"name": "RandomHorizontalFlip"}], "let one of them, such as {name: RandomResizedCrop, size: 32}"),
        ([{"name": "Resize", "size": [32, 32]}, {"name": "ToDtype", "dtype": torch.float32}], "leave normalising"),
    ],
)
def test_a_list_that_cannot_be_is_a_sentence(entries, part):
    with pytest.raises(UserError) as told:
        listed_transform(entries, 32)(noise())
    assert part in str(told.value)


def test_a_listed_transform_trains_and_is_kept(vitcls, refuses, fit_words, tmp_path):
    words = "--data.transforms=[{name: RandomResizedCrop, size: 32}, {name: AugMix}]"
    assert vitcls(*fit_words, words)[0] == 0
    assert vitcls("validate", "--ckpt_path", tmp_path / "runs" / "run")[0] == 0
    assert "did you mean 'AugMix'" in refuses(*fit_words, "--data.transforms=[{name: AugMax}]")
    for entry in ("{name: Normalize, mean: [0], std: [1]}", "{name: MixUp, num_classes: 3}", "{name: Grayscale}"):
        words = (f"--data.transforms=[{entry}]", "--data.num_workers=1")
        assert "--data.transforms" in refuses(*fit_words, *words)


@pytest.fixture
def batches(tiny_vit, colours):
    """All pixels and ids of one epoch of training batches."""

    def take(workers: int, seed: int, epoch: int = 0, **arguments) -> tuple[torch.Tensor, torch.Tensor]:
        seed_everything(seed, verbose=False)
        data = ImageDataModule(str(colours), batch_size=16, num_workers=workers, **arguments)
        trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
        data.trainer = trainer
        trainer.strategy.connect(ViTClassifier(str(tiny_vit)))
        trainer.state.fn = "fit"
        data.setup("fit")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)
        found = list(loader)
        return torch.cat([b["pixel_values"] for b in found]), torch.cat([b["ids"] for b in found])

    return take


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("arguments", [{}, {"augment": "strong", "repeats": 2}, {"sampling": "balanced"}], ids=str)
def test_the_seed_and_the_epoch_alone_decide_the_batches(batches, arguments):
    pixels, ids = batches(0, seed=1, **arguments)
    for workers in (1, 3):
        others, other_ids = batches(workers, seed=1, **arguments)
        assert torch.equal(ids, other_ids)
        assert torch.equal(pixels, others)
    for other in (batches(0, seed=2, **arguments), batches(0, seed=1, epoch=1, **arguments)):
        assert not torch.equal(ids, other[1])


def test_an_image_that_is_drawn_twice_is_augmented_twice(batches):
    pixels, ids = batches(0, seed=1, repeats=3)
    assert sorted(ids.tolist()) == sorted(3 * sorted(set(ids.tolist())))
    same = pixels[ids == ids[0]]
    assert len(same) == 3
    assert not torch.equal(same[0], same[1])


def test_drawing_leaves_the_generator_of_the_process_alone(colours):
    """Dropout must not follow from the images' seeds."""
    transform = train_transform(spec=SPEC, augment="strong", **CROP)
    rows = ImageRows(FileImages(sorted((colours / "test").rglob("*.jpg"))), transform)
    before = torch.get_rng_state()
    first = rows[Draw(position=0, seed=5)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(rows[Draw(position=0, seed=5)].pixels, first.pixels)
    assert not torch.equal(rows[Draw(position=0, seed=6)].pixels, first.pixels)
