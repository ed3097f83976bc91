"""The models of the cluster and the hub they come from: what is supported, registered, on its way, and ready."""
