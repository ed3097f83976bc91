"""Who may: users, sessions, API keys and their limits, known to every gateway of the cluster."""
