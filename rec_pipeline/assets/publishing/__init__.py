"""What goes live: the serving bundle, everybody's lists, the generation in Redis."""
