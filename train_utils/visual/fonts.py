"""Find a font for a class name: matplotlib's DejaVu Sans, an installed CJK font, or Pillow's own."""

from functools import lru_cache
from pathlib import Path

from PIL import ImageFont

from train_utils.errors import InputError, warn

try:
    import matplotlib
    from matplotlib.ft2font import FT2Font

    HAS_MATPLOTLIB = True
except ModuleNotFoundError:  # tools/predict_onnx.py runs without it
    HAS_MATPLOTLIB = False

# Font families with Chinese, Japanese and Korean characters on Linux, Windows and macOS, in order of preference.
CJK_FAMILIES = (
    "Noto Sans CJK", "Noto Sans SC", "Source Han Sans", "WenQuanYi", "Microsoft YaHei", "SimHei", "SimSun", "PingFang",
    "Hiragino Sans", "Heiti", "Songti", "Arial Unicode", "Droid Sans Fallback", "Malgun Gothic", "Nanum", "Yu Gothic",
    "MS Gothic", "Noto Serif CJK",
)  # fmt: skip


@lru_cache(maxsize=1024)
def font_for(name: str) -> str:
    """Return the path of DejaVu Sans, or of a CJK font with more of the name's characters; "" without matplotlib."""
    if not HAS_MATPLOTLIB:
        if not name.isascii():
            warn_of_missing_characters()
        return ""
    default = str(Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf"))
    if name.isascii() or not missing_characters(default, name):
        return default
    best = min((default, *installed_cjk_fonts()), key=lambda path: missing_characters(path, name))
    if missing_characters(best, name):
        warn_of_missing_characters()
    return best


@lru_cache(maxsize=1)
def warn_of_missing_characters() -> None:
    remedy = "a font that has them, such as Noto Sans CJK" if HAS_MATPLOTLIB else "matplotlib"
    warn(f"no installed font has all characters of the class names: some are drawn as empty boxes; install {remedy}")


def missing_characters(font_path: str, text: str) -> int:
    """Count the characters of a text that a font lacks; all of them if the font cannot be read."""
    try:
        face = FT2Font(font_path)
    except (OSError, RuntimeError):
        return len(text)
    return sum(face.get_char_index(ord(c)) == 0 for c in text)


@lru_cache(maxsize=1)
def installed_cjk_fonts() -> tuple[str, ...]:
    # Imported only here: on its first import matplotlib searches all installed fonts, which takes seconds.
    from matplotlib.font_manager import FontEntry, fontManager

    def rank(entry: FontEntry) -> tuple[int, bool, int]:
        family = next(i for i, family in enumerate(CJK_FAMILIES) if entry.name.startswith(family))
        return family, entry.style != "normal", abs(int(entry.weight) - 400)

    found = [entry for entry in fontManager.ttflist if entry.name.startswith(CJK_FAMILIES)]
    return tuple(dict.fromkeys(entry.fname for entry in sorted(found, key=rank)))


@lru_cache(maxsize=64)
def load_font(path: str, size: int) -> ImageFont.FreeTypeFont:
    """Load a font file; the path "" loads the font that is included in Pillow 10.1 and newer."""
    if path:
        return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
    try:
        font = ImageFont.load_default(size)
    except TypeError:  # older versions take no size
        font = None
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise InputError("drawing needs a font: install matplotlib, or Pillow 10.1 or newer")
    return font
