"""The details of published PPO implementations: what each is called, the option that makes it, the test of it.

Numbers are those of "The N Implementation Details of RLHF with PPO"; M are the switches of MOSS-RLHF's code
(arXiv:2307.04964).
"""

from __future__ import annotations

from dataclasses import dataclass

HERE = "tests.methods.test_ppo_details"
PPO_TESTS, SHAPING, TEMPORAL = "tests.methods.test_ppo", "tests.methods.test_shaping", "tests.credit.test_temporal"
ONLINE = "tests.trajectory.test_online_critic"


@dataclass(frozen=True)
class Detail:
    """A detail, the overrides that make it (none: always so), and where its behaviour is tested."""

    number: str
    what: str
    overrides: tuple[str, ...]
    test: str


DETAILS = [
    Detail(
        "1",
        "reward and value see prompt and response",
        (),
        "tests.models.critics.test_critic.test_all_kinds_start_with_the_same_values_and_log_probs",
    ),
    Detail(
        "2",
        "padding is a token of its own, never EOS",
        ("model=smollm2", "model.pad_token='<|endoftext|>'"),
        "tests.models.test_sources.test_padding_with_eos_is_refused",
    ),
    Detail(
        "3",
        "positions count from the prompt's first token",
        ("model.backend=padded",),
        f"{HERE}.test_positions_do_not_depend_on_padding",
    ),
    Detail(
        "4",
        "fixed length, no EOS, no top-k",
        ("method.rollout.ignore_eos=true", "method.rollout.top_k=0", "method.rollout.top_p=1.0"),
        f"{HERE}.test_generation_to_the_full_length",
    ),
    Detail(
        "5",
        "learning rate falls linearly to 0",
        ("scheduler=linear", "scheduler.warmup=0.0"),
        f"{HERE}.test_the_learning_rate_falls_to_zero",
    ),
    Detail(
        "6",
        "every process draws other samples",
        ("seed=3",),
        f"{HERE}.test_streams_of_samples_differ",
    ),
    Detail(
        "7",
        "score at the last token only",
        (),
        "tests.credit.test_token_rewards.test_without_kl_only_the_last_token_has_a_reward",
    ),
    Detail(
        "8",
        "reward head N(0, 1/sqrt(d+1)), bias 0",
        (),
        f"{HERE}.test_the_reward_heads_deviation",
    ),
    Detail(
        "9",
        "rewards normalised on reference samples",
        ("method.credit.shaping.scale=ref", "method.credit.shaping.center=true"),
        f"{SHAPING}.test_ref_scale_stays_that_of_the_first_samples",
    ),
    Detail(
        "10",
        "logits divided by the temperature in scoring too",
        ("method.rollout.temperature=0.7",),
        f"{HERE}.test_scores_are_taken_at_the_temperature",
    ),
    Detail(
        "11",
        "value head starts at zero",
        ("method.critic.head=zeros",),
        "tests.models.critics.test_critic.test_values_start_at_zero_by_default",
    ),
    Detail(
        "12",
        "prompts begin and end at a sentence boundary",
        ("data.spec.prompt_start=sentence", "data.spec.prompt_end=sentence", "data.spec.max_prompt_length=64"),
        f"{HERE}.test_prompts_are_whole_sentences",
    ),
    Detail(
        "13",
        "dropout off",
        ("model.dropout=false",),
        f"{HERE}.test_dropout_is_off",
    ),
    Detail(
        "14",
        "cut at the first full stop from token 16, without one -1",
        (
            "method.rollout.truncate_after=13",
            "method.rollout.truncate_from=16",
            "method.credit.shaping.missing_eos=replace",
        ),
        f"{SHAPING}.test_responses_without_an_end",
    ),
    Detail(
        "15",
        "no discount",
        ("method.advantage.gamma=1.0",),
        f"{TEMPORAL}.test_golden",
    ),
    Detail(
        "16",
        "rollout, minibatches, micro-batches",
        (
            "method.rollout.minibatches=2",
            "method.rollout.inner_epochs=4",
            "trainer.accumulate_grad_batches=2",
        ),
        f"{ONLINE}.test_8x1_is_4x2_is_two_processes",
    ),
    Detail(
        "17",
        "KL penalty at every token",
        ("method.kl.apply_to=reward", "method.kl.coef=0.15"),
        "tests.credit.test_token_rewards.test_published_example",
    ),
    Detail(
        "18",
        "whitened rewards and advantages",
        (
            "method.advantage.whiten_rewards=true",
            "method.advantage.unbiased=false",
            "method.credit.whiten=minibatch",
            "method.credit.whiten_unbiased=false",
        ),
        f"{HERE}.test_advantages_are_whitened_over_the_step",
    ),
    Detail(
        "19",
        "clipped value loss",
        ("method.value_loss.clip=0.2",),
        f"{PPO_TESTS}.test_value_loss_by_hand",
    ),
    Detail(
        "20",
        "adaptive KL",
        ("method.kl.controller=adaptive", "method.kl.target=6.0", "method.kl.horizon=10000"),
        f"{HERE}.test_golden_of_the_adaptive_controller",
    ),
    Detail(
        "extra",
        "Adam's epsilon as in TensorFlow",
        ("optimizer=adam_tf",),
        "tests.test_optimizers.test_two_steps_by_hand",
    ),
    Detail(
        "TRL",
        "the KL itself instead of an estimate",
        ("method.kl.estimator=full",),
        "tests.methods.test_full_kl.test_in_the_reward_every_token_is_charged",
    ),
    Detail(
        "N+",
        "EOS trick",
        ("method.credit.shaping.missing_eos=replace", "method.credit.shaping.missing_eos_penalty=1.0"),
        f"{SHAPING}.test_responses_without_an_end",
    ),
    Detail(
        "N+",
        "value net from the reward model",
        (
            "method.critic.kind=separate",
            "+method.critic.source._target_=rlhf_lightning.models.TinyRandom",
        ),
        "tests.models.critics.test_critic.test_a_critic_starts_from_a_reward_model_and_its_head",
    ),
    Detail(
        "M",
        "token-level KL penalty",
        ("method.kl.apply_to=reward", "method.kl.estimator=k1"),
        "tests.credit.test_token_rewards.test_two_responses_by_hand",
    ),
    Detail(
        "M",
        "reward normalised and clipped",
        ("method.credit.shaping.scale=running", "method.credit.shaping.center=true", "method.credit.shaping.clip=10.0"),
        f"{SHAPING}.test_clip_and_scale_in_either_order",
    ),
    Detail(
        "M",
        "advantages clipped",
        ("method.credit.whiten=rollout", "method.credit.clip=0.5"),
        f"{PPO_TESTS}.test_the_whole_loss_is_that_of_a_plain_loop",
    ),
    Detail(
        "M",
        "value loss clipped",
        ("method.value_loss.clip=0.2",),
        f"{PPO_TESTS}.test_value_loss_by_hand",
    ),
    Detail(
        "M",
        "critic trained before the policy",
        ("method.value_loss.critic_warmup=10",),
        f"{PPO_TESTS}.test_in_the_warm_up_the_policy_stands_still",
    ),
    Detail(
        "M",
        "generalised advantages",
        ("method.advantage.lam=0.95",),
        f"{TEMPORAL}.test_equals_the_scan_and_the_plain_loop",
    ),
    Detail(
        "M",
        "clipped surrogate",
        ("method.loss.eps_low=0.2", "method.loss.eps_high=0.2"),
        f"{PPO_TESTS}.test_the_whole_loss_is_that_of_a_plain_loop",
    ),
    Detail(
        "M",
        "gradients clipped by their norm",
        ("trainer.gradient_clip_val=1.0",),
        f"{HERE}.test_gradients_are_clipped",
    ),
    Detail(
        "M",
        "pretraining text mixed in",
        ("method.policy_loss.ptx_coef=0.1",),
        f"{PPO_TESTS}.test_pretraining_text_adds_its_mean_negative_log_likelihood",
    ),
    Detail(
        "M",
        "entropy bonus",
        ("method.policy_loss.entropy_coef=0.01",),
        f"{PPO_TESTS}.test_the_whole_loss_is_that_of_a_plain_loop",
    ),
    Detail(
        "verl",
        "dual clip",
        ("method.loss.dual_clip=3.0",),
        f"{PPO_TESTS}.test_the_whole_loss_is_that_of_a_plain_loop",
    ),
    Detail(
        "ColossalChat",
        "batches of a high ratio skipped",
        ("method.policy_loss.max_ratio=20.0",),
        f"{PPO_TESTS}.test_a_micro_batch_far_off_policy_trains_the_critic_alone",
    ),
    Detail(
        "TRL",
        "missing EOS subtracts",
        ("method.credit.shaping.missing_eos=subtract",),
        f"{SHAPING}.test_responses_without_an_end",
    ),
    Detail(
        "TRL",
        "early stop of the inner epochs",
        ("method.policy_loss.target_kl=0.1",),
        f"{PPO_TESTS}.test_inner_epochs_stop_early",
    ),
    Detail(
        "InstructGPT",
        "average of the weights",
        ("callbacks=[default,ema]", "callbacks.ema.decay=0.992"),
        "tests.callbacks.test_guards.test_average_is_what_is_validated_and_exported",
    ),
]
