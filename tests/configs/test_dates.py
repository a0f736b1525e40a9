"""A chat template that reads the clock: the run's date in its resumes, its evaluations and every job of a sweep."""

from __future__ import annotations

import json

import pytest

TEMPLATE = (
    "{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture
def dated(tiny, tmp_path):
    """Overrides of a run on conversations, with a template that shows the date and tables that show the prompts."""
    template, rows = tmp_path / "dated.jinja", tmp_path / "turns.jsonl"
    template.write_text(TEMPLATE)
    pairs = [
        {
            "prompt": [{"role": "user", "content": f"question {n}"}],
            "chosen": [{"role": "assistant", "content": f"good {n}"}],
            "rejected": [{"role": "assistant", "content": f"bad {n}"}],
        }
        for n in range(8)
    ]
    rows.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return [*tiny, f"data.source.path={rows}", f"model.chat_template={template}"]


@pytest.mark.slow
def test_a_run_keeps_its_date(rlhf, dated, tmp_path, monkeypatch):
    """Fails where a resume or an evaluation takes the date of its own day, or a job of a sweep another date."""
    monkeypatch.setenv("RLHF_DATE", "2026-02-28")
    code, _, err = rlhf("train", *dated, "paths.output_dir=run")
    assert code == 0, err
    assert "it is given 2026-02-28" in err
    assert (tmp_path / "run" / "date.txt").read_text() == "2026-02-28\n"
    monkeypatch.setenv("RLHF_DATE", "2026-03-01")
    code, _, err = rlhf("train", *dated, "paths.output_dir=run", "trainer.max_steps=3")
    assert code == 0, err
    assert "it is given 2026-02-28" in err
    code, _, err = rlhf("evaluate", "run=run", "paths.output_dir=evaluation", "callbacks=none")
    assert code == 0, err
    assert "it is given 2026-02-28" in err
    monkeypatch.setenv("RLHF_DATE", "2026-02-27")
    code, _, err = rlhf("train", "-m", *dated, "seed=1,2", "hydra.sweep.dir=sweep")
    assert code == 0, err
    dates = [(tmp_path / "sweep" / part / "date.txt").read_text() for part in ("", "0", "1")]
    assert dates == ["2026-02-27\n"] * 3
