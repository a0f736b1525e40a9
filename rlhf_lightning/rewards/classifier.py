"""A text classifier as a reward: the probability of one of its labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from rlhf_lightning.models.loading.weights import check_classifier
from rlhf_lightning.options import Count
from rlhf_lightning.rewards.model import ModelReward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ClassifierReward(ModelReward):
    r"""P(label | prompt, response) of a sequence-classification model, in [0, 1].

    A softmax over the labels, or a sigmoid where there is one output, such as a run of ``method=binary_discrimination``
    exports. With a negative weight in a :class:`~rlhf_lightning.rewards.Composite` it is the second term of

    .. math:: R(x, y) = R_\theta(x, y) - \alpha\, P(\text{label} \mid x, y)

    under which a policy looks for what the classifier overlooks.

    Source: "Unveiling the Implicit Toxicity in Large Language Models", arXiv:2311.17391.

    Args:
        tokenizer: of whoever made the token ids; None: the classifier's own.
        path: folder or hub id of the classifier.
        label: name of the label in the model's configuration, or its number; None where there is one output.
        name: what the probabilities are logged under.
        dtype: of the weights.
        device: ``auto`` takes CUDA where there is some.
        max_tokens: of a batch, prompts and responses.
        max_length: longest prompt with a response, in tokens; see :class:`~rlhf_lightning.rewards.ModelReward`.

    Raises:
        ValueError: the label is none of the model's, or several labels and none was chosen. No weights were loaded.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        path: str,
        label: str | int | None = None,
        name: str = "classifier",
        dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32",
        device: str = "auto",
        max_tokens: Count = 16_384,
        max_length: Count | None = None,
    ) -> None:
        position = _position(path, label)
        options: dict[str, Any] = {"dtype": dtype, "device": device, "max_tokens": max_tokens, "max_length": max_length}
        super().__init__(tokenizer, path=path, name=name, output=position, **options)

    def numbers(self, outputs: Tensor) -> Tensor:
        """Probability of the label, from the outputs of the head, ``[n, outputs]``."""
        if outputs.shape[1] == 1:
            # Our exports keep a head's bias as a mean of the scores.
            score = self.model.normalized(outputs[:, 0]) if self.decoder else outputs[:, 0]
            return score.float().sigmoid()
        return outputs.float().softmax(-1)[:, self.output]


def _position(path: str, label: str | int | None) -> int:
    from transformers import AutoConfig

    folder = Path(path).expanduser()
    config = AutoConfig.from_pretrained(str(folder) if folder.exists() else path, trust_remote_code=False)
    check_classifier(path, config.architectures)
    names = {int(number): str(name) for number, name in config.id2label.items()}
    if label is None:
        if len(names) > 1:
            raise ValueError(f"reward.label is missing: {path} has the labels {', '.join(names.values())}")
        return 0
    positions = [number for number, name in names.items() if label in (number, name)]
    if not positions:
        raise ValueError(f"reward.label={label!r}, but {path} has the labels {', '.join(names.values())}")
    return positions[0]
