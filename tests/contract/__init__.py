"""Our GPU transports and the order of an update against vLLM's own code, without a GPU."""
