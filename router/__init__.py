"""Who is in the cluster, which models exist, where a request goes, what happened. Holds the gateway."""
