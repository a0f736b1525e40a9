"""Help texts, made from the files in conf/ without Hydra: what is there to choose from, and what to type."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

from rlhf_lightning.conf_dir import conf_dir

#: Commands that are configured by the files in conf/.
CONFIGURED = ("train", "evaluate", "generate", "data", "optimize_prompt", "steer")

#: Help of the commands that are not configured by groups and do not parse flags themselves.
FIXED = {
    "game": """\
usage: rlhf game experiment=NAME [paths.output_dir=FOLDER] [key=value ...]

Trains models in turn, such as a policy and the reward model that scores it. Every stage is an ordinary rlhf train in
FOLDER/round_<number>/<stage>; the same command resumes a game that was stopped. Options are those of rlhf train and
count for every stage; <stage>.<key>=<value> is for one of them:

  rlhf game experiment=apo_tiny
  rlhf game experiment=apo_tiny game.rounds=5 scorer.optimizer.lr=5e-4 paths.output_dir=runs/apo""",
    "chain": """\
usage: rlhf chain experiment=NAME [size=SIZE] [-m] [paths.output_dir=FOLDER] [key=value ...]

Runs the stages of a recipe, each an ordinary job (train, evaluate, generate, optimize_prompt, steer, export or game) on
what earlier ones left, in FOLDER/<stage>/<digest>, and writes one page about all of them. Without a folder it is
runs/chain/NAME/SIZE. What is finished is not run again, what was stopped is resumed, and a stage whose options changed
runs again with every stage behind it. size=tiny is the recipe in the tiny world, in a minute or two.
<stage>.<key>=<value> is an option of one stage, seed is for all that draw, others are for all that train; with -m
several values are a chain each, which share the stages before:

  rlhf chain experiment=instructgpt size=tiny
  rlhf chain experiment=instructgpt size=tiny -m ppo.method.kl.coef=0.05,0.2
  rlhf chain experiment=zephyr size=tiny dpo.optimizer.lr=2e-4 'dpo.model.run=${stage:sft}'""",
    "export": """\
usage: rlhf export run=FOLDER [form=auto|adapter|merged] [dtype=float16] [output=DIR] [ckpt_path=FILE]

Writes what a run trained as a folder that transformers or PEFT loads, from its last checkpoint, into FOLDER/export/last
or DIR. form=auto is the adapter where its base loads by name, else all weights; form=merged adds the adapter to its
base, also to one that was trained on in 4 or 8 bits:

  rlhf export run=runs/first
  rlhf export run=runs/first form=merged dtype=float16 output=exports/first""",
    "quickstart": """\
usage: rlhf quickstart [key=value ...]

Trains SmolLM2-135M-Instruct with DPO and LoRA on pairs that ship with the package, then shows what changed.
The same as rlhf train experiment=quickstart with a summary at the end; takes the same options:

  rlhf quickstart paths.output_dir=runs/mine optimizer.lr=1e-4""",
    "claims": """\
usage: rlhf claims [NAME ...] [--write]
       rlhf claims run [NAME ...] [--write]

Shows every paper's claim beside our miniature of it in the tiny world, and whether it shows, from docs/claims.json;
with names (papers or methods) also the commands. run runs the jobs that are missing or whose code has changed, one
sweep over seeds after the other, and resumes one that was stopped; --write writes docs/claims.md:

  rlhf claims
  rlhf claims simpo 2402.01306
  rlhf claims run simpo""",
    "plan": """\
usage: rlhf plan [devices=N] [device_memory=80GiB] [flops=989T] [--json] [key=value ...]

Counts what a job of rlhf train would cost, from shapes: memory of a process by part, seconds of a step, tokens a
second, steps a day, under every strategy. No weights and no data are read;
model=hub model.name=FOLDER needs config.json alone.
Options beside those of rlhf train:

  devices=1                      processes, each with a device of its own
  device_memory=                 of one device, such as 80GiB: says which strategies fit
  flops=                         of its matrix products, a second; without it they are measured on this processor
  efficiency=0.4                 share of flops that a whole step reaches
  bandwidth=                     bytes of memory that it reads a second, which limits the drawing of responses
  link=                          bytes that it sends a second; without it communication is not counted
  prompt_tokens=256              of a prompt
  response_tokens=               of a response; without it rollout.max_new_tokens, or 256 where nothing is drawn

  rlhf plan model=smollm2 adapter=lora
  rlhf plan method=grpo model=hub model.name=FOLDER devices=8 device_memory=80GiB flops=989T bandwidth=3.35T""",
    "env": """\
usage: rlhf env

Prints, as Markdown, the versions of everything that a run stands on, the processor and accelerators, and the variables
that change what a run does. Values of tokens and keys are left out.""",
    "completion": """\
usage: rlhf completion bash|zsh|fish

Prints the shell's part of tab completion. Put into ~/.bashrc or ~/.zshrc, or into ~/.config/fish/config.fish:

  eval "$(rlhf completion bash)"
  rlhf completion fish | source""",
}

_EXAMPLES = {
    "train": (
        "rlhf train method=dpo model=smollm2 adapter=lora optimizer.lr=5e-5",
        "rlhf train -m method=dpo,ipo,simpo method.loss.beta=0.1,0.5 model=tiny_random trainer=debug",
        "rlhf train experiment=smollm2_dpo data=json data.source.path=pairs.jsonl",
        "rlhf train paths.output_dir=runs/first          # again: resumes where it stopped",
    ),
    "evaluate": (
        "rlhf evaluate run=runs/first",
        "rlhf evaluate run=runs/first data=json data.source.path=others.jsonl",
        "rlhf evaluate -m run=runs/first,runs/second method=ipo",
    ),
    "generate": (
        'rlhf generate run=runs/first prompt="Why is the sky blue?"',
        "rlhf generate run=runs/first                    # chat",
        "rlhf generate model=hub model.name=exports/first prompts=questions.txt output=responses.jsonl",
        "rlhf generate run=runs/first prompts=questions.txt temperature=1 top_p=1 model@reference.source=smollm2",
    ),
    "optimize_prompt": (
        "rlhf optimize_prompt data=gsm8k reward=math proposer=server proposer.url=http://localhost:8000",
        "rlhf optimize_prompt search=gepa data=json data.source.path=questions.jsonl reward=exact_match",
    ),
    "data": (
        "rlhf data inspect data=smollm2_pairs",
        "rlhf data inspect data=json data.source.path=pairs.jsonl model=smollm2 rows=5",
    ),
    "steer": (
        "rlhf steer build data=json data.source.path=pairs.jsonl output=polite.safetensors",
        "rlhf steer build contrast=instructions tokens=last_prompt layers=[9,11,13]",
        "rlhf steer show polite.safetensors",
        "rlhf generate model.steering.path=polite.safetensors model.steering.coefficient=2 prompt=Hello",
    ),
}
_FLAGS = (
    ("-m, --multirun", "one job for every combination of a=1,2 b=x,y"),
    ("--config-dir DIR", "further config files; RLHF_CONF=DIR: files that win over ours"),
    ("--cfg job", "print the composed configuration and stop"),
    ("--full-error", "tracebacks (also RLHF_DEBUG=1)"),
    ("-h, --help", "this text"),
)


def show(text: str) -> None:
    """Write a text to standard output."""
    sys.stdout.write(text + "\n")


def overview(commands: Mapping[str, tuple[str, str]]) -> str:
    """Text of ``rlhf --help``."""
    lines = [
        "usage: rlhf COMMAND [key=value ...]",
        "",
        "Alignment of language models: every method is a loss and a yaml.",
        "",
    ]
    lines += [f"  {name:<15} {text}" for name, (_, text) in commands.items()]
    lines += ["", "examples:", "  rlhf quickstart", *(f"  {_EXAMPLES[name][0]}" for name in CONFIGURED)]
    return "\n".join([*lines, "", "rlhf COMMAND --help lists what can be configured."])


def command(name: str, summary: str) -> str:
    """Text of ``rlhf <command> --help``: groups with their files, other keys, flags and examples."""
    groups, keys = _defaults(conf_dir() / f"{name}.yaml")
    title = {"data": "rlhf data inspect", "steer": "rlhf steer build"}.get(name, f"rlhf {name}")
    lines = [f"usage: {title} [flags] [key=value ...]", "", summary, "", "groups (group=file, then group.key=value):"]
    for group, default in groups.items():
        files = options(group)
        if files:
            marked = ", ".join(f"{file}*" if file == default else file for file in files)
            lines.append(_wrapped(f"  {group:<11} ", marked))
    lines += ["", "keys:"]
    lines += [_wrapped(f"  {key:<30} ", text) for key, text in keys]
    lines += ["", "flags:"]
    shown = [flag for flag in _FLAGS if name in ("train", "evaluate") or flag[0].startswith(("--full", "-h"))]
    lines += [f"  {flag:<30} {text}" for flag, text in shown]
    lines += ["", "examples:", *(f"  {example}" for example in _EXAMPLES[name])]
    return "\n".join(lines)


def options(group: str) -> list[str]:
    """Files of a config group, without their suffix."""
    return sorted(file.stem for file in (conf_dir() / group).glob("*.yaml"))


def _defaults(file: Path) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Groups of a root yaml with their default, and its other keys with value and comment."""
    text = file.read_text()
    groups = dict(re.findall(r"^  - (?:optional )?(\w+): (\w+)", text, re.MULTILINE))
    groups = {group: default for group, default in groups.items() if group not in ("local", "hydra", "paths")}
    keys = re.findall(r"^(\w+): +(\S+|\[.*?\])(?: +# (.*))?$", text, re.MULTILINE)
    named = [(f"{key}={value}", comment) for key, value, comment in keys]
    if "- paths" in text:
        named.append(("paths.output_dir=null", "folder of the run; null: one under runs/, named after the time"))
    return groups, named


def _wrapped(head: str, text: str) -> str:
    width = min(max(shutil.get_terminal_size((100, 24)).columns, 60), 120)
    return textwrap.fill(text, width, initial_indent=head, subsequent_indent=" " * len(head)) if text else head.rstrip()
