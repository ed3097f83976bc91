"""Getting models from a hub: what to fetch (plan), where it is (hub), and fetching it (download)."""
