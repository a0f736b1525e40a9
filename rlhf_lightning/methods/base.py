"""The part of a method that Lightning and Fabric see, the same for every data flow."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rlhf_lightning.chat_templates import TrainedTemplate, exported_tokenizer
from rlhf_lightning.losses.options import check_cut, needs, option_values, validate
from rlhf_lightning.methods.optimizers import decay_groups
from rlhf_lightning.methods.progress import restore_loader, settle
from rlhf_lightning.methods.run_schedule import RunSchedule
from rlhf_lightning.methods.state import check_state, reference_state, restore_reference, without_frozen
from rlhf_lightning.methods.step_log import LOGGED, StepLog
from rlhf_lightning.methods.tracking import Means
from rlhf_lightning.models.actor import Actor
from rlhf_lightning.models.adapters.start import AdapterStart
from rlhf_lightning.models.backbone import Backbone
from rlhf_lightning.models.decoding.generation import generate
from rlhf_lightning.models.export.policy import Form, check_export, export
from rlhf_lightning.models.forwarding import report_router_loss
from rlhf_lightning.models.loading.naming import transformers_model
from rlhf_lightning.models.modes import evaluating
from rlhf_lightning.models.roles.models import Models, sharded
from rlhf_lightning.models.roles.reference import Cached, placed
from rlhf_lightning.models.sharding import unsharded
from rlhf_lightning.renamed import class_attribute
from rlhf_lightning.types import PackedBatch, Ragged, SequenceLogProbs, StepOutput

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import OptimizerLRScheduler
    from torch.optim.lr_scheduler import LRScheduler

BatchT = TypeVar("BatchT", bound=PackedBatch)

#: Diagnostics under this prefix are scalars or per-group numbers that a loss reports; they are logged by name.
DIAGNOSTIC = "diagnostic/"
#: Statistics of the policy's head that cost little and are always worth seeing in validation.
STATISTICS = frozenset({"entropy", "top1"})


class AlignmentModule(L.LightningModule, Generic[BatchT]):
    """A policy, its reference and a loss. Subclasses declare what a batch holds and call the loss.

    ``forward(batch)`` computes a scalar and detached diagnostics and touches neither logger, trainer nor optimiser, so
    the same object serves ``Trainer`` and ``Fabric``. ``training_step`` is forward plus logging. The reference is no
    submodule: it is not among the parameters, and of a checkpoint only what cannot be loaded again.

    Args:
        models: builds policy, reference and tokenizer; called once, by ``configure_model``.
        loss: a pure function, or a partial of one. Its positional parameters declare what it needs.
        optimizer: a partial, completed with two parameter groups: matrices, and vectors without weight decay.
        scheduler: a partial, completed with the optimiser and the run's number of steps; stepped every optimiser step.
        statistics: what of ``entropy`` and ``top1`` to compute in training too; validation always has both.
        extra_needs: inputs that the method needs in addition to those of its loss.

    Raises:
        ValueError: the loss has an unknown or missing option, asks for what this method does not provide, or needs a
            reference and ``models`` has none. Nothing was loaded by then.
    """

    kind: ClassVar[str]  #: of the data that its batches hold: "preference" or "supervised"
    draws: ClassVar[bool] = False  #: True where it learns from rollouts of its policy, and its data are prompts
    provides: ClassVar[frozenset[str]]  #: inputs that this method can give to a loss
    monitor: ClassVar[tuple[str, str]] = ("val/loss", "min")  #: the metric that says which weights are best, and how
    actor: Callable[..., Backbone] = Actor  #: what is trained; a class, or a partial of one that a yaml makes

    policy: Any  #: the ``Actor`` that is trained; None until ``configure_model``
    reference: Any  #: a ``Reference``, or None

    def __init__(
        self,
        models: Callable[..., Models],
        loss: Callable[..., Any],
        optimizer: Callable[..., Optimizer] | None = None,
        scheduler: Callable[..., LRScheduler] | None = None,
        *,
        statistics: Sequence[str] = (),
        extra_needs: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__()
        validate(loss)
        self.needs = needs(loss) | extra_needs
        self.statistics = frozenset(statistics)
        # One more than the loss picks from: the token that stands there may be among them.
        self._top_width = 1 + max(option_values(loss, "k"), default=1) if "top_k" in self.needs else None
        self._check(models)
        self.loss = loss
        self.policy = self.reference = None
        self.earlier: dict[str, Any] = {}
        self.tokenizer: Any = None
        self.adapter_start: AdapterStart | None = None
        self.strict_loading = False  # frozen weights are not in checkpoints; check_state is strict about the others
        self.evaluation_weights: Callable[[], AbstractContextManager[None]] = nullcontext
        self._build, self._optimizer, self._schedule = models, optimizer, RunSchedule(scheduler)
        self._step_means, self._validation_means, self._step_log = Means(), Means(), StepLog()
        self._loader_states: list[dict[str, Any]] = []

    @classmethod
    def requires(cls, options: Mapping[str, Any]) -> frozenset[str]:
        """Inputs that a method with these options needs, before anything is loaded: those of its loss.

        Args:
            options: keyword arguments of the class, as a yaml gives them.
        """
        return needs(options["loss"])

    @classmethod
    def kind_with(cls, options: Mapping[str, Any]) -> str:
        """Kind of data that a method with these options, as of ``requires``, learns from."""
        return cls.kind

    def _check(self, models: Callable[..., Models]) -> None:
        """Refuse combinations that could only fail later, after weights were loaded."""
        provides = class_attribute(type(self), "provides", earlier="legal")
        if foreign := sorted(self.needs - provides):
            raise ValueError(
                f"method {type(self).__name__} cannot give a loss {foreign}; it provides {sorted(provides)}. "
                f"Choose a loss for {self.kind} data"
            )
        if "reference" in self.needs and getattr(models, "reference", None) == "none":
            raise ValueError(
                "the loss needs a reference, but reference=none: choose reference=frozen, adapter_off or cached, "
                "or a loss without a reference such as method=simpo"
            )
        if unknown := sorted(self.statistics - STATISTICS):
            raise ValueError(f"method.statistics={unknown} is not computed; choose from {sorted(STATISTICS)}")

    # Building

    def __setattr__(self, name: str, value: Any) -> None:
        # A frozen copy is a module; registered as ours it would be trained, sharded, averaged and saved.
        if name == "reference":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def configure_model(self) -> None:
        """Load the models, once, and shard them when a strategy has set a device mesh."""
        if self.policy is not None:
            return
        build = self._build if self.actor is Actor else partial(self._build, self.actor)
        models = build() if self.device_mesh is None else sharded(build, self.device_mesh, self.trainer)
        if "reference" in self.needs and models.reference is None:
            raise ValueError("the loss needs a reference, but the models have none: set reference=frozen")
        self.policy = models.policy.train()  # transformers hands models out in evaluation mode
        self.reference, self.tokenizer, self.adapter_start = models.reference, models.tokenizer, models.start
        self.earlier = models.earlier

    def setup(self, stage: str) -> None:
        """Hand batches to the model as they are.

        With ``precision=bf16-true`` Lightning would also round other numbers of a batch than token ids: margins, and
        cached reference log-probs, whose sums over a response need more than eight bits.

        Raises:
            ValueError: the loss looks at a whole step at once, and the trainer cuts it.
        """
        if stage == "fit":
            check_cut(self.loss, self.trainer.accumulate_grad_batches * self.trainer.world_size)
        self.trainer.precision_plugin.convert_input = nn.Identity()  # type: ignore[method-assign]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser over the policy's trainable parameters, and the schedule if there is one."""
        if self._optimizer is None:
            raise ValueError("training needs an optimizer: pass one, for example partial(torch.optim.AdamW, lr=1e-6)")
        self.configure_model()
        report_router_loss(transformers_model(self.policy))
        optimizer = self._optimizer(self.parameter_groups())
        # A fused step can unscale gradients itself, so Lightning refuses to clip before it under any mixed precision.
        # Told that it cannot, a gradient scaler (if there is one) unscales first, and clipping works.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        scheduler = self._schedule.of(optimizer, lambda: self.trainer.estimated_stepping_batches)
        if scheduler is None:
            return optimizer
        schedule: Any = {"scheduler": scheduler, "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameters for the optimiser: matrices, and vectors without weight decay."""
        return decay_groups(self.policy.parameters())

    # Computing

    def forward(self, batch: BatchT) -> StepOutput:
        """The loss of a micro-batch, scaled so that the mean over the step's micro-batches is the step's loss.

        A micro-batch without groups has the loss zero, and gradients of zero for everything that is trained.
        """
        stand_in: Any = batch.stand_in  # of the batch's own class
        return self.compute(batch) if stand_in is None else self.compute(stand_in).emptied()

    @abstractmethod
    def compute(self, batch: BatchT) -> StepOutput:
        """Loss and diagnostics of a micro-batch that has groups."""

    def policy_log_probs(self, batch: BatchT) -> SequenceLogProbs:
        """Log-probs of the policy with the statistics that the loss and this mode ask for."""
        wanted = self.statistics if self.training else STATISTICS
        top = {} if self._top_width is None else {"top_width": self._top_width, "top_of": self.negative(batch)}
        log_probs: SequenceLogProbs = self.policy(batch, statistics=wanted | (self.needs & {"collision"}), **top)
        return log_probs

    def negative(self, batch: BatchT) -> Tensor:
        """The responses at whose tokens a loss gets ``top_k``, True or False for each: here all of them."""
        return batch.present

    @torch.no_grad()
    def reference_log_probs(self, batch: PackedBatch) -> SequenceLogProbs | None:
        """The reference's, which a batch may bring along, or None where nobody asks: in training only the loss does."""
        unread = self.training and "reference" not in self.needs
        reference = self._reference_of(batch)
        return None if unread or reference is None else cast(SequenceLogProbs, reference(batch))

    def placed_reference(self) -> Any:
        """The reference on the policy's device and in its dtype, where Lightning brings submodules only; or None."""
        return placed(self.reference, self.policy)

    def _reference_of(self, batch: PackedBatch) -> Any:
        """Source of the reference's log-probs of a batch: the batch where it has them, or the model."""
        return self.placed_reference() if batch.reference_log_probs is None else Cached()

    def _live_reference(self, batch: PackedBatch, **options: Any) -> Any:
        return self.placed_reference()(batch, **options)

    def scaled(self, losses: Tensor, batch: PackedBatch) -> Tensor:
        """Reduce one number a group with the denominator of the whole optimiser step."""
        return losses.sum() / batch.totals.groups * batch.totals.micro_batches

    # Lightning's hooks

    def training_step(self, batch: BatchT, batch_idx: int) -> dict[str, Tensor]:
        """Forward, and the metrics every method has. The extras are detached here, once for all methods."""
        output = self(batch)
        extras = {name: value.detach() for name, value in output.diagnostics.items()}
        self.track("train/loss", output.loss)
        self._track_diagnostics("train/", extras)
        return {"loss": output.loss, **extras}

    def validation_step(self, batch: BatchT, batch_idx: int) -> dict[str, Tensor]:
        """Forward, and the mean loss over the groups."""
        output = self(batch)
        extras = {name: value.detach() for name, value in output.diagnostics.items()}
        self.track("val/loss", extras["group_loss"])
        self._track_diagnostics("val/", extras)
        return {"loss": output.loss, **extras}

    def predict_step(self, batch: BatchT, batch_idx: int) -> SequenceLogProbs:
        """Log-probs of the reference, which a reference cache stores: those of the policy before training."""
        live = self.reference is not None and self.reference.kind != "cached"
        log_probs: SequenceLogProbs = self._live_reference(batch) if live else self.policy(batch)
        return log_probs

    def track(self, name: str, values: Tensor | float) -> None:
        """Take numbers into the mean that is logged as ``name``.

        In training the mean is over the micro-batches and processes of one optimiser step, in validation over the
        whole pass. Callbacks report their metrics here, on every process.

        Args:
            name: such as ``train/reward/margin``.
            values: numbers of any shape, each of which counts once.
        """
        means = self._validation_means if self.trainer.evaluating else self._step_means
        means.add(name, values)

    def _track_diagnostics(self, prefix: str, extras: dict[str, Tensor]) -> None:
        for name, value in extras.items():
            if name.startswith(DIAGNOSTIC):
                self.track(prefix + name.removeprefix(DIAGNOSTIC), value.float())

    def on_train_start(self) -> None:
        """Put the loader and the step's means where the checkpoint left them.

        Lightning restores a loader when it sets it up, but never when the loader was set up before the checkpoint's
        loops were restored, and asking for ``estimated_stepping_batches``, as every schedule does, sets it up.

        Raises:
            ValueError: the loader cannot take the checkpoint's state.
        """
        self._step_log.begin(self.trainer)
        restore_loader(self.trainer, self._loader_states)
        self._loader_states = []
        self._schedule.resume(self.trainer)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Note the learning rate that the step is taken with."""
        self.track("train/lr", float(optimizer.param_groups[0]["lr"]))

    def on_train_batch_end(self, outputs: Any, batch: PackedBatch, batch_idx: int) -> None:
        """Log the means once the step's last micro-batch is done; the callbacks have reported by now."""
        self._end_step()
        means, self._step_log.means = self._step_log.means, {}
        if "train/loss" in means:  # a method may skip a step
            self.log("train/loss", means.pop("train/loss"), prog_bar=True, logger=False)
        self.log_dict(means, logger=False)

    def _end_step(self) -> None:
        """Hand the means of a step that has ended to the loggers, once; a collective call."""
        if self._step_log.due(self.trainer):
            means = self._step_means.pop(self._sum, self.device)
            self._step_log(self.trainer, means | self.derived("train/", means))

    def on_validation_epoch_end(self) -> None:
        """Log the means over the validation data; what an earlier pass had and this one lacks is nan to callbacks."""
        means = self._validation_means.pop(self._sum, self.device)
        means |= self.derived("val/", means)
        self.log_dict(means)
        self._step_log.validated(self.trainer, means)

    def derived(self, prefix: str, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """Additional metrics, made of the means of a step or of a validation pass.

        Args:
            prefix: ``train/`` or ``val/``, which every name begins with.
            means: scalars by name, equal on every process; a name that nothing was tracked under is absent.
        """
        return {}

    def _sum(self, values: Tensor) -> Tensor:
        return self.trainer.strategy.reduce(values, reduce_op="sum")

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was trained and logged, at the end of a step, and of the reference what cannot be loaded again."""
        if "loops" in checkpoint:  # not in one of weights alone
            settle(checkpoint["loops"]["fit_loop"], self.trainer)
            self._end_step()  # a callback may save before the step's own turn to be logged
            checkpoint[LOGGED] = self._step_log.state(self.trainer)
        checkpoint["state_dict"] = without_frozen(self, checkpoint["state_dict"])
        checkpoint.update(self._schedule.state() | reference_state(self))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check the weights before Lightning loads them and put the reference back."""
        self.configure_model()
        if self.trainer.state.fn == "fit":
            self._loader_states = checkpoint["loops"]["fit_loop"]["state_dict"].pop("combined_loader", [])
            self._schedule.load(checkpoint)
            self._step_log.load(self.trainer, checkpoint)
        if "state_dict" in checkpoint:  # FSDP2Strategy has loaded them by now
            check_state(self, checkpoint["state_dict"])
        restore_reference(self, checkpoint)

    # What callbacks ask for

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Name and value of every trainable parameter of the policy."""
        return ((name, p) for name, p in self.policy.named_parameters() if p.requires_grad)

    def sample(self, prompts: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
        """One response of the policy to each prompt; a collective call. Options: of ``models.generate``."""
        return generate(self.policy, prompts, **options)

    @torch.no_grad()
    def log_ratios(self, batches: Sequence[PackedBatch]) -> list[Ragged] | None:
        """Policy less reference log-probs of any tokens, or None without a live reference; a collective call.

        Every process may bring another number of batches: sharded weights are gathered once.
        """
        if self.reference is None or self.reference.kind == "cached":
            return None
        with ExitStack() as stack:
            # Each once, in the same order on every process, which a set of objects does not have.
            for actor in dict.fromkeys((self.policy, getattr(self.reference, "actor", self.policy))):
                stack.enter_context(unsharded(actor))
            stack.enter_context(evaluating(self.policy))
            return [self._log_ratio(batch.to(self.device)) for batch in batches]

    def _log_ratio(self, batch: PackedBatch) -> Ragged:
        policy: SequenceLogProbs = self.policy(batch)
        return policy.log_ratio(self._reference_of(batch)(batch))

    def check_export(self, form: Form = "auto") -> None:
        """Raise a ValueError where :meth:`export` could not write this form; a collective call."""
        check_export(self.policy, self.tokenizer, form)

    def export(self, folder: str | Path, form: Form = "auto", template: TrainedTemplate | None = None) -> Path:
        """Write the policy as a folder that transformers or PEFT loads; a collective call.

        Args:
            folder: made when missing.
            form: see :func:`~rlhf_lightning.models.export.policy.export`.
            template: of the training rows, for the tokenizer beside the weights; None: the tokenizer's own.
        """
        with self.evaluation_weights():
            path = export(self.policy, exported_tokenizer(self.tokenizer, template), folder, form=form)
        if self.adapter_start is not None and form != "merged" and self.global_rank == 0:
            self.adapter_start.note(path)
        return path
