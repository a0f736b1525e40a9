"""Titles of metrics."""

from __future__ import annotations

import pytest

from rlhf_lightning.report.metrics import DIVERGENCES, RANKING, REWARDS, SHOWN
from rlhf_lightning.report.titles import title_of

DRAWN = sorted({*RANKING, *REWARDS, *DIVERGENCES, *SHOWN})


@pytest.mark.parametrize(
    ("metric", "title"),
    [
        ("val/kl/reference", "KL to the reference (nats)"),
        ("train/kl/reference", "KL to the reference, training (nats)"),
        ("train/loss", "loss, training"),
        ("val/loss", "loss, validation"),
        ("val/kl/reference_error", "standard error of the KL to the reference (nats)"),
        ("val/error/form", "error form, validation"),
        ("train/cosine/11", "cosine 11, training"),
        ("score of $x$", "score of $x$"),
    ],
)
def test_titles(metric, title):
    """Those in the table, and those that others' methods log."""
    assert title_of(metric) == title


def test_metrics_that_a_report_chooses_are_in_the_table_and_differ():
    titles = [title_of(metric) for metric in DRAWN]
    assert len(set(titles)) == len(DRAWN)
    assert not [title for title in titles if "/" in title or "_" in title]


def test_a_title_without_its_unit():
    assert title_of("val/kl/reference", unit=False) == "KL to the reference"
