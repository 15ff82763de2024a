"""What goes on around one trace: where in the model it is, and what is switched for it and back."""
