"""``rlhf generate``: responses of a model or of a run; a chat without prompts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from rlhf_lightning import clock
from rlhf_lightning.cli.chat import chat
from rlhf_lightning.cli.compose import compose
from rlhf_lightning.cli.config_file import escaped
from rlhf_lightning.cli.console import ERR, setup_logging
from rlhf_lightning.cli.counted import counted
from rlhf_lightning.cli.errors import ConfigError
from rlhf_lightning.cli.overrides import readable
from rlhf_lightning.cli.responses import Response, check_reference, hand_out, log_ratios, summary
from rlhf_lightning.cli.revise import make_revision, write_pairs
from rlhf_lightning.cli.runs import read_config, take_over, weights_of, with_prompting
from rlhf_lightning.cli.schema import check_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf_lightning.data.rows.messages import Turns
    from rlhf_lightning.data.tokens.prompt_transforms import PromptTransform
    from rlhf_lightning.models.actor import Actor
    from rlhf_lightning.models.decoding.loop import Processor
    from rlhf_lightning.models.guidance import Guidance
    from rlhf_lightning.rewards.base import Scores
    from rlhf_lightning.types import SampleGroup

#: What a run decides unless the user does.
_FROM_RUN = ("model", "adapter", "prompting")
#: Options whose text may hold anything, so that nobody has to know Hydra's quotes.
_FREE_TEXT = ("prompt", "system")


def main(arguments: Sequence[str]) -> int:
    """``rlhf generate key=value ...``."""
    run(arguments)
    return 0


def run(arguments: Sequence[str], config_dirs: Sequence[str] = ()) -> dict[str, float]:
    """Generate as options describe.

    Args:
        arguments: options of ``rlhf generate``.
        config_dirs: other folders with config groups.

    Returns:
        Metrics; see :func:`generate`.
    """
    cfg, overrides = composed(arguments, config_dirs)
    if cfg.run:
        cfg = from_run(cfg, read_config(cfg.run), overrides)
        clock.take_over(Path(cfg.run).expanduser())
    check_config(cfg, "generate", overrides)
    setup_logging()
    return generate(cfg)


def composed(arguments: Sequence[str], config_dirs: Sequence[str] = ()) -> tuple[DictConfig, list[str]]:
    """The configuration, and the overrides less ``prompt=`` and ``system=``, whose text is taken as it was typed."""
    texts = {key: text for key, _, text in (argument.partition("=") for argument in arguments) if key in _FREE_TEXT}
    overrides = readable(argument for argument in arguments if argument.partition("=")[0] not in texts)
    cfg = compose("generate", overrides, config_dirs=config_dirs, check=False)
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


@dataclass
class Responder:
    """A model, its tokenizer and template: from conversations to responses."""

    actor: Actor
    encoder: Any  #: data.tokens.encode.Encoder
    template: Any  #: data.tokens.templates.ChatTemplate or None
    cfg: DictConfig
    reward: Any = None  #: rewards.Reward or None
    guidance: Guidance | None = None
    reference: Actor | None = None  #: model to compare samples with

    @classmethod
    def load(cls, cfg: DictConfig, rows: Sequence[Mapping[str, Any]] = ()) -> Responder:
        """Load the model of a configuration, with the weights of ``cfg.run`` if it names one, after what scores.

        Args:
            cfg: of the command.
            rows: of the prompts, for a reward that reads their columns.
        """
        from rlhf_lightning.cli.guidance import make_guidance
        from rlhf_lightning.cli.instantiate import make
        from rlhf_lightning.data.tokens.encode import Encoder
        from rlhf_lightning.data.tokens.templates import resolve
        from rlhf_lightning.models.roles.builder import ModelBuilder
        from rlhf_lightning.models.roles.reference import ReferenceKind
        from rlhf_lightning.models.roles.trained import adapter_of_run, load_trained

        spec, source, adapter = make(cfg.spec), make(cfg.model), make(cfg.adapter)
        if cfg.run:
            adapter = adapter_of_run(adapter, weights_of(cfg.run, cfg.ckpt_path), source.sizes().layers)
        builder = ModelBuilder(source, adapter, ReferenceKind.NONE)
        template = resolve(builder.tokenizer(), spec)
        guidance = make_guidance(cfg.get("guidance"), builder)
        reward = _reward(cfg, builder.tokenizer(), rows)
        reference = make(OmegaConf.select(cfg, "reference.source"))
        if reference is not None:
            builder.check_vocabulary(reference, "reference.source")
        models = builder()
        actor = models.policy
        if cfg.run:
            load_trained(weights_of(cfg.run, cfg.ckpt_path), actor, models.start)
        encoder = Encoder(builder.tokenizer(), spec, template)
        compared = None if reference is None else ModelBuilder(reference, None, ReferenceKind.NONE)().policy
        device = device_of(cfg.device)
        frozen = None if compared is None else compared.to(device).requires_grad_(False).eval()
        return cls(actor.to(device), encoder, template, cfg, reward, guidance, frozen)

    def responses(self, conversations: Sequence[Turns], samples: int = 1) -> list[list[str]]:
        """Draw ``samples`` responses to each conversation."""
        groups = self.sampled(conversations, samples)
        return [[self.text(ids) for ids in group.responses] for group in groups]

    def respond(self, conversation: Turns, processor: Processor) -> str:
        """Draw the response to one conversation; the processor sees every token as it is drawn."""
        (group,) = self.sampled([conversation], 1, processor=processor)
        return self.text(group.responses[0])

    def sampled(
        self,
        conversations: Sequence[Turns],
        samples: int,
        rows: Sequence[Mapping[str, Any]] = (),
        processor: Processor | None = None,
    ) -> list[SampleGroup]:
        """Draw ``samples`` responses to each conversation.

        Args:
            conversations: the conversations.
            samples: responses to each.
            rows: of the conversations, for a reward that reads their columns.
            processor: see :func:`rlhf_lightning.models.decoding.generation.sample`.
        """
        from rlhf_lightning.data.tokens.prompt_transforms import form_of
        from rlhf_lightning.models.decoding.generation import sample
        from rlhf_lightning.types import SampleGroup, Sampling

        form = form_of(self.transform, self.encoder.tokenizer)
        if self.transform is not None:
            self.transform.prepare(conversations)
        prompts = [self.prompt_ids(conversation, self.transform) for conversation in conversations]
        repeated = [ids for ids in prompts for _ in range(samples)]
        with counted("responses", len(repeated), shown=len(repeated) > self.cfg.batch_size) as progress:
            samples_drawn = sample(
                self.actor,
                repeated,
                Sampling(self.cfg.max_new_tokens, float(self.cfg.temperature), float(self.cfg.top_p), form=form),
                streams=[(self.cfg.seed, number) for number in range(len(repeated))],
                batch_size=self.cfg.batch_size,
                processor=processor,
                guide=None if self.guidance is None else self.guidance.guide(self.actor),
                progress=progress,
            )
        drawn = iter(samples_drawn)
        columns = rows or [{}] * len(prompts)
        return [
            SampleGroup(ids, [next(drawn) for _ in range(samples)], row)
            for ids, row in zip(prompts, columns, strict=True)
        ]

    @property
    def transform(self) -> PromptTransform | None:
        """Transform of the prompts; None: they are rendered unchanged."""
        transform: PromptTransform | None = self.encoder.spec.prompting
        return transform

    def rewritten(self, conversation: Turns) -> str | None:
        """The query as the transform of the prompts has it; None where it leaves the query as it is.

        A plain transform writes whole prompts in which the query stands as it was.
        """
        from rlhf_lightning.prompting.base import query_of

        if self.transform is None or self.transform.plain:
            return None
        changed = self.transform(conversation)
        asked = str(changed[query_of(changed)]["content"])
        return asked if asked != conversation[query_of(conversation)]["content"] else None

    def text(self, ids: Sequence[int]) -> str:
        """Decode a response; a space before a plain continuation separates it from the prompt and is kept."""
        text = str(self.encoder.tokenizer.decode(ids, skip_special_tokens=True))
        plain = self.template is None and self.transform is None
        return text.rstrip() if plain else text.strip()

    def scores(self, groups: Sequence[SampleGroup]) -> Scores:
        """Score every response by ``reward``."""
        from rlhf_lightning.models.decoding.generation import generate as sample
        from rlhf_lightning.rewards.base import introduce, score_groups

        # A judge without a server asks the model that drew the responses.
        introduce(self.reward, SimpleNamespace(sample=partial(sample, self.actor), policy=self.actor))
        scores = score_groups(self.reward, groups)[0]
        count, without = sum(map(len, scores)), sum(score is None for group in scores for score in group)
        if without:
            ERR.print(f"reward {self.reward.name!r} could not judge {without} of {count} responses", markup=False)
        return scores

    def prompt_ids(self, conversation: Turns, transform: PromptTransform | None) -> list[int]:
        """The prompt's ids exactly as training makes them, under a transform or as it is."""
        from rlhf_lightning.data.tokens.conversations import Rendered
        from rlhf_lightning.data.tokens.prompt_transforms import prompt_text

        if transform is not None:
            conversation = transform(conversation)
        if self.template is None or (transform is not None and transform.plain):
            rendered = Rendered(conversation[-1]["content"], [], [], templated=False)
        else:
            rendered = Rendered(prompt_text(conversation, self.template), [], [], self.template.brings_bos)
        return list(self.encoder.encode([rendered])[0].prompt)


def generate(cfg: DictConfig) -> dict[str, float]:
    """Respond to ``prompt``, to every prompt of the file ``prompts``, or in a chat on the terminal.

    Returns:
        Metrics of the responses to prompts; see :func:`rlhf_lightning.cli.responses.statistics`.

    Raises:
        ConfigError: no such file or run, or prompts in an unknown form.
    """
    rows = list(read_prompts(cfg))
    if cfg.temperature == 0 and cfg.samples > 1:
        raise ConfigError("temperature=0 always gives the same response: set samples=1 or a temperature above 0")
    if cfg.keep is not None and (not cfg.reward or not 1 <= cfg.keep <= cfg.samples):
        raise ConfigError(
            f"keep={cfg.keep} keeps the best responses by reward: choose reward=... and keep between 1 and "
            f"samples={cfg.samples}"
        )
    if cfg.reward and (cfg.chat or not rows):
        raise ConfigError(
            "reward=... scores responses to prompt=TEXT or prompts=FILE, and a chat has none: give prompts"
        )
    check_reference(cfg, len(rows))
    chain = make_revision(cfg, len(rows))
    responder = Responder.load(cfg, rows)
    if chain is not None:
        write_pairs(chain, [_turns(cfg.system, row["prompt"]) for row in rows], responder.responses, cfg)
    elif rows and not cfg.chat:
        responses = _responses(responder, rows, cfg)
        hand_out([row["prompt"] for row in rows], responses, cfg.output)
        if cfg.reward or responder.reference is not None:
            return summary(responses, cfg, responder.guidance)
    else:
        chat(responder, lambda folder: Responder.load(composed([f"run={folder}"])[0]))
    return {}


def _reward(cfg: DictConfig, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Mapping[str, Any]]) -> Any:
    """Make the reward of the responses; None without one. Missing parts are reported before weights load.

    Raises:
        ConfigError: it compares more responses to a prompt than there will be.
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
            f"reward {reward.name!r} compares the responses to a prompt, at least {fewest} of them, but "
            f"samples={cfg.samples}: set samples={fewest} or more"
        )
    if isinstance(reward, ColumnReward):
        for names in {frozenset(row) for row in rows}:
            reward.check_columns(names)
    return reward


def _responses(responder: Responder, rows: Sequence[Mapping[str, Any]], cfg: DictConfig) -> list[list[Response]]:
    """Draw responses to each prompt, with scores if there is a reward; best first if only some are kept."""
    conversations = [_turns(cfg.system, row["prompt"]) for row in rows]
    groups = responder.sampled(conversations, cfg.samples, rows)
    unscored: Scores = [[None] * len(group.samples) for group in groups]
    scores = responder.scores(groups) if cfg.reward else unscored
    plain = [responder.prompt_ids(conversation, None) for conversation in conversations]
    ratios = log_ratios(responder.reference, plain, groups, cfg.batch_size)
    kept = []
    for turns, group, asked, scores_of_group, kl in zip(conversations, groups, plain, scores, ratios, strict=True):
        texts = [responder.text(ids) for ids in group.responses]
        sizes = [(len(group.prompt), len(asked), len(ids)) for ids in group.responses]
        rewritten = responder.rewritten(turns)
        ends = [sample.finish for sample in group.samples]
        parts = zip(texts, scores_of_group, kl, sizes, ends, strict=True)
        each = [Response(text, score, ratio, size, rewritten, end) for text, score, ratio, size, end in parts]
        if cfg.keep is not None:
            each = sorted(
                each, key=lambda response: -math.inf if response.score is None else response.score, reverse=True
            )
        kept.append(each[: cfg.keep])
    return kept


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
        columns = row if isinstance(row, dict) else {"prompt": row}
        if (prompt := _text(columns.get("prompt"))) is None:
            raise ConfigError(f'{file}:{number} has no text under "prompt", and no single turn of a user')
        yield {**columns, "prompt": prompt}


def _text(prompt: Any) -> str | None:
    """Text of a prompt that is a text or a conversation of one user turn, as data sets have them; None of others."""
    match prompt:
        case [{"role": "user", "content": text}]:
            return _text(text)
        case str():
            return prompt
    return None


def _turns(system: str | None, *users: str) -> Turns:
    start: Turns = [{"role": "system", "content": system}] if system else []
    return start + [{"role": "user", "content": text} for text in users]


def device_of(name: str) -> str:
    """The device that a name stands for: ``auto`` is the GPU where there is one."""
    import torch

    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
