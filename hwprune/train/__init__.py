"""Training: accuracy (``evaluate``), BatchNorm statistics (``bn``), the loss (``loss``) and fine-tuning (``finetune``)."""
