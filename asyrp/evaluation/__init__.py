"""--evaluate: metrics, their networks, and tables."""
