"""Session-wide set-up: no test reaches the internet."""
