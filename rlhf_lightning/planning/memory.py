"""Bytes of one process, by part, counted from shapes."""

from __future__ import annotations

from dataclasses import dataclass, fields

from rlhf_lightning.planning.job import Job, Strategy

_HEAD_BUFFERS = 3  # a block of logits, its probabilities, their gradient
_SEGMENT = 4  # bytes of a float32 number, which norms are computed in


@dataclass(frozen=True)
class Memory:
    """Bytes that one process holds at the peak of a step.

    What the libraries hold, what single operations hold for a moment, and what the allocator keeps of freed memory is
    not counted.
    """

    weights: int
    reference: int
    critic: int  #: weights of a critic of its own; its gradients and optimiser state are in those
    gradients: int
    optimizer: int
    gathered: int  #: weights that sharding puts together for a moment
    activations: int
    head: int
    copy: int  #: weights that draw responses
    cache: int  #: keys and values of responses that are drawn

    @property
    def peak(self) -> int:
        """Bytes of the larger of the two phases: training, or drawing, when there are no gradients or activations."""
        held = self.weights + self.reference + self.critic + self.optimizer + self.copy
        training = self.gradients + self.gathered + self.activations + self.head
        return held + max(training, self.cache + self.gathered)

    def parts(self) -> dict[str, int]:
        """Bytes by part, without those of none."""
        return {field.name: value for field in fields(self) if (value := int(getattr(self, field.name)))}


def memory_of(job: Job, strategy: Strategy, devices: int) -> Memory:
    r"""Bytes of one of ``devices`` processes.

    Under FSDP2 weights, gradients and optimiser state are divided by the number of processes (ZeRO's third stage,
    arXiv:1910.02054, section 5.3), and two layers are whole at a time, the one computed and the one that comes; drawing
    gathers all weights.
    """
    shape = job.shape
    shards = devices if strategy == "fsdp" else 1
    base = shape.parameters * job.weight_bytes
    weights = (base + shape.adapter * job.trained_bytes) / shards
    gradients = job.models * shape.trainable * job.trained_bytes / shards
    compute = 4 if job.precision == "float32" else 2
    whole = 2 * shape.largest if job.draws is None else shape.parameters
    return Memory(
        weights=round(weights),
        reference=round(weights) if job.reference == "copy" else 0,
        critic=round(weights) if job.critic else 0,
        gradients=round(gradients),
        optimizer=round(job.models * shape.trainable * job.optimizer_bytes / shards),
        gathered=round(whole * compute) if shards > 1 else 0,
        activations=job.models * activations(job, job.micro_tokens(devices)),
        head=_HEAD_BUFFERS * min(job.head_block, 4 * shape.vocabulary * _response_tokens(job, devices)),
        copy=0 if job.draws is None else shape.parameters * job.draws.copy_bytes,
        cache=_cache(job, devices),
    )


def activations(job: Job, tokens: int) -> int:
    r"""Bytes that the backward pass keeps of a micro-batch; the attention matrix is not among them.

    Of each token a layer with RMSNorm and a gated MLP keeps, as transformers computes it and autograd keeps it (compare
    arXiv:2205.05198, section 4): twice the norm's input, its normalised input and its output (3 w each; w: width),
    queries and what attention gives (heads x head width each), keys and values, and gate, up, their activation and
    product (4 inner). Norms are computed in float32 under any precision. Under mixed precision half-precision copies of
    the weights are kept as well. With checkpointing, one layer's activations exist at a time, and the input of each.
    """
    shape = job.shape
    attention = 2 * (shape.heads + shape.kv_heads) * shape.head_width
    full, other = _SEGMENT, (4 if job.precision == "float32" else 2)
    normalised = full if job.precision != "half" else other
    norms = 2 * shape.width * (full + normalised + other)
    if job.precision == "mixed":
        norms += 2 * shape.width * full  # the output in float32 and its half-precision copy
    layer = norms + other * (attention + 4 * shape.inner)
    copies = 2 * (shape.matrices + shape.head) if job.precision == "mixed" else 0
    if not job.checkpointing:
        return tokens * shape.layers * layer + copies
    return tokens * (layer + shape.layers * shape.width * other) + copies // max(shape.layers, 1)


def _response_tokens(job: Job, devices: int) -> int:
    return job.micro_groups(devices) * job.responses * job.response


def _cache(job: Job, devices: int) -> int:
    """Keys and values of one decode batch at full length; a prompt's are kept for each of its responses."""
    if job.draws is None:
        return 0
    rows = min(job.draws.batch, -(-job.groups * job.draws.minibatches // devices) * job.draws.responses)
    return rows * (job.prompt + job.response) * job.shape.cache_numbers * job.draws.cache_bytes
