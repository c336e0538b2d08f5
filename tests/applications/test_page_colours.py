"""The colours of figures, as people with each colour vision see them."""

import itertools
import re

import numpy as np
import pytest

from applications.pages.drawing import COLOURS, INK
from applications.pages.page import part

# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
NOTICED = 8
"""A CIE76 distance that is noticed between marks of a figure; 2.3 is just noticeable."""


def palettes() -> dict[str, dict[str, str]]:
    """The colours of the style sheet: light, and dark, which changes some."""
    light, dark = re.findall(r":root \{(.*?)\}", part("page.css"), re.DOTALL)[:2]
    found = [dict(re.findall(r"--(c\d|ink): (#\w+)", text)) for text in (light, dark)]
    return {"light": found[0], "dark": found[0] | found[1]}


def lab(colour: str, vision: str) -> np.ndarray:
    """CIELAB of a colour as it is seen."""
    values = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.asarray(VISIONS[vision]) @ linear, 0, 1)
    xyz = np.asarray(TO_XYZ) @ seen / (0.9505, 1.0, 1.089)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_are_told_apart_with_any_colour_vision(scheme: str, vision: str) -> None:
    colours = palettes()[scheme]
    assert len(colours) == len(COLOURS)
    seen = {name: lab(colour, vision) for name, colour in colours.items()}
    apart = {
        (one, other): float(np.linalg.norm(seen[one] - seen[other]))
        for one, other in itertools.combinations(seen, 2)
    }
    assert min(apart.values()) > NOTICED, min(apart, key=lambda pair: apart[pair])


def test_the_light_colours_of_the_page_are_those_of_the_figures() -> None:
    light = palettes()["light"]
    for number, colour in enumerate(COLOURS):
        if colour != INK:
            assert light[f"c{number}"] == colour.lower()
