"""Which images are measured: the training data, named by the options that ImageDataModule has for it."""

from dataclasses import fields
from inspect import signature

from jsonargparse import ArgumentParser, Namespace

from vitcls.bench.loading import Photos, readable_photos
from vitcls.data.choice import SourceChoice
from vitcls.data.datamodule import ImageDataModule
from vitcls.data.inputs import unlabelled
from vitcls.data.splits import Split
from vitcls.errors import UserError

# Of other roles, of classes, which are not read, and of streams, which give other images each time.
_OF_OTHERS = ("validation_", "test_", "label_", "streaming", "train_rows")
SOURCES = tuple(field.name for field in fields(SourceChoice) if not field.name.startswith(_OF_OTHERS))


def add_source(parser: ArgumentParser) -> None:
    """The options --data.train_dir and so on."""
    others = set(signature(ImageDataModule).parameters) - set(SOURCES)
    parser.add_class_arguments(ImageDataModule, "data", skip=others)


def _training_split(options: Namespace) -> Split:
    """All rows of it, without classes.

    Raises:
        UserError: there is none, or it cannot be opened.
    """
    said = {name: options.data[name] for name in SOURCES}
    source, split = SourceChoice(**said).train()
    return unlabelled(source.load(split), split, said["image_column"])


def measured_photos(options: Namespace) -> Photos:
    """At most --images of the training data, readable.

    Raises:
        UserError: there are none.
    """
    photos = readable_photos(_training_split(options), options.images)
    if not len(photos.split):
        raise UserError(f"None of the images that were tried in {photos.split.name!r} can be decoded; give other data.")
    return photos
