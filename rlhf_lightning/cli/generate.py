"""``rlhf generate``: answers of a model, or of what a run trained; a chat without prompts."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from rlhf_lightning import clock
from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.config_file import escaped
from rlhf_lightning.cli.console import ERR, OUT, setup_logging
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.overrides import readable
from rlhf_lightning.cli.revise import make_revision, write_pairs
from rlhf_lightning.cli.runs import read_config, take_over, weights_of, with_prompting
from rlhf_lightning.cli.schema import check_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf_lightning.data.messages import Turns
    from rlhf_lightning.data.transforms import PromptTransform
    from rlhf_lightning.models.actor import Actor
    from rlhf_lightning.models.guidance import Guidance
    from rlhf_lightning.rewards.base import Scores

#: What a run decides unless the user does.
_FROM_RUN = ("model", "adapter", "prompting")
#: Options whose text may hold anything, so that nobody has to know Hydra's quotes.
_FREE_TEXT = ("prompt", "system")


def main(arguments: Sequence[str]) -> int:
    """``rlhf generate key=value ...``."""
    cfg, overrides = composed(arguments)
    if cfg.run:
        cfg = from_run(cfg, read_config(cfg.run), overrides)
        clock.take_over(Path(cfg.run).expanduser())
    check_config(cfg, "generate", overrides)
    setup_logging()
    generate(cfg)
    return 0


def composed(arguments: Sequence[str]) -> tuple[DictConfig, list[str]]:
    """The configuration, and the overrides less ``prompt=`` and ``system=``, whose text is taken as it was typed."""
    texts = {key: text for key, _, text in (argument.partition("=") for argument in arguments) if key in _FREE_TEXT}
    overrides = readable(argument for argument in arguments if argument.partition("=")[0] not in texts)
    cfg = compose("generate", overrides, check=False)
    for key, text in texts.items():
        cfg[key] = escaped(text)
    return cfg, overrides


def from_run(cfg: DictConfig, run: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration with a run's model and adapter, and its way to render prompts unless the user has another."""
    result = take_over(cfg, run, _FROM_RUN, overrides)
    spec = OmegaConf.select(run, "data.spec")
    if spec is not None and not any(override.startswith("spec.") for override in overrides):
        result.spec = spec
    return with_prompting(result)


@dataclass(frozen=True)
class Answer:
    """One answer and, with a reward, what it is worth."""

    text: str
    score: float | None = None

    def row(self, prompt: str) -> dict[str, Any]:
        """A line of the output; with scores the file is a data set of ranked answers."""
        scored = {} if self.score is None else {"score": self.score}
        return {"prompt": prompt, "response": self.text, **scored}


@dataclass
class Answerer:
    """A model, its tokenizer and template: from conversations to answers."""

    actor: Actor
    encoder: Any  #: data.encode.Encoder
    template: Any  #: data.templates.ChatTemplate or None
    cfg: DictConfig
    reward: Any = None  #: rewards.Reward or None
    guidance: Guidance | None = None

    @classmethod
    def load(cls, cfg: DictConfig, rows: Sequence[Mapping[str, Any]] = ()) -> Answerer:
        """Load the model of a configuration, with the weights of ``cfg.run`` if it names one, after what scores.

        Args:
            cfg: of the command.
            rows: of the prompts, for a reward that reads their columns.
        """
        from rlhf_lightning.cli.guidance import make_guidance
        from rlhf_lightning.cli.instantiate import make
        from rlhf_lightning.data.encode import Encoder
        from rlhf_lightning.data.templates import resolve
        from rlhf_lightning.models.roles import ModelBuilder, ReferenceKind
        from rlhf_lightning.models.trained import load_trained

        spec = make(cfg.spec)
        builder = ModelBuilder(make(cfg.model), make(cfg.adapter), ReferenceKind.NONE)
        template = resolve(builder.tokenizer(), spec)
        guidance = make_guidance(cfg.get("guidance"), builder)
        reward = _reward(cfg, builder.tokenizer(), rows)
        models = builder()
        actor = models.policy
        if cfg.run:
            load_trained(weights_of(cfg.run, cfg.ckpt_path), actor, models.start)
        encoder = Encoder(builder.tokenizer(), spec, template)
        return cls(actor.to(device_of(cfg.device)), encoder, template, cfg, reward, guidance)

    def answer(self, conversations: Sequence[Turns], samples: int = 1) -> list[list[str]]:
        """``samples`` answers to each conversation."""
        return [[self.text(ids) for ids in group] for _, group in self.sampled(conversations, samples)]

    def sampled(self, conversations: Sequence[Turns], samples: int) -> list[tuple[list[int], list[list[int]]]]:
        """Token ids of each conversation and of ``samples`` answers to it."""
        from rlhf_lightning.data.transforms import form_of
        from rlhf_lightning.models.generation import generate as sample

        form = form_of(self.transform, self.encoder.tokenizer)
        if self.transform is not None:
            self.transform.prepare(conversations)
        prompts = [self._ids(conversation) for conversation in conversations]
        options = {name: self.cfg[name] for name in ("max_new_tokens", "temperature", "top_p", "seed", "batch_size")}
        options["guide"] = None if self.guidance is None else self.guidance.guide(self.actor)
        responses = iter(sample(self.actor, [ids for ids in prompts for _ in range(samples)], form=form, **options))
        return [(ids, [next(responses) for _ in range(samples)]) for ids in prompts]

    @property
    def transform(self) -> PromptTransform | None:
        """What changes the prompts; None: they are rendered as they are."""
        transform: PromptTransform | None = self.encoder.spec.prompting
        return transform

    def text(self, ids: Sequence[int]) -> str:
        """An answer as people read it; a space in front of a plain continuation parts it from the prompt and stays."""
        text = str(self.encoder.tokenizer.decode(ids, skip_special_tokens=True))
        plain = self.template is None and self.transform is None
        return text.rstrip() if plain else text.strip()

    def scores(self, sampled: Sequence[tuple[list[int], list[list[int]]]], rows: Sequence[Mapping[str, Any]]) -> Scores:
        """What ``reward`` says of every answer; the columns of the prompts' rows are the reward's."""
        from rlhf_lightning.models.generation import generate as sample
        from rlhf_lightning.rewards.base import introduce, scored
        from rlhf_lightning.types import sample_groups

        # A judge without a server asks the model that answered.
        introduce(self.reward, SimpleNamespace(sample=partial(sample, self.actor), policy=self.actor))
        prompts, responses = [ids for ids, _ in sampled], [group for _, group in sampled]
        found = scored(self.reward, sample_groups(prompts, responses, rows))[0]
        answers, without = sum(map(len, found)), sum(score is None for group in found for score in group)
        if without:
            ERR.print(f"reward {self.reward.name!r} could not judge {without} of {answers} answers", markup=False)
        return found

    def _ids(self, conversation: Turns) -> list[int]:
        """The prompt's ids exactly as training makes them."""
        from rlhf_lightning.data.conversations import Rendered
        from rlhf_lightning.data.transforms import prompt_text

        if self.transform is not None:
            conversation = self.transform(conversation)
        if self.template is None or (self.transform is not None and self.transform.plain):
            rendered = Rendered(conversation[-1]["content"], [], [], templated=False)
        else:
            rendered = Rendered(prompt_text(conversation, self.template), [], [], self.template.brings_bos)
        return list(self.encoder.encode([rendered])[0].prompt)


def generate(cfg: DictConfig) -> None:
    """Answer ``prompt``, every prompt of the file ``prompts``, or whoever sits at the terminal.

    Raises:
        ConfigError: no such file or run, or prompts in an unknown form.
    """
    rows = list(read_prompts(cfg))
    if cfg.temperature == 0 and cfg.samples > 1:
        raise ConfigError("temperature=0 always gives the same answer: set samples=1 or a temperature above 0")
    if cfg.keep is not None and (not cfg.reward or not 1 <= cfg.keep <= cfg.samples):
        raise ConfigError(
            f"keep={cfg.keep} keeps the best answers by reward: choose reward=... and keep between 1 and "
            f"samples={cfg.samples}"
        )
    if cfg.reward and (cfg.chat or not rows):
        raise ConfigError("reward=... scores answers to prompt=TEXT or prompts=FILE, and a chat has none: name prompts")
    chain = make_revision(cfg, len(rows))
    answerer = Answerer.load(cfg, rows)
    if chain is not None:
        write_pairs(chain, [_turns(cfg.system, row["prompt"]) for row in rows], answerer.answer, cfg)
    elif rows and not cfg.chat:
        _hand_out([row["prompt"] for row in rows], _answers(answerer, rows, cfg), cfg.output)
    else:
        chat(answerer)


def _reward(cfg: DictConfig, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]]) -> Any:
    """What scores the answers, None without a reward; what it lacks is said before weights load.

    Raises:
        ConfigError: it compares more answers to a prompt than there will be.
        ValueError: it reads a column that the prompts lack.
    """
    from rlhf_lightning.cli.instantiate import make
    from rlhf_lightning.rewards import as_reward
    from rlhf_lightning.rewards.base import ColumnReward, smallest_group

    if not cfg.reward:
        return None
    reward = as_reward(make(cfg.reward), tokenizer)
    if cfg.samples < (fewest := smallest_group(reward)):
        raise ConfigError(
            f"reward {reward.name!r} compares the answers to a prompt, at least {fewest} of them, and "
            f"samples={cfg.samples}: set samples={fewest} or more"
        )
    if isinstance(reward, ColumnReward):
        for names in {frozenset(row) for row in rows}:
            reward.check_columns(names)
    return reward


def _answers(answerer: Answerer, rows: Sequence[Mapping[str, Any]], cfg: DictConfig) -> list[list[Answer]]:
    """The answers to each prompt; with a reward each with its score, the best ones first where only some are kept."""
    sampled = answerer.sampled([_turns(cfg.system, row["prompt"]) for row in rows], cfg.samples)
    unscored: Scores = [[None] * len(group) for _, group in sampled]
    scores = answerer.scores(sampled, rows) if cfg.reward else unscored
    answers = []
    for (_, group), found in zip(sampled, scores, strict=True):
        each = [Answer(answerer.text(ids), score) for ids, score in zip(group, found, strict=True)]
        if cfg.keep is not None:
            each = sorted(each, key=lambda answer: -math.inf if answer.score is None else answer.score, reverse=True)
        answers.append(each[: cfg.keep])
    return answers


def read_prompts(cfg: DictConfig) -> Iterator[Mapping[str, Any]]:
    """The prompts that a configuration names, each with the other columns of its row.

    Raises:
        ConfigError: the file is missing, or a line has no prompt.
    """
    if cfg.prompt is not None:
        yield {"prompt": str(cfg.prompt)}
    if cfg.prompts is None:
        return
    file = Path(cfg.prompts).expanduser()
    if not file.is_file():
        raise ConfigError(f"prompts={cfg.prompts}: there is no such file")
    text = file.read_text(encoding="utf-8")
    if file.suffix not in (".json", ".jsonl"):
        yield from ({"prompt": line} for line in text.splitlines() if line.strip())
        return
    try:
        rows = json.loads(text) if file.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line]
    except json.JSONDecodeError as error:
        raise ConfigError(f"prompts={cfg.prompts} is not JSON: {error}") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, (str, dict)) or (isinstance(row, dict) and not isinstance(row.get("prompt"), str)):
            raise ConfigError(f'{file}:{number} has no text under "prompt"')
        yield {"prompt": row} if isinstance(row, str) else row


def chat(answerer: Answerer) -> None:
    """A conversation on the terminal; ``/new`` starts another, ``/quit`` or Ctrl-D ends it."""
    if sys.stdin.isatty():
        ERR.print("[dim]/new starts over, /quit or Ctrl-D ends[/]")
    system, turns = answerer.cfg.system, _turns(answerer.cfg.system)
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if text == "/quit":
            return
        if text == "/new":
            turns = _turns(system)
        elif text:
            turns.append({"role": "user", "content": text})
            answer = answerer.answer([turns])[0][0]
            turns.append({"role": "assistant", "content": answer})
            OUT.print(answer, markup=False)


def _turns(system: str | None, *users: str) -> Turns:
    start: Turns = [{"role": "system", "content": system}] if system else []
    return start + [{"role": "user", "content": text} for text in users]


def _hand_out(prompts: list[str], answers: list[list[Answer]], output: str | None) -> None:
    if output is not None:
        pairs = [(prompt, answer) for prompt, group in zip(prompts, answers, strict=True) for answer in group]
        file = Path(output).expanduser()
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(answer.row(prompt), ensure_ascii=False) + "\n" for prompt, answer in pairs]
        file.write_text("".join(lines), encoding="utf-8")
        ERR.print(f"{len(lines)} responses in {output}")
        return
    for prompt, group in zip(prompts, answers, strict=True):
        if len(prompts) > 1:
            OUT.print(f"[bold]{'>'}[/] ", end="")
            OUT.print(prompt, style="bold", markup=False)
        for answer in group:
            if answer.score is not None:
                OUT.print(f"[dim]{answer.score:.4g}[/]", end="  ")
            OUT.print(answer.text, markup=False)
            if len(group) > 1 or len(prompts) > 1:
                OUT.print()


def device_of(name: str) -> str:
    """The device that a name stands for: ``auto`` is the GPU where there is one."""
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
