"""Training base models, for scripts/train_base_model.py: the settings, the training itself, and the files it leaves."""
