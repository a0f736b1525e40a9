"""The quickstart: align SmolLM2-135M-Instruct with DPO on pairs of its own responses, judged by a simple rule.

``prompts`` builds the questions, ``rule`` is the judge, ``make_pairs`` samples and judges; ``summary`` and ``picture``
read the files of a run of ``rlhf quickstart``.
"""
