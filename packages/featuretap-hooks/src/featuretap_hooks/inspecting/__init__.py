"""What the code of a model may do, read off its bytecode; nothing is run."""
