"""Recovery of a run: stop requests, restarts, roll-backs, the watchdog, checks before a resume."""
