"""Fields of the create request: those of the SDK's `FinetuneRequest` (together 3.1.1), and of the published
description (2026-04-28) where it has others."""

from orchestrate.providers.fields import Fields

FIELDS = Fields(
    sdk="""
        training_file validation_file packing model n_epochs learning_rate lr_scheduler.lr_scheduler_type
        lr_scheduler.lr_scheduler_args.min_lr_ratio lr_scheduler.lr_scheduler_args.num_cycles warmup_ratio
        max_grad_norm weight_decay n_checkpoints n_evals max_seq_length batch_size
        gradient_accumulation_steps suffix wandb_key wandb_base_url wandb_project_name wandb_name
        wandb_entity random_seed early_stopping_enabled early_stopping_patience early_stopping_min_delta
        early_stopping_warmup_evals training_type.type training_type.lora_r training_type.lora_alpha
        training_type.lora_dropout training_type.lora_trainable_modules training_method.method
        training_method.train_on_inputs training_method.dpo_beta
        training_method.dpo_normalize_logratios_by_length training_method.dpo_reference_free
        training_method.rpo_alpha training_method.simpo_gamma from_checkpoint multimodal_params.train_vision
        from_hf_model hf_model_revision hf_api_token hf_output_repo_name
    """,
    specification="train_on_inputs wandb_api_key",
)
