"""Training: accuracy (``evaluate``), BatchNorm statistics (``bn``), the loss (``loss``), fine-tuning (``finetune``)."""
