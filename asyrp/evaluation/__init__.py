"""--evaluate: metrics, the networks behind them, and tables."""
