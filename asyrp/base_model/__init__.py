"""Training base models, for scripts/train_base_model.py: settings, trainer, and output files."""
