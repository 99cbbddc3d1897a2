"""Results as people look at them: pictures, charts, logs of losses, report.html."""
