"""YAML that stands for more than it says."""

from __future__ import annotations

import pytest

from rlhf_lightning.yaml_text import OversizedYamlError, check_text


def bomb(levels: int, width: int) -> str:
    return "\n".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}' if n else 'x'] * width)}]" for n in range(levels))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(9, 9), "stand for more than 100,000 values"),
        (bomb(30, 2), "stand for more than 100,000 values"),
        (bomb(9, 9).replace("[", "{a: [").replace("]", "]}"), "stand for more than 100,000 values"),
        (
            "a: &a {b: 1}\n" + "\n".join(f"c{n}: {{<<: *a}}" for n in range(60_000)),
            "stand for more than 100,000 values",
        ),
        ("a: &a [1, *a]", "contains itself"),
        ("a: &a {b: {c: *a}}", "contains itself"),
        ("[" * 101 + "]" * 101, "more than 100 levels"),
        ("[" * 50_000, "more than 100 levels"),
    ],
)
def test_too_much_is_refused(text: str, message: str):
    with pytest.raises(OversizedYamlError, match=message):
        check_text(text)


@pytest.mark.parametrize(
    "text",
    [
        bomb(4, 9),
        "a: &a {b: 1}\nc: {<<: *a}\nd: *a",
        "[" * 100 + "]" * 100,
        "\n".join(f"k{n}: x" for n in range(120_000)),  # long, but as long as it looks
        "a: *nowhere",
        "a: [1\nb: 2",  # whoever reads it says what is wrong
        "",
    ],
)
def test_what_is_only_long_or_broken_is_left_to_its_reader(text: str):
    check_text(text)
