"""Fields of the create request: those of the SDK's `JobCreateParams` (openai 3.57.0). The guide to
reinforcement fine-tuning names `response_format`, which neither the SDK nor the description has."""

from orchestrate.providers.fields import Fields

FIELDS = Fields(
    sdk="""
        model training_file hyperparameters.batch_size hyperparameters.learning_rate_multiplier
        hyperparameters.n_epochs integrations metadata method.type method.dpo.hyperparameters.batch_size
        method.dpo.hyperparameters.beta method.dpo.hyperparameters.learning_rate_multiplier
        method.dpo.hyperparameters.n_epochs method.reinforcement.grader
        method.reinforcement.hyperparameters.batch_size
        method.reinforcement.hyperparameters.compute_multiplier
        method.reinforcement.hyperparameters.eval_interval method.reinforcement.hyperparameters.eval_samples
        method.reinforcement.hyperparameters.learning_rate_multiplier
        method.reinforcement.hyperparameters.n_epochs method.reinforcement.hyperparameters.reasoning_effort
        method.supervised.hyperparameters.batch_size
        method.supervised.hyperparameters.learning_rate_multiplier
        method.supervised.hyperparameters.n_epochs seed suffix validation_file
    """,
    documentation="method.reinforcement.response_format",
)
