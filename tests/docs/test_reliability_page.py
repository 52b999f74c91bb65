"""docs/RELIABILITY.md opens with the introduction of the program that writes it, also after a part is written again."""

from tests.programs import reliability


def test_the_page_opens_with_the_introduction_of_the_program() -> None:
    assert reliability.PAGE.read_text(encoding="utf-8").startswith(reliability.INTRODUCTION + "\n## ")


def test_a_part_is_replaced_below_the_introduction(tmp_path, monkeypatch) -> None:
    (first, _), (second, _), *_ = reliability.PARTS.values()
    page = tmp_path / "RELIABILITY.md"
    monkeypatch.setattr(reliability, "PAGE", page)
    for heading, text in ((second, "old"), (first, "kept"), (second, "new")):
        reliability.write_section(heading, f"## {heading}\n\n{text}\n")
    expected = f"{reliability.INTRODUCTION}\n## {first}\n\nkept\n\n## {second}\n\nnew\n"
    assert page.read_text(encoding="utf-8") == expected
