"""The quickstart: align SmolLM2-135M-Instruct with DPO on pairs that it wrote itself and a plain rule judged.

``prompts`` builds the questions, ``rule`` is the judge, ``make_pairs`` samples and judges; ``summary`` and ``picture``
read what a run of ``rlhf quickstart`` left behind.
"""
