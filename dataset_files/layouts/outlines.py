"""Approximate shapes by polygons: flat lists x1, y1, x2, y2, ... in pixels."""

import math

DEVIATION = 0.005  # largest distance of a polygon's sides from the curve, in pixels


def rectangle_polygon(x1: float, y1: float, x2: float, y2: float) -> list[float]:
    """Return the polygon of a rectangle from two opposite corners in any order."""
    left, right, top, bottom = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
    return [left, top, right, top, right, bottom, left, bottom]


def ellipse_polygon(cx: float, cy: float, rx: float, ry: float, angle: float = 0.0) -> list[float]:
    """Return a polygon inside an ellipse, nowhere farther than DEVIATION from it.

    Args:
        angle: from the x axis to the axis of `rx` in radians, clockwise in an image.
    """
    radius = max(abs(rx), abs(ry), 1.0)
    corners = 4 * math.ceil(math.pi / math.acos(1 - DEVIATION / radius) / 4)
    cosine, sine = math.cos(angle), math.sin(angle)
    polygon = []
    for k in range(corners):
        u, v = rx * math.cos(2 * math.pi * k / corners), ry * math.sin(2 * math.pi * k / corners)
        polygon += [cx + u * cosine - v * sine, cy + u * sine + v * cosine]
    return polygon
