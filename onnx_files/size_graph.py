"""Compute the size of resized images in an ONNX graph, in integer arithmetic, which is the same in every runtime.

`ImageTransform` multiplies a side by a scale in float64. Some runtimes compute float64 in float32, and get other
sizes. The exact quotient in integers differs from the network's result where it is a whole number (or, if sizes are
rounded, halfway between two) and float64's product falls below it: there the network's size is one pixel smaller.

With the scale a / b (say 800 / short side), 2^t <= a / b < 2^(t + 1), and float64's 53 bits, the scale is rounded down
if r / b < 1/2 for r = (a / b * 2^(52 - t) mod 1) * b. Its product with a side L, whose exact value is x, falls below x
if that error exceeds half the spacing of the numbers just below x. For 2^e <= x < 2^(e + 1) this is
r L > b 2^(e - t - 1), and half of it if x = 2^e.
"""

from onnx_files.graph import Graph

POWERS = [1 << k for k in range(15)]
# 2^52 in factors small enough that a runtime may divide int32 in float32: exact up to 2^24, for sides below 2^15.
FACTORS_OF_2_TO_52 = [2**9] * 5 + [2**7]


def size_after_resize(g: Graph, sides: str, min_size: int, max_size: int, rounded: bool) -> str:
    """Return the sizes to which `ImageTransform` resizes images of height and width `sides`, both int64 [..., 2].

    The sizes are exact for sides up to 12,000 pixels; above, they may be wrong by one pixel. `rounded` rounds to the
    nearest pixel, as in Detectron2, instead of down, as in torchvision.
    """
    short, long = (g.op(kind, sides, axes=[-1], keepdims=1) for kind in ("ReduceMin", "ReduceMax"))
    limits = g.integers(min_size), g.integers(max_size)
    short_decides = g.op("LessOrEqual", g.op("Mul", limits[0], long), g.op("Mul", limits[1], short))
    a, b = g.op("Where", short_decides, *limits), g.op("Where", short_decides, short, long)

    exact = g.op("Mul", a, sides)
    divisor = b
    if rounded:  # a L / b + 1/2 = (2 a L + b) / (2 b)
        exact, divisor = g.op("Add", twice(g, exact), b), twice(g, b)
    size, rest = g.op("Div", exact, divisor), g.op("Mod", exact, divisor)
    whole = g.op("Sub", size, g.integers(1)) if rounded else size

    powers = g.integers(POWERS)
    up = largest(g, g.op("LessOrEqual", g.op("Mul", b, powers), a))  # 2^t, and 1 for t < 0
    too_small = g.op("Less", g.op("Mul", a, powers), b)
    down = g.op("Where", g.op("Less", a, b), twice(g, largest(g, too_small)), g.integers(1))  # 2^-t, 1 for t > 0
    modulus = g.op("Mul", b, up)
    r = g.op("Sub", g.op("Mul", a, down), modulus)
    for factor in FACTORS_OF_2_TO_52:
        r = g.op("Mod", g.op("Mul", r, g.integers(factor)), modulus)

    below = g.op("LessOrEqual", powers, g.op("Unsqueeze", whole, g.integers([-1])))
    power = g.op("Squeeze", largest(g, below), g.integers([-1]))  # 2^e
    error = twice(g, g.op("Mul", r, sides))
    if not rounded:
        error = g.op("Mul", error, g.op("Add", g.cast(g.op("Equal", whole, power), "int64"), g.integers(1)))
    spacing = g.op("Mul", g.op("Mul", b, power), down)
    falls_below = g.op("Less", g.op("Sub", spacing, error), g.integers(0))
    scale_too_small = g.op("Less", twice(g, r), modulus)
    is_exact = g.op("Equal", rest, g.integers(0))
    smaller = g.op("And", is_exact, g.op("And", scale_too_small, falls_below))
    return g.op("Max", g.op("Sub", size, g.cast(smaller, "int64")), g.integers(1))


def twice(g: Graph, x: str) -> str:
    return g.op("Mul", x, g.integers(2))


def largest(g: Graph, holds: str) -> str:
    """Return the largest of `POWERS` where `holds`, bool [..., 15], is True, or 1 if there is none: int64 [..., 1]."""
    return g.op("ReduceMax", g.op("Where", holds, g.integers(POWERS), g.integers(1)), axes=[-1], keepdims=1)
