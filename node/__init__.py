"""One machine: the models on its disk, the engines that run them, and its agent on the bus."""
