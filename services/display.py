"""A decoded frame as a player shows it: upright, with square pixels, in the colours of BT.709.

Orientation is the whole display matrix, reflection included. HDR (PQ, HLG) and BT.2020 are brought to BT.709 as follows:
what the signal says becomes linear light, 1.0 being reference white (203 cd/m² of PQ, 75 % of HLG, BT.2408); BT.2020's
primaries become BT.709's; what is outside 0 to 1 is clipped; gamma 2.4 (BT.1886) makes it a signal again. HLG is taken as the
light of the scene, without the system gamma of an HDR display, as it was made to be watched on SDR displays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from services.visual import frame_size

if TYPE_CHECKING:
    import av

BT2020, UNSPECIFIED = 9, 2
"""Codes of ITU-T H.273: primaries (and their matrix of luma and chroma), and a tag that is not set."""
PQ, HLG = 16, 18
"""Transfer characteristics of ITU-T H.273."""
LEVELS = 4096
"""Steps of the tables: 12 bits."""
TO_BT709 = np.array([[1.6605, -0.5876, -0.0729], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32)
"""Linear BT.2020 to linear BT.709 (ITU-R BT.2087)."""
Orientation = tuple[bool, bool, bool]
"""What sets a frame upright: whether rows and columns change places, and whether then left and right, top and bottom do."""
AS_STORED: Orientation = (False, False, False)


def shown_size(frame: av.VideoFrame, pixel_aspect: Fraction, max_tokens: int) -> tuple[int, int]:
    """The (height, width) to show a video at, by its first frame: upright, its pixels square."""
    height, width = frame.height, max(1, round(frame.width * pixel_aspect))
    return frame_size(width, height, max_tokens) if orientation(frame)[0] else frame_size(height, width, max_tokens)


def is_converted(frame: av.VideoFrame) -> bool:
    """Whether the frame's colours are HDR or BT.2020."""
    return frame.color_trc in (PQ, HLG) or frame.color_primaries == BT2020


def orientation(frame: av.VideoFrame) -> Orientation:
    """By the frame's display matrix, x' = ax + cy and y' = bx + dy; what lies between quarter turns counts as the nearest.

    A frame that was asked for its side data stays in memory until the garbage collector runs: ask few.
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return AS_STORED
    a, b, _, c, d = np.frombuffer(memoryview(matrix), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def upright(frame: av.VideoFrame, height: int, width: int, turned: Orientation = AS_STORED) -> np.ndarray:
    """[height, width, 3] uint8 of the frame as it is to be seen."""
    transposed, mirrored, upside_down = turned
    size = (width, height) if transposed else (height, width)
    pixels = _in_bt709(frame, *size) if is_converted(frame) else _rgb(frame, "rgb24", *size)
    pixels = pixels.swapaxes(0, 1) if transposed else pixels
    return np.ascontiguousarray(pixels[:: -1 if upside_down else 1, :: -1 if mirrored else 1])


def _rgb(frame: av.VideoFrame, pixel_format: str, height: int, width: int) -> np.ndarray:
    """[height, width, 3] of the frame as it is stored."""
    from av.video.reformatter import Interpolation

    matrix = BT2020 if is_converted(frame) and frame.colorspace == UNSPECIFIED else None
    return frame.to_ndarray(
        format=pixel_format,
        height=height,
        width=width,
        src_colorspace=matrix,
        interpolation=Interpolation.BICUBIC,
        threads=1,
    )


def _in_bt709(frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
    """[height, width, 3] uint8 of an HDR or BT.2020 frame. PQ and HLG without primaries have BT.2020's."""
    signal = _rgb(frame, "rgb48le", height, width) >> 4
    light = _light(frame.color_trc)[signal]
    if frame.color_primaries in (BT2020, UNSPECIFIED):
        light = (light.reshape(-1, 3) @ TO_BT709.T).reshape(signal.shape)
    return _signal()[(np.sqrt(np.clip(light, 0, 1)) * (LEVELS - 1)).astype(np.uint16)]


@cache
def _light(transfer: int) -> np.ndarray:
    """[LEVELS] float32: linear light of each signal."""
    return TRANSFERS.get(transfer, _from_gamma)(np.linspace(0, 1, LEVELS)).astype(np.float32)


@cache
def _signal() -> np.ndarray:
    """[LEVELS] uint8: the signal of linear light, by the square root of it, whose steps are finer in the dark."""
    return np.round(255 * np.linspace(0, 1, LEVELS) ** (2 / 2.4)).astype(np.uint8)


def _from_pq(signal: np.ndarray) -> np.ndarray:
    """EOTF of SMPTE ST 2084, 1.0 being 203 cd/m²."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    root = signal ** (1 / m2)
    return (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1) * 10000 / 203


def _from_hlg(signal: np.ndarray) -> np.ndarray:
    """Inverse OETF of BT.2100's HLG, 1.0 being what a signal of 75 % says."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    light = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    return light / ((math.exp((0.75 - c) / a) + b) / 12)


def _from_gamma(signal: np.ndarray) -> np.ndarray:
    """EOTF of BT.1886, of all that is neither PQ nor HLG."""
    return signal**2.4


TRANSFERS: dict[int, Callable[[np.ndarray], np.ndarray]] = {PQ: _from_pq, HLG: _from_hlg}
"""What makes linear light of a signal; others have BT.1886's."""
