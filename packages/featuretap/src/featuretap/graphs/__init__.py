"""What becomes of a recorded graph: pruned, written as Python, installed, pickled, traced again."""
