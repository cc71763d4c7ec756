"""What a run does when something fails: stop requests, restarts, roll-backs, the watchdog, checks before a resume."""
