"""From arrays to images."""

import numpy as np

from ebca.runtime.images.outputs import to_pil, to_unit_range


def test_decoded_values_are_clipped_to_the_unit_range() -> None:
    decoded = np.zeros((1, 3, 2, 4), np.float32)
    decoded[0, 0, 0] = [-3, -1, 1, 3]
    unit = to_unit_range(decoded)
    assert unit.shape == (1, 2, 4, 3) and unit.dtype == np.float32
    assert unit[0, 0, :, 0].tolist() == [0, 0, 1, 1]
    assert (unit[..., 1:] == 0.5).all()


def test_images_are_rounded_to_bytes() -> None:
    values = np.array([0, 1, 0.5, 0.4 / 255, 0.6 / 255, 254.6 / 255], np.float32).reshape(1, 1, 2, 3)
    (image,) = to_pil(values)
    assert image.mode == "RGB" and image.size == (2, 1)
    assert np.asarray(image).reshape(-1).tolist() == [0, 255, 128, 0, 1, 255]
