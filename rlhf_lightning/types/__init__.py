"""Every tensor that crosses a border between packages, with its shape.

Axis names, used everywhere with one meaning:

* ``tokens``: all tokens of a packed row, prompts and responses end to end;
* ``prompts``: the groups of a batch (a group is one prompt with its responses);
* ``responses``: the responses of a batch, group by group;
* ``response_tokens``: the *scored* tokens of all responses, response by response. A response's end-of-sequence
  token is scored; prompt tokens, padding and the user turns inside a multi-turn response never are.

Log-probabilities are in nats.
"""

from rlhf_lightning.types.batches import (
    AttributesBatch,
    ComparisonBatch,
    ContextBatch,
    Example,
    InstructionBatch,
    JudgedBatch,
    PackedBatch,
    ParaphraseBatch,
    PreferenceBatch,
    RankedBatch,
    SafetyBatch,
    StepsBatch,
    SupervisedBatch,
    UnpairedBatch,
)
from rlhf_lightning.types.layer_states import LayerStates
from rlhf_lightning.types.prompt_form import PromptForm
from rlhf_lightning.types.ragged import (
    ActionValues,
    JudgedPair,
    Moments,
    Pair,
    Paraphrases,
    Ragged,
    SequenceLogProbs,
    SequencePredictions,
    StepTotals,
    TopTokens,
)
from rlhf_lightning.types.results import (
    GroupLoss,
    MeasuredLoss,
    PreferenceLoss,
    StepOutput,
    TokenLoss,
    Weighted,
)
from rlhf_lightning.types.rolled import CreditRule, Rolled, Trained
from rlhf_lightning.types.rollouts import (
    Credit,
    Draw,
    Episodes,
    Finish,
    Remote,
    RolloutBatch,
    RolloutOptions,
    Sample,
    SampleGroup,
    Sampling,
    ScoredGroup,
    Source,
    ended_by_text,
    sample_groups,
)
from rlhf_lightning.types.selection import DATA, NONE, Selected

__all__ = [
    "DATA",
    "NONE",
    "ActionValues",
    "AttributesBatch",
    "ComparisonBatch",
    "ContextBatch",
    "Credit",
    "CreditRule",
    "Draw",
    "Episodes",
    "Example",
    "Finish",
    "GroupLoss",
    "InstructionBatch",
    "JudgedBatch",
    "JudgedPair",
    "LayerStates",
    "MeasuredLoss",
    "Moments",
    "PackedBatch",
    "Pair",
    "ParaphraseBatch",
    "Paraphrases",
    "PreferenceBatch",
    "PreferenceLoss",
    "PromptForm",
    "Ragged",
    "RankedBatch",
    "Remote",
    "Rolled",
    "RolloutBatch",
    "RolloutOptions",
    "SafetyBatch",
    "Sample",
    "SampleGroup",
    "Sampling",
    "ScoredGroup",
    "Selected",
    "SequenceLogProbs",
    "SequencePredictions",
    "Source",
    "StepOutput",
    "StepTotals",
    "StepsBatch",
    "SupervisedBatch",
    "TokenLoss",
    "TopTokens",
    "Trained",
    "UnpairedBatch",
    "Weighted",
    "ended_by_text",
    "sample_groups",
]
