"""How a network wants its images, as plain facts: nothing here needs torch."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self, get_args

from vitcls.errors import UserError, listing

Resize = Literal["squash", "crop", "letterbox"]
Interpolation = Literal["nearest", "bilinear", "bicubic"]

# The share of the shorter side that a centre crop keeps: 224 of 256, DeiT's published evaluation
# (arXiv:2012.12877) and the custom of ImageNet before it.
CENTRE_CROP_SHARE = 224 / 256


@dataclass(frozen=True)
class InputSpec:
    """Everything between a decoded image and the network's input.

    Attributes:
        size: S, the side of the network's square input, in pixels.
        resize_to: the side that the image is resized to before the centre crop to `size`, pixels.
        resize: `squash` forgets the aspect ratio (both sides become `resize_to`), `crop` keeps it
            (the shorter side becomes `resize_to`), `letterbox` keeps it and the whole image (the
            longer side becomes `size`, black fills the rest).
        interpolation: of the resize; always antialiased.
        mean: per RGB channel, of pixels scaled to 0..1.
        std: per RGB channel, of pixels scaled to 0..1.
    """

    size: int
    resize_to: int
    resize: Resize
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> Self:
        """The spec that `record` told.

        Raises:
            UserError: other fields than it has, or ways that there are not.
        """
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
        try:
            spec = cls(**fields)
        except TypeError as error:
            valid = listing(cls.__dataclass_fields__)
            raise UserError(
                f"The preprocessing (--model.image, or of a manifest) {record} has not exactly the fields {valid}."
            ) from error
        for name, ways in (("resize", get_args(Resize)), ("interpolation", get_args(Interpolation))):
            if getattr(spec, name) not in ways:
                raise UserError(f"{name} of the preprocessing is {getattr(spec, name)!r}; it must be {listing(ways)}.")
        return spec

    def record(self) -> dict[str, Any]:
        """The spec as plain values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def resized(self, resize: Resize | None) -> Self:
        """The same with another way to resize; itself where that is its way already, or None."""
        if resize is None or resize == self.resize:
            return self
        side = round(self.size / CENTRE_CROP_SHARE) if resize == "crop" else self.size
        return replace(self, resize=resize, resize_to=side)

    def sized(self, size: int | None) -> Self:
        """The same for another size of the input, in proportion; itself where that is its size, or None."""
        if size is None or size == self.size:
            return self
        return replace(self, size=size, resize_to=round(self.resize_to * size / self.size))

    def resized_shape(self, height: int, width: int) -> list[int]:
        """(height, width) of an image after the resize, before the centre is cut out or padded."""
        if self.resize == "squash":
            return [self.resize_to, self.resize_to]
        short, long = min(height, width), max(height, width)
        if self.resize == "crop":
            other = int(self.resize_to * long / short)
            return [self.resize_to, other] if height <= width else [other, self.resize_to]
        scale = min(self.size / height, self.size / width)
        return [max(1, int(height * scale)), max(1, int(width * scale))]
